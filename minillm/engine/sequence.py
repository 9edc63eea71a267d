"""A sequence: one completion of a request, on its way through the engine.

    submitted -> waiting -> prefill (chunk by chunk) -> decode (token by token) -> finished
                   ^                                      |
                   +------------- preempted <-------------+    keeps its tokens, loses its blocks

`num_computed_tokens` says how many of its tokens (prompt and output) have keys and values in the cache.
Prefill computes the known tokens: the prompt, or after a preemption the prompt and the answer so far. Then
only the newest token is not computed, and decode computes one row per new token.

Only the `KVCacheManager` changes the sequence's KV memory (`block_table`, `cached`, `draft`).
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
    """The methods of a streaming detokenizer (the part `detokenizer` makes one per completion)."""

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now final."""

    def finish(self) -> str:
        """Return the text that was still held back."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""


@dataclass
class CachedPrefix:
    """A sequence's blocks in the prefix cache: the last one (`last`) and their number (`num_blocks`).

    `public`: the public blocks that its prompt begins with; None before they have been looked for.
    `digests`: the digests of its full blocks after those. They are computed once and stay valid without the
    blocks.
    """

    public: list[CachedBlock] | None = None
    digests: list[bytes] = field(default_factory=list)
    last: CachedBlock | None = None
    num_blocks: int = 0

    def forget_blocks(self) -> None:
        """Record that the sequence has lost its blocks."""
        self.last, self.num_blocks = None, 0

    def forget_all(self) -> None:
        """Record that there is a new pool: its public blocks are others."""
        self.forget_blocks()
        if self.public:
            self.digests = []
        self.public = None


@dataclass(eq=False, repr=False)
class Sequence:
    """One completion in progress. `index` is its sample index in its request.

    Its repr names it and shows no content: crash reports write out the variables of frames.
    """

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
    rope_offset: int = 0  # longrope: the row of the rope tables that position 0 reads
    order: int = 0  # the submission number of its request
    rank: tuple[int, int, int] = (0, 0, 0)  # its rank among the running sequences in this step
    forks: list[Sequence] = field(default_factory=list)  # samples that will fork from it after its prefill
    num_cached_tokens: int = 0  # tokens found in the prefix cache at its first admission
    num_preemptions: int = 0
    cached: CachedPrefix = field(default_factory=CachedPrefix)
    draft: DraftState = field(default_factory=DraftState)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    ended: float | None = None  # the time of its `finish` event
    is_released: bool = False  # finished, its blocks have been freed, and the event has been emitted
    is_changing: bool = False  # in the middle of a change: tokens, text and blocks may not match
    token_times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.filters: SamplingFilters = self.params.filters
        self._stop_token_ids = frozenset(
            self.params.stop_token_ids
        )  # each token is looked for in all of them

    def __repr__(self) -> str:
        return f"Sequence({self.request_id!r}, {self.index}, {self.finish_reason or 'open'})"

    @property
    def num_forks(self) -> int:
        """The number of samples that will fork from it after its prefill."""
        return len(self.forks)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens together."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_prefilling(self) -> bool:
        """Whether tokens other than the newest are not yet in the cache."""
        return self.num_computed_tokens < max(len(self.prompt_token_ids), self.num_tokens - 1)

    def has_unpublished(self, block_size: int) -> bool:
        """Whether the model or the draft model has filled a block that the prefix cache does not know."""
        draft = self.draft
        return (
            self.num_computed_tokens // block_size > self.cached.num_blocks
            or draft.num_computed_tokens // block_size > draft.num_published
        )

    @property
    def num_block_references(self) -> int:
        """The number of blocks in its table and its branches."""
        branches = self.draft.branch_blocks
        return len(self.block_table.block_ids) + (sum(map(len, branches)) if branches else 0)

    @property
    def newest_token_id(self) -> int:
        """The last token; the next decode step computes its key and value."""
        return self.output_token_ids[-1]

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens `start` to `end` (exclusive) of prompt and output together."""
        split = len(self.prompt_token_ids)
        if end <= split:
            return self.prompt_token_ids[start:end]
        return self.prompt_token_ids[start:] + self.output_token_ids[max(start - split, 0) : end - split]

    @property
    def noise_key(self) -> int:
        """The noise key of the next token, from (seed, sample index, output position); 0 if greedy."""
        return self.noise_keys(1)[0]

    def noise_keys(self, count: int, purpose: int = DRAW) -> list[int]:
        """The noise keys of the next `count` output positions; all 0 if greedy."""
        if self.params.temperature == 0:
            return [0] * count
        first = len(self.output_token_ids)
        return [noise_key(self.seed, self.index, first + i, purpose) for i in range(count)]

    @property
    def seen_token_ids(self) -> list[int]:
        """The ids the repetition penalty applies to; empty if it is off."""
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
        """Append a token sampled at time `now`, extend the text, and finish if the token ends the completion.

        Raises:
            Exception: what the detokenizer raises. The token is kept, its text is lost, and `is_changing`
            stays set.
        """
        self.is_changing = True
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self.token_times.append(now)
        self.output_token_ids.append(token_id)  # last: `fail` shortens the other lists to this length
        is_end = not self.params.ignore_eos and token_id in eos_token_ids
        if is_end or token_id in self._stop_token_ids:
            self.finish("stop")
            return
        self.text += _text(self.detokenizer.push(token_id))
        if self.detokenizer.stopped:
            self.finish("stop")
        elif len(self.output_token_ids) >= self.max_tokens:
            self.finish("length")
        self.is_changing = False

    def finish(self, reason: FinishReason) -> None:
        """End the completion and keep its text. A stop string in the last piece of text still counts.

        Raises:
            Exception: what the detokenizer raises. The text it held back is lost; `is_changing` stays set.
        """
        self.is_changing = True
        self.text += _text(self.detokenizer.finish())
        stopped = reason == "length" and self.detokenizer.stopped
        self.finish_reason = "stop" if stopped else reason
        self.is_changing = False

    def end(self, reason: FinishReason) -> None:
        """As `finish`, but a detokenizer that raises ends the completion with its error."""
        try:
            self.finish(reason)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the completion with an error. Its detokenizer is not called: it may be the cause."""
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
