"""Why requests waited: too many came at once, memory was short, or the batch was kept small.

    waiting |        peak
            |       .#.            burst      more came while the queue grew than at the usual rate
            |     .#####.          memory     the first that waits lacks blocks; running ones are preempted
            |   .#########.        batching   it lacks a place or tokens of the step, while blocks are free
            +--begin--------------- steps

The three look alike from outside: a long queue and a slow first token. The remedies differ (more replicas or
a limit of the queue, more KV memory, larger limits), and the wrong one costs money and helps nobody. The load
is looked at first: a burst that the engine cannot take makes requests wait for blocks or places, too.

The method is the USE method's (Gregg, 2013): for every resource its use, saturation and errors. Left out:
several incidents in one trace, and slow steps, whose cause is in `phases`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from minillm.observe.events import Event

Culprit = Literal["none", "burst", "memory", "batching"]
PATIENCE = 16  # steps: a shorter time of waiting is no incident


class Finding(NamedTuple):
    """The cause of an incident, the step in which it begins, and the most sequences that waited."""

    culprit: Culprit
    step: int | None = None
    peak: int = 0


def diagnose(events: Iterable[Event]) -> Finding:
    """Find the incident of a trace, and its cause.

    *The incident.* In a step sequences wait if `event["held"]` is not empty: it counts them by what the first
    of them lacks, as {"blocks": 3}. The incident is the longest run of `step` events one after the other in
    which sequences wait; of equally long runs, the first. If it has fewer than `PATIENCE` steps, the finding
    is `Finding("none")`. It begins at its first step. Its peak is the largest number that waited in a step of
    it, and was reached at the first such step.

    *The burst.* The queue grew from the `step` event before the incident (if there is none, from the first
    event of the trace) to the `step` event of the peak. Count the `queue` events between these two, and the
    seconds. The usual rate is that of the whole trace: the number of `queue` events divided by the seconds
    from the first of them to the last, or 0 if these are 0 s. If more requests came than at the usual rate,
    and this excess is more than half of the peak, the culprit is "burst".

    *Otherwise* it is what was lacking in more steps of the incident: "memory" if it was blocks, and
    "batching" if it was something else. Equally often: "batching".

    The work may grow with the number of events, but not faster.
    """
    trace = list(events)
    begin, end = _longest_wait([i for i, event in enumerate(trace) if event.kind == "step"], trace)
    steps = [event for event in trace[begin:end] if event.kind == "step"]
    if len(steps) < PATIENCE:
        return Finding("none")
    waiting = [sum(event["held"].values()) for event in steps]
    peak = max(waiting)
    if _excess(trace, begin, steps[waiting.index(peak)]) > peak / 2:
        return Finding("burst", steps[0].step, peak)
    lacking = Counter("blocks" in event["held"] for event in steps)
    culprit: Culprit = "memory" if lacking[True] > lacking[False] else "batching"
    return Finding(culprit, steps[0].step, peak)


def _longest_wait(places: list[int], trace: list[Event]) -> tuple[int, int]:
    """The longest run of steps with waiting sequences: the places of its first step and after its last."""
    best, begin, length, longest = (0, 0), 0, 0, 0
    for place in places:
        if not trace[place]["held"]:
            length = 0
            continue
        begin, length = (begin, length + 1) if length else (place, 1)
        if length > longest:
            longest, best = length, (begin, place + 1)
    return best


def _excess(trace: list[Event], begin: int, peak: Event) -> float:
    """How many more requests came than at the usual rate, while the queue grew to `peak`."""
    before = next((i for i in range(begin - 1, -1, -1) if trace[i].kind == "step"), 0)
    arrivals = [event.time for event in trace if event.kind == "queue"]
    until = next(i for i in range(begin, len(trace)) if trace[i] is peak)
    came = sum(event.kind == "queue" for event in trace[before:until])
    span = arrivals[-1] - arrivals[0] if arrivals else 0.0
    usual = len(arrivals) / span * (peak.time - trace[before].time) if span else 0.0
    return came - usual
