"""Task 1.6, text from tokens, piece by piece: cases and known mistakes."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.tiny_model import byte_order, byte_tokenizer
from minillm.text.detokenizer import Detokenizer


def stream_case(name: str, data: bytes, stops: tuple[str, ...] = ()) -> Case:
    """The text returned for each token (one token per byte), the text of `finish`, and `stopped`."""

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
    """`finish` does not return the text that the stop matcher holds back."""

    def finish(self) -> str:
        return "" if self.stopped else self._stop.push(self._tail())


class ForgetsTail(Detokenizer):
    """`finish` does not return the text of the stream's pending tokens."""

    def finish(self) -> str:
        return "" if self.stopped else self._stop.flush()


class FinishesNothing(Detokenizer):
    """`finish` returns no text."""

    def finish(self) -> str:
        return ""


class EmitsCut(Detokenizer):
    """`finish` returns U+FFFD for an incomplete character."""

    def _tail(self) -> str:
        return self._decode(self._pending)


class IgnoresStops(Detokenizer):
    """Text does not go through the stop matcher."""

    def __init__(self, tokenizer: Any, stops: Any = (), prompt_ids: Any = ()) -> None:
        super().__init__(tokenizer, (), prompt_ids)


STREAM_CASES = (
    stream_case("plain text", b"Hello"),
    stream_case("characters of 2, 3 and 4 bytes", "é日😀!".encode()),
    stream_case("a stop string", b"one END two", ("END",)),
    stream_case("a stop string with several bytes per character", "ja 日本 nein".encode(), ("日本",)),
    stream_case("ends inside a stop string", b"the EN", ("END",)),
    stream_case("ends inside a character", "so 😀".encode()[:-1]),
    stream_case("ends with a real U+FFFD", "so \ufffd".encode()),
)
STREAM_MISTAKES = (
    Mistake("half characters are emitted: one token can be a part of a character", TokenByToken),
    Mistake("stop strings are ignored: text must go through the stop matcher", IgnoresStops),
    Mistake("`finish` returns nothing: text that was held back is lost", FinishesNothing),
    Mistake("`finish` loses the text that the stop matcher holds back: flush it", ForgetsHeldText),
    Mistake("`finish` loses the stream's pending tokens", ForgetsTail),
    Mistake("an incomplete character at the end becomes U+FFFD: drop it", EmitsCut),
)
