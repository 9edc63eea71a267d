"""How one request is sampled: `SamplingParams`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from minillm.config.checks import require_int, require_number, shown
from minillm.errors import UsageError


class DefaultTokens(int):
    """A default `max_tokens`. The engine may lower a default where longrope needs that.

    A `max_tokens` that the user gave is never lowered for longrope: the request is refused
    (`engine/longrope.py`).
    """


ANSWER_TOKENS = DefaultTokens(256)  # `max_tokens` of a stream, a chat and the command line, if none is given
MAX_TOP_K = 1 << 31  # more than any vocabulary has


class SamplingFilters(NamedTuple):
    """The numbers that decide how a token is drawn from a row of logits."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled. The order of the filters is fixed; see `ops/sampling.py`.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off.
    `logprobs=k` returns the k most likely ids beside the sampled one, from the raw logits.
    `deadline` is in seconds from submission; a request past it ends with the tokens it has. Of the waiting
    requests the one with the smallest `priority` goes first. A request that waits long rises
    (`engine/scheduler.py`).
    """

    max_tokens: int = DefaultTokens(16)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    deadline: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        require_int("max_tokens", self.max_tokens, minimum=1)
        self._set_float("temperature", low=0.0)
        require_int("top_k", self.top_k, minimum=0)
        self._set_float("top_p", low=0.0, high=1.0, low_open=True)
        self._set_float("min_p", low=0.0, high=1.0)
        self._set_float("repetition_penalty", low=0.0, low_open=True)
        require_int("n", self.n, minimum=1)
        require_int("priority", self.priority)
        if self.seed is not None:
            require_int("seed", self.seed)
        if self.logprobs is not None:
            require_int("logprobs", self.logprobs, minimum=0)
        if self.deadline is not None:
            self._set_float("deadline", low=0.0, low_open=True)
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos must be True or False, not {shown(self.ignore_eos)}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))

    def _set_float(self, name: str, low: float, high: float = math.inf, low_open: bool = False) -> None:
        """Check a field and store it as a float; tensors do not take very long integers."""
        number = require_number(name, getattr(self, name), low, high, low_open)
        object.__setattr__(self, name, number)

    @property
    def filters(self) -> SamplingFilters:
        """What the sampler needs of them. A `top_k` beyond any vocabulary keeps all of it."""
        top_k = min(self.top_k, MAX_TOP_K)
        return SamplingFilters(self.temperature, top_k, self.top_p, self.min_p, self.repetition_penalty)

    def to_dict(self) -> dict[str, Any]:
        """The parameters as plain values, for `--json` and for the envelope."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) for s in strings):
        raise UsageError(f"stop must be a string or a list of strings, not {shown(stop)}")
    if "" in strings:
        raise UsageError("stop must not hold an empty string", "leave it out to have none")
    return tuple(strings)


def _token_ids(ids: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(ids, list | tuple):
        raise UsageError(f"stop_token_ids must be a list of integers, not {shown(ids)}")
    for token_id in ids:
        require_int("stop_token_ids", token_id, minimum=0)
    return tuple(ids)
