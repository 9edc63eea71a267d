"""Task 1.6, text from tokens, piece by piece: cases."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import zip_longest
from random import Random
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from minillm.labs.grader.lab import Case, Words
from minillm.labs.grader.tiny_model import byte_order, byte_tokenizer
from minillm.text.detokenizer import byte_alphabet

A_AND_CUT, END = 256, 257
WORDS = ["\u2581the", "\u2581cat", "\u2581sat", "s", ",", "\u2581on", "<0xE6>", "<0x97>", "<0xA5>"]


@cache
def larger_tokenizer() -> Tokenizer:
    """One id per byte, 256 for an A with the first byte of a character, and the special id 257."""
    letter = {byte: char for char, byte in byte_alphabet().items()}
    vocab = {letter[byte]: i for i, byte in enumerate(byte_order())}
    tokenizer = Tokenizer(models.BPE(vocab={**vocab, "A" + letter[0xE6]: A_AND_CUT}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


@cache
def word_tokenizer() -> Tokenizer:
    """As SentencePiece: a token begins with its space, and the first space of a text is dropped."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1, right=0),
        ]
    )
    return tokenizer


def ids_of(text: str | bytes) -> list[int]:
    """One id per byte."""
    data = text.encode() if isinstance(text, str) else text
    return [byte_order().index(byte) for byte in data]


def streamed(stream: Any, ids: Iterable[int]) -> list[Any]:
    """The text returned for each id, the text of `finish`, and `stopped`."""
    out = list[str]()
    for token_id in ids:
        out.append(stream.push(token_id))
        if stream.stopped:
            break
    return [out, stream.finish(), stream.stopped]


def stream_case(name: str, text: str | bytes, stops: Sequence[str] = (), prompt: str = "") -> Case:
    """One completion, one token per byte."""

    def run(detokenizer_class: Any) -> list[Any]:
        prompt_ids = ids_of(prompt)
        stream = detokenizer_class(larger_tokenizer(), stops, prompt_ids)
        return [streamed(stream, ids_of(text)), prompt_ids == ids_of(prompt)]

    return Case(name, run)


def words_case(name: str, prompt: Sequence[int], ids: Sequence[int]) -> Case:
    """One completion of the word tokenizer."""
    return Case(name, lambda d: streamed(d(word_tokenizer(), (), list(prompt)), ids))


def special_case(detokenizer_class: Any) -> list[Any]:
    """A special token has no text, inside a character and after the last one."""
    ids = [*ids_of("a\u65e5")[:3], *ids_of("\u65e5")[2:], END, *ids_of("b"), END]
    return streamed(detokenizer_class(larger_tokenizer()), ids)


def inside_token_case(detokenizer_class: Any) -> list[Any]:
    """The last token ends inside a character, but begins with a whole one."""
    return streamed(detokenizer_class(larger_tokenizer(), ("END",)), [*ids_of("so E"), A_AND_CUT])


def turns_case(detokenizer_class: Any) -> list[Any]:
    """Two completions in turns, and a third after them."""
    texts = [ids_of("a 日本 END x"), ids_of("E😀 EN")]
    streams = [detokenizer_class(byte_tokenizer(), ("END",), ids_of("p")) for _ in texts]
    out = list[Any]()
    for ids in zip_longest(*texts):
        for stream, token_id in zip(streams, ids, strict=True):
            if token_id is not None and not stream.stopped:
                out.append(stream.push(token_id))
    out += [part for stream in streams for part in (stream.finish(), stream.stopped)]
    for _ in range(3):  # streams that end inside a character; the next may lie where they were
        out.append(detokenizer_class(byte_tokenizer()).push(ids_of("日")[0]))
    return [out, streamed(detokenizer_class(byte_tokenizer()), ids_of("END"))]


def speed_case(detokenizer_class: Any) -> Words:
    """Whether a token costs about as much after 3,000 tokens as after 100 (the shortest of ten times)."""
    stream = detokenizer_class(byte_tokenizer())
    ids, seconds = ids_of("some text "), list[float]()
    for _ in range(150):
        started = time.perf_counter()
        for token_id in ids * 2:
            stream.push(token_id)
        seconds.append(time.perf_counter() - started)
    is_even = min(seconds[-10:]) < 6 * min(seconds[:10])
    return Words("a token costs the same" if is_even else "a token costs more and more")


def more_streams(random: Random) -> Iterable[Case]:
    """Random characters of 1 to 4 bytes; the end may be cut, the stop string may come."""
    for _ in range(4):
        text = "".join(random.choice("abé日😀E\ufffd") for _ in range(12))
        data = text.encode()[: random.randint(8, 40)]
        yield stream_case(f"bytes {data!r}", data, random.choice([(), ("ab",), ("日", "é😀")]), text[:3])


STREAM_CASES = (
    stream_case("plain text", "Hello"),
    stream_case("characters of 2, 3 and 4 bytes", "é日😀!"),
    stream_case("a stop string", "one END two", ("END",)),
    stream_case("a stop string with several bytes per character", "ja 日本 nein", ("日本",)),
    stream_case("ends inside a stop string", "the EN", ("END",)),
    stream_case("ends inside a character", "so 😀".encode()[:-1]),
    stream_case("ends inside a character and inside a stop string", "the E日".encode()[:-1], ("END",)),
    stream_case("ends with a real U+FFFD", "so \ufffd"),
    stream_case("held text, then a real U+FFFD", "the E\ufffd", ("E\ufffd!",)),
    Case("the last token is an A and the first byte of a character", inside_token_case),
    stream_case("no tokens", ""),
    stream_case("after a prompt", "日!", prompt="Once 日本"),
    words_case("words, as the beginning of a text", [], [0, 1, 3, 2]),
    words_case("words after a prompt: the first space stays", [0, 1], [2, 5, 0, 1]),
    words_case("words, and a character of three tokens", [0], [1, 6, 7, 8, 3, 4]),
    Case("special tokens", special_case),
    Case("two completions in turns, then a third", turns_case, "aliasing"),
    Case("time of a token after 100 and after 3,000 tokens", speed_case, "cost"),
)
