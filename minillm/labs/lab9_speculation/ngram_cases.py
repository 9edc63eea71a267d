"""Task 9.4, n-gram drafts: cases of `NgramIndex`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Words


def lookup_case(name: str, *pieces: str, length: int = 4, count: int = 1) -> Case:
    """Extend by each piece (a letter is a token); the branches after each."""

    def run(index_class: Callable[[], Any]) -> list[Any]:
        index, seen = index_class(), list[Any]()
        for piece in pieces:
            index.extend([ord(letter) for letter in piece])
            seen.append(index.continuations(length, count))
        return [*seen, index.tokens]

    return Case(f"{name}: {' + '.join(pieces)}", run)


def ids_of(text: str) -> list[int]:
    """A letter is a token."""
    return [ord(letter) for letter in text]


def changed_case(index_class: Callable[[], Any]) -> list[Any]:
    """The caller changes the list that it gave, and the lists that it got; then it asks again."""
    index, given = index_class(), ids_of("abcxabcyabc")
    index.extend(given)
    given[:] = ids_of("zzzzzzzzzzz")
    first = index.continuations(4, 3)
    seen = [list(branch) for branch in first]
    for branch in first:
        branch[:] = [0, 0]
    again = index.continuations(4, 3)
    index.extend(())
    index.extend(tuple(ids_of("xab")))
    return [seen, again, index.continuations(3, 2), list(index.tokens)]


def turns_case(index_class: Callable[[], Any]) -> list[Any]:
    """Two requests in turns."""
    one, two, seen = index_class(), index_class(), list[Any]()
    for left, right in (("abcab", "xyzxy"), ("c", "q"), ("ab", "xy")):
        one.extend(ids_of(left))
        two.extend(ids_of(right))
        seen.append([one.continuations(3, 2), two.continuations(3, 2)])
    return seen


class CountedId(int):
    """A token id that counts how often it is hashed and compared."""

    uses = 0

    def __hash__(self) -> int:
        CountedId.uses += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        CountedId.uses += 1
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        CountedId.uses += 1
        return super().__ne__(other)


def cost_case(index_class: Callable[[], Any]) -> list[Words]:
    """Hashed and compared ids for each token of an answer of 400 tokens, with drafts after each."""
    index, letters, uses = index_class(), Random(1), [0, 0]
    for _ in range(400):
        CountedId.uses = 0
        index.extend([CountedId(letters.randrange(8))])
        uses[0] += CountedId.uses
        index.continuations(4, 2)
        uses[1] += CountedId.uses
    uses[1] -= uses[0]
    return [
        Words(f"{name}: {'at most' if used <= 400 * 80 else 'more than'} 80 ids hashed or compared each time")
        for name, used in zip(("extend", "continuations"), uses, strict=True)
    ]


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
    lookup_case("four letters at most", "abcdex.bcdey.abcde"),
    lookup_case("five letters occurred earlier than four", "pabcdx.qabcdy.pabcd", count=2),
    lookup_case("an occurrence that is too old", "abz." + "abx." * 8 + "ab", count=3),
    lookup_case("an occurrence that is just recent enough", "abz." + "abx." * 7 + "ab", count=3),
    lookup_case("nothing at all", "", "a", "b"),
    Case("lists that change after a call", changed_case, "aliasing"),
    Case("two requests in turns", turns_case, "aliasing"),
    Case("an answer of 400 tokens", cost_case, "cost"),
)


def random_texts(random: Random) -> Iterable[Case]:
    """Random cases: texts of few letters in pieces."""
    for number in range(3):
        pieces = [
            "".join(random.choice("abc"[: 2 + number % 2]) for _ in range(random.randint(1, 12)))
            for _ in range(4)
        ]
        length, count = random.randint(1, 6), random.randint(1, 3)
        yield lookup_case(f"random text {number + 1}", *pieces, length=length, count=count)
