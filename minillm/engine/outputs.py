"""What a caller gets back: the completions, the metrics, the envelope of the engine, and digests.

The digests name the exact prompt and the exact answer. Two outputs can be compared with them
(`engine/same.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from minillm.config import SamplingParams
from minillm.engine.prompt import ids_digest
from minillm.engine.request import Request
from minillm.engine.sequence import FinishReason, Sequence


@dataclass(frozen=True)
class Completion:
    """One of a request's n answers. `token_ids` include EOS and stop strings; `text` does not."""

    text: str
    token_ids: list[int]
    seed: int
    finish_reason: FinishReason | None
    logprobs: list[dict[int, float]] | None

    @property
    def token_digest(self) -> str:
        """The digest of `token_ids`."""
        return ids_digest(self.token_ids)


@dataclass(frozen=True)
class RequestMetrics:
    """Latencies of a request in seconds, and the work it saved.

    `queue`: time waiting to start; for a request that ended while it waited, all its time. `ttft`: time to
    the first token. `tpot`: mean time per later token. `itl`: inter-token latencies of the first completion,
    empty until the request has ended. `e2e`: time to the end, or to the newest token of an unfinished
    request. `cached_tokens`: prompt tokens found in the prefix cache. `drafted`, `accepted`: draft tokens
    proposed and accepted, over all n completions.

    The times are differences of event times, so `observe/metrics.py` computes equal numbers from the events.
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
    """A request's answer so far. If `finished` is true it is complete.

    `sampling_params`: those that counted, with the capped `max_tokens`; the seed is in each completion.
    `prompt_digest`: of the exact text of the prompt, after a chat template, or of the ids that were given.
    """

    request_id: str
    prompt_token_ids: list[int]
    outputs: list[Completion]
    metrics: RequestMetrics
    envelope: Mapping[str, Any]
    finished: bool
    sampling_params: SamplingParams
    prompt_digest: str
    error: Exception | None = None
    dropped_messages: list[int] = field(default_factory=list)

    @property
    def prompt_token_digest(self) -> str:
        """The digest of `prompt_token_ids`."""
        return ids_digest(self.prompt_token_ids)

    @property
    def text(self) -> str:
        """Text of the first completion."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first completion."""
        return self.outputs[0].token_ids

    @property
    def token_digest(self) -> str:
        """The digest of the token ids of the first completion."""
        return self.outputs[0].token_digest

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first completion ended."""
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        """Log-probabilities of the first completion."""
        return self.outputs[0].logprobs


def snapshot(request: Request, envelope: Mapping[str, Any]) -> RequestOutput:
    """Make the output of a request as it is now."""
    is_finished = request.is_finished
    return RequestOutput(
        request_id=request.request_id,
        prompt_token_ids=list(request.sequences[0].prompt_token_ids),
        outputs=[_completion(sequence) for sequence in request.sequences],
        metrics=_metrics(request, is_finished),
        envelope=envelope,
        finished=is_finished,
        sampling_params=request.params,
        prompt_digest=request.prompt_digest,
        error=request.error,
    )


def _completion(sequence: Sequence) -> Completion:
    return Completion(
        text=sequence.text,
        token_ids=list(sequence.output_token_ids),
        seed=sequence.seed,
        finish_reason=sequence.finish_reason,
        logprobs=None if sequence.params.logprobs is None else list(sequence.logprobs),
    )


def _metrics(request: Request, is_finished: bool) -> RequestMetrics:
    first = request.sequences[0]
    times = first.token_times
    return RequestMetrics(
        queue=(request.latest if request.admitted is None else request.admitted) - request.arrival,
        ttft=times[0] - request.arrival if times else None,
        tpot=(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
        itl=[later - earlier for earlier, later in pairwise(times)] if is_finished else [],
        e2e=request.latest - request.arrival,
        cached_tokens=first.num_cached_tokens,
        drafted=sum(s.draft.num_drafted for s in request.sequences),
        accepted=sum(s.draft.num_accepted for s in request.sequences),
    )
