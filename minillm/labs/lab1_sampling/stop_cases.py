"""Task 1.5, stop strings that span pieces: cases and known mistakes."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.text.detokenizer import StopMatcher


def stop_case(name: str, stops: list[str], pieces: list[str]) -> Case:
    """What comes out for each piece, which stop was matched, and what the flush gives."""

    def run(matcher_class: Any) -> list[Any]:
        matcher, out = matcher_class(stops), []
        for piece in pieces:
            if matcher.matched is None:
                out.append(matcher.push(piece))
        return [out, matcher.matched, matcher.flush()]

    return Case(f"{name}: stops {stops}, pieces {pieces}", run)


class LetsThrough(StopMatcher):
    """Holds nothing back."""

    def push(self, text: str) -> str:
        out = super().push(text)
        return out + self.flush()


class HoldsAll(StopMatcher):
    """Gives nothing until a stop string has come."""

    def push(self, text: str) -> str:
        self._held = super().push(text) + self._held
        return self.flush() if self.matched else ""


class HoldsLongest(StopMatcher):
    """Always holds back as many characters as the longest stop string has, less one."""

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
    """The stop string is cut out, and what follows it comes through."""

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
    Mistake("stop string may span pieces: text that could become one was let through", LetsThrough),
    Mistake("everything is held back until a stop comes; hold only what could be the start of one", HoldsAll),
    Mistake("a fixed number of characters is held back; hold only a true beginning of a stop", HoldsLongest),
    Mistake("of two stop strings the first in the list is taken; it is the first to end", FirstListed),
    Mistake("of two stop strings the first to start is taken; it is the first to end", FirstToStart),
    Mistake("the stop string itself is given out; text ends before it", KeepsStop),
    Mistake("text after the stop string is given out; it is dropped", KeepsRest),
)
