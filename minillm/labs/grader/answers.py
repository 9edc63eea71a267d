"""Run one case on an implementation. An exception is an answer too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from minillm.errors import MinillmError
from minillm.labs.grader.codec import Raised, decode, encode
from minillm.labs.grader.lab import Case
from minillm.labs.grader.tripwire import ENGINE

_MAX_MESSAGE = 400
_LABS = os.path.join(ENGINE, "labs") + os.sep


class NotDone(BaseException):
    """The student's code raised NotImplementedError: the task is open, not wrong."""


class NoMemory(BaseException):
    """The student's code reached the memory limit."""


def answer(case: Case, implementation: Any, file: Path | None = None) -> Any:
    """The encoded answer of the case with `implementation`; an exception is an answer too.

    Raises:
        NotDone, NoMemory: the implementation is not written, or reached the memory limit.
    """
    try:
        return encode(case.run(implementation))
    except MemoryError:
        raise NoMemory from None
    except (Exception, SystemExit) as error:
        # Only a stub's message counts: torch also raises NotImplementedError, if a dtype lacks an operation.
        if isinstance(error, NotImplementedError) and (not str(error) or str(error).startswith("Lab ")):
            raise NotDone(first_line(error)) from None
        if "can't allocate memory" in str(error):  # torch's allocator raises RuntimeError
            raise NoMemory from None
        return encode(_raised(error, file))


def plain_answer(case: Case, implementation: Any) -> Any:
    """The answer as the grader sees it: encoded and decoded."""
    return decode(answer(case, implementation))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, all of it printable."""
    lines = str(error).strip().splitlines()
    return lines[0][:_MAX_MESSAGE].encode(errors="replace").decode() if lines else ""


def _raised(error: BaseException, file: Path | None) -> Raised:
    lines = [line for name, line, _ in _frames(error) if file and name == str(file)]
    message = first_line(error) + (f" (line {lines[-1]})" if lines else "")
    return Raised(type(error).__name__, message, isinstance(error, MinillmError), _place(error))


def _place(error: BaseException) -> str:
    """Where the engine raised the error; "" if it was the file's code or a lab's own.

    The simulator's errors have a place of their own, by kind, array and statements. A typed error has none: a
    part may raise it itself or let the engine do so.
    """
    place = getattr(error, "place", None)
    if isinstance(place, str):
        return place
    if isinstance(error, MinillmError):
        return ""
    name, _, function = (list(_frames(error)) or [("", 0, "")])[-1]
    is_engine = name.startswith(ENGINE) and not name.startswith(_LABS)
    return f"{name.removeprefix(ENGINE)}:{function}" if is_engine else ""


def _frames(error: BaseException) -> Iterator[tuple[str, int, str]]:
    """(file, line, function) of the traceback. Not `traceback`: it opens the sources."""
    step = error.__traceback__
    while step is not None:
        frame: FrameType = step.tb_frame
        yield frame.f_code.co_filename, step.tb_lineno, frame.f_code.co_name
        step = step.tb_next
