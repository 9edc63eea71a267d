"""The result of a task: the child process reports it, and the table shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.labs.grader.lab import Task

Status = Literal[
    "ok", "todo", "wrong", "error", "timeout", "memory", "crash", "missing", "unloadable", "earlier"
]


@dataclass(frozen=True)
class TaskResult:
    """The result of one task. Unused texts are empty."""

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


def failed(task: Task, status: Status, message: str) -> TaskResult:
    """A result without points."""
    return TaskResult(task.number, task.title, task.points, 0, status, message)
