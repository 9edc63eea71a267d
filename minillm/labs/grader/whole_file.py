"""The task of the whole file counts only if the tasks that it builds on give right answers.

The engine meets few of the cases of a part: three requests never fork a table whose pool is full. So a file
whose parts are wrong there may still run in the engine.

    3.6  a wrong answer in some case         3.9 gets no points, and its message names 3.6
    3.6  right answers that cost too much    3.9 is judged by its own cases; they have a cost side too
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minillm.labs.grader.lab import Lab
from minillm.labs.grader.result import TaskResult


def held_back(lab: Lab, results: Sequence[TaskResult]) -> list[TaskResult]:
    """`results`, in the order of the tasks; the whole file's without points if another task is wrong."""
    pairs = list(zip(lab.tasks, results, strict=True))
    wrong = [task.number for task, result in pairs if task.part and not result.is_right]
    return [
        _held(result, wrong) if wrong and not task.part and result.status == "ok" else result
        for task, result in pairs
    ]


def _held(result: TaskResult, wrong: Sequence[str]) -> TaskResult:
    message = (
        f"your file runs in the engine, whose requests do not meet every case; these points need "
        f"{', '.join(wrong)} too"
    )
    return replace(result, earned=0, status="held", message=message, is_right=False)
