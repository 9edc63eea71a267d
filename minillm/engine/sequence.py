"""A sequence: one completion of a request, on its way through the engine.

    submitted -> waiting -> prefill (chunk by chunk) -> decode (token by token) -> finished
                   ^                                      |
                   +------------- preempted <-------------+    its tokens stay, its blocks go

`num_computed_tokens` says how many of its tokens (prompt and output) have keys and values in the cache.
Prefill is whatever brings it to all but the newest token: a prompt, or after a preemption the prompt
and the answer so far. One more row is then one more token: decode.

What it owns of the KV memory (`block_table`, `cached`, `draft`) is changed by the `KVCacheManager` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from minillm.config import SamplingParams
from minillm.config.sampling import SamplingFilters
from minillm.errors import PartError, is_interrupt, own_copy
from minillm.memory.block_table import BlockTable
from minillm.memory.prefix_cache import CachedBlock
from minillm.ops.sampling import DRAW, noise_key
from minillm.speculation.state import DraftState

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


@dataclass
class CachedPrefix:
    """What the prefix cache knows of a sequence: the last of its blocks that can be found, and how many can.

    `digests` are those of its full blocks, each made once; they do not change when the blocks go.
    """

    digests: list[bytes] = field(default_factory=list)
    last: CachedBlock | None = None
    num_blocks: int = 0

    def forget_blocks(self) -> None:
        """The sequence has no block any more."""
        self.last, self.num_blocks = None, 0


@dataclass(eq=False)
class Sequence:
    """One completion being made. `index` is its sample index in its request."""

    request_id: str
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
    rank: tuple[int, int, int] = (0, 0, 0)  # its place among the running, as of this step
    forks: list[Sequence] = field(default_factory=list)  # samples that begin where its prefill ends
    num_cached_tokens: int = 0  # found in the prefix cache at its first admission
    num_preemptions: int = 0
    cached: CachedPrefix = field(default_factory=CachedPrefix)
    draft: DraftState = field(default_factory=DraftState)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    is_released: bool = False  # finished, and its blocks given back
    is_changing: bool = False  # tokens, text and blocks do not belong together at this moment
    token_times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.filters: SamplingFilters = self.params.filters

    @property
    def num_forks(self) -> int:
        """Samples that will begin where its prefill ends."""
        return len(self.forks)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens together."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the newest token is not yet in the cache."""
        return self.num_computed_tokens < max(len(self.prompt_token_ids), self.num_tokens - 1)

    @property
    def num_block_references(self) -> int:
        """Blocks of its table and of its branches."""
        return len(self.block_table.block_ids) + sum(map(len, self.draft.branch_blocks))

    @property
    def newest_token_id(self) -> int:
        """The last token, whose key and value decode computes."""
        return self.output_token_ids[-1]

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

    def append(
        self,
        token_id: int,
        eos_token_ids: tuple[int, ...],
        now: float,
        logprobs: dict[int, float] | None = None,
    ) -> None:
        """Take a token sampled at time `now`: extend the text, and finish if it ends the completion.

        Raises:
            Exception: what the detokenizer raises; the token is kept, its text is not, `is_changing` stays
            set.
        """
        self.is_changing = True
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self.token_times.append(now)
        self.output_token_ids.append(token_id)  # last: `fail` cuts the others to as many
        is_end = not self.params.ignore_eos and token_id in eos_token_ids
        if is_end or token_id in self.params.stop_token_ids:
            self.finish("stop")
            return
        self.text += _text(self.detokenizer.push(token_id))
        if self.detokenizer.stopped:
            self.finish("stop")
        elif len(self.output_token_ids) >= self.max_tokens:
            self.finish("length")
        self.is_changing = False

    def finish(self, reason: FinishReason) -> None:
        """End the completion, keeping the text it has. A stop string in the last text still counts.

        Raises:
            Exception: what the detokenizer raises; the text it held back is lost, `is_changing` stays set.
        """
        self.is_changing = True
        self.text += _text(self.detokenizer.finish())
        stopped = reason == "length" and self.detokenizer.stopped
        self.finish_reason = "stop" if stopped else reason
        self.is_changing = False

    def end(self, reason: FinishReason) -> None:
        """As `finish`; a detokenizer that raises ends the completion with its error instead."""
        try:
            self.finish(reason)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the completion with an error; its detokenizer, perhaps the cause, is not asked."""
        if self.finish_reason is None:
            self.error, self.finish_reason = self.error or own_copy(error), "error"
        count = len(self.output_token_ids)
        del self.logprobs[count:], self.token_times[count:]
        self.is_changing = False


def _text(piece: object) -> str:
    if not isinstance(piece, str):
        raise PartError(
            f"part 'detokenizer' returned {type(piece).__name__}", "push and finish should return text"
        )
    return piece
