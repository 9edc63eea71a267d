"""Prompt lookup: what followed the last few tokens when they occurred before will follow them again.

    tokens   the cat sat on the mat . the cat |          the last 2 tokens stood at the beginning:
                     ^ ^  ^                              draft "sat on the"

No model, no memory traffic, a dictionary lookup for each token. Answers that copy from their prompt
(summaries, edits, code) are drafted well; free text hardly ever matches and costs nothing.

The longest n-gram that occurred before wins, at its latest place. A copy that reaches the end of the text
goes on with what it has just copied, so a repeated phrase is drafted as far as it is asked for.

Source: Saxena, "Prompt Lookup Decoding" (2023). Left out: matching in other requests' texts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from minillm.speculation.proposal import NO_PROPOSAL, DraftSequence, Lookahead, Proposal

LONGEST, SHORTEST = 4, 2
PLACES = 8  # that are kept of each n-gram, the latest


class NgramDrafter:
    """Drafts from the sequence's own text. One small index for each sequence, dropped with it."""

    def __init__(self) -> None:
        self._indices: WeakKeyDictionary[DraftSequence, NgramIndex] = WeakKeyDictionary()

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """For each sequence the continuations of its last tokens' earlier occurrences, the latest first."""
        return [self._propose(lookahead) for lookahead in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Nothing to keep: the index reads the sequence's own tokens."""

    def _propose(self, lookahead: Lookahead) -> Proposal:
        sequence = lookahead.sequence
        index = self._indices.get(sequence)
        if index is None:
            index = self._indices[sequence] = NgramIndex()
        index.extend(sequence.tokens(len(index.tokens), sequence.num_tokens))
        branches = index.continuations(lookahead.depth, len(lookahead.block_tables))
        return Proposal(branches) if branches else NO_PROPOSAL


class NgramIndex:
    """Where each n-gram of a growing text went on."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: dict[tuple[int, ...], deque[int]] = {}  # n-gram -> where it went on, latest last

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens. An n-gram is known once a token has followed it."""
        for token in tokens:
            end = len(self.tokens)
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._next.setdefault(tuple(self.tokens[end - n :]), deque(maxlen=PLACES)).append(end)
            self.tokens.append(token)

    def continuations(self, length: int, count: int) -> list[list[int]]:
        """At most `count` branches of `length` tokens, no two with the same first token."""
        branches: dict[int, list[int]] = {}
        for n in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1):
            for start in reversed(self._next.get(tuple(self.tokens[-n:]), ())):
                if len(branches) == count:
                    return list(branches.values())
                branches.setdefault(self.tokens[start], self._copy(start, length))
        return list(branches.values())

    def _copy(self, start: int, length: int) -> list[int]:
        """`length` tokens from `start` on; past the end of the text the copy repeats itself."""
        period = len(self.tokens) - start
        return [self.tokens[start + i % period] for i in range(length)]
