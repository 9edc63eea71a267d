"""Task 1.5, stop strings that span pieces: cases and known mistakes."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.text.detokenizer import StopMatcher


def stop_case(name: str, stops: list[str], pieces: list[str]) -> Case:
    """The text returned for each piece, the matched stop string, and the text of `flush`."""

    def run(matcher_class: Any) -> list[Any]:
        matcher, out = matcher_class(stops), []
        for piece in pieces:
            if matcher.matched is None:
                out.append(matcher.push(piece))
        return [out, matcher.matched, matcher.flush()]

    return Case(f"{name}: stops {stops}, pieces {pieces}", run)


class LetsThrough(StopMatcher):
    """Holds no text back."""

    def push(self, text: str) -> str:
        out = super().push(text)
        return out + self.flush()


class HoldsAll(StopMatcher):
    """Returns no text until a stop string has arrived."""

    def push(self, text: str) -> str:
        self._held = super().push(text) + self._held
        return self.flush() if self.matched else ""


class HoldsLongest(StopMatcher):
    """Always holds back n - 1 characters, where n is the length of the longest stop string."""

    def push(self, text: str) -> str:
        text = super().push(text) + self._held
        if self.matched:
            return text
        keep = max(len(text) - max(len(stop) for stop in self._stops) + 1, 0)
        self._held = text[keep:]
        return text[:keep]


class FirstListed(StopMatcher):
    """Cuts at the stop string that is listed first."""

    def push(self, text: str) -> str:
        held = self._held + text
        listed = next((stop for stop in self._stops if stop in held), None)
        if listed is None:
            return super().push(text)
        self._held, self.matched = "", listed
        return held[: held.find(listed)]


class FirstToStart(StopMatcher):
    """Cuts at the stop string that starts first."""

    def push(self, text: str) -> str:
        held = self._held + text
        places = [(held.find(stop), stop) for stop in self._stops if stop in held]
        if not places:
            return super().push(text)
        start, self.matched = min(places)
        self._held = ""
        return held[:start]


class KeepsStop(StopMatcher):
    """The stop string is part of the text."""

    def push(self, text: str) -> str:
        out = super().push(text)
        return out + (self.matched or "")


class KeepsRest(StopMatcher):
    """Removes the stop string but returns the text after it."""

    def push(self, text: str) -> str:
        held = self._held + text
        out = super().push(text)
        return held.replace(self.matched, "", 1) if self.matched else out


STOP_CASES = (
    stop_case("none", [], ["Once", " upon"]),
    stop_case("inside a piece", ["END"], ["Once END upon"]),
    stop_case("spanning pieces", ["END"], ["one", " E", "N", "D", " two"]),
    stop_case("a false start", ["END"], ["the E", "NGINE runs"]),
    stop_case("two at once", ["dog", "cat"], ["a cat and a dog"]),
    stop_case("one inside another", ["abcd", "bc"], ["xabcd"]),
    stop_case("a prefix that restarts", ["aab"], ["xa", "a", "a", "b!"]),
    stop_case("held at the end", ["\n\n", "STOP"], ["line", "\n", "more S"]),
)
STOP_MISTAKES = (
    Mistake("a stop string may span pieces: hold back text that may be the beginning of one", LetsThrough),
    Mistake("all text is held back: hold back only text that may be the beginning of a stop", HoldsAll),
    Mistake(
        "a fixed number of characters is held back: hold back only the beginning of a stop", HoldsLongest
    ),
    Mistake("the stop string that is first in the list is used: use the one that ends first", FirstListed),
    Mistake("the stop string that starts first is used: use the one that ends first", FirstToStart),
    Mistake("the stop string is returned: the text ends before it", KeepsStop),
    Mistake("text after the stop string is returned: drop it", KeepsRest),
)
