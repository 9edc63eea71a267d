"""The speculation state of one sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MEMORY = 128.0  # after this many draft tokens, the weight of older ones has fallen to 1 / e
PRIOR_WEIGHT = 2.0  # the prior counts as this many draft tokens


class Acceptance:
    """The share of compared draft tokens that were accepted; the weight of old tokens decays."""

    def __init__(self) -> None:
        self._accepted = self._compared = 0.0

    def add(self, accepted: int, compared: int) -> None:
        """Record that `compared` more draft tokens were compared and `accepted` of them were right."""
        decay = math.exp(-compared / MEMORY)
        self._accepted = self._accepted * decay + accepted
        self._compared = self._compared * decay + compared

    def rate(self, prior: float) -> float:
        """The acceptance, strictly between 0 and 1; `prior` if nothing has been compared."""
        rate = (self._accepted + PRIOR_WEIGHT * prior) / (self._compared + PRIOR_WEIGHT)
        return min(max(rate, 0.001), 0.999)


@dataclass
class DraftState:
    """The speculation state of one sequence.

    `num_computed_tokens`: the number of its first tokens whose keys and values the draft model has.
    `num_published`: the number of its cached blocks that hold them. `branch_blocks`: during a speculative
    step, the blocks of every branch after the first. `is_excluded`: it gets no more drafts, because a draft
    token whose values overflow may have made the logits after its newest token NaN.
    """

    num_computed_tokens: int = 0
    num_published: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    branch_blocks: list[list[int]] = field(default_factory=list)
    acceptance: Acceptance = field(default_factory=Acceptance)
    is_excluded: bool = False

    def forget_blocks(self) -> None:
        """Record that the sequence has lost its blocks."""
        self.num_computed_tokens = self.num_published = 0
