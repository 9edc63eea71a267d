"""Task 1.5, stop strings that span pieces: cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Words

STOPS = ["END", "\n\n", "stop!"]


def pushed(matcher: Any, pieces: Iterable[str]) -> list[Any]:
    """The text returned for each piece, the matched stop string, and the text of `flush`."""
    out = list[Any]()
    for piece in pieces:
        if matcher.matched is None:
            out.append(matcher.push(piece))
    return [out, matcher.matched, matcher.flush()]


def stop_case(name: str, stops: Sequence[str], pieces: Sequence[str]) -> Case:
    """One matcher over `pieces`."""
    shown = f"{name}: stops {list(stops)}, pieces {list(pieces)}"
    return Case(shown, lambda matcher_class: pushed(matcher_class(list(stops)), pieces))


def cuts_case(matcher_class: Any) -> list[Any]:
    """One text, cut at every pair of places: the text and the match never depend on the cuts."""
    text, found = "abcabd abab", list[Any]()
    for i in range(len(text)):
        for j in range(i, len(text)):
            out, matched, rest = pushed(
                matcher_class(["abab", "bd ", "cabx"]), (text[:i], text[i:j], text[j:])
            )
            found.append([i, j, "".join(out), matched, rest])
    return found


def turns_case(matcher_class: Any) -> list[Any]:
    """Two completions in turns, and a third after them, with the same stop strings."""
    stops = ("END", "and")
    first, second, out = matcher_class(stops), matcher_class(stops), list[Any]()
    for left, right in zip(["one E", "N", "ough a", "n"], ["x", "D an", "y", " EN"], strict=True):
        out += [first.push(left), second.push(right)]
    for _ in range(3):  # matchers that end while they hold text; the next may lie where they were
        out.append(matcher_class(stops).push("x E"))
    third = matcher_class(["D"])
    return [
        out,
        third.push("a"),
        first.flush(),
        second.flush(),
        third.push("D"),
        first.matched,
        third.matched,
    ]


def memory_case(matcher_class: Any) -> Words:
    """Whether the matcher keeps the text that it has already returned."""
    matcher = matcher_class(STOPS)
    pushed(matcher, ["and so on "] * 20)
    early = kept(vars(matcher))
    pushed(matcher, ["and so on "] * 2000)
    more = kept(vars(matcher)) - early
    return Words("old text is dropped" if more < 100 else "keeps the whole text: only the held end is needed")


def kept(value: Any, depth: int = 4) -> int:
    """Characters of all texts, and items of all containers, in `value`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple | set) and depth:
        return len(value) + sum(kept(item, depth - 1) for item in value)
    return 0


def more_stops(random: Random) -> Iterable[Case]:
    """Random stop strings and pieces of two or three letters, so that many beginnings are false."""
    for letters in ("ab", "ab", "abc", "abc"):
        stops = [word(random, letters, random.randint(2, 5)) for _ in range(random.randint(1, 3))]
        pieces = [word(random, letters, random.randint(0, 4)) for _ in range(10)]
        yield stop_case("random", stops, pieces)


def word(random: Random, letters: str, length: int) -> str:
    """A random word."""
    return "".join(random.choice(letters) for _ in range(length))


STOP_CASES = (
    stop_case("none", [], ["Once", " upon"]),
    stop_case("inside a piece", ["END"], ["Once END upon"]),
    stop_case("twice in a piece", ["END"], ["one END two END"]),
    stop_case("spanning pieces", ["END"], ["one", " E", "N", "D", " two"]),
    stop_case("a false start", ["END"], ["the E", "NGINE runs"]),
    stop_case("two at once", ["dog", "cat"], ["a cat and a dog"]),
    stop_case("one inside another", ["abcd", "bc"], ["xabcd"]),
    stop_case("two that end together", ["bc", "abc", "c"], ["x", "ab", "cd"]),
    stop_case("a prefix that restarts", ["aab"], ["xa", "a", "a", "b!"]),
    stop_case("a beginning of the shorter and of the longer one", ["ab!", "babb"], ["xba", "b", "a"]),
    stop_case("one character", ["!"], ["so", "", "!", "no"]),
    stop_case("held at the end", ["\n\n", "STOP"], ["line", "\n", "more S"]),
    stop_case("empty pieces while text is held", ["END"], ["E", "", "N", "", "."]),
    Case("a text with every pair of cuts", cuts_case),
    Case("two completions in turns, then a third", turns_case, "aliasing"),
    Case("text kept after 2,000 pieces", memory_case, "cost"),
)
