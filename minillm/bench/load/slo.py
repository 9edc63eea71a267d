"""Whether a request of a load got what was promised. Goodput counts the requests that did.

A request that failed is a miss. A cancelled one is judged by what it got before: without a first token it is
a miss, because a user who gives up must not make the figures better. Throughput can rise while goodput falls:
a larger batch gives more tokens in all, and each user later ones (DistServe, OSDI 2024). Gaps are judged by
their mean, `tpot`.
"""

from __future__ import annotations

from minillm.observe.metrics import RequestTimes
from minillm.observe.slo import Slo


def is_met(slo: Slo, times: RequestTimes | None) -> bool:
    """Whether a request that did not fail got what was promised. None: it has no times."""
    if times is None or times.ttft is None:
        return False
    return times.ttft <= slo.ttft and (times.tpot or 0.0) <= slo.tpot
