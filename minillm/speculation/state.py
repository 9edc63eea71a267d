"""Everything speculation keeps of one sequence, in one object."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MEMORY = 128.0  # drafted tokens after which acceptance seen before counts 1 / e
PRIOR_WEIGHT = 2.0  # drafted tokens that the prior counts for


class Acceptance:
    """The share of drafted tokens that stood, of those that were looked at; old ones fade."""

    def __init__(self) -> None:
        self._stood = self._seen = 0.0

    def add(self, stood: int, seen: int) -> None:
        """`seen` more tokens were compared, of which `stood` were right."""
        fade = math.exp(-seen / MEMORY)
        self._stood, self._seen = self._stood * fade + stood, self._seen * fade + seen

    def rate(self, prior: float) -> float:
        """Between 0 and 1, never quite; `prior` where nothing is known."""
        rate = (self._stood + PRIOR_WEIGHT * prior) / (self._seen + PRIOR_WEIGHT)
        return min(max(rate, 0.001), 0.999)


@dataclass
class DraftState:
    """What speculation knows of one sequence.

    `num_computed_tokens` is how many of its first tokens the draft model has keys and values of,
    `num_published` how many of its cached blocks. `branch_blocks` are the blocks of every branch but its own
    table, while a step that looks ahead is running. Once an overflow in a drafted token has reached its own
    row it `is_excluded` from drafting.
    """

    num_computed_tokens: int = 0
    num_published: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    branch_blocks: list[list[int]] = field(default_factory=list)
    acceptance: Acceptance = field(default_factory=Acceptance)
    is_excluded: bool = False

    def forget_blocks(self) -> None:
        """The sequence has no block any more."""
        self.num_computed_tokens = self.num_published = 0
