"""What a workload is: requests, planned before the run. A plan has every request and its start.

    at=1.3                      an open-loop request: its time does not depend on the server
    after=request 7, gap=0.8    a turn: sent 0.8 s after request 7 has ended, because its user waits for the
                                answer; its prompt is the prompt and the answer of request 7, and new tokens

Lengths, gaps and token ids come from a seed. Every repeat of a run has the same plan with other token ids, so
that no repeat finds the prompts of the one before it in the prefix cache.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm.bench.load.arrivals import MAX_CV, MIN_CV
from minillm.config import require_int, require_number
from minillm.errors import UsageError

MAX_RATE, MAX_SECONDS, MAX_REQUESTS = 10_000.0, 3600.0, 20_000
DEFAULT_RATE = 4.0


@dataclass(frozen=True)
class Settings:
    """What the user of the bench chooses.

    `rate`: requests per second on average; None: `DEFAULT_RATE`, or as the trace was recorded. `duration`:
    the seconds in which requests arrive. `cv`: of the gaps of `bursts`. `trace`: the file of `trace`.
    """

    rate: float | None = None
    duration: float = 10.0
    seed: int = 0
    cv: float = 3.0
    trace: Path | None = None

    def __post_init__(self) -> None:
        if self.rate is not None:
            require_number("rate", self.rate, 0, MAX_RATE, low_open=True)
        require_number("duration", self.duration, 0, MAX_SECONDS, low_open=True)
        require_number("cv", self.cv, MIN_CV, MAX_CV)
        require_int("seed", self.seed)
        if self.rate is not None and self.rate * self.duration > MAX_REQUESTS:
            require_count(round(self.rate * self.duration))

    @property
    def mean_rate(self) -> float:
        """Requests per second, of a workload that is not recorded."""
        return DEFAULT_RATE if self.rate is None else self.rate


def require_count(count: int) -> None:
    """Check the number of requests of a plan.

    Raises:
        UsageError: there is none, or there are too many.
    """
    if not count:
        raise UsageError("no request arrives in this time", "raise rate or duration")
    if count > MAX_REQUESTS:
        raise UsageError(f"{count} requests are more than {MAX_REQUESTS}", "lower rate or duration")


@dataclass(frozen=True)
class LoadRequest:
    """One request of a plan. Either `at` or `after` and `gap` say when it starts, in seconds.

    `tokens`: the prompt, or what a turn adds to its conversation. `max_tokens`: how many tokens the answer
    has, because ends of text are ignored. `cancel_after`: seconds from the start until its user gives up.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    at: float = 0.0
    after: int | None = None
    gap: float = 0.0
    tenant: str | None = None
    cancel_after: float | None = None


@dataclass(frozen=True)
class Plan:
    """The requests of a run, and what an engine needs for them.

    `options`: of the engine. `variants`: names of comparisons that this workload adds, with what they
    change. `watched`: a tenant whose latencies are reported by themselves. `source`: how a recorded trace
    was scaled.
    """

    what: str
    requests: list[LoadRequest]
    options: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    watched: str | None = None
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require_count(len(self.requests))


class Draw:
    """Draws the lengths and token ids of one plan.

    Args:
        context: the most tokens of prompt and answer together.
        repeat: changes the token ids and nothing else.
    """

    def __init__(self, seed: int, context: int, vocab_size: int, repeat: int = 0) -> None:
        self.rng = random.Random(f"{seed} plan")
        self.context = context
        self._seed, self._ids, self._repeat = seed, range(vocab_size), repeat

    def tokens(self, name: str, count: int) -> tuple[int, ...]:
        """`count` token ids; the same name always gives the same ones."""
        return self._take(f"{self._seed} {self._repeat} {name}", count)

    def fixed_tokens(self, name: str, count: int) -> tuple[int, ...]:
        """As `tokens`, and the same in every repeat: for what an engine gets when it starts."""
        return self._take(f"{self._seed} {name}", count)

    def length(self, median: int, most: int) -> int:
        """A length of at most `most` tokens, from a lognormal distribution: most short, a few long."""
        return max(1, min(most, round(self.rng.lognormvariate(0, 0.6) * median)))

    def seconds(self, mean: float) -> float:
        """An exponential time."""
        return self.rng.expovariate(1 / mean)

    def _take(self, name: str, count: int) -> tuple[int, ...]:
        return tuple(random.Random(name).choices(self._ids, k=count))
