"""A task's result: what the child process reports and the table shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.labs.grader.lab import Task

Status = Literal[
    "ok", "todo", "wrong", "error", "timeout", "memory", "crash", "missing", "unloadable", "earlier"
]


@dataclass(frozen=True)
class TaskResult:
    """One task's result. Texts are empty where there is nothing to say."""

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
