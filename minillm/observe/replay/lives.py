"""The life of each request: when it waited, which chunks it computed, when its tokens came, how it ended.

    life     [frame, "queue", time, ..], [frame, "admit", time, cached], [frame, "chunk", time, start, end] ..
    tokens   [frame, tokens in it], [frame, tokens in it], ..

The times are seconds since the start of the run. The latencies are those of `metrics.py`, so the page says
what the outputs say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from minillm.observe.events import Event
from minillm.observe.metrics import RequestTimes, Summary

MAX_REQUESTS = 1000  # listed; the others are only counted
MAX_LIFE = 400  # entries of one life
_ENTRIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "queue": ("queue", ("prompt_tokens",)),
    "admit": ("admit", ("cached_tokens",)),
    "prefill_chunk": ("chunk", ("start", "end")),
    "preempt": ("preempt", ("tokens",)),
    "resume": ("resume", ("cached_tokens",)),
    "cancel": ("cancel", ("reason",)),
    "finish": ("finish", ("index", "reason")),
}


def numbered(events: Iterable[Event]) -> dict[str, int]:
    """The listed requests: their ids in the order in which they were queued."""
    ids = dict.fromkeys(event.request_id for event in events if event.kind == "queue")
    return {request_id: number for number, request_id in enumerate(islice(ids, MAX_REQUESTS))}


def lives(
    frames: Iterable[tuple[int, Event]], numbers: Mapping[str, int], summary: Summary, clock: float
) -> list[dict[str, Any]]:
    """One object for each listed request. `clock`: the time that counts as 0."""
    made = [_request(request_id, summary.requests[request_id], clock) for request_id in numbers]
    tokens: list[Counter[int]] = [Counter() for _ in made]
    for frame, event in frames:
        if event.kind == "sample":
            for request_id, _ in event["requests"]:
                if request_id in numbers:
                    tokens[numbers[request_id]][frame] += 1
        elif event.kind in _ENTRIES and event.request_id in numbers:
            _live(made[numbers[event.request_id]], frame, event, clock)
    for request, counted in zip(made, tokens, strict=True):
        request["tokens"] = [[frame, counted[frame]] for frame in sorted(counted)]
    return made


def _request(request_id: str, times: RequestTimes, clock: float) -> dict[str, Any]:
    return {
        "id": request_id,
        "tenant": "",
        "samples": 0,
        "prompt_tokens": times.prompt_tokens,
        "cached_tokens": times.cached_tokens,
        "output_tokens": sum(map(len, times.tokens.values())),
        "submitted": times.submitted - clock,
        "queue": times.queue,
        "ttft": times.ttft,
        "tpot": times.tpot,
        "e2e": times.e2e,
        "drafted": times.drafted,
        "accepted": times.accepted,
        "preemptions": 0,
        "left_out": 0,
        "life": [],
    }


def _live(request: dict[str, Any], frame: int, event: Event, clock: float) -> None:
    if event.kind == "queue":
        request["tenant"], request["samples"] = event["tenant"], event["n"]
    request["preemptions"] += event.kind == "preempt"
    name, fields = _ENTRIES[event.kind]
    if len(request["life"]) < MAX_LIFE or event.kind in ("cancel", "finish"):
        request["life"].append([frame, name, event.time - clock, *(event[field] for field in fields)])
    else:
        request["left_out"] += 1
