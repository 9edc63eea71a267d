"""A recorded run in Chrome's trace event format, for ui.perfetto.dev and chrome://tracing.

    process "engine"      | step 1                    | step 2          |       each with its phases:
                          | schedule | run | commit   | ...                     schedule, reserve, run, commit
                          counters: blocks, sequences, rows
    process "requests"    r1  | queue | prefill | decode      | preempted | prefill | decode |
                          r2      | queue           | prefill | decode |

A thread of "requests" is one request. It is in `prefill` from its admission (or its return after a
preemption) to its next token, in `decode` until it ends or is preempted. A request with several samples
decodes while any of them does. Lengths of steps and phases are measured, and so is the end of a step. Inside
a step the phases follow each other from its start, because the little time between them is not in the trace.

Format: "Trace Event Format" (Google): "X" is a span, "C" a counter, "i" an instant, "M" a name; times in
microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minillm.observe.events import Event
from minillm.observe.trace_file import Trace

ENGINE, REQUESTS = 1, 2  # process ids
PHASES = ("schedule", "reserve", "run", "commit")
COUNTERS: Mapping[str, Mapping[str, str]] = {
    "KV blocks": {"used": "used", "cached": "cached", "free": "free"},
    "sequences": {"running": "running", "waiting": "waiting"},
    "rows": {"prefill": "prefill_tokens", "decode": "decode_rows"},
}
INSTANTS = ("evict", "refuse", "preempt")
# What a request does after an event.
_NEXT = {
    "queue": "queue",
    "admit": "prefill",
    "preempt": "preempted",
    "resume": "prefill",
    "cancel": "cancelled",
}


def chrome_trace(trace: Trace) -> dict[str, Any]:
    """The whole trace as the JSON object that the viewers open."""
    made = [_name("process_name", ENGINE, 0, "engine"), _name("process_name", REQUESTS, 0, "requests")]
    made.append(_name("thread_name", ENGINE, 1, "steps"))
    made += _engine(trace.events, trace.clock)
    made += _requests(trace.events, trace.clock)
    return {"traceEvents": made, "displayTimeUnit": "ms"}


def _engine(events: Sequence[Event], clock: float) -> Iterator[dict[str, Any]]:
    for event in events:
        if event.kind == "step":
            yield from _step(event, clock)
        elif event.kind in INSTANTS:
            place = {"ph": "i", "s": "p", "pid": ENGINE, "tid": 1, "ts": _micros(event.time - clock)}
            yield {
                "name": event.kind,
                **place,
                "args": {k: v for k, v in event.data.items() if k != "tenant"},
            }


def _step(event: Event, clock: float) -> Iterator[dict[str, Any]]:
    end, place = event.time - clock, {"pid": ENGINE, "tid": 1}
    start = end - event["seconds"]
    rows = {"prefill_tokens": event["prefill_tokens"], "decode_rows": event["decode_rows"]}
    yield _span(f"step {event.step}", start, end, {**place, "args": rows})
    for phase in PHASES:
        seconds = event["phases"].get(phase, 0.0)
        yield _span(phase, start, min(start + seconds, end), place)
        start = min(start + seconds, end)
    for name, fields in COUNTERS.items():
        values = {label: event[field] for label, field in fields.items()}
        yield {"name": name, "ph": "C", "pid": ENGINE, "tid": 0, "ts": _micros(end), "args": values}


class _Life:
    """What one request is doing, and since when."""

    def __init__(self, number: int, event: Event) -> None:
        self.number, self.samples, self.left = number, event["n"], event["n"]
        self.doing, self.since = "queue", event.time

    def turn(self, doing: str, at: float, clock: float) -> Iterator[dict[str, Any]]:
        """Begin to do something else; yield the span that ends."""
        if doing != self.doing:
            place = {"pid": REQUESTS, "tid": self.number}
            if at > self.since and self.doing not in ("cancelled", "ended"):
                yield _span(self.doing, self.since - clock, at - clock, place)
            self.doing, self.since = doing, at


def _requests(events: Sequence[Event], clock: float) -> Iterator[dict[str, Any]]:
    lives: dict[str, _Life] = {}
    for event in events:
        if event.kind == "queue" and event.request_id not in lives:
            lives[event.request_id] = _Life(len(lives) + 1, event)
            label = f"r{len(lives)}: {event['prompt_tokens']} tokens"
            yield _name("thread_name", REQUESTS, len(lives), label)
        elif event.kind == "sample":
            for request_id in dict.fromkeys(request_id for request_id, _ in event["requests"]):
                if request_id in lives:
                    yield from lives[request_id].turn("decode", event.time, clock)
        elif event.request_id in lives:
            yield from _turn(lives[event.request_id], event, clock)
    last = max((event.time for event in events), default=clock)
    for life in lives.values():
        yield from life.turn("ended", last, clock)


def _turn(life: _Life, event: Event, clock: float) -> Iterator[dict[str, Any]]:
    if event.kind == "finish":
        life.left -= 1
        if life.left == 0:
            yield from life.turn("ended", event.time, clock)
    elif event.kind in _NEXT:
        yield from life.turn(_NEXT[event.kind], event.time, clock)


def _span(name: str, start: float, end: float, place: Mapping[str, Any]) -> dict[str, Any]:
    # Both ends are rounded, not the length: spans that touch in time touch in the file.
    begin = _micros(start)
    return {"name": name, "ph": "X", "ts": begin, "dur": _micros(end) - begin, **place}


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _micros(seconds: float) -> int:
    """Nanoseconds would be more than the viewers show; whole microseconds nest exactly."""
    return round(seconds * 1e6)
