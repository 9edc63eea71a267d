"""Run a student's file in child processes, and make a result of everything that happens there.

    parent ---- starts ----> child: loads the file, runs tasks 1 2 3 ...
           <-- answers ------ ...              a deadline for each task; after it: kill, result "timeout"
    then: compare the answers with the engine's own (judge.py)

If a child ends before its last task, the task it was running fails; the next child starts with the task
after it. Titles and points come from the lab, never from the child.
"""

from __future__ import annotations

import hashlib
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from minillm.labs.grader.borrowed import copied
from minillm.labs.grader.codec import decode
from minillm.labs.grader.hidden import read_cases
from minillm.labs.grader.judge import verdict
from minillm.labs.grader.lab import Lab, Task
from minillm.labs.grader.meter import Passes
from minillm.labs.grader.pipe import KEPT_OUTPUT, Child, started
from minillm.labs.grader.places import with_source
from minillm.labs.grader.reference import Reference, known_lab
from minillm.labs.grader.report import Report
from minillm.labs.grader.result import Status, TaskResult, failed
from minillm.labs.grader.sandbox import missing as no_sandbox
from minillm.labs.grader.whole_file import held_back

START_SECONDS = 120.0  # importing torch from a cold disk; no student code runs in this time
BROKEN = "the pipe to the grader is broken: does the file close or write to files it did not open?"


@dataclass(frozen=True)
class Limits:
    """The limits of a check: seconds for each task (and for loading), bytes in addition to torch's own.

    `refuse_copies`: a long part with the engine's own code gets no points, not only a remark.
    """

    seconds: float = 20.0
    memory: int = 1 << 30
    refuse_copies: bool = False


@dataclass
class Outcome:
    """What a child said about one task: an answer to every case, or why there is none."""

    answers: list[Any] = field(default_factory=list)
    passes: list[Passes] = field(default_factory=list)
    failure: tuple[Status, str] | None = None
    seconds: float = 0.0


def check(
    lab: Lab, file: Path, limits: Limits | None = None, seed: int = 0, cases: Path | None = None
) -> Report:
    """Judge every task of `lab` on `file`. Nothing that the file does raises an error here.

    Args:
        seed: adds random cases; 0 adds none.
        cases: a lecturer's file of cases (`hidden.py`).

    Raises:
        UsageError: `cases` is no file of cases.
    """
    limits, file = limits or Limits(), file.resolve()
    hidden = read_cases(lab, cases)
    lab, right = known_lab(str(lab.number), seed, hidden)
    data = file.read_bytes()
    outcomes, output = _outcomes(lab, file, limits, {"lab": str(lab.number), "seed": seed, "cases": hidden})
    text = data.decode(errors="replace")
    results = [_result(task, outcome, right) for task, outcome in zip(lab.tasks, outcomes, strict=True)]
    found = copied(lab, text)
    if limits.refuse_copies:
        results = [_without_copies(result, found) for result in results]
    results = held_back(lab, results)
    return Report(
        [with_source(result, file.name, text) for result in results],
        output[:KEPT_OUTPUT].decode(errors="replace"),
        copied=found,
        sha256=hashlib.sha256(data).hexdigest(),
        seed=seed,
        no_sandbox=no_sandbox(),
    )


def _outcomes(lab: Lab, file: Path, limits: Limits, order: dict[str, Any]) -> tuple[list[Outcome], bytes]:
    """The outcome of every task, and the file's output."""
    outcomes: list[Outcome] = []
    output = b""
    cpu = int(limits.seconds * (len(lab.tasks) + 1) + START_SECONDS)  # a limit in case this process is killed
    with tempfile.TemporaryDirectory(prefix="minillm-lab-") as scratch:
        while len(outcomes) < len(lab.tasks):
            first = {"first": len(outcomes), "memory": limits.memory, "cpu": cpu}
            with started({**order, **first}, file, scratch) as child:
                outcomes += _run(child, lab.tasks[len(outcomes) :], limits)
            output += bytes(child.output)
    return outcomes, output


def _run(child: Child, tasks: Sequence[Task], limits: Limits) -> list[Outcome]:
    """The outcomes of one child: at least one. If the file does not load, every task has the same failure."""
    if child.next(time.monotonic() + START_SECONDS).get("event") != "ready":
        return [_failed("crash", f"the check could not start: {child.last_words()}")] * len(tasks)
    loaded = child.next(time.monotonic() + limits.seconds)
    if loaded.get("event") == "earlier":
        return [_failed("earlier", _text(loaded))] * len(tasks)
    if loaded.get("event") == "refused":
        return [_failed("refused", f"while it is loaded, {_text(loaded)}")] * len(tasks)
    if loaded.get("event") != "loaded":
        why = _text(loaded) or _end(child, limits)[1]
        return [_failed("unloadable", f"the file cannot be loaded: {why}")] * len(tasks)
    outcomes: list[Outcome] = []
    for task in tasks:
        outcomes.append(_task(child, task, limits))
        status = (outcomes[-1].failure or ("", ""))[0]
        # What was refused may last (a replaced function, a thread): the next task gets a new process.
        if status in ("crash", "timeout", "refused") or child.exit_code() is not None:
            break
    return outcomes


def _task(child: Child, task: Task, limits: Limits) -> Outcome:
    """Read the messages of one task, until it is done or something is wrong."""
    outcome, refused = Outcome(), None
    deadline = time.monotonic() + limits.seconds
    while True:
        message = child.next(deadline)
        event = message.get("event")
        try:
            if event == "refused":
                refused = refused or (_status(message), _text(message))
            elif event == "case" and message["task"] == task.number:
                outcome.answers.append(decode(message["answer"]))
                outcome.passes.append(Passes(*map(int, message["passes"])))
            elif event == "end" and message["task"] == task.number:
                return _failed(*(refused or (_status(message), _text(message))))
            elif event == "done" and len(outcome.answers) == len(task.cases):
                outcome.failure, outcome.seconds = refused, float(message["seconds"])
                return outcome
            else:
                return _failed(*(refused or _end(child, limits)))
        except (KeyError, TypeError, ValueError):
            return _failed("crash", BROKEN)


def _result(task: Task, outcome: Outcome, right: Reference) -> TaskResult:
    if outcome.failure:
        result = failed(task, *outcome.failure)
    else:
        result = verdict(task, outcome.answers, right, outcome.passes)
    return replace(result, seconds=outcome.seconds)


def _without_copies(result: TaskResult, found: list[str]) -> TaskResult:
    name = next((name for name in found if name.split()[0] == result.task), "")
    if not name or result.status != "ok":
        return result
    message = f"{name} has the engine's own code"
    return replace(result, earned=0, status="engine", message=message, is_right=False)


def _failed(status: Status, message: str) -> Outcome:
    return Outcome(failure=(status, message))


def _status(message: dict[str, Any]) -> Status:
    known: dict[Any, Status] = {status: status for status in get_args(Status) if status != "ok"}
    return known.get(str(message.get("status")), "crash")


def _text(message: dict[str, Any]) -> str:
    text = message.get("message")
    return "".join(char for char in text if char.isprintable())[:600] if isinstance(text, str) else ""


def _end(child: Child, limits: Limits) -> tuple[Status, str]:
    """The reason why no message arrived."""
    code = child.exit_code()
    if code is None and child.is_late:
        return "timeout", f"no answer after {limits.seconds:g} s: an endless loop?"
    if code is None:
        return "crash", BROKEN
    if code < 0:
        return "crash", f"the process was ended by {signal.Signals(-code).name}"
    return "crash", f"the process ended itself with exit code {code}"
