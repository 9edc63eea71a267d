"""Drafters that know the answer: for tests, measurements and lessons.

The gain of speculation depends on how often a draft is right. With an answer known in advance that share
can be set: 1 is an oracle, 0 an adversary whose every token is wrong, and anything between is a dial.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from minillm.speculation.proposal import NO_PROPOSAL, DraftSequence, Lookahead, Proposal

Answer = Callable[[DraftSequence], Sequence[int]]


class ScriptedDrafter:
    """Drafts the known answer, each token right with probability `acceptance`, whatever came before.

    `answer` gives a sequence's whole output; where that ends the draft ends. A wrong token is another id
    of the `vocab_size`.
    """

    def __init__(self, answer: Answer, vocab_size: int, acceptance: float = 1.0, seed: int = 0) -> None:
        self._answer, self._vocab_size, self._acceptance = answer, vocab_size, acceptance
        self._random = random.Random(seed)

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """The answer's next tokens, some of them wrong, in the last branch; only wrong ones in the others."""
        return [self._propose(lookahead) for lookahead in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Nothing to keep."""

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
    """Drafts any ids below `vocab_size`."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self._vocab_size, self._random = vocab_size, random.Random(seed)

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """Random tokens, as many as allowed, in every branch."""
        return [Proposal([self._branch(x.depth) for _ in x.block_tables]) for x in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Nothing to keep."""

    def _branch(self, depth: int) -> list[int]:
        return [self._random.randrange(self._vocab_size) for _ in range(depth)]
