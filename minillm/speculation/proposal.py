"""What a drafter is asked, and what it proposes.

    newest token --+-- branch 0:  once  upon   a        in the sequence's own blocks
                   +-- branch 1:  there was             in blocks that part from them

A proposal is a few *branches*, each a guess at the next tokens; several branches are a tree, cut up.
Each branch is verified as a sequence of its own whose block table shares every full block and parts from the
others at the newest token (`BlockTable.branch`): keys lie at their logical positions, so a drafted token's
arithmetic is that of any other token (contract C2), and no attention kernel needs a tree mask. The price:
tokens that several branches have in common are computed once for each.

The draft model's keys and values lie under the same block ids, in tensors of its own, so whatever happens
to a sequence's blocks happens to both.
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
    """A sequence as drafters see it: the engine's `Sequence`."""

    index: int
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    params: SamplingParams
    filters: SamplingFilters
    max_tokens: int
    draft: DraftState

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens together; the last one is the newest."""

    @property
    def seen_token_ids(self) -> list[int]:
        """The ids the repetition penalty looks at; empty where it is off."""

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens `start` to `end` of prompt and output together."""

    def noise_keys(self, count: int, purpose: int = ...) -> list[int]:
        """Keys of the noise at the next `count` output positions."""

    def __hash__(self) -> int:
        """By identity: drafters may keep something for each sequence."""


@dataclass(frozen=True)
class Lookahead:
    """Leave to draft for one sequence: at most `depth` tokens in each branch.

    A branch's block table has room for the newest token and `depth` more; the first is the sequence's own.
    """

    sequence: DraftSequence
    depth: int
    block_tables: list[list[int]]


@dataclass(frozen=True)
class Proposal:
    """Guesses at what follows the newest token: at most one branch for each block table, the likeliest first.

    `probs` float32 [len(branches[0]), vocab_size] is the distribution each token of the only branch was drawn
    from; None means that it could have been no other. Only rejection sampling looks at it.
    """

    branches: list[list[int]]
    probs: Tensor | None = None


NO_PROPOSAL = Proposal([])


class Drafter(Protocol):
    """Anything that guesses. What it guesses changes the time an answer takes, never the answer."""

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """A proposal for each sequence; `NO_PROPOSAL`, or a short one, where it has no guess."""

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """After verification: `kept` tokens of `branch` stand. They are not appended to the sequence yet."""
