"""Known mistakes of task 9.4, `NgramIndex`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from minillm.labs.grader.lab import Mistake
from minillm.speculation.ngram import LONGEST, PLACES, SHORTEST, NgramIndex


class Lookup(NgramIndex):
    """The engine's index; subclasses change one part of it."""

    def _sizes(self) -> Sequence[int]:
        return range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1)

    def _places(self, n: int) -> Sequence[int]:
        return list(self._next.get(tuple(self.tokens[-n:]), ()))[::-1]

    def _branch(self, start: int, length: int) -> list[int]:
        period = len(self.tokens) - start
        return [self.tokens[start + i % period] for i in range(length)]

    def continuations(self, length: int, count: int) -> list[list[int]]:
        branches: dict[int, list[int]] = {}
        for n in self._sizes():
            for start in self._places(n):
                branch = self._branch(start, length)
                if len(branches) < count:
                    branches.setdefault(branch[0], branch)
        return list(branches.values())


class ShortestFirst(Lookup):
    """Searches short n-grams before long ones."""

    def _sizes(self) -> Sequence[int]:
        return super()._sizes()[::-1]


class OnlyLongest(Lookup):
    """Searches only the longest n-gram."""

    def _sizes(self) -> Sequence[int]:
        return super()._sizes()[:1]


class SingleTokens(Lookup):
    """Also searches single tokens."""

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self.tokens)
            for n in range(1, min(LONGEST, end) + 1):
                self._next.setdefault(tuple(self.tokens[end - n :]), deque(maxlen=PLACES)).append(end)
            self.tokens.append(token)

    def _sizes(self) -> Sequence[int]:
        return range(min(LONGEST, len(self.tokens)), 0, -1)


class EarliestFirst(Lookup):
    """Takes the earliest occurrence, not the latest."""

    def _places(self, n: int) -> Sequence[int]:
        return super()._places(n)[::-1]


class StopsAtTheEnd(Lookup):
    """Stops copying at the end of the text."""

    def _branch(self, start: int, length: int) -> list[int]:
        return self.tokens[start : start + length]


class BeginsWithTheMatch(Lookup):
    """Drafts the n-gram itself again."""

    def _branch(self, start: int, length: int) -> list[int]:
        n = next(n for n in self._sizes() if start in self._places(n))
        return super()._branch(start - n, length)


class Twins(Lookup):
    """Two branches may begin with the same token."""

    def continuations(self, length: int, count: int) -> list[list[int]]:
        starts = list(dict.fromkeys(start for n in self._sizes() for start in self._places(n)))
        return [self._branch(start, length) for start in starts[:count]]


class AllBranches(Lookup):
    """Returns more branches than `count`."""

    def continuations(self, length: int, count: int) -> list[list[int]]:
        return super().continuations(length, count + 1)


class ForgetsTheSeam(Lookup):
    """N-grams across two calls of `extend` are not stored."""

    def extend(self, tokens: Sequence[int]) -> None:
        first = len(self.tokens)
        for token in tokens:
            end = len(self.tokens)
            for n in range(SHORTEST, min(LONGEST, end - first) + 1):
                self._next.setdefault(tuple(self.tokens[end - n :]), deque(maxlen=PLACES)).append(end)
            self.tokens.append(token)


class OnePlace(Lookup):
    """Uses only the latest occurrence of an n-gram."""

    def _places(self, n: int) -> Sequence[int]:
        return super()._places(n)[:1]


class OldPlacesToo(Lookup):
    """Keeps every occurrence of an n-gram."""

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self.tokens)
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._next.setdefault(tuple(self.tokens[end - n :]), deque()).append(end)
            self.tokens.append(token)


class FewPlaces(Lookup):
    """Keeps one occurrence too few."""

    def _places(self, n: int) -> Sequence[int]:
        return super()._places(n)[: PLACES - 1]


class LongToo(Lookup):
    """Also searches n-grams that are longer than LONGEST."""

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self.tokens)
            for n in range(SHORTEST, min(LONGEST + 2, end) + 1):
                self._next.setdefault(tuple(self.tokens[end - n :]), deque(maxlen=PLACES)).append(end)
            self.tokens.append(token)

    def _sizes(self) -> Sequence[int]:
        return range(min(LONGEST + 2, len(self.tokens)), SHORTEST - 1, -1)


class NotLongest(Lookup):
    """Leaves out the longest n-grams."""

    def _sizes(self) -> Sequence[int]:
        return range(min(LONGEST - 1, len(self.tokens)), SHORTEST - 1, -1)


class OneTooFew(Lookup):
    """A branch is one token too short."""

    def _branch(self, start: int, length: int) -> list[int]:
        return super()._branch(start, length - 1)


class KeepsTheList(Lookup):
    """Uses the caller's list as its own text."""

    def extend(self, tokens: Sequence[int]) -> None:
        is_first = not self.tokens
        super().extend(tokens)
        if is_first and isinstance(tokens, list):
            self.tokens = tokens


class Rebuilds(Lookup):
    """Makes the index again at each call of `extend`."""

    def extend(self, tokens: Sequence[int]) -> None:
        text, self.tokens, self._next = [*self.tokens, *tokens], [], {}
        super().extend(text)


class Scans(Lookup):
    """Compares the last tokens with every earlier place of the text."""

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)

    def _places(self, n: int) -> Sequence[int]:
        last = self.tokens[-n:]
        ends = [end for end in range(n, len(self.tokens)) if self.tokens[end - n : end] == last]
        return ends[::-1][:PLACES]


LOOKUP_MISTAKES = (
    Mistake("short n-grams are searched first: begin with the longest", ShortestFirst),
    Mistake("only the longest n-gram is searched: if it did not occur, search a shorter one", OnlyLongest),
    Mistake("single tokens are searched: an n-gram has at least SHORTEST tokens", SingleTokens),
    Mistake("the earliest occurrence is copied: the latest one predicts better", EarliestFirst),
    Mistake(
        "a copy stops at the end of the text: continue with the tokens just copied, so that a repeated "
        "phrase is drafted to any length",
        StopsAtTheEnd,
    ),
    Mistake("the draft begins with the n-gram itself: begin with the token after it", BeginsWithTheMatch),
    Mistake("two branches begin with the same token: only the first of them can be accepted", Twins),
    Mistake("more branches than `count`: there are only `count` block tables", AllBranches),
    Mistake(
        "n-grams across two calls of `extend` are not found: `extend` gets each new token of an answer",
        ForgetsTheSeam,
    ),
    Mistake("only one occurrence of an n-gram is used: the others give more branches", OnePlace),
    Mistake(
        "every occurrence is kept: keep the PLACES latest ones, or a long text costs more and more",
        OldPlacesToo,
    ),
    Mistake("fewer than PLACES occurrences are kept", FewPlaces),
    Mistake("n-grams longer than LONGEST are searched", LongToo),
    Mistake("n-grams of LONGEST tokens are not searched", NotLongest),
    Mistake("a branch has one token too few", OneTooFew),
    Mistake(
        "the caller's list is kept, and changes with it: append its tokens to your own list", KeepsTheList
    ),
    Mistake("the index is made again at each call of `extend`: add only the new tokens", Rebuilds),
    Mistake("the whole text is searched for each draft: the index must find the place", Scans),
)
