"""The input and the output of a step, as plain data.

    engine   StepPlan --> StepInput --+                +--> StepOutput --> append, roll back, publish
    worker                            +--> execute() --+

A step has up to two passes over the model: first the prefill chunks, then one decode pass. In the decode pass
every sequence has one row. If anything was drafted, a verification pass takes its place. There every branch
has one row for the newest token and one for each draft token:

    prefill   [ t0 t1 t2 t3 ] [ u0 u1 ]     chunks; returns the logits after each chunk's last token
    decode    [ n ] [ m ]                   newest tokens; returns the logits after each
    verify    [ n a1 a2 ] [ n b1 ] [ m ]    newest tokens and drafts; returns the logits after every row

The data are token ids, positions, block tables and sampling parameters. Nothing refers to a request, a block
pool or a tokenizer. So a step can be written to bytes and run in another process (`wire.py`), replayed, or
captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from minillm.ops.sampling import Filters, SamplingBatch


@dataclass(slots=True)
class SequenceRows:
    """The new tokens of one sequence in a pass: `token_ids` from position `start` on, and the block table.

    `rope_offset`: with longrope, the row of the rope tables that position 0 reads (`model/rope.py`).
    """

    token_ids: Sequence[int]
    start: int
    block_table: list[int]
    rope_offset: int = 0

    @property
    def end(self) -> int:
        """The number of the sequence's tokens in the cache after this pass."""
        return self.start + len(self.token_ids)


@dataclass(slots=True)
class PrefillChunk:
    """Known tokens of one sequence, from position `start` on. The block table has room for all of them."""

    token_ids: list[int]
    start: int
    block_table: list[int]
    rope_offset: int = 0

    @property
    def end(self) -> int:
        """The number of the sequence's tokens in the cache after this pass."""
        return self.start + len(self.token_ids)


@dataclass(slots=True)
class DecodeRow:
    """The newest token of one sequence. Its key and value are not in the cache yet."""

    token_id: int
    position: int
    block_table: list[int]
    rope_offset: int = 0


@dataclass(slots=True)
class Draws:
    """The tokens to sample from the logits of a pass.

    Draw i reads row `rows[i]` of the logits; all samples of a prompt read the same row. `tops[i]`: the number
    of likeliest tokens to report with log-probabilities, or None for no report.
    """

    rows: list[int]
    batch: SamplingBatch
    tops: list[int | None]


@dataclass(slots=True)
class Drawn:
    """The result of a pass: which rows of its logits are finite, and the token of each draw.

    A draw from a row that is not finite has token -1. `logprobs[i]` is None if draw i does not report any.
    """

    finite: list[bool]
    tokens: list[int]
    logprobs: list[dict[int, float] | None]


@dataclass(slots=True)
class DraftRows:
    """One sequence in a verification pass: its newest token and the draft tokens of each branch.

    `block_tables[i]` belongs to branch i; the first is the sequence's own. A sequence without a draft has no
    branch and one table. `keys`: the noise keys of the next output positions, one more than the tokens of the
    longest branch.

    Only rejection sampling uses the last three fields. `probs` float32 [len(branches[0]), vocab_size]: the
    distribution each token of the only branch was drawn from. `accept_keys`, `replace_key`: its noise keys.
    """

    token_id: int
    position: int
    block_tables: list[list[int]]
    branches: list[list[int]]
    filters: Filters
    keys: list[int]
    seen: list[int]
    top: int | None
    rope_offset: int = 0
    probs: Tensor | None = None
    accept_keys: list[int] = field(default_factory=list)
    replace_key: int = 0


@dataclass(slots=True)
class VerifyResult:
    """The tokens a sequence gets. All but the last are accepted draft tokens of branch `branch`.

    No tokens mean that the logits after the newest token were NaN or infinite.
    """

    tokens: list[int]
    branch: int = 0
    logprobs: list[dict[int, float]] | None = None

    @property
    def accepted(self) -> int:
        """The number of accepted draft tokens."""
        return max(0, len(self.tokens) - 1)


Copy = tuple[int, int]  # source block, destination block


@dataclass(slots=True)
class StepInput:
    """The input of one step. If anything was drafted, `verify` takes the place of `decode`.

    `branch_copies` are made before the verification pass: each branch after the first gets its own copy of
    the sequence's last, partly full block. `fork_copies` are made after the prefill pass, for the forks of a
    prompt.
    """

    prefill: list[PrefillChunk] = field(default_factory=list)
    prefill_draws: Draws | None = None
    fork_copies: list[Copy] = field(default_factory=list)
    decode: list[DecodeRow] = field(default_factory=list)
    decode_draws: Draws | None = None
    branch_copies: list[Copy] = field(default_factory=list)
    verify: list[DraftRows] = field(default_factory=list)
    num_token_ids: int = 0


@dataclass(slots=True)
class StepOutput:
    """The output of one step.

    `num_rows`: rows of the decode or verification pass. `decode_seconds`: its time, including sampling.
    """

    prefill: Drawn | None = None
    decode: Drawn | None = None
    verify: list[VerifyResult] = field(default_factory=list)
    num_rows: int = 0
    decode_seconds: float = 0.0
