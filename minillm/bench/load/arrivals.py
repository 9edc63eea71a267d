"""When requests arrive: drawn before the run, so that a slow engine does not slow its users down.

    Poisson      | ||  |   |  ||     |  |   each gap has the same chance to end at every moment
    bursts       |||      ||||         ||   gamma gaps; their coefficient of variation says how uneven
    trace        as recorded, every time multiplied by one factor

The coefficient of variation is the standard deviation of the gaps divided by their mean. A gamma
distribution with shape 1/cv^2 has it; with 1 the gaps are exponential and the arrivals Poisson. Users arrive
independently of each other and of the server, which is what "open loop" means (Schroeder et al., NSDI 2006).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

MIN_CV, MAX_CV = 0.1, 10.0  # below it arrivals are a clock's; above it a run sees one burst or none


def poisson(rate: float, duration: float, rng: random.Random) -> list[float]:
    """Arrival times in [0, duration) seconds, `rate` per second on average."""
    return gamma_bursts(rate, duration, 1.0, rng)


def gamma_bursts(rate: float, duration: float, cv: float, rng: random.Random) -> list[float]:
    """Arrival times in [0, duration) seconds whose gaps have this coefficient of variation."""
    shape = 1 / cv**2
    times, now = list[float](), rng.gammavariate(shape, 1 / (shape * rate))
    while now < duration:
        times.append(now)
        now += rng.gammavariate(shape, 1 / (shape * rate))
    return times


def scaled(times: Sequence[float], factor: float, duration: float) -> list[float]:
    """Recorded times from the first one on, each multiplied by `factor`; those in [0, duration)."""
    return [at for time in times if (at := (time - times[0]) * factor) < duration]


def mean_gap(times: Sequence[float]) -> float:
    """The mean seconds between arrivals; 0 for fewer than two."""
    return (max(times) - min(times)) / (len(times) - 1) if len(times) > 1 else 0.0
