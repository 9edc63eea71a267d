"""The figures of a run, from its records and its events. Nothing is measured a second time.

The times come from the trace, by `observe/metrics.py`. Only their origin is changed: to the intended start.

What a request did not get counts as infinitely late: the first token, and the end of a request that failed.
Otherwise an engine that refuses all it cannot serve quickly would have the best percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from minillm.bench.load.generator import Record, Run
from minillm.bench.load.slo import is_met
from minillm.bench.load.stalls import stalls
from minillm.observe.metrics import RequestTimes, Summary, percentile, summarize
from minillm.observe.slo import Slo

SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
LATENCIES: dict[str, Callable[[RequestTimes], Sequence[float | None]]] = {
    "tpot": lambda times: [times.tpot],
    "itl": lambda times: times.itl,
    "queue": lambda times: [times.queue],
}

Times = list[tuple[Record, RequestTimes | None]]  # None: the engine never had the request


def intended_times(run: Run, summary: Summary) -> Times:
    """Every request with its times, which count from its intended start."""
    found = []
    for record in run.records:
        times = summary.requests.get(record.request_id)
        if times is not None and record.intended is not None:
            times = replace(times, submitted=record.intended)
        found.append((record, times))
    return found


def figures(run: Run, slo: Slo, block_size: int, watched: str | None = None) -> dict[str, Any]:
    """All figures of a run, in seconds, tokens and shares. `watched`: a tenant that also has its own.

    The run lasts until the last token or end, or the last request that was refused, if that is later.
    """
    summary = summarize(run.events)
    times = intended_times(run, summary)
    ends = [t.latest for _, t in times if t is not None]
    refused = [record.started for record, t in times if t is None and record.started is not None]
    seconds = max([*ends, *refused], default=run.end) - run.start
    lags = [record.lag for record in run.records if record.lag is not None]
    between = stalls(run.events)
    found = {
        "seconds": seconds,
        **_counts(run.records),
        "requests_per_s": sum(r.failure is None for r in run.records) / seconds,
        "output_tokens_per_s": summary.output_tokens / seconds,
        **_latencies(times, slo, seconds),
        "hit_rate": summary.hit_rate,
        "preemptions": summary.preemptions,
        "fragmentation": fragmentation(run, block_size),
        "steps": summary.steps,
        "failed_steps": len(run.failed_steps),
        "stall_tokens": {**percentiles(between), "most": max(between, default=None)},
        "lag_s": {**percentiles(lags), "most": max(lags, default=None)},
    }
    if watched is not None and any(record.request.tenant == watched for record in run.records):
        own = [(record, t) for record, t in times if record.request.tenant == watched]
        found["watched"] = {**_counts([record for record, _ in own]), **_latencies(own, slo, seconds)}
    return found


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p90, p95 and p99 by the one definition of `observe/metrics.py`; None without values."""
    return {name: percentile(values, share) if values else None for name, share in SHARES.items()}


def fragmentation(run: Run, block_size: int) -> float:
    """The share of the slots in used blocks that held no token, over all steps.

    Only full blocks are shared, so the waste that the events count is in blocks of one sequence each.
    """
    steps = [event for event in run.events if event.kind == "step"]
    slots = sum(event["used"] for event in steps) * block_size
    return sum(event["waste"] for event in steps) / slots if slots else 0.0


def _counts(records: Sequence[Record]) -> dict[str, int]:
    return {
        "requests": len(records),
        "failed": sum(record.failure is not None for record in records),
        "cancelled": sum(record.is_cancelled for record in records),
    }


def _latencies(times: Times, slo: Slo, seconds: float) -> dict[str, Any]:
    met = sum(record.failure is None and is_met(slo, t) for record, t in times)
    known = [t for _, t in times if t is not None]
    ttft = [math.inf if t is None or t.ttft is None else t.ttft for _, t in times]
    e2e = [math.inf if t is None or record.failure is not None else t.e2e for record, t in times]
    return {
        "goodput_per_s": met / seconds,
        "slo_met": met / len(times),
        "ttft": percentiles(ttft),
        "e2e": percentiles(e2e),
        **{
            name: percentiles([value for t in known for value in values(t) if value is not None])
            for name, values in LATENCIES.items()
        },
    }
