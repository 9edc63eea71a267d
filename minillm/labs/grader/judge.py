"""The verdict on one task: compare the answers with the engine's own, and name the mistake if it is known.

A diagnosis is never guessed. Each task has a table of implementations that are wrong in one known way. They
run on the same cases. If one gives the same answers as the student's file in every case, its diagnosis is
shown. An exception is the same answer if its type and its place in the engine are the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from minillm.labs.grader.answers import NoMemory, NotDone, answer
from minillm.labs.grader.codec import Raised, decode
from minillm.labs.grader.compare import Difference, difference
from minillm.labs.grader.lab import Case, Cost, Task
from minillm.labs.grader.meter import Passes
from minillm.labs.grader.reference import Reference
from minillm.labs.grader.result import TaskResult, failed

NO_MEMORY = "the file needs more memory than a check may use"


def verdict(
    task: Task, answers: list[Any], right: Reference, passes: list[Passes] | None = None
) -> TaskResult:
    """The result of a task whose cases were answered by `answers`, with so many passes of the model."""
    if fault := right.fault(task):
        return failed(task, "error", f"the check itself failed: {fault}")
    expected = [right.expected(task, i) for i in range(len(task.cases))]
    found = [difference(e, a) for e, a in zip(expected, answers, strict=True)]
    first = next((i for i, diff in enumerate(found) if diff), None)
    if first is not None:
        is_right = all(map(_is_right, task.cases, expected, answers))
        return replace(_wrong(task, first, found[first], answers, right), is_right=is_right)
    for i, mine in enumerate(passes or []):
        own = right.passes(task, i)
        if mine.layers > own.layers or mine.rows > own.rows:
            return replace(_too_many_passes(task, i, mine, own), is_right=True)
    return TaskResult(task.number, task.title, task.points, task.points, "ok", is_right=True)


def _is_right(case: Case, expected: Any, actual: Any) -> bool:
    """Whether the answer to a case is right, whatever it costs."""
    return case.side == "cost" or difference(_without_costs(expected), _without_costs(actual)) is None


def _without_costs(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [_without_costs(item) for item in value if not isinstance(item, Cost)]


def judge(
    task: Task, mine: Any, own: Any, file: Path | None = None, right: Reference | None = None
) -> TaskResult:
    """Run every case of `task` on `mine` in this process, and compare with `own`. For trusted code."""
    try:
        answers = [decode(answer(case, mine, file)) for case in task.cases]
    except NotDone as todo:
        return failed(task, "todo", str(todo))
    except NoMemory:
        return failed(task, "memory", NO_MEMORY)
    return verdict(task, answers, right or Reference(lambda _: own))


def diagnose(task: Task, first: int, answers: list[Any], right: Reference) -> str:
    """The known mistake that gives the same answer in every case, or "".

    Case `first` is the first that differs; it is compared first because most mistakes differ there.
    """
    order = [first, *(i for i in range(len(answers)) if i != first)]
    for number, mistake in enumerate(task.mistakes):
        if all(_is_same(right.mistaken(task, i, number), answers[i]) for i in order):
            return mistake.diagnosis
    return ""


def _is_same(known: Any, actual: Any) -> bool:
    if isinstance(known, Raised) and isinstance(actual, Raised) and known.place != actual.place:
        return False
    return difference(known, actual) is None


def _wrong(
    task: Task, first: int, diff: Difference | None, answers: list[Any], right: Reference
) -> TaskResult:
    """The result of a task whose case `first` is the first that differs, by `diff`."""
    diagnosis, name, got = diagnose(task, first, answers, right), task.cases[first].name, answers[first]
    if isinstance(got, Raised) and not isinstance(right.expected(task, first), Raised):
        message = f"{name}: {got.kind}: {got.message}" if got.message else f"{name}: {got.kind}"
        return replace(failed(task, "error", message), diagnosis=diagnosis)
    diff = diff or Difference("", "", "")
    return replace(
        failed(task, "wrong", name),
        where=diff.where,
        expected=diff.expected,
        actual=diff.actual,
        rows=diff.rows,
        diagnosis=diagnosis,
    )


def _too_many_passes(task: Task, case: int, mine: Passes, own: Passes) -> TaskResult:
    """All answers are right, but the model ran more often, or over more rows, than the answers tell."""
    more = (
        f"the model runs {mine.layers} layers over {mine.rows} rows, {own.layers} over {own.rows} are needed"
    )
    return failed(task, "wrong", f"{task.cases[case].name}: {more}")
