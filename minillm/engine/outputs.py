"""What a caller gets back: completions, their metrics, and the envelope they were made under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from minillm.config import SamplingParams
from minillm.engine.request import FinishReason, Request, RequestGroup


@dataclass(frozen=True)
class Completion:
    """One of a request's n answers. `text` leaves out end-of-text and stop strings, `token_ids` do not."""

    text: str
    token_ids: list[int]
    seed: int
    finish_reason: FinishReason | None
    logprobs: list[dict[int, float]] | None


@dataclass(frozen=True)
class RequestMetrics:
    """Seconds of a request's life, and what it was spared.

    `queue` waiting to start, `ttft` to the first token, `tpot` mean time per later token, `itl` the
    gaps between tokens of the first completion (once it has ended), `e2e` in all. `drafted` tokens were
    guessed for all n completions, `accepted` of them stood.
    """

    queue: float = 0.0
    ttft: float | None = None
    tpot: float | None = None
    itl: list[float] = field(default_factory=list)
    e2e: float = 0.0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class RequestOutput:
    """A request's answer so far; `finished` tells whether more will come."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: list[Completion]
    metrics: RequestMetrics
    envelope: Mapping[str, Any]
    finished: bool
    error: Exception | None = None
    dropped_messages: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Text of the first completion."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first completion."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first completion ended."""
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        """Log-probabilities of the first completion."""
        return self.outputs[0].logprobs


def snapshot(group: RequestGroup, envelope: Mapping[str, Any], now: float) -> RequestOutput:
    """The group's answer at time `now`."""
    return RequestOutput(
        request_id=group.request_id,
        prompt_token_ids=list(group.requests[0].prompt_token_ids),
        outputs=[_completion(request, group.params) for request in group.requests],
        metrics=_metrics(group, now),
        envelope=envelope,
        finished=group.is_finished,
        error=group.error,
    )


def _completion(request: Request, params: SamplingParams) -> Completion:
    return Completion(
        text=request.text,
        token_ids=list(request.output_token_ids),
        seed=request.seed,
        finish_reason=request.finish_reason,
        logprobs=None if params.logprobs is None else list(request.logprobs),
    )


def _metrics(group: RequestGroup, now: float) -> RequestMetrics:
    times = group.requests[0].token_times
    return RequestMetrics(
        queue=(group.admitted or now) - group.arrival,
        ttft=times[0] - group.arrival if times else None,
        tpot=(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
        itl=[later - earlier for earlier, later in pairwise(times)] if group.is_finished else [],
        e2e=now - group.arrival,
        cached_tokens=group.requests[0].num_cached_tokens,
        drafted=sum(request.num_drafted for request in group.requests),
        accepted=sum(request.num_accepted for request in group.requests),
    )
