"""Prompt lookup: if the last few tokens occurred before, draft the tokens that followed them then.

    tokens   the cat sat on the mat . the cat |          the last 2 tokens also occur at the beginning:
                     ^ ^  ^                              draft "sat on the"

It needs no model and no memory traffic, only a dictionary lookup per token. It drafts well for answers that
copy from their prompt (summaries, edits, code). Free text rarely matches, and then nothing is drafted.

The longest n-gram that occurred before is used, at its latest position. If the copy reaches the end of the
text, it continues with the tokens it has just copied. So a repeated phrase is drafted to the full length.

Source: Saxena, "Prompt Lookup Decoding" (2023). Left out: matching in other requests' texts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from minillm.speculation.proposal import NO_PROPOSAL, DraftSequence, Lookahead, Proposal

LONGEST, SHORTEST = 4, 2
PLACES = 8  # the number of latest positions kept for each n-gram


class NgramDrafter:
    """Drafts from the sequence's own tokens. Each sequence has a small index, which is dropped with it."""

    def __init__(self) -> None:
        self._indices: WeakKeyDictionary[DraftSequence, NgramIndex] = WeakKeyDictionary()

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """For each sequence: what followed the earlier occurrences of its last tokens, the latest first."""
        return [self._propose(lookahead) for lookahead in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Do nothing: the index reads the sequence's own tokens."""

    def _propose(self, lookahead: Lookahead) -> Proposal:
        sequence = lookahead.sequence
        index = self._indices.get(sequence)
        if index is None:
            index = self._indices[sequence] = NgramIndex()
        index.extend(sequence.tokens(len(index.tokens), sequence.num_tokens))
        branches = index.continuations(lookahead.depth, len(lookahead.block_tables))
        return Proposal(branches) if branches else NO_PROPOSAL


class NgramIndex:
    """For each n-gram of a growing text, the positions that followed it."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: dict[tuple[int, ...], deque[int]] = {}  # n-gram -> the positions after it, latest last

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens. An n-gram enters the index when a token has followed it.

        Its length is SHORTEST to LONGEST. Only the PLACES latest positions of an n-gram are kept, and a new
        token costs the same in a text of any length. `tokens` is the caller's: it may change later.
        """
        for token in tokens:
            end = len(self.tokens)
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._next.setdefault(tuple(self.tokens[end - n :]), deque(maxlen=PLACES)).append(end)
            self.tokens.append(token)

    def continuations(self, length: int, count: int) -> list[list[int]]:
        """At most `count` branches of `length` tokens, all with different first tokens.

        A branch copies what followed an earlier occurrence of the last n tokens: first that of the longest
        n-gram, for one n-gram the latest. At the end of the text a copy goes on with the tokens it has just
        copied. The index finds the places; the text is not searched. The lists are new.
        """
        branches: dict[int, list[int]] = {}
        for n in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1):
            for start in reversed(self._next.get(tuple(self.tokens[-n:]), ())):
                if len(branches) == count:
                    return list(branches.values())
                branches.setdefault(self.tokens[start], self._copy(start, length))
        return list(branches.values())

    def _copy(self, start: int, length: int) -> list[int]:
        """Copy `length` tokens from `start` on; at the end of the text the copy repeats itself."""
        period = len(self.tokens) - start
        return [self.tokens[start + i % period] for i in range(length)]
