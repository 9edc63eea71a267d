"""Drafters for tests, measurements and lessons, which know the answer in advance or draft random tokens.

The gain of speculation depends on how often a draft token is right. If the answer is known in advance, this
share can be set: 1 means that all draft tokens are right, 0 that all are wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from minillm.speculation.proposal import NO_PROPOSAL, DraftSequence, Lookahead, Proposal

Answer = Callable[[DraftSequence], Sequence[int]]


class ScriptedDrafter:
    """Drafts the known answer. Each token is right with probability `acceptance`, independent of the others.

    `answer` returns the whole output of a sequence; the draft ends where it ends. A wrong token is a
    different id below `vocab_size`.
    """

    def __init__(self, answer: Answer, vocab_size: int, acceptance: float = 1.0, seed: int = 0) -> None:
        self._answer, self._vocab_size, self._acceptance = answer, vocab_size, acceptance
        self._random = random.Random(seed)

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """Draft the answer's next tokens, some made wrong, in the last branch; wrong ones in the others."""
        return [self._propose(lookahead) for lookahead in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Do nothing."""

    def _propose(self, lookahead: Lookahead) -> Proposal:
        at = len(lookahead.sequence.output_token_ids)
        right = self._answer(lookahead.sequence)[at : at + lookahead.depth]
        if not right:
            return NO_PROPOSAL
        branches = [[self._wrong(token) for token in right] for _ in lookahead.block_tables[1:]]
        return Proposal([*branches, [self._maybe(token) for token in right]])

    def _maybe(self, token: int) -> int:
        return token if self._random.random() < self._acceptance else self._wrong(token)

    def _wrong(self, token: int) -> int:
        return (token + self._random.randrange(1, self._vocab_size)) % self._vocab_size


class RandomDrafter:
    """Drafts random ids below `vocab_size`."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self._vocab_size, self._random = vocab_size, random.Random(seed)

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """Draft as many random tokens as allowed in every branch."""
        return [Proposal([self._branch(x.depth) for _ in x.block_tables]) for x in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Do nothing."""

    def _branch(self, depth: int) -> list[int]:
        return [self._random.randrange(self._vocab_size) for _ in range(depth)]
