"""The figures of an engine as one dictionary of numbers, for JSON and for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from minillm.observe.figures import LATENCIES, Figures
from minillm.observe.histogram import Histogram
from minillm.observe.online import EngineMetrics

SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def report(metrics: EngineMetrics) -> dict[str, Any]:
    """All figures. Times are in seconds; percentiles have the error of `observe/histogram.py`."""
    memory, newest = metrics.memory, metrics.newest
    return {
        "requests": {
            "waiting": metrics.waiting,
            "running": metrics.running,
            "held": dict(newest["held"]) if newest else {},
        },
        "memory": {
            "blocks": memory.blocks,
            "bytes": {name: count * memory.block_bytes for name, count in memory.blocks.items()},
            "headroom_blocks": memory.headroom,
            "headroom_bytes": memory.headroom * memory.block_bytes,
            "fragmentation": memory.fragmentation,
        },
        "steady": report_figures(metrics.steady),
        "warmup": {"startup": dict(metrics.startup), **report_figures(metrics.warmup)},
        "tenants": {label: asdict(use) for label, use in metrics.tenants},
    }


def report_figures(figures: Figures) -> dict[str, Any]:
    """The figures of one period."""
    plain = (
        "requests prompt_tokens cached_tokens hit_rate prefill_tokens output_tokens preemptions "
        "peak_used_blocks steps wall_seconds busy_seconds tokens_per_wall_second tokens_per_busy_second "
        "drafted accepted acceptance flops read_bytes written_bytes"
    )
    counts = ("finished", "refused", "evicted", "held")
    spreads = (*LATENCIES, "step_seconds", "step_tokens", "batch", "fragmentation")
    return {
        **{name: spread(getattr(figures, name)) for name in spreads},
        **{name: getattr(figures, name) for name in plain.split()},
        **{name: dict(getattr(figures, name)) for name in counts},
    }


def spread(histogram: Histogram) -> dict[str, float]:
    """Count, mean, percentiles and extremes; only the count if there are no values."""
    if not histogram.count:
        return {"count": 0}
    found = dict(zip(SHARES, histogram.percentiles(SHARES.values()), strict=True))
    ends = {"min": histogram.min, "max": histogram.max}
    return {"count": histogram.count, "mean": histogram.mean, **found, **ends}
