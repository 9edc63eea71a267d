"""Task 9.4, n-gram drafts: cases and known mistakes of `NgramIndex`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.speculation.ngram import LONGEST, PLACES, SHORTEST, NgramIndex


def lookup_case(name: str, *pieces: str, length: int = 4, count: int = 1) -> Case:
    """Extend by each piece (a letter is a token); the branches after each."""

    def run(index_class: Callable[[], Any]) -> list[Any]:
        index, seen = index_class(), list[Any]()
        for piece in pieces:
            index.extend([ord(letter) for letter in piece])
            seen.append(index.continuations(length, count))
        return [*seen, index.tokens]

    return Case(f"{name}: {' + '.join(pieces)}", run)


LOOKUP_CASES = (
    lookup_case("the picture, one letter for each word", "tcsotm.tc"),
    lookup_case("nothing occurred before", "abcdefg"),
    lookup_case("one letter is too few", "abcxa"),
    lookup_case("token by token", "abcab", "c", "x", "a", "b"),
    lookup_case("the latest occurrence", "abxxabyyab"),
    lookup_case("the longest n-gram", "abcdxxbcdyyabcd"),
    lookup_case("a copy that reaches the end", "xyzxyz", length=7),
    lookup_case("a repeated token", "aaaa", length=5),
    lookup_case("three branches", "abxxabyyabzzab", count=3),
    lookup_case("no two branches with the same first token", "abxpabxqabyrab", count=3),
    lookup_case("more branches from shorter n-grams", "bcq.abcz.abc", count=3),
)


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
)
