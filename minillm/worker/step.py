"""What goes into a step and what comes out of it, as plain data.

    engine   StepPlan --> StepInput --+                +--> StepOutput --> append, roll back, publish
    worker                            +--> execute() --+

A step has up to two passes over the model: the prefill chunks, then one decode pass, in which every sequence
has one row, or one row and its drafted tokens in each branch:

    prefill   [ t0 t1 t2 t3 ] [ u0 u1 ]     chunks; the logits of each chunk's last token
    decode    [ n ] [ m ]                   newest tokens; the logits of each
    verify    [ n a1 a2 ] [ n b1 ] [ m ]    newest tokens and drafts; the logits of every row

Nothing here refers to a request, a block pool or a tokenizer: ids, positions, block tables, columns of
sampling parameters. So a step can be written to bytes and carried out in another process (`wire.py`),
replayed, or captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from minillm.ops.sampling import Filters, SamplingBatch


@dataclass(slots=True)
class SequenceRows:
    """New tokens of one sequence in a pass: `token_ids` from position `start` on, and its block table."""

    token_ids: Sequence[int]
    start: int
    block_table: list[int]

    @property
    def end(self) -> int:
        """Tokens of the sequence in the cache once these are written."""
        return self.start + len(self.token_ids)


@dataclass(slots=True)
class PrefillChunk:
    """Known tokens of one sequence, from position `start` on. The block table has room for all of them."""

    token_ids: list[int]
    start: int
    block_table: list[int]

    @property
    def end(self) -> int:
        """Tokens of the sequence in the cache once the chunk is computed."""
        return self.start + len(self.token_ids)


@dataclass(slots=True)
class DecodeRow:
    """The newest token of one sequence, whose key and value are not in the cache yet."""

    token_id: int
    position: int
    block_table: list[int]


@dataclass(slots=True)
class Draws:
    """Tokens to draw from a pass.

    Draw i reads row `rows[i]` of the pass's logits (a prompt's samples all read the same row). `tops[i]` is
    how many of the likeliest tokens it reports with log-probabilities; None reports nothing.
    """

    rows: list[int]
    batch: SamplingBatch
    tops: list[int | None]


@dataclass(slots=True)
class Drawn:
    """What a pass gave: which rows of its logits are finite, and each draw's token.

    A draw from a row that is not finite has token -1. `logprobs[i]` is None where none were asked for.
    """

    finite: list[bool]
    tokens: list[int]
    logprobs: list[dict[int, float] | None]


@dataclass(slots=True)
class DraftRows:
    """One sequence in a verifying pass: its newest token, and the drafted tokens of each branch.

    `block_tables[i]` belongs to branch i; the first is the sequence's own. A sequence without a draft has no
    branch and one table. `keys` are the noise keys of the next output positions, one more than the longest
    branch has tokens. `probs` float32 [len(branches[0]), vocab_size] is what the tokens of the only branch
    were drawn from, and `accept_keys` and `replace_key` are the noise keys of rejection sampling; they are
    absent under coupled verification.
    """

    token_id: int
    position: int
    block_tables: list[list[int]]
    branches: list[list[int]]
    filters: Filters
    keys: list[int]
    seen: list[int]
    top: int | None
    probs: Tensor | None = None
    accept_keys: list[int] = field(default_factory=list)
    replace_key: int = 0


@dataclass(slots=True)
class VerifyResult:
    """What a sequence gets: `tokens`, of which all but the last were drafted in `branch`.

    Without tokens the logits of the newest token's row were NaN or infinite.
    """

    tokens: list[int]
    branch: int = 0
    logprobs: list[dict[int, float]] | None = None

    @property
    def accepted(self) -> int:
        """Drafted tokens that stand."""
        return max(0, len(self.tokens) - 1)


Copy = tuple[int, int]  # block to copy from, block to copy to


@dataclass(slots=True)
class StepInput:
    """One step. `verify` replaces `decode` in a step in which anything was drafted.

    `branch_copies` are made before the verifying pass: each further branch gets its own copy of the block
    that the sequence fills at present. `fork_copies` are made after the prefill pass, for samples that part
    from their prompt.
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
    """What a step gave. `decode_seconds` is the time of the decode or verifying pass, its draws included."""

    prefill: Drawn | None = None
    decode: Drawn | None = None
    verify: list[VerifyResult] = field(default_factory=list)
    num_rows: int = 0
    decode_seconds: float = 0.0
