"""Whether a run counts. A run that was disturbed voids itself and says why; its figures are only shown.

    late        a request was submitted later than intended, by more than 1 % of the mean gap (1 ms, if less)
    waiting     the stepping thread was ready to run and had no core, for more than 2 % of the run
    steal       the hypervisor gave the cores to other machines, for more than 1 % of the run
    spin        the same work took 10 % longer or shorter before the run than after it
    failed      a step of the engine failed
    spread      repeats differ by more than 25 %: (highest - lowest) / median, of throughput and median e2e

`waiting` is the run queue's own count, in /proc/thread-self/schedstat. It says how long the engine was kept
from working, on any number of cores. Involuntary context switches only say how often, and a pool of threads
as large as the machine causes them by itself. `steal` is in /proc/stat. Both are sums over the run, so a
disturbance in the middle is seen. The spin loop shows a core that has become slower without being taken away:
lower clock, a busy sibling. It runs outside the run, because inside it would be a disturbance. Where the
system does not tell a value it is None, and the report says so.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.bench.load.arrivals import mean_gap
from minillm.bench.load.generator import Run

LATE_SHARE, LATE_SECONDS = 0.01, 1e-3
MAX_WAITING, MAX_STEAL, MAX_SPIN_CHANGE, MAX_SPREAD = 0.02, 0.01, 0.10, 0.25
SPREAD_OF = ("output_tokens_per_s", "e2e.p50")
_SPINS, _SPIN_LOOPS = 7, 20_000
_STEAL_FIELD = 8  # of the first line of /proc/stat


@dataclass(frozen=True)
class Reading:
    """The machine at one moment: sums since it was started, in seconds; None: the system does not tell.

    `waited`: this thread, ready and without a core. `stolen`: all cores together, divided by their number.
    `spin`: the seconds of a fixed piece of work.
    """

    now: float
    waited: float | None
    stolen: float | None
    spin: float


def read_machine() -> Reading:
    """The machine now, as seen by the calling thread."""
    spin = min(_spin() for _ in range(_SPINS))  # the least: a spin that was interrupted says nothing
    return Reading(time.perf_counter(), _waited(), _stolen(), spin)


def disturbances(before: Reading, after: Reading) -> dict[str, float | None]:
    """What happened between two readings, as shares: of the time, and of the spin."""
    seconds = after.now - before.now
    return {
        "waiting": _share(before.waited, after.waited, seconds),
        "steal": _share(before.stolen, after.stolen, seconds),
        "spin_change": max(before.spin, after.spin) / min(before.spin, after.spin) - 1,
    }


def reasons(run: Run, disturbed: dict[str, float | None]) -> list[str]:
    """Why a run is void; empty if it counts."""
    limits = {"waiting": MAX_WAITING, "steal": MAX_STEAL, "spin_change": MAX_SPIN_CHANGE}
    words = {
        "waiting": "the stepping thread waited for a core",
        "steal": "the hypervisor took the cores",
        "spin_change": "a spin loop changed its speed",
    }
    found = [_late(run)]
    for name, share in disturbed.items():
        if share is not None and share > limits[name]:
            found.append(f"{words[name]}: {share:.1%}, more than {limits[name]:.0%}")
    if run.failed_steps:
        found.append(f"{len(run.failed_steps)} steps failed, first with {run.failed_steps[0]}")
    return [reason for reason in found if reason]


def late_limit(run: Run) -> float:
    """The seconds by which a request may be late."""
    intended = [record.intended for record in run.records if record.intended is not None]
    return max(LATE_SECONDS, LATE_SHARE * mean_gap(intended))


def spread(values: Sequence[float]) -> float:
    """(highest - lowest) / median; infinite if only some of the values are 0, or infinite."""
    median, low, high = statistics.median(values), min(values), max(values)
    if low == high:
        return 0.0
    return (high - low) / median if median and math.isfinite(high) else math.inf


def spread_reasons(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Why repeats do not agree. `figures`: the name of each figure, and its `spread`."""
    return [
        f"repeats differ by {_share_of_median(figures[name]['spread'])} in {name}, more than {MAX_SPREAD:.0%}"
        for name in SPREAD_OF
        if name in figures and figures[name]["spread"] > MAX_SPREAD
    ]


def _share_of_median(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "an infinite share"


def _late(run: Run) -> str:
    limit = late_limit(run)
    late = [r.lag for r in run.records if r.lag is not None and r.lag > limit]
    if not late:
        return ""
    return (
        f"{len(late)} of {len(run.records)} requests were submitted late, "
        f"by up to {max(late) * 1e3:.1f} ms, more than {limit * 1e3:.1f} ms"
    )


def _share(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None or seconds <= 0 else (after - before) / seconds


def _spin() -> float:
    start, number = time.perf_counter(), 1
    for _ in range(_SPIN_LOOPS):
        number = number * 48271 % 2147483647
    return time.perf_counter() - start


def _waited() -> float | None:
    found = _numbers("/proc/thread-self/schedstat", 0)
    return found[1] / 1e9 if len(found) > 1 else None


def _stolen() -> float | None:
    found = _numbers("/proc/stat", 1)
    ticks, cores = os.sysconf("SC_CLK_TCK"), os.cpu_count() or 1
    return found[_STEAL_FIELD - 1] / ticks / cores if len(found) >= _STEAL_FIELD else None


def _numbers(path: str, skipped: int) -> list[int]:
    """The numbers of a file's first line, after `skipped` words; empty where there is no such file."""
    try:
        line = Path(path).read_text().splitlines()[0]
        return [int(word) for word in line.split()[skipped:]]
    except (OSError, ValueError, IndexError):
        return []
