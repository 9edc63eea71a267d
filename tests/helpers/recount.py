"""Computes the metrics of a trace again, by other code than minillm's: every time is kept, nothing is shared.

Used to check `EngineMetrics`. `observed` brings what the metrics counted into the same form.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from minillm.observe.events import Event
from minillm.observe.figures import Figures
from minillm.observe.histogram import RELATIVE_ERROR, Histogram
from minillm.observe.online import EngineMetrics

LISTS = (
    "ttft tpot itl queue e2e prompt_sizes output_sizes step_seconds step_tokens batch fragmentation".split()
)
NUMBERS = (
    "requests prompt_tokens cached_tokens prefill_tokens output_tokens preemptions peak_used_blocks steps "
    "wall_seconds drafted accepted"
).split()
COUNTS = "finished refused evicted held".split()


def periods(events: Sequence[Event]) -> list[bool]:
    """For each event whether it happened in a warm-up."""
    inside, found = 0, []
    for event in events:
        inside += {"begin": 1, "end": -1}[event["phase"]] if event.kind == "warmup" else 0
        found.append(inside > 0)
    return found


def recount(events: Sequence[Event], warm: bool = False) -> dict[str, Any]:
    """The figures outside of warm-ups, or of warm-ups only."""
    in_warmup = periods(events)
    here = [event for event, inside in zip(events, in_warmup, strict=True) if inside == warm]
    queued = {e.request_id: e for e in here if e.kind == "queue"}
    strangers = {e.request_id for e in events} - {e.request_id for e in events if e.kind == "queue"}
    found: dict[str, Any] = {name: [] for name in LISTS}
    for request_id, start in queued.items():
        _add_request(found, start, [e for e in events if _concerns(e, request_id)])
    samples = [(e, r) for e in events if e.kind == "sample" for r, _ in e["requests"]]
    here_ids = {id(event) for event in here}
    found["output_tokens"] = sum(
        r in queued or (r in strangers | _unknown(events) and id(e) in here_ids) for e, r in samples
    )
    steps = [event for event in here if event.kind == "step"]
    for step in steps:
        _add_step(found, step, [e for e in events if e.step == step.step])
    found |= _counts(here, queued, events)
    found["wall_seconds"] = _wall(events, in_warmup, warm)
    return found


def _unknown(events: Sequence[Event]) -> set[str]:
    queued = {e.request_id for e in events if e.kind == "queue"}
    return {r for e in events if e.kind == "sample" for r, _ in e["requests"]} - queued


def _concerns(event: Event, request_id: str) -> bool:
    return event.request_id == request_id or (
        event.kind == "sample" and any(r == request_id for r, _ in event["requests"])
    )


def _add_request(found: dict[str, Any], start: Event, own: list[Event]) -> None:
    tokens = [
        e.time for e in own if e.kind == "sample" for r, i in e["requests"] if (r, i) == (start.request_id, 0)
    ]
    every = sum(r == start.request_id for e in own if e.kind == "sample" for r, _ in e["requests"])
    admits = [e for e in own if e.kind == "admit"]
    ends = {e["index"]: e for e in own if e.kind == "finish"}
    found["ttft"] += [tokens[0] - start.time] if tokens else []
    found["itl"] += [b - a for a, b in pairwise(tokens)]
    if len(ends) < start["n"]:
        return
    over = max(e.time for e in ends.values())
    found["e2e"].append(over - start.time)
    found["queue"].append((admits[-1].time if admits else over) - start.time)
    found["tpot"] += [(tokens[-1] - tokens[0]) / (len(tokens) - 1)] if len(tokens) > 1 else []
    found["prompt_sizes"].append(start["prompt_tokens"])
    found["output_sizes"].append(every)


def _add_step(found: dict[str, Any], step: Event, own: list[Event]) -> None:
    before = own[: next(i for i, e in enumerate(own) if e is step)]
    rows = [e["rows"] for e in before if e.kind == "speculate"] or [step["decode_rows"]]
    found["step_seconds"].append(step["seconds"])
    found["step_tokens"].append(step["prefill_tokens"] + rows[-1])
    found["batch"].append(step["decode_rows"] + sum(e.kind == "prefill_chunk" for e in before))
    found["fragmentation"] += [step["waste"] / step["slots"]] if step["slots"] else []


def _counts(here: list[Event], queued: dict[str, Event], events: Sequence[Event]) -> dict[str, Any]:
    admitted, finished = dict[str, Event](), Counter[str]()
    sampled = {r for e in events if e.kind == "sample" for r, i in e["requests"] if i == 0}
    for request_id, start in queued.items():
        own = [e for e in events if e.request_id == request_id]
        ends = {e["index"]: e["reason"] for e in own if e.kind == "finish"}
        finished += Counter([ends[0]]) if len(ends) == start["n"] else Counter()
        admits = [e for e in own if e.kind == "admit"]
        if admits and (request_id in sampled or len(ends) == start["n"]):
            admitted[request_id] = admits[-1]
    outcomes = [o for e in here if e.kind == "speculate" for o in e["outcomes"]]
    steps = [e for e in here if e.kind == "step"]
    total = Counter[str]()
    for step in steps:
        total.update(step["held"])
    return {
        "requests": len(queued),
        "prompt_tokens": sum(queued[r]["prompt_tokens"] for r in admitted),
        "cached_tokens": sum(e["cached_tokens"] for e in admitted.values()),
        "prefill_tokens": sum(e["end"] - e["start"] for e in here if e.kind == "prefill_chunk"),
        "preemptions": sum(e.kind == "preempt" for e in here),
        "peak_used_blocks": max((s["used"] for s in steps), default=0),
        "steps": len(steps),
        "drafted": sum(drafted for drafted, _, _ in outcomes),
        "accepted": sum(accepted for _, _, accepted in outcomes),
        "finished": dict(finished),
        "refused": dict(Counter(e["reason"] for e in here if e.kind == "refuse")),
        "evicted": dict(
            sum((Counter({e["cause"]: e["blocks"]}) for e in here if e.kind == "evict"), Counter())
        ),
        "held": dict(total),
    }


def _wall(events: Sequence[Event], in_warmup: list[bool], warm: bool) -> float:
    """Each uninterrupted stretch from its first request or step to the end of its last step."""
    total, starts, ends = 0.0, list[float](), list[float]()
    for event, inside in [*zip(events, in_warmup, strict=True), (None, not warm)]:
        if inside != warm or event is None or event.kind == "warmup":
            total += max(ends) - min(starts) if ends else 0.0
            starts, ends = [], []
        elif event.kind in ("queue", "step"):
            starts.append(event.time - (event["seconds"] if event.kind == "step" else 0))
            ends += [event.time] if event.kind == "step" else []
    return total


def tenants(events: Sequence[Event]) -> dict[str, tuple[int, int, int, int, int]]:
    """By label: requests, prompt, cached and output tokens, refusals. Warm-ups are left out."""
    in_warmup, found = periods(events), dict[str, tuple[int, int, int, int, int]]()
    here = [event for event, inside in zip(events, in_warmup, strict=True) if not inside]
    for label in {e["tenant"] for e in here if e.kind in ("queue", "refuse")}:
        own = {e.request_id: e for e in here if e.kind == "queue" and e["tenant"] == label}
        counts = _counts(here, own, events)
        output = sum(r in own for e in events if e.kind == "sample" for r, _ in e["requests"])
        refused = sum(e.kind == "refuse" and e["tenant"] == label for e in here)
        found[label or "other"] = (
            len(own),
            counts["prompt_tokens"],
            counts["cached_tokens"],
            output,
            refused,
        )
    return found


def faults(metrics: EngineMetrics, events: Sequence[Event]) -> list[str]:
    """The names of all figures that are not those of the trace."""
    found = [
        f"{period}.{name}"
        for period, figures, warm in (("steady", metrics.steady, False), ("warmup", metrics.warmup, True))
        for name in figure_faults(figures, recount(events, warm))
    ]
    use = {
        k: (u.requests, u.prompt_tokens, u.cached_tokens, u.output_tokens, u.refused)
        for k, u in metrics.tenants
    }
    return found + (["tenants"] if use != tenants(events) else [])


def figure_faults(figures: Figures, expected: dict[str, Any]) -> list[str]:
    wrong = [name for name in LISTS if not same_values(getattr(figures, name), expected[name])]
    wrong += [name for name in NUMBERS if getattr(figures, name) != expected[name]]
    return wrong + [name for name in COUNTS if dict(getattr(figures, name)) != expected[name]]


def same_values(histogram: Histogram, values: list[float]) -> bool:
    """Whether the histogram has counted these values: exact where it is exact, else within its error."""
    if not values:
        return histogram.count == 0
    ends = histogram.count, histogram.min, histogram.max, histogram.sum
    if ends != (len(values), min(values), max(values), math.fsum(values)):
        return False
    below = [*(sum(v <= bound for v in values) for bound in histogram.bounds), len(values)]
    ordered = sorted(values)
    exact = [ordered[max(0, math.ceil(p * len(values)) - 1)] for p in (0.5, 0.9, 0.95, 0.99)]
    near = zip(histogram.percentiles((0.5, 0.9, 0.95, 0.99)), exact, strict=True)
    return histogram.cumulative() == below and all(
        e * (1 - RELATIVE_ERROR) <= found <= e for found, e in near
    )
