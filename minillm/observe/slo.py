"""Service level objectives (SLO): what a user is promised. One definition for bench, demo and lab 12.

    submitted        first token   next     next        last
        | ttft ----------- | -- itl - | ------ itl ---- |      tpot: the mean of the gaps

This is the limits only. How a run is judged by them is said where it is judged: request by request
(`observe/goodput.py`, `bench/load/slo.py`), or by the p99 of a stage (`bench/pressure.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minillm.config import require_number


@dataclass(frozen=True)
class Slo:
    """Limits in seconds; infinite: no limit. A time that is equal to its limit keeps it.

    Raises:
        UsageError: a limit is not above 0.
    """

    ttft: float = math.inf
    tpot: float = math.inf
    itl: float = math.inf

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit != math.inf:
                require_number(f"slo-{name}", limit, 0, low_open=True)

    @classmethod
    def of(cls, **limits: float | None) -> Slo:
        """The limits that are given; None: no limit."""
        return cls(**{name: limit for name, limit in limits.items() if limit is not None})

    @property
    def limits(self) -> dict[str, float]:
        """The limits that there are, by name."""
        return {name: limit for name, limit in vars(self).items() if limit != math.inf}
