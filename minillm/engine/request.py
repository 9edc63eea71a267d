"""A request on its way through the engine.

    submitted -> waiting -> prefill (chunk by chunk) -> decode (token by token) -> finished
                   ^                                      |
                   +------------- preempted <-------------+    its tokens stay, its blocks go

`num_computed_tokens` says how many of its tokens (prompt and output) have keys and values in the cache.
Prefill is whatever brings it to all but the newest token: a prompt, or after a preemption the prompt
and the answer so far. One more row is then one more token: decode.

`n > 1` asks for several completions of one prompt: a `RequestGroup` of n `Request`s. The first is
prefilled; the others are forked from it, sharing the prompt's full blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from minillm.config import SamplingParams
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.memory.prefix_cache import CachedBlock
from minillm.ops.sampling import DRAW, noise_key

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


class TextStream(Protocol):
    """What the engine asks of a detokenizer (the seam `detokenizer` makes these)."""

    def push(self, token_id: int) -> str:
        """Take a token, return the text that is certain."""

    def finish(self) -> str:
        """Return the text still held back."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""


@dataclass(eq=False)
class Request:
    """One completion being made. `index` is its sample index in its group."""

    group_id: str
    index: int
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    block_table: BlockTable
    detokenizer: TextStream
    arrival: float = 0.0
    admitted: float | None = None
    output_token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    text: str = ""
    num_computed_tokens: int = 0
    tenant: str | None = None
    order: int = 0  # of submission
    rank: tuple[int, int, int] = (0, 0, 0)  # who goes first among the running, as of this step
    num_forks: int = 0  # samples of the same prompt that will begin where this one's prefill ends
    num_cached_tokens: int = 0  # found in the prefix cache at its first admission
    num_preemptions: int = 0
    block_digests: list[bytes] = field(default_factory=list)
    published: CachedBlock | None = None  # the last of its blocks that the prefix cache knows
    num_published: int = 0
    num_draft_computed_tokens: int = 0  # its first tokens, of which the draft model's keys are cached too
    num_draft_published: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    finish_reason: FinishReason | None = None
    is_released: bool = False  # finished, and its blocks given back
    token_times: list[float] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens together."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the newest token is not yet in the cache."""
        return self.num_computed_tokens < max(len(self.prompt_token_ids), self.num_tokens - 1)

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens `start` to `end` of prompt and output together."""
        split = len(self.prompt_token_ids)
        if end <= split:
            return self.prompt_token_ids[start:end]
        return self.prompt_token_ids[start:] + self.output_token_ids[max(start - split, 0) : end - split]

    @property
    def noise_key(self) -> int:
        """Key of the next token's noise: (seed, sample index, output position); 0 where nothing is drawn."""
        return self.noise_keys(1)[0]

    def noise_keys(self, count: int, purpose: int = DRAW) -> list[int]:
        """Keys of the next `count` output positions; all 0, and no work, where nothing is drawn."""
        if self.params.temperature == 0:
            return [0] * count
        first = len(self.output_token_ids)
        return [noise_key(self.seed, self.index, first + i, purpose) for i in range(count)]

    @property
    def seen_token_ids(self) -> list[int]:
        """The ids the repetition penalty looks at; empty where it is off."""
        if self.params.repetition_penalty == 1.0:
            return []
        return self.prompt_token_ids + self.output_token_ids

    def append(self, token_id: int, eos_token_ids: tuple[int, ...], now: float) -> None:
        """Take a token sampled at time `now`: extend the text, and finish if it ends the completion."""
        self.output_token_ids.append(token_id)
        self.token_times.append(now)
        is_end = not self.params.ignore_eos and token_id in eos_token_ids
        if is_end or token_id in self.params.stop_token_ids:
            self.finish("stop")
            return
        self.text += self.detokenizer.push(token_id)
        if self.detokenizer.stopped:
            self.finish("stop")
        elif len(self.output_token_ids) >= self.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End the completion, keeping the text it has. A stop string in the last text still counts."""
        self.text += self.detokenizer.finish()
        self.finish_reason = "stop" if reason == "length" and self.detokenizer.stopped else reason


@dataclass(eq=False)
class RequestGroup:
    """A submitted request: n completions of one prompt."""

    request_id: str
    requests: list[Request]
    error: Exception | None = None

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters, alike for all n."""
        return self.requests[0].params

    @property
    def arrival(self) -> float:
        """When it was submitted."""
        return self.requests[0].arrival

    @property
    def admitted(self) -> float | None:
        """When it first left the queue."""
        return self.requests[0].admitted

    @property
    def is_finished(self) -> bool:
        """Whether every completion has ended."""
        return all(r.finish_reason for r in self.requests)

    @property
    def deadline(self) -> float | None:
        """The clock time after which the group is ended."""
        return None if self.params.deadline is None else self.arrival + self.params.deadline

    def finish(self, reason: FinishReason) -> None:
        """End every completion that is still open."""
        for request in self.requests:
            if not request.finish_reason:
                request.finish(reason)


def group_blocks(prompt_len: int, total_len: int, n: int, block_size: int) -> int:
    """Blocks of n sequences of `total_len` tokens that share the full blocks of their prompt."""
    shared = prompt_len // block_size
    return shared + n * (blocks_for(total_len, block_size) - shared)
