"""A recorded trace as a workload: its shape is kept, and what does not fit is scaled, by two stated factors.

    time       seconds x factor     to the wanted rate; without one, as recorded
    length     tokens x factor      so that the longest request of the run fits the model's context

Every time has the same factor, and every length, so a burst stays a burst and a long prompt stays long beside
the others. Nothing is fitted to what the engine can do. Requests with the same Mooncake hash ids get the same
tokens there, so the prefix cache has as much to find as in the recorded service. What is left out: times of
day that the run is too short for, and texts, which a trace does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from minillm.bench.load.arrivals import scaled
from minillm.bench.load.plan import MAX_REQUESTS, Draw, LoadRequest, Plan, Settings
from minillm.bench.load.traces import HASH_BLOCK, TraceRow, read_trace
from minillm.config.files import shown_path
from minillm.errors import NotATrace

MAX_ROWS = 1_000_000


def trace(settings: Settings, draw: Draw) -> Plan:
    """The beginning of a recorded trace."""
    path = Path() if settings.trace is None else settings.trace
    rows = list(islice(read_trace(path), MAX_ROWS))
    if not rows:
        raise NotATrace(f"{shown_path(path)} has no requests", "it needs at least one below its columns")
    time_factor = _time_factor(rows, settings.rate, path)
    times = scaled([row.time for row in rows], time_factor, settings.duration)
    rows = rows[: min(len(times), MAX_REQUESTS + 1)]  # one too many is refused, as in every plan
    length_factor = _length_factor(rows, draw.context)
    requests = [_request(row, at, length_factor, draw) for row, at in zip(rows, times, strict=False)]
    return Plan(
        f"the first {len(requests)} requests of a recorded trace",
        requests,
        source={"file": path.name, "time_factor": time_factor, "length_factor": length_factor},
    )


def _time_factor(rows: Sequence[TraceRow], rate: float | None, path: Path) -> float:
    """The factor that gives the whole trace the wanted mean rate."""
    if rate is None:
        return 1.0
    seconds = rows[-1].time - rows[0].time
    if not seconds:
        raise NotATrace(f"{shown_path(path)}: all requests arrive at once", "it has no rate to scale")
    return (len(rows) - 1) / seconds / rate


def _length_factor(rows: Sequence[TraceRow], context: int) -> float:
    """At most 1. One token of the context stays free, because no length is rounded down to 0."""
    longest = max((row.input_length + row.output_length for row in rows), default=1)
    return min(1.0, (context - 1) / longest)


def _request(row: TraceRow, at: float, factor: float, draw: Draw) -> LoadRequest:
    length = max(1, int(row.input_length * factor))
    answer = max(1, int(row.output_length * factor))
    return LoadRequest(_prompt(row, at, length, factor, draw), answer, at)


def _prompt(row: TraceRow, at: float, length: int, factor: float, draw: Draw) -> tuple[int, ...]:
    """The tokens of the hash ids; without hash ids, tokens of its own."""
    if not row.hash_ids:
        return draw.tokens(f"row {at!r} {row.input_length} {row.output_length}", length)
    ids = list[int]()
    for number, name in enumerate(row.hash_ids):
        # Whole blocks of 512 begin and end at the same scaled place in every prompt.
        start, end = (int(edge * HASH_BLOCK * factor) for edge in (number, number + 1))
        ids += draw.tokens(f"hash {name}", end - start)
    return tuple((ids or draw.tokens("hash", 1))[:length])
