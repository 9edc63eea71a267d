"""The result of a task: made in the grader's process, shown in the table and in the JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.labs.grader.lab import Task

Status = Literal[
    "ok",
    "todo",
    "wrong",
    "error",
    "timeout",
    "memory",
    "crash",
    "missing",
    "unloadable",
    "earlier",
    "engine",
    "refused",
    "held",
]


@dataclass(frozen=True)
class TaskResult:
    """The result of one task. Unused texts are empty.

    `rows`: (place, expected, actual) around the first difference. `source`: the lines of the file that the
    message names. `seconds`: from the start of the task to its last answer, in the student's process.
    `is_right`: the answers are right, whatever they cost.
    """

    task: str
    title: str
    points: int
    earned: int
    status: Status
    message: str = ""
    where: str = ""
    expected: str = ""
    actual: str = ""
    diagnosis: str = ""
    rows: tuple[tuple[str, str, str], ...] = ()
    source: str = ""
    seconds: float = 0.0
    is_right: bool = False


def failed(task: Task, status: Status, message: str) -> TaskResult:
    """A result without points."""
    return TaskResult(task.number, task.title, task.points, 0, status, message)
