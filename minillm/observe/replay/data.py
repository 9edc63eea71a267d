"""All that the replay page knows, as one JSON object.

    run        the header of the trace: the pool, the model, the limits of a step
    columns    a number for each frame: rows, waiting, used blocks ...          `frames.py`
    tables     for each frame the block tables that changed                    `frames.py`
    requests   their lives                                                     `lives.py`
    summary    the metrics of the run                                          `metrics.py`

The page computes nothing else than sums of these. What is in here is bounded: at most `MAX_FRAMES` frames and
`MAX_REQUESTS` listed requests, and the page says so where it leaves something out.
"""

from __future__ import annotations

from typing import Any

from minillm.observe.metrics import Summary, percentile, summarize
from minillm.observe.replay.frames import columns, framed, tables
from minillm.observe.replay.lives import lives, numbered
from minillm.observe.trace_file import Trace

_HIDDEN = ("format", "clock")


def replay_data(trace: Trace) -> dict[str, Any]:
    """The data of the page of a recorded run."""
    every, frames = framed(trace.events)
    numbers, summary, clock = numbered(trace.events), summarize(trace.events), trace.clock
    made = columns(frames, clock)
    return {
        "run": {name: value for name, value in trace.header.items() if name not in _HIDDEN},
        "is_cut": trace.is_cut,
        "every": every,
        "steps": summary.steps,
        "columns": made,
        "tables": tables(frames, numbers, len(made["step"])),
        "requests": lives(frames, numbers, summary, clock),
        "summary": _summary(summary),
    }


def _summary(summary: Summary) -> dict[str, Any]:
    drafts = summary.speculation
    positions = sorted(drafts.drafted_at)
    return {
        "requests": len(summary.requests),
        "refused": summary.refused,
        "prompt_tokens": summary.prompt_tokens,
        "cached_tokens": summary.cached_tokens,
        "prefill_tokens": summary.prefill_tokens,
        "output_tokens": summary.output_tokens,
        "preemptions": summary.preemptions,
        "evicted_blocks": summary.evicted_blocks,
        "peak_used_blocks": summary.peak_used_blocks,
        "ttft": _percentiles(summary.ttft),
        "itl": _percentiles(summary.itl),
        "drafted": drafts.drafted,
        "accepted": drafts.accepted,
        "drafted_at": [drafts.drafted_at[i] for i in positions],
        "accepted_at": [drafts.accepted_at[i] for i in positions],
    }


def _percentiles(values: list[float]) -> list[float] | None:
    """p50, p90 and p99 in seconds."""
    return [percentile(values, share) for share in (0.5, 0.9, 0.99)] if values else None
