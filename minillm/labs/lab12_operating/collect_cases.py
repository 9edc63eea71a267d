"""Task 12.1, the times of every request: cases and known mistakes of `request_times`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake
from minillm.labs.lab12_operating.runs import cut, example, hidden, leaving, preempting, samples, several
from minillm.observe.events import Event
from minillm.observe.metrics import RequestTimes, request_times

Collect = Callable[[Iterable[Event]], Mapping[str, RequestTimes]]


def plain(found: Mapping[str, RequestTimes]) -> list[Any]:
    """The times as plain values, in the order of the requests."""
    return [
        [
            request_id,
            [times.submitted, times.prompt_tokens, times.admitted, times.cached_tokens],
            [[index, list(tokens)] for index, tokens in sorted(times.tokens.items()) if tokens],
            [[index, end] for index, end in sorted(times.ends.items())],
        ]
        for request_id, times in found.items()
    ]


def collect_case(name: str, events: Callable[[], Iterable[Event]]) -> Case:
    """The times of the requests in a trace."""
    return Case(name, lambda collect: plain(collect(events())))


def admitted_again() -> Sequence[Event]:
    """The step that admitted the first request was interrupted: it is admitted once more."""
    events = list(several().events)
    place, first = next((i, event) for i, event in enumerate(events) if event.kind == "admit")
    again = replace(first, time=first.time + 0.25, data={**first.data, "cached_tokens": 8})
    return [*events[: place + 1], again, *events[place + 1 :]]


def two_traces(collect: Collect) -> list[Any]:
    """Two traces in turns, with the same request ids; the first result stays as it was."""
    first = collect(several().events)
    before = plain(first)
    second = collect(samples().events)
    return [before, plain(second), plain(first), plain(collect(several().events))]


def collect_cost(collect: Collect) -> Counted:
    """The lines for the last 400 events of a run."""
    events = list(example("healthy").events[-400:])
    collect(several().events)
    return within(20 * len(events), counted_lines(partial(collect, events)), LINES)


def later_part(kind: str, seed: int, share: float) -> Sequence[Event]:
    """The events of a run after a share of them."""
    return cut(hidden(kind, seed), share)


def more_traces(random: Random) -> Iterable[Case]:
    """Parts of other runs."""
    for kind in ("memory", "burst"):
        seed, share = random.randrange(1 << 30), random.random() / 2
        yield collect_case(f"a part of a run, seed {seed}", partial(later_part, kind, seed, share))


COLLECT_CASES = (
    collect_case("three requests", lambda: several().events),
    collect_case("requests with one, three and two samples", lambda: samples().events),
    collect_case("one leaves while it waits, one later", lambda: leaving().events),
    collect_case("preempted and resumed", lambda: preempting().events),
    collect_case("an interrupted step: admitted twice", admitted_again),
    collect_case("the trace begins in the middle", lambda: cut(samples())),
    collect_case("an iterator of events", lambda: iter(several().events)),
    collect_case("no events", lambda: ()),
    Case("two traces in turns", two_traces, "aliasing"),
    Case("the work for a trace of 400 events", collect_cost, "cost"),
)


# --- known mistakes ----------------------------------------------------------------------------------------

Change = Callable[[dict[str, RequestTimes], list[Event]], None]


def changed(change: Change) -> Collect:
    """The right times after a change."""

    def collect(events: Iterable[Event]) -> dict[str, RequestTimes]:
        trace = list(events)
        found = request_times(trace)
        change(found, trace)
        return found

    return collect


def edited(edit: Callable[[list[Event]], list[Event]]) -> Collect:
    """The times of an edited trace."""
    return lambda events: request_times(edit(list(events)))


def first_admission(events: list[Event]) -> list[Event]:
    """Without every second `admit` of a request."""
    kept, seen = list[Event](), set[str]()
    for event in events:
        if event.kind != "admit" or event.request_id not in seen:
            kept.append(event)
        seen |= {event.request_id} if event.kind == "admit" else set()
    return kept


def resumed(events: list[Event]) -> list[Event]:
    """`resume` is taken for an `admit`."""
    return [replace(event, kind="admit") if event.kind == "resume" else event for event in events]


def first_sample(found: dict[str, RequestTimes], _: list[Event]) -> None:
    """Only the first sample's tokens."""
    for times in found.values():
        times.tokens = {index: tokens for index, tokens in times.tokens.items() if index == 0}


def one_list(events: list[Event]) -> list[Event]:
    """The tokens of all samples count as those of the first."""
    return [
        replace(e, data={**e.data, "requests": tuple((name, 0) for name, _ in e["requests"])})
        if e.kind == "sample"
        else e
        for e in events
    ]


def one_end(events: list[Event]) -> list[Event]:
    """Every `finish` is the first sample's."""
    return [
        replace(event, data={**event.data, "index": 0}) if event.kind == "finish" else event
        for event in events
    ]


def submitted_when_admitted(found: dict[str, RequestTimes], _: list[Event]) -> None:
    """The request starts when it is admitted."""
    for times in found.values():
        times.submitted = times.submitted if times.admitted is None else times.admitted


def started_before(events: Iterable[Event]) -> dict[str, RequestTimes]:
    """Requests without a `queue` event start at the trace's first event."""
    trace = list(events)
    known = {event.request_id for event in trace if event.kind == "queue"}
    others = [e.request_id for e in trace if e.kind in ("admit", "resume", "finish")]
    new = [
        Event("queue", 0, trace[0].time, name, {"prompt_tokens": 0})
        for name in dict.fromkeys(others)
        if name not in known
    ]
    return request_times([*new, *trace])


def expects_all(events: Iterable[Event]) -> dict[str, RequestTimes]:
    """Looks every request up without asking whether it is known."""
    trace = list(events)
    known: dict[str, Any] = {event.request_id: event for event in trace if event.kind == "queue"}
    for event in trace:
        for name, _ in event["requests"] if event.kind == "sample" else ():
            known[name]
    return request_times(trace)


def reads_twice(events: Iterable[Event]) -> dict[str, RequestTimes]:
    """Looks for the requests first, then for their events."""
    names = [event.request_id for event in events if event.kind == "queue"]
    found = request_times(events)
    return {name: found[name] for name in names}


def reads_for_each(events: Iterable[Event]) -> dict[str, RequestTimes]:
    """Reads the whole trace for every request."""
    trace = list(events)
    names = [event.request_id for event in trace if event.kind == "queue"]
    return {name: request_times(trace)[name] for name in names}


def admitted_only(found: dict[str, RequestTimes], _: list[Event]) -> None:
    """Leaves out what never ran."""
    for name in [name for name, times in found.items() if times.admitted is None]:
        del found[name]


def finished_at_last_token(found: dict[str, RequestTimes], _: list[Event]) -> None:
    """The end is the newest token."""
    for times in found.values():
        times.ends = {i: times.tokens[i][-1] for i in times.ends if times.tokens.get(i)}


COLLECT_MISTAKES = (
    Mistake(
        "the first `admit` is kept: after an interrupted step a second one replaces it",
        edited(first_admission),
    ),
    Mistake("`resume` is read like `admit`: a preempted request was admitted before", edited(resumed)),
    Mistake("only the tokens of the first sample are kept: `tokens` has all of them", changed(first_sample)),
    Mistake("the tokens of all samples are in one list: each sample index has its own", edited(one_list)),
    Mistake("all ends are stored for the first sample: `finish` has the `index`", edited(one_end)),
    Mistake(
        "a request begins at its `queue` event, not when it is admitted", changed(submitted_when_admitted)
    ),
    Mistake(
        "a request without a `queue` event began before the trace: leave it out, its start is unknown",
        started_before,
    ),
    Mistake("tokens of requests that are not known: a trace may begin in the middle", expects_all),
    Mistake("the events are read twice: an iterator is empty at the second time, make a list", reads_twice),
    Mistake("the whole trace is read again for every request: read each event once", reads_for_each),
    Mistake("requests that were never admitted are left out: they waited, and count", changed(admitted_only)),
    Mistake(
        "an end is the time of its `finish`, not of the newest token: a cancelled request ends later",
        changed(finished_at_last_token),
    ),
)
