"""Task 12.7, the culprit of an incident: cases of `diagnose`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted
from minillm.labs.lab12_operating.runs import KINDS, cut, example, hidden
from minillm.observe.events import Event
from minillm.observe.incident import PATIENCE

Diagnose = Callable[[Iterable[Event]], Any]
Held = Mapping[str, int]


def incident_case(name: str, events: Callable[[], Iterable[Event]]) -> Case:
    """The finding of a trace."""
    return Case(name, lambda diagnose: list(diagnose(events())))


def hidden_case(kind: str, seed: int) -> Case:
    """Another run; the name does not tell its kind."""
    return incident_case(f"a recorded run, number {seed}", lambda: hidden(kind, seed).events)


def made(steps: Sequence[Held], arrivals: Mapping[int, int] | None = None, first: int = 1) -> list[Event]:
    """A made trace: who waits in each step, a second long, and how many requests come before it.

    Without `arrivals` one request comes in each second. The first step has the number `first`.
    """
    events = list[Event]()
    for i, held in enumerate(steps):
        count = 1 if arrivals is None else arrivals.get(i, 0)
        events += [Event("queue", first + i, float(i), "r", {"prompt_tokens": 4})] * count
        events.append(Event("step", first + i, i + 0.5, "", {"held": dict(held), "free": 9, "cached": 0}))
    return events


def grows(reasons: Sequence[str], before: int = 8) -> list[Held]:
    """Quiet steps, then one more waits in each step; it lacks what `reasons` says."""
    return [*[{}] * before, *({reason: i + 1} for i, reason in enumerate(reasons)), {}, {}]


def two_peaks() -> list[Event]:
    """Six wait at first, and six again after a crowd; one request comes in each other second."""
    held = [*[6] * 3, *[5] * 10, 6, *[5] * 6]
    arrivals = {i: 1 for i in (*range(8), *range(28, 48))}
    return made([*[{}] * 8, *({"blocks": count} for count in held), *[{}] * 20], {**arrivals, 8: 3, 21: 20})


def preempted_once() -> list[Event]:
    """Places are lacking, and one sequence was preempted in the middle."""
    events = made(grows(["seqs"] * 20))
    return [
        *events[:30],
        Event("preempt", events[30].step, events[30].time, "r", {"tokens": 9}),
        *events[30:],
    ]


def in_turns(diagnose: Diagnose) -> list[Any]:
    """Two incidents in turns, the first twice."""
    return [list(diagnose(example(name).events)) for name in ("memory", "burst", "memory")]


def diagnose_cost(diagnose: Diagnose) -> Counted:
    """The lines for a trace of 160 steps."""
    events = made(grows(["seqs"] * 150))
    diagnose(made(grows(LONG)))
    return within(40 * len(events), counted_lines(partial(diagnose, events)), LINES)


def more_incidents(random: Random) -> Iterable[Case]:
    """A run of every kind."""
    for kind in KINDS:
        yield hidden_case(kind, random.randrange(1 << 30))


LONG = ["blocks"] * (PATIENCE + 4)
HALF = PATIENCE + 4
CROWD = {**{i: 1 for i in range(8)}, 8: 24}
INCIDENT_CASES = (
    incident_case("the healthy run of the handout", lambda: example("healthy").events),
    incident_case("the first incident of the handout", lambda: example("memory").events),
    incident_case("the second incident of the handout", lambda: example("batching").events),
    incident_case("the third incident of the handout", lambda: example("burst").events),
    hidden_case("few tokens", 1),
    hidden_case("tight burst", 2),
    hidden_case("memory", 3),
    hidden_case("batching", 4),
    hidden_case("healthy", 5),
    incident_case("a trace that begins in an incident", lambda: cut(example("batching"), 0.3)),
    incident_case("no events", lambda: ()),
    incident_case("an iterator of events", lambda: iter(example("memory").events)),
    incident_case("exactly as long as an incident must be", lambda: made(grows(LONG[:PATIENCE]))),
    incident_case("one step shorter", lambda: made(grows(LONG[: PATIENCE - 1]))),
    incident_case(
        "many short waits, one after another",
        lambda: made([*grows(LONG[:9]), *grows(LONG[:9], 1), *grows(LONG[:9], 1)]),
    ),
    incident_case(
        "a short wait, two long ones of equal length",
        lambda: made([*grows(LONG[:5]), *grows(["seqs"] * HALF), *grows(LONG[:HALF])], first=31),
    ),
    incident_case(
        "the second wait is longer", lambda: made([*grows(LONG[:PATIENCE]), *grows(["tokens"] * HALF)])
    ),
    incident_case(
        "a few steps lack blocks, more lack places", lambda: made(grows(["blocks"] * 8 + ["seqs"] * 12))
    ),
    incident_case("as many lack blocks as places", lambda: made(grows(["seqs"] * 10 + ["blocks"] * 10))),
    incident_case(
        "places and tokens are both no memory", lambda: made(grows(["blocks", "seqs", "tokens"] * 7))
    ),
    incident_case(
        "a crowd just before the wait begins",
        lambda: made([*[{}] * 8, *({"blocks": 24 - i} for i in range(20)), {}], CROWD),
    ),
    incident_case(
        "a crowd after the peak",
        lambda: made(
            [*[{}] * 8, *({"seqs": 9 - min(i, 8)} for i in range(20)), {}, {}],
            {**{i: 1 for i in range(22)}, 25: 8},
        ),
    ),
    incident_case("the peak is reached twice, a crowd comes between", two_peaks),
    incident_case("a few preemptions, and places are lacking", preempted_once),
    incident_case("all requests came at once", lambda: made([{"seqs": 9}] * 20, {0: 12})),
    incident_case("exactly half of those who wait came at once", lambda: made([{"seqs": 12}] * 20, {0: 6})),
    incident_case(
        "a small crowd, whose excess over the usual rate is exactly half of the peak",
        lambda: made([*[{}] * 8, *[{"seqs": 12}] * 20, {}], {**{i: 1 for i in range(8)}, 8: 8}),
    ),
    incident_case("nobody came in this trace", lambda: made([{"blocks": 3}] * 20, {})),
    Case("two incidents in turns", in_turns, "aliasing"),
    Case("the work for a trace of 160 steps", diagnose_cost, "cost"),
)
