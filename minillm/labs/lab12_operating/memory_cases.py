"""Task 12.6, fragmentation and headroom: cases and known mistakes of `memory_use`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import Any

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake
from minillm.labs.lab12_operating.runs import cut, example, hidden, preempting, samples, several
from minillm.observe.events import Event
from minillm.observe.memory_use import MemoryUse, memory_use

Use = Callable[[Iterable[Event]], Any]


def use_case(name: str, events: Callable[[], Iterable[Event]]) -> Case:
    """What is found in a trace."""
    return Case(name, lambda use: list(use(events())))


def step_event(number: int, slots: int, waste: int, cached: int = 0, free: int = 9, used: int = 7) -> Event:
    """A made `step` event."""
    data = {"slots": slots, "waste": waste, "cached": cached, "free": free, "used": used}
    return Event("step", number, number / 8, "", data)


def in_turns(use: Use) -> list[Any]:
    """Two traces in turns, the first twice."""
    return [list(use(run.events)) for run in (several(), preempting(), several())]


def use_cost(use: Use) -> Counted:
    """The lines for a trace of 160 steps."""
    events = list(UNEVEN) * 40
    use(several().events)
    return within(40 * len(events), counted_lines(partial(use, events)), LINES)


def events_of(kind: str, seed: int) -> Sequence[Event]:
    """The events of another run."""
    return hidden(kind, seed).events


def more_memory(random: Random) -> Iterable[Case]:
    """Other runs."""
    for kind in ("memory", "batching"):
        seed = random.randrange(1 << 30)
        yield use_case(f"{kind}, seed {seed}", partial(events_of, kind, seed))


UNEVEN = (step_event(4, 8, 6), step_event(5, 80, 8), step_event(6, 16, 12, 3, 1), step_event(7, 40, 9, 2, 6))
MEMORY_CASES = (
    use_case("three requests", lambda: several().events),
    use_case("a pool that preempts", lambda: preempting().events),
    use_case("requests with several samples", lambda: samples().events),
    use_case("a run in which the cache fills the pool", lambda: example("batching").events),
    use_case("a pool that is too small", lambda: example("memory").events),
    use_case("the second half of a run", lambda: cut(example("burst"))),
    use_case("four uneven steps, 4 to 7", lambda: UNEVEN),
    use_case("a step without slots", lambda: (step_event(1, 0, 0, 2, 3), *UNEVEN[1:])),
    use_case("a step without waste", lambda: (step_event(3, 8, 0),)),
    use_case("no slots in any step", lambda: (step_event(1, 0, 0), step_event(2, 0, 0, 4, 1))),
    use_case("no step", lambda: [event for event in several().events if event.kind != "step"]),
    use_case("an iterator of events", lambda: iter(several().events)),
    Case("two traces in turns", in_turns, "aliasing"),
    Case("the work for a trace of 160 steps", use_cost, "cost"),
)


# --- known mistakes ----------------------------------------------------------------------------------------

Steps = Sequence[Event]


def with_other(**others: Callable[[Steps], Any]) -> Use:
    """The right figures, and others in their place."""

    def use(events: Iterable[Event]) -> Any:
        steps = [event for event in events if event.kind == "step"]
        return memory_use(steps)._replace(
            **{name: get(steps) for name, get in others.items()} if steps else {}
        )

    return use


def share(step: Event) -> float:
    """Of one step; 0 without slots."""
    return step["waste"] / step["slots"] if step["slots"] else 0.0


def mean_share(steps: Steps, skips_empty: bool = False) -> float:
    """The mean of the steps' shares."""
    shares = [share(step) for step in steps if step["slots"] or not skips_empty]
    return sum(shares) / len(shares) if shares else 0.0


def ratio(top: Callable[[Event], int], bottom: Callable[[Event], int], steps: Steps) -> float:
    """A ratio of sums."""
    below = sum(map(bottom, steps))
    return sum(map(top, steps)) / below if below else 0.0


def worst(steps: Steps, key: Callable[[Event], float], last: bool = False) -> Event | None:
    """The step with the largest `key`; of those with slots."""
    filled = [step for step in steps if step["slots"]]
    return max(reversed(filled) if last else filled, key=key, default=None)


def number(step: Event | None) -> int | None:
    """The number of a step."""
    return None if step is None else step.step


def always_divides(events: Iterable[Event]) -> MemoryUse:
    """Divides by the slots of every step."""
    trace = list(events)
    for event in trace:
        if event.kind == "step":
            event["waste"] / event["slots"]
    return memory_use(trace)


def place_of_worst(steps: Steps) -> int | None:
    """The place among the step events."""
    found = worst(steps, share)
    return None if found is None else next(i for i, step in enumerate(steps) if step is found)


def reads_again(events: Iterable[Event]) -> MemoryUse:
    """Compares each step with all steps."""
    trace = list(events)
    for step in trace:
        for other in trace:
            if step.kind == other.kind == "step" and other["free"] < 0:
                break
    return memory_use(trace)


MEMORY_MISTAKES = (
    Mistake(
        "the mean of the steps' shares: a step with few slots counts as much as a full one. Divide the sums",
        with_other(fragmentation=partial(mean_share, skips_empty=True)),
    ),
    Mistake(
        "the mean of the steps' shares: a step with few slots counts as much as a full one. Divide the sums",
        with_other(fragmentation=mean_share),
    ),
    Mistake(
        "only the last step's fragmentation: it is over all steps",
        with_other(fragmentation=lambda steps: share(steps[-1])),
    ),
    Mistake(
        "the largest share of a step: fragmentation is over all steps",
        with_other(fragmentation=lambda steps: max(map(share, steps))),
    ),
    Mistake(
        "the share of the slots that have a token: fragmentation is the rest",
        with_other(
            fragmentation=partial(
                ratio, lambda step: step["slots"] - step["waste"], lambda step: step["slots"]
            )
        ),
    ),
    Mistake(
        "waste is divided by the slots with a token: divide by all allocated slots",
        with_other(
            fragmentation=partial(
                ratio, lambda step: step["waste"], lambda step: step["slots"] - step["waste"]
            )
        ),
    ),
    Mistake(
        "only free blocks are headroom: cached ones are evicted when room is needed",
        with_other(headroom=lambda steps: min(step["free"] for step in steps)),
    ),
    Mistake(
        "headroom is taken from the last step: look for the smallest of all",
        with_other(headroom=lambda steps: steps[-1]["free"] + steps[-1]["cached"]),
    ),
    Mistake(
        "the smallest `free` and the smallest `cached` are of different steps: add first",
        with_other(
            headroom=lambda steps: min(step["free"] for step in steps) + min(step["cached"] for step in steps)
        ),
    ),
    Mistake(
        "the worst step is the one with the most waste: the share counts",
        with_other(worst_step=lambda steps: number(worst(steps, lambda step: step["waste"]))),
    ),
    Mistake(
        "of equal shares the last step is named: the first is the worst",
        with_other(worst_step=lambda steps: number(worst(steps, share, last=True))),
    ),
    Mistake("the place of the worst step in a list: name its `step`", with_other(worst_step=place_of_worst)),
    Mistake("a step without slots has no share: it divides by zero", always_divides),
    Mistake("all steps are read again for every step: one walk is enough", reads_again),
)
