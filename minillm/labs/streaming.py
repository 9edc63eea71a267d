"""The streaming half of lab 1: cases and known mistakes of the stop matcher and the detokenizer."""

from __future__ import annotations

from typing import Any

from minillm.labs.lab import Case, Mistake
from minillm.labs.tiny import byte_order, byte_tokenizer
from minillm.text.detokenizer import Detokenizer, StopMatcher


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


def stream_case(name: str, data: bytes, stops: tuple[str, ...] = ()) -> Case:
    """What comes out for each token (one a byte), what `finish` gives, and whether a stop was met."""

    def run(detokenizer_class: Any) -> list[Any]:
        tokenizer = byte_tokenizer()
        stream, out = detokenizer_class(tokenizer, stops), []
        for byte in data:
            out.append(stream.push(byte_order().index(byte)))
            if stream.stopped:
                break
        return [out, stream.finish(), stream.stopped]

    return Case(name, run)


class TokenByToken(Detokenizer):
    """Decodes each token alone."""

    def push(self, token_id: int) -> str:
        return self._stop.push(self._decode([token_id]))


class ForgetsHeldText(Detokenizer):
    """`finish` leaves the stop matcher's text where it is."""

    def finish(self) -> str:
        return "" if self.stopped else self._stop.push(self._tail())


class ForgetsTail(Detokenizer):
    """`finish` leaves the stream's tokens where they are."""

    def finish(self) -> str:
        return "" if self.stopped else self._stop.flush()


class FinishesNothing(Detokenizer):
    """`finish` has nothing to say."""

    def finish(self) -> str:
        return ""


class EmitsCut(Detokenizer):
    """`finish` gives a character whose last bytes never came as U+FFFD."""

    def _tail(self) -> str:
        return self._decode(self._pending)


class IgnoresStops(Detokenizer):
    """Text goes out past the stop matcher."""

    def __init__(self, tokenizer: Any, stops: Any = (), prompt_ids: Any = ()) -> None:
        super().__init__(tokenizer, (), prompt_ids)


STREAM_CASES = (
    stream_case("plain text", b"Hello"),
    stream_case("characters of 2, 3 and 4 bytes", "é日😀!".encode()),
    stream_case("a stop string", b"one END two", ("END",)),
    stream_case("a stop string of several bytes a character", "ja 日本 nein".encode(), ("日本",)),
    stream_case("ends inside a stop string", b"the EN", ("END",)),
    stream_case("ends inside a character", "so 😀".encode()[:-1]),
    stream_case("ends with a real U+FFFD", "so \ufffd".encode()),
)
STREAM_MISTAKES = (
    Mistake("half characters are emitted: one token can be a part of a character", TokenByToken),
    Mistake("stop strings are ignored: text must pass through the stop matcher", IgnoresStops),
    Mistake("`finish` gives nothing: text that was held back is lost", FinishesNothing),
    Mistake("`finish` loses the text that the stop matcher still holds: flush it", ForgetsHeldText),
    Mistake("`finish` loses the tokens that the stream still holds", ForgetsTail),
    Mistake("a character that was cut off comes out as U+FFFD: drop it", EmitsCut),
)
