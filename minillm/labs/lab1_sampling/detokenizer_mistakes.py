"""Task 1.6, text from tokens, piece by piece: known mistakes."""

from __future__ import annotations

import codecs
from typing import Any

from minillm.labs.grader.lab import Mistake
from minillm.text.detokenizer import Detokenizer, token_bytes


class TokenByToken(Detokenizer):
    """Decodes each token alone."""

    def push(self, token_id: int) -> str:
        return self._stop.push(self._decode([token_id]))


class DecodesAll(Detokenizer):
    """Decodes all tokens again for each token, and returns what is new. The text is correct."""

    def __init__(self, tokenizer: Any, stops: Any = (), prompt_ids: Any = ()) -> None:
        super().__init__(tokenizer, stops, prompt_ids)
        self._ids = list(self._before)

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        self._decode(self._ids)
        return super().push(token_id)


class ForgetsHeldText(Detokenizer):
    """`finish` does not return the text that the stop matcher holds back."""

    def finish(self) -> str:
        return "" if self.stopped else self._stop.push(self._tail())


class ForgetsTail(Detokenizer):
    """`finish` does not return the text of the stream's pending tokens."""

    def finish(self) -> str:
        return "" if self.stopped else self._stop.flush()


class TailBehind(Detokenizer):
    """`finish` returns the held text and the tail in the wrong order."""

    def finish(self) -> str:
        return "" if self.stopped else self._tail() + self._stop.flush()


class FinishesNothing(Detokenizer):
    """`finish` returns no text."""

    def finish(self) -> str:
        return ""


class EmitsCut(Detokenizer):
    """`finish` returns U+FFFD for an incomplete character."""

    def _tail(self) -> str:
        return self._decode(self._pending)


class DropsReplacement(Detokenizer):
    """`finish` takes every U+FFFD for an incomplete character."""

    def _tail(self) -> str:
        return self._decode(self._pending).replace("\ufffd", "")


class DropsTheToken(Detokenizer):
    """`finish` drops a token that ends inside a character, also the whole characters in it."""

    def _tail(self) -> str:
        kept, utf8 = 0, codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i, token_id in enumerate(self._pending, 1):
            utf8.decode(token_bytes(self._tokenizer, token_id))
            kept = kept if utf8.getstate()[0] else i
        return self._decode(self._before + self._pending[:kept])[len(self._decode(self._before)) :]


class IgnoresStops(Detokenizer):
    """Text does not go through the stop matcher."""

    def __init__(self, tokenizer: Any, stops: Any = (), prompt_ids: Any = ()) -> None:
        super().__init__(tokenizer, (), prompt_ids)


class IgnoresPrompt(Detokenizer):
    """Decodes as if the completion were the beginning of the text."""

    def __init__(self, tokenizer: Any, stops: Any = (), prompt_ids: Any = ()) -> None:
        super().__init__(tokenizer, stops)


class RepeatsPrompt(Detokenizer):
    """The text of the prompt's last tokens comes again with the first token."""

    def push(self, token_id: int) -> str:
        again = self._decode(self._before) if self._is_new() else ""
        return again + super().push(token_id)

    def _is_new(self) -> bool:
        is_new, self._used = not getattr(self, "_used", False), True
        return is_new


STREAM_MISTAKES = (
    Mistake("half characters are emitted: one token can be a part of a character", TokenByToken),
    Mistake("stop strings are ignored: text must go through the stop matcher", IgnoresStops),
    Mistake("`finish` returns nothing: text that was held back is lost", FinishesNothing),
    Mistake("`finish` loses the text that the stop matcher holds back: flush it", ForgetsHeldText),
    Mistake("`finish` loses the stream's pending tokens", ForgetsTail),
    Mistake(
        "`finish` returns the tail before the held text: push the tail into the matcher first", TailBehind
    ),
    Mistake("an incomplete character at the end becomes U+FFFD: drop it", EmitsCut),
    Mistake("a real U+FFFD at the end is dropped: it is a character of the text", DropsReplacement),
    Mistake(
        "a token that ends inside a character is dropped whole: it can begin with a whole character",
        DropsTheToken,
    ),
    Mistake("the prompt's last tokens are ignored, so the first word loses its space", IgnoresPrompt),
    Mistake("the text of the prompt's last tokens is returned again", RepeatsPrompt),
    Mistake(
        "a token costs more and more in a long answer: decode only the last tokens, not all of them again",
        DecodesAll,
    ),
)
