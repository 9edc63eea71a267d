"""Service level objectives: what a user is promised. Goodput counts the requests that got it.

    ttft    seconds from the intended start to the first token
    tpot    mean seconds per later token

A request that failed is a miss. A cancelled one is judged by what it got before: without a first token it is
a miss, because a user who gives up must not make the figures better. Throughput can rise while goodput falls:
a larger batch gives more tokens in all, and each user later ones (DistServe, OSDI 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minillm.config import require_number
from minillm.observe.metrics import RequestTimes


@dataclass(frozen=True)
class Slo:
    """Limits in seconds; None: no limit."""

    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("slo-ttft", self.ttft), ("slo-tpot", self.tpot)):
            if limit is not None:
                require_number(name, limit, 0, low_open=True)

    def is_met(self, times: RequestTimes | None) -> bool:
        """Whether a request that did not fail got what was promised. None: it has no times."""
        if times is None or times.ttft is None:
            return False
        ttft = math.inf if self.ttft is None else self.ttft
        tpot = math.inf if self.tpot is None else self.tpot
        return times.ttft <= ttft and (times.tpot or 0.0) <= tpot
