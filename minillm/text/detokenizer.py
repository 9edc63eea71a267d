"""Token ids to text while they arrive: never half a character, and no text is lost at the end.

One token is often a part of a character (an emoji is four bytes, and so up to four tokens), and one
stop string often spans several tokens. So text is held back at two places:

    ids -> DecodeStream -> [ unfinished bytes ] -> stop matcher -> [ may become a stop string ] -> out

`finish` flushes both. Only a character whose last bytes never came is dropped.
"""

from __future__ import annotations

import bisect
import codecs
import re
from collections.abc import Sequence

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import DecodeStream

from minillm.text.failures import decoding_failure

CONTEXT_SIZES = (4, 16, 64)


class StopMatcher:
    """Lets text through until a stop string appears; holds back what could be the start of one.

    A request may have thousands of stop strings, and every token is looked for in all of them. So they are
    kept as a set, with the lengths that occur, and sorted: those that begin with a text stand together.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._sorted, self._whole = tuple(stops), sorted(stops), frozenset(stops)
        self._lengths = sorted({len(stop) for stop in stops}, reverse=True)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take `text`; return what can no longer be part of a stop string.

        The result does not depend on how the text is cut into pieces. The stop string that ends first counts;
        of several that end at one place, the longest. At a match `matched` becomes the stop string, the text
        before it is returned, and the stop string and all text after it are dropped. Without a match the
        longest end of the text that begins a stop string is held back, and only this is stored.
        """
        first, self._held = len(self._held) + 1, self._held + text
        for end in range(first, len(self._held) + 1) if self._stops else ():
            # The stop string that ends first counts, wherever the pieces were cut: the result is the same
            # as with one character at a time. Of several that end at one place the longest counts.
            last = (self._held[end - n : end] for n in self._lengths if n <= end)
            self.matched = next((stop for stop in last if stop in self._whole), None)
            if self.matched is not None:
                self._held = self._held[: end - len(self.matched)]
                return self.flush()
        keep = self._overlap()
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """Return the text that was held back; no more text will come."""
        out, self._held = self._held, ""
        return out

    def _overlap(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = min(max(self._lengths, default=1) - 1, len(self._held))
        for size in range(longest, 0, -1):
            start = self._held[-size:]
            place = bisect.bisect_left(self._sorted, start)  # the first stop string not before `start`
            if place < len(self._sorted) and self._sorted[place].startswith(start):
                return size
        return 0


class Detokenizer:
    """Streams one completion. The pieces of `push` and `finish` joined are the completion's text.

    Decoding starts after the prompt's last tokens. SentencePiece-like decoders drop the space before the
    first word of a text, and the first word of a completion is rarely the first word of the text.
    """

    def __init__(
        self, tokenizer: RustTokenizer, stops: Sequence[str] = (), prompt_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._before = self._context(prompt_ids)
        self._stream = self._new_stream(self._before)
        self._pending: list[int] = []
        self._stop = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared; text from it on is dropped."""
        return self._stop.matched is not None

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is certain now (often empty).

        Text goes through the stop matcher before it is returned. Only the last tokens are decoded, so a token
        costs the same at the beginning and at the end of a long completion.

        Raises:
            TokenizerError: the tokenizer fails at it.
        """
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # later bytes turned a character that was already returned into U+FFFD
            text = self._decode(self._pending)
            self._stream = self._new_stream([token_id])
        except BaseException as error:
            raise decoding_failure(error) from None
        if text is None:
            return ""
        self._before, self._pending = self._pending, []
        return self._stop.push(text)

    def finish(self) -> str:
        """The rest, when no more tokens come: whole characters still held back; "" after a stop string.

        Text that the stop matcher holds comes out, too. A character whose last bytes never came is dropped,
        but a U+FFFD that the tokens encode is a character of the text.

        Raises:
            TokenizerError: the tokenizer fails at them.
        """
        if self.stopped:
            return ""
        try:
            return self._stop.push(self._tail()) + self._stop.flush()
        except BaseException as error:
            raise decoding_failure(error) from None

    def _tail(self) -> str:
        """Text of the tokens the stream holds, without a character that was cut off."""
        if not self._pending:
            return ""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        special = self._tokenizer.get_added_tokens_decoder()
        plain = [i for i in self._pending if i not in special or not special[i].special]
        whole = utf8.decode(b"".join(token_bytes(self._tokenizer, i) for i in plain))
        cut = len(utf8.getstate()[0])  # bytes of the unfinished character; a U+FFFD before it can be genuine
        while cut > 0:
            cut -= len(token_bytes(self._tokenizer, plain.pop()))
        if cut < 0:  # the character starts inside a token, so all these tokens are byte-level
            return whole
        # Decoded together with the tokens before them: the start of a text may be treated differently.
        before, text = self._decode(self._before), self._decode(self._before + plain)
        return text[len(before) :] if text.startswith(before) else self._decode(plain)

    def _context(self, prompt_ids: Sequence[int]) -> list[int]:
        """The prompt's last tokens: as many as it takes to decode to whole characters."""
        for size in CONTEXT_SIZES:
            ids = list(prompt_ids[-size:])
            if not self._decode(ids).endswith("\ufffd"):
                return ids
        return []  # the prompt ends inside a character

    def _decode(self, ids: list[int]) -> str:
        try:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        except BaseException as error:
            raise decoding_failure(error) from None

    def _new_stream(self, ids: list[int]) -> DecodeStream:
        try:
            return DecodeStream(ids=ids, skip_special_tokens=True)
        except BaseException as error:
            raise decoding_failure(error) from None


class NullDetokenizer:
    """For a model without a tokenizer: token ids come out, text stays empty."""

    stopped = False

    def push(self, token_id: int) -> str:
        """No text."""
        return ""

    def finish(self) -> str:
        """No text."""
        return ""


def token_bytes(tokenizer: RustTokenizer, token_id: int) -> bytes:
    """The raw bytes of a token: byte-level alphabet, `<0xE2>` byte fallback, or plain text."""
    token = tokenizer.id_to_token(token_id) or ""
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(match[1])
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode()


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable bytes stand for themselves, others from U+0100 on.

    Source: Radford et al., GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = byte_alphabet()
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
