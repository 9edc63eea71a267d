"""Judge one task: run its cases on both implementations, and name the mistake if it is known.

A diagnosis is never guessed. Each task has a table of implementations that are wrong in one known way. They
run on the same cases. If one gives the same answers as the student's file, its diagnosis is shown.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.errors import MinillmError
from minillm.labs.grader.compare import Difference, difference
from minillm.labs.grader.lab import Case, Task
from minillm.labs.grader.result import TaskResult, failed


@dataclass(frozen=True)
class Raised:
    """An answer that is an exception. Two exceptions of the same type are equal answers."""

    kind: str
    message: str
    is_typed: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and other.kind == self.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    def __repr__(self) -> str:
        return f"raises {self.kind}"


class NotDone(BaseException):
    """The student's code raised NotImplementedError: the task is open, not wrong."""


class NoMemory(BaseException):
    """The student's code reached the memory limit."""


def judge(task: Task, mine: Any, own: Any, file: Path | None = None) -> TaskResult:
    """Run every case of `task` on the student's implementation `mine` and on the engine's `own`."""
    try:
        expected = [answer(case, own) for case in task.cases]
        odd = [e for e in expected if isinstance(e, Raised) and not e.is_typed]
        if odd:
            return failed(task, "error", f"the check itself failed: {odd[0].message}")
        actual = [answer(case, mine, file) for case in task.cases]
    except NotDone as todo:
        return failed(task, "todo", str(todo))
    except NoMemory:
        return failed(task, "memory", "the file needs more memory than a check may use")
    found = [difference(e, a) for e, a in zip(expected, actual, strict=True)]
    first = next((i for i, diff in enumerate(found) if diff), None)
    if first is None:
        return TaskResult(task.number, task.title, task.points, task.points, "ok")
    return _wrong(task, first, found[first], expected, actual)


def _wrong(
    task: Task, first: int, diff: Difference | None, expected: list[Any], actual: list[Any]
) -> TaskResult:
    """The result of a task whose case `first` is the first that differs, by `diff`."""
    diagnosis, name, got = diagnose(task, first, expected, actual), task.cases[first].name, actual[first]
    if isinstance(got, Raised) and not isinstance(expected[first], Raised):
        message = f"{name}: {got.kind}: {got.message}" if got.message else f"{name}: {got.kind}"
        return TaskResult(task.number, task.title, task.points, 0, "error", message, diagnosis=diagnosis)
    where, right, given = (diff.where, diff.expected, diff.actual) if diff else ("", "", "")
    return TaskResult(task.number, task.title, task.points, 0, "wrong", name, where, right, given, diagnosis)


def diagnose(task: Task, first: int, expected: list[Any], actual: list[Any]) -> str:
    """The known mistake that gives the same answer in every case, or "".

    Case `first` is the first that differs; it is compared first because most mistakes differ there.
    """
    order = [first, *(i for i in range(len(expected)) if i != first)]
    for mistake in task.mistakes:
        if all(not difference(answer(task.cases[i], mistake.wrong), actual[i]) for i in order):
            return mistake.diagnosis
    return ""


def answer(case: Case, implementation: Any, file: Path | None = None) -> Any:
    """The result of the case with `implementation`; an exception is an answer too.

    Raises:
        NotDone, NoMemory: the implementation is not written, or reached the memory limit.
    """
    try:
        return case.run(implementation)
    except MemoryError:
        raise NoMemory from None
    except (Exception, SystemExit) as error:
        # Only a stub's message counts: torch also raises NotImplementedError, if a dtype lacks an operation.
        if isinstance(error, NotImplementedError) and (not str(error) or str(error).startswith("Lab ")):
            raise NotDone(str(error)) from None
        if "can't allocate memory" in str(error):  # torch's allocator raises RuntimeError
            raise NoMemory from None
        return Raised(type(error).__name__, _one_line(error, file), isinstance(error, MinillmError))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters, all of them printable."""
    lines = str(error).strip().splitlines()
    return lines[0][:200].encode(errors="replace").decode() if lines else ""


def _one_line(error: BaseException, file: Path | None) -> str:
    """The error's first line, and the number of the last line of the student's file in its traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if file and f.filename == str(file)]
    return first_line(error) + (f" (line {frames[-1].lineno})" if frames else "")
