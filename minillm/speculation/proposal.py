"""The interface of a drafter: the look-ahead it gets, and the proposal it returns.

    newest token --+-- branch 0:  once  upon   a        in the sequence's own blocks
                   +-- branch 1:  there was             in separate blocks from the newest token on

A proposal has one or several *branches*; each is a draft of the next tokens. Several branches form a tree.
Each branch is verified like a separate sequence. Its block table shares all full blocks and has its own
blocks from the newest token on (`BlockTable.branch`). Keys lie at their logical positions, so a draft token
is computed like any other token (contract C2), and no attention kernel needs a tree mask. The cost: a token
that several branches have in common is computed once per branch.

The keys and values of the draft model lie under the same block ids, in separate tensors. So sharing, freeing
and preempting a block affects both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from minillm.config import SamplingParams
from minillm.config.sampling import SamplingFilters
from minillm.speculation.state import DraftState


class DraftSequence(Protocol):
    """The fields of the engine's `Sequence` that a drafter may use."""

    index: int
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    params: SamplingParams
    filters: SamplingFilters
    max_tokens: int
    rope_offset: int
    draft: DraftState

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens together; the last one is the newest."""

    @property
    def seen_token_ids(self) -> list[int]:
        """The ids the repetition penalty applies to; empty if it is off."""

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens `start` to `end` (exclusive) of prompt and output together."""

    def noise_keys(self, count: int, purpose: int = ...) -> list[int]:
        """The noise keys of the next `count` output positions."""

    def __hash__(self) -> int:
        """Hash by identity, so that a drafter can keep data for each sequence in a dict."""


@dataclass(frozen=True)
class Lookahead:
    """The limits of a draft for one sequence: at most `depth` tokens per branch, one branch per block table.

    A block table has room for the newest token and `depth` more; the first table is the sequence's own.
    Sequences of different groups must not compete for the drafter's work: they are of different tenants, and
    each would see in its drafts what the others send (contract C12).
    """

    sequence: DraftSequence
    depth: int
    block_tables: list[list[int]]
    group: int = 0


@dataclass(frozen=True)
class Proposal:
    """Drafts of the tokens after the newest: at most one branch per block table, the likeliest first.

    `probs` float32 [len(branches[0]), vocab_size]: the distribution each token of the only branch was sampled
    from. None means that the tokens were not sampled (probability 1). Only rejection sampling uses it.
    """

    branches: list[list[int]]
    probs: Tensor | None = None


NO_PROPOSAL = Proposal([])


class Drafter(Protocol):
    """Drafts tokens. Its drafts change the time an answer takes, never the answer."""

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """Return a proposal for each look-ahead. It may be shorter than allowed, or `NO_PROPOSAL`."""

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Called after verification, before tokens are appended: `kept` tokens of `branch` are accepted."""
