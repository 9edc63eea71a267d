"""What a drafter is asked, and what it answers.

    newest token --+-- path 0:  once  upon   a        verified in lane 0, the sequence's own blocks
                   +-- path 1:  there was             verified in lane 1, blocks that part from them

A draft is a few *paths*, each a guess at the next tokens; several paths are a tree, cut into its branches.
Each path is verified as a sequence of its own whose page table shares every full block and parts from the
others at the newest token (`BlockTable.branch`): keys lie at their logical positions, so a drafted token's
arithmetic is that of any other token (contract C2), with no attention kernel that knows of trees. What is
paid for that: tokens which several paths have in common are computed once for each.

The draft model's keys and values lie under the same block ids, in tensors of its own, so whatever happens
to a sequence's blocks happens to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from minillm.config import SamplingParams


class DraftSequence(Protocol):
    """A sequence as drafters see it: the engine's `Request`."""

    index: int
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    params: SamplingParams
    num_draft_computed_tokens: int

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
    """Leave to draft for one sequence: at most `depth` tokens in each lane.

    A lane is the block ids of one path, with room for the newest token and `depth` more.
    """

    sequence: DraftSequence
    depth: int
    lanes: list[list[int]]


@dataclass(frozen=True)
class Draft:
    """Guesses at what follows the newest token: at most one path for each lane, the likeliest first.

    `probs` float32 [len(paths[0]), vocab_size] is the distribution each token of the only path was drawn
    from; None means that it could have been no other. Only rejection sampling looks at it.
    """

    paths: list[list[int]]
    probs: Tensor | None = None


NO_DRAFT = Draft([])


class Drafter(Protocol):
    """Anything that guesses. What it guesses changes the time an answer takes, never the answer."""

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Draft]:
        """A draft for each sequence; `NO_DRAFT`, or a short one, where it has no guess."""

    def settle(self, lookahead: Lookahead, draft: Draft, lane: int, kept: int) -> None:
        """Told after verification: `kept` tokens of the path in `lane` stand. They are not appended yet."""
