"""Lab 5: continuous batching with chunked prefill. Who runs in the next step, and who has to wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from minillm.engine.request import Request
from minillm.engine.scheduler import AGING_SECONDS, WaitingLine, rank
from minillm.labs.lab import Case, Lab, Mistake, Part, Task
from minillm.labs.plans import CHUNK_CASES, CHUNK_MISTAKES, FIT_CASES, FIT_MISTAKES, waiting_request
from minillm.labs.serving import Ask, name, serve
from minillm.labs.steps import DOOR_CASES, DOOR_MISTAKES, STEP_CASES, STEP_MISTAKES

SCHEDULER = "minillm.engine.scheduler"

# --- 5.1, 5.2 whose turn it is ------------------------------------------------------------------------

Turn = tuple[int, float]  # priority, arrival


def waiting_requests(*turns: Turn) -> list[Request]:
    """Requests with these priorities and arrivals, submitted in this order."""
    return [waiting_request(i, *turn) for i, turn in enumerate(turns)]


def rank_case(title: str, now: float, *turns: Turn) -> Case:
    """The order of the requests by their ranks; the second of two samples comes after the first."""

    def run(rank_of: Callable[..., Any]) -> list[str]:
        requests = waiting_requests(*turns)
        requests.insert(0, replace(requests[0], index=1))
        return [name(r) for r in sorted(requests, key=lambda r: rank_of(r, now))]

    return Case(f"{title}: {_shown(turns)} at {now:g} s", run)


def first_case(title: str, now: float, *turns: Turn) -> Case:
    """Whom a waiting line calls, until nobody is left."""

    def run(line_class: Any) -> list[Any]:
        line, called = line_class(), list[Any]()
        for request in waiting_requests(*turns):
            line.add(request)
        while (request := line.first(now)) is not None and len(called) < len(turns):
            called.append(name(request))
            line.remove(request)
        return [called, request]

    return Case(f"{title}: {_shown(turns)} at {now:g} s", run)


def _shown(turns: Sequence[Turn]) -> str:
    return ", ".join(f"{'abcdefgh'[i]} of priority {p} since {t:g} s" for i, (p, t) in enumerate(turns))


def rank_with(age: Callable[[float], Any], sign: int = 1) -> Callable[..., Any]:
    """`rank` with another idea of age (in agings), or of which priority is high."""

    def wrong(request: Request, now: float) -> tuple[Any, int, int]:
        aged = age((now - request.arrival) / AGING_SECONDS)
        return sign * request.params.priority - aged, request.order, request.index

    return wrong


class CallsTheOldest(WaitingLine):
    """Of all that wait, the first submitted."""

    def first(self, now: float) -> Request | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: r.order, default=None)


class CallsTheFirstLine(WaitingLine):
    """The best priority always goes first, however long others have waited."""

    def first(self, now: float) -> Request | None:
        return self._lines[min(self._lines)][0] if self._lines else None


class CallsTheNewest(WaitingLine):
    """Looks at the wrong end of every line."""

    def first(self, now: float) -> Request | None:
        return min((line[-1] for line in self._lines.values()), key=lambda r: rank(r, now), default=None)


class CallsByOldRank(WaitingLine):
    """By the rank that a request is given when it is admitted."""

    def first(self, now: float) -> Request | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: r.rank, default=None)


class ExpectsSomebody(WaitingLine):
    """Fails where nobody waits."""

    def first(self, now: float) -> Request | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: rank(r, now))


RANK_CASES = (
    rank_case("alike", 5, (0, 1), (0, 2), (0, 3)),
    rank_case("priorities", 5, (2, 0), (0, 1), (1, 2)),
    rank_case("somebody has waited long", 33, (2, 2), (0, 31), (2, 25)),
    rank_case("not quite long enough", 30, (2, 11), (0, 29), (1, 19)),
)
RANK_MISTAKES = (
    Mistake("priorities are ignored", lambda r, now: (r.order, r.index)),
    Mistake("a larger priority goes first here; the smaller one does", rank_with(int, sign=-1)),
    Mistake("waiting does not age: a low priority can wait for ever", rank_with(lambda age: 0)),
    Mistake("waiting makes a request later: take the age off its priority", rank_with(lambda age: -int(age))),
    Mistake("age counts in whole priorities: a part of AGING_SECONDS is worth nothing", rank_with(float)),
    Mistake(
        "samples of one request are not told apart: the sample index comes last",
        lambda r, now: rank(r, now)[:2],
    ),
)
FIRST_CASES = (
    first_case("one line", 5, (0, 1), (0, 2), (0, 3)),
    first_case("three lines", 5, (2, 0), (0, 1), (1, 2), (0, 3)),
    first_case("somebody has waited long", 33, (2, 2), (0, 31), (1, 32)),
    first_case("nobody", 5),
)
FIRST_MISTAKES = (
    Mistake("the first submitted is called, whatever its priority", CallsTheOldest),
    Mistake(
        "a line of low priority is never called while others have requests: compare ranks at `now`",
        CallsTheFirstLine,
    ),
    Mistake("the newest of a line is called: a line is in order of submission", CallsTheNewest),
    Mistake("`request.rank` is from its last admission; ask `rank(request, now)`", CallsByOldRank),
    Mistake("nobody may be waiting: None is the answer then", ExpectsSomebody),
)

# --- 5.7 the engine -----------------------------------------------------------------------------------


def in_engine(asks: Sequence[Ask], num_blocks: int, parts: Any, **config: Any) -> list[Any]:
    """Every step and all answers; the file's waiting line is its scheduler's."""
    return serve({"scheduler": parts.Scheduler}, asks, num_blocks, **config)


RAGGED = (Ask(10, 30), Ask(30, 30), Ask(5, 12, at=2, n=3), Ask(18, 9, at=4), Ask(3, 20, at=5, priority=-1))

LAB = Lab(
    5,
    "scheduler",
    "Continuous batching with chunked prefill",
    (
        Task("5.1", "priority, age, submission", 10, Part(SCHEDULER, "rank"), RANK_CASES, RANK_MISTAKES),
        Task(
            "5.2",
            "the next in turn",
            10,
            Part(SCHEDULER, "WaitingLine", ("first",)),
            FIRST_CASES,
            FIRST_MISTAKES,
        ),
        Task(
            "5.3",
            "the next chunk",
            20,
            Part(SCHEDULER, "Scheduler", ("_prefill",)),
            CHUNK_CASES,
            CHUNK_MISTAKES,
        ),
        Task(
            "5.4",
            "blocks, and who loses them",
            20,
            Part(SCHEDULER, "Scheduler", ("_fits",)),
            FIT_CASES,
            FIT_MISTAKES,
        ),
        Task(
            "5.5",
            "the plan of a step",
            15,
            Part(SCHEDULER, "Scheduler", ("schedule",)),
            STEP_CASES,
            STEP_MISTAKES,
        ),
        Task(
            "5.6", "who may begin", 15, Part(SCHEDULER, "Scheduler", ("_start",)), DOOR_CASES, DOOR_MISTAKES
        ),
        Task(
            "5.7",
            "your scheduler in the running engine",
            10,
            None,
            (
                Case("seven completions, plenty of memory", partial(in_engine, RAGGED, 99)),
                Case("so little memory that requests are preempted", partial(in_engine, RAGGED, 20)),
            ),
        ),
    ),
)
