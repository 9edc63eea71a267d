"""Ctrl-C at a chosen place: an exception raised at the n-th point reached inside the package.

    lines   the point is a line that is about to run                        (sys.settrace, event "line")
    calls   the point is after a call, before its result is stored          (event "opcode")

CPython handles a signal at the start of a function, at a backward jump, and after a call. The two kinds of
points together cover these. Two places are left out because no signal is handled there: the end of a `with`
block, between its last instruction and the call of `__exit__`, and a bare `return name`.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import minillm

PACKAGE = str(Path(minillm.__file__).parent)


@cache
def _no_points(code: CodeType) -> frozenset[int]:
    """Offsets of instructions that start a line but at which no signal is handled."""
    found, made = set(), list(dis.get_instructions(code))
    for i in range(len(made) - 2):
        if all(x.opname == "LOAD_CONST" and x.argval is None for x in made[i : i + 3]):
            found.add(made[i].offset)  # __exit__(None, None, None)
            if made[i - 1].opname == "SWAP":  # the instruction before it moves a result out of the way
                found.add(made[i - 1].offset)
    for a, b in pairwise(made):
        if a.opname.startswith("LOAD_FAST") and b.opname == "RETURN_VALUE":
            found.add(a.offset)
    return frozenset(found)


@cache
def _behind_calls(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions after calls, if both have the same exception handlers."""
    table = dis._parse_exception_table(code)  # type: ignore[attr-defined]

    def handlers(offset: int) -> list[tuple[int, int]]:
        return [(entry.target, entry.depth) for entry in table if entry.start <= offset < entry.end]

    made = list(dis.get_instructions(code))
    calls = ((a, b) for a, b in pairwise(made) if a.opname.startswith("CALL"))
    return frozenset(b.offset for a, b in calls if handlers(a.offset) == handlers(b.offset))


class Points:
    """Counts points and raises at number `target`; `where` is the line of that point."""

    def __init__(self, target: int | None = None, kind: str = "lines") -> None:
        self.target, self.kind = target, kind
        self.count, self.where = 0, ""
        self.places: list[str] = []

    @contextmanager
    def watching(self) -> Any:
        sys.settrace(self._enter)
        try:
            yield self
        finally:
            sys.settrace(None)

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `work` so that its points are counted."""

        def watched(*args: Any) -> Any:
            with self.watching():
                return work(*args)

        return watched

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if self.kind == "calls":
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._at

    def _at(self, frame: FrameType, event: str, arg: Any) -> Any:
        at = frame.f_lasti
        if event == "line":
            is_point = at not in _no_points(frame.f_code)
        else:
            is_point = event == "opcode" and at in _behind_calls(frame.f_code)
        if is_point:
            self._reach(frame)
        return self._at

    def _reach(self, frame: FrameType) -> None:
        number, self.count = self.count, self.count + 1
        if self.target is None:
            self.places.append(place(frame))
        elif number == self.target:
            self.where = place(frame)
            sys.settrace(None)
            raise KeyboardInterrupt(self.where)


def place(frame: FrameType) -> str:
    """File, line and function."""
    code = frame.f_code
    return f"{code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} {code.co_name}"
