"""Task 1.5, stop strings that span pieces: known mistakes."""

from __future__ import annotations

from minillm.labs.grader.lab import Mistake
from minillm.text.detokenizer import StopMatcher


def shortest_overlap(text: str, stop: str) -> int:
    """Length of the shortest end of `text` with which `stop` begins; 0 without one."""
    return next((n for n in range(1, len(stop)) if text.endswith(stop[:n])), 0)


def longest_overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins; 0 without one."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


class LetsThrough(StopMatcher):
    """Holds no text back."""

    def push(self, text: str) -> str:
        out = super().push(text)
        return out + self.flush()


class LooksAtThePiece(StopMatcher):
    """Looks for a stop string only in the new piece, without the text that is held back."""

    def push(self, text: str) -> str:
        before, self._held = self._held, ""
        return before + super().push(text)


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
        keep = max(len(text) - max(map(len, self._stops), default=1) + 1, 0)
        self._held = text[keep:]
        return text[:keep]


class HoldsShortest(StopMatcher):
    """Holds back the shortest end that begins a stop string, not the longest."""

    def _overlap(self) -> int:
        return max((shortest_overlap(self._held, stop) for stop in self._stops), default=0)


class HoldsForFirst(StopMatcher):
    """Holds back text only for the first stop string in the list that has a beginning there."""

    def push(self, text: str) -> str:
        text = super().push(text) + self._held
        if self.matched:
            return text
        self._held = text
        ends = (longest_overlap(text, stop) for stop in self._stops)
        keep = len(text) - next(filter(None, ends), 0)
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


class FirstListedEnd(StopMatcher):
    """Cuts where the stop string that is listed first ends; of several that end there, the longest counts."""

    def push(self, text: str) -> str:
        held = self._held + text
        ends = [(held.find(stop) + len(stop), stop) for stop in self._stops if stop in held]
        if not ends:
            return super().push(text)
        self._held, self.matched = "", max((stop for end, stop in ends if end == ends[0][0]), key=len)
        return held[: ends[0][0] - len(self.matched)]


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


class ShortestOfEqual(StopMatcher):
    """Of several that end at one place, the shortest counts."""

    def push(self, text: str) -> str:
        held = self._held + text
        out = super().push(text)
        if self.matched:
            self.matched = min((s for s in self._stops if self._ends_first(s, held)), key=len)
            return held[: held.find(self.matched)]
        return out

    def _ends_first(self, stop: str, held: str) -> bool:
        ends = {s: held.find(s) + len(s) for s in self._stops if s in held}
        return ends.get(stop) == min(ends.values())


class LastMatch(StopMatcher):
    """Cuts at the last place where the stop string is."""

    def push(self, text: str) -> str:
        held = self._held + text
        out = super().push(text)
        return held[: held.rfind(self.matched)] if self.matched else out


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


class HoldsRest(StopMatcher):
    """Keeps the text after the stop string, so `flush` returns it."""

    def push(self, text: str) -> str:
        held = self._held + text
        out = super().push(text)
        if self.matched:
            self._held = held[len(out) + len(self.matched) :]
        return out


class HoldsMatch(StopMatcher):
    """Does not empty the held text at a match, so `flush` returns all of it."""

    def push(self, text: str) -> str:
        held = self._held + text
        out = super().push(text)
        if self.matched:
            self._held = held
        return out


class ForgetsWhich(StopMatcher):
    """Cuts the text but does not set `matched`."""

    def push(self, text: str) -> str:
        out = super().push(text)
        self.matched = None
        return out


class KeepsEverything(StopMatcher):
    """The texts are correct, but the matcher stores all of them."""

    def __init__(self, stops: list[str]) -> None:
        super().__init__(stops)
        self.text = ""

    def push(self, text: str) -> str:
        self.text += text
        return super().push(text)


STOP_MISTAKES = (
    Mistake("a stop string may span pieces: hold back text that may be the beginning of one", LetsThrough),
    Mistake(
        "the stop string is searched for in the new piece only: it may begin in the held text",
        LooksAtThePiece,
    ),
    Mistake("all text is held back: hold back only text that may be the beginning of a stop", HoldsAll),
    Mistake(
        "a fixed number of characters is held back: hold back only the beginning of a stop", HoldsLongest
    ),
    Mistake("too little is held back: hold back the longest end that begins a stop string", HoldsShortest),
    Mistake(
        "text is held back for the first stop string only: of all stop strings, the longest end counts",
        HoldsForFirst,
    ),
    Mistake("the stop string that is first in the list is used: use the one that ends first", FirstListed),
    Mistake(
        "the end of the stop string that is first in the list is used: use the first end of all",
        FirstListedEnd,
    ),
    Mistake("the stop string that starts first is used: use the one that ends first", FirstToStart),
    Mistake("of stop strings that end at one place the shortest is used: use the longest", ShortestOfEqual),
    Mistake("the last occurrence of the stop string is used: the text ends at the first", LastMatch),
    Mistake("the stop string is returned: the text ends before it", KeepsStop),
    Mistake("text after the stop string is returned: drop it", KeepsRest),
    Mistake("text after the stop string stays held, so `flush` returns it: drop it", HoldsRest),
    Mistake("the held text is not emptied at a match, so `flush` returns it again", HoldsMatch),
    Mistake("`matched` is not set: the engine does not see that the text has ended", ForgetsWhich),
    Mistake("all text is stored, although only the held end is needed", KeepsEverything),
)
