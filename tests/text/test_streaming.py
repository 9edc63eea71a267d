"""Streaming text: never half a character, never a lost tail, never part of a stop string."""

from __future__ import annotations

import codecs
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import DecodeStream

from minillm import SamplingParams
from minillm.text.detokenizer import Detokenizer, StopMatcher, token_bytes

TOKENIZERS = {"byte_level": tiny.byte_level_tokenizer(), "byte_fallback": tiny.byte_fallback_tokenizer()}
FAMILY = "👩‍👩‍👧‍👦"  # four emoji held together by zero-width joiners
TEXTS = [
    FAMILY,
    "日本語のテキスト",
    "e\u0301a\u0308\u0323 combining",
    "a\ufffdb",
    "\ufffd",
    "🇩🇪 flag",
    "naïve",
    "\r\n\t",
    "a😀",
]
both = pytest.mark.parametrize("kind", TOKENIZERS)
FUZZ = settings(max_examples=250)


def stream(
    tokenizer: RustTokenizer, ids: list[int], stops: tuple[str, ...] = (), prompt_ids: Sequence[int] = ()
) -> list[str]:
    """The pieces as the engine takes them: it stops asking once a stop string has appeared."""
    detokenizer, pieces = Detokenizer(tokenizer, stops, prompt_ids), []
    for token_id in ids:
        pieces.append(detokenizer.push(token_id))
        if detokenizer.stopped:
            break
    return [*pieces, detokenizer.finish()]


def full_text(tokenizer: RustTokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


def cut_text(data: bytes) -> str:
    """UTF-8 without a last character whose bytes are not all there."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(data)


# ---- whole characters -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == full_text(tokenizer, ids) == text
    # A piece never holds a character that is not in the text: that would be half of one.
    assert set("".join(pieces)) <= set(text)


def test_the_emoji_is_many_tokens() -> None:
    """The control of the test above: it does cut characters, and plain decoding does show halves."""
    for tokenizer in TOKENIZERS.values():
        ids = tokenizer.encode(FAMILY).ids
        assert len(ids) > len(FAMILY)
        assert any("\ufffd" in tokenizer.decode(ids[:n]) for n in range(1, len(ids)))


@both
@FUZZ
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.lists(st.sampled_from(TEXTS)).map("".join)
)
def test_any_text_and_any_cut_of_it(kind: str, text: str) -> None:
    """Whole, every prefix of the ids too: exactly the characters whose bytes are all there."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    assert "".join(stream(tokenizer, ids)) == full_text(tokenizer, ids)
    for n in range(len(ids)):
        pieces = "".join(stream(tokenizer, ids[:n]))
        if kind == "byte_level":
            assert pieces == cut_text(b"".join(token_bytes(tokenizer, i) for i in ids[:n]))
        assert full_text(tokenizer, ids).startswith(pieces)


@FUZZ
@given(st.data())
def test_random_ids_byte_level(data: st.DataObject) -> None:
    """Random ids are mostly not UTF-8: the text is what one lossy decoding of all bytes gives."""
    tokenizer = TOKENIZERS["byte_level"]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=20))
    plain = [i for i in ids if i not in (tiny.BOS, tiny.EOS)]
    assert "".join(stream(tokenizer, ids)) == cut_text(b"".join(token_bytes(tokenizer, i) for i in plain))


@FUZZ
@given(st.data())
def test_random_ids_byte_fallback(data: st.DataObject) -> None:
    """No exception, nothing lost, and no U+FFFD in text that decodes cleanly.

    The decoder turns a whole run of bytes into U+FFFD when one is bad; a stream has by then given the
    good ones, so its text holds at least the characters of the full decoding, in the same order.
    """
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=20))
    text, full = "".join(stream(tokenizer, ids)), full_text(tokenizer, ids)
    if "\ufffd" not in full:
        assert text == full
    rest = iter(text)
    assert all(char in rest for char in full.replace("\ufffd", "")), (text, full)


def test_control_the_plain_stream_raises_on_some_of_these() -> None:
    tokenizer, rng = TOKENIZERS["byte_fallback"], random.Random(1)
    failed = 0
    for _ in range(500):
        plain = DecodeStream(skip_special_tokens=True)
        try:
            for _ in range(12):
                plain.step(tokenizer, rng.randrange(tokenizer.get_vocab_size()))
        except Exception:
            failed += 1
    assert failed > 5


@both
def test_a_space_after_a_broken_character_is_kept(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    emoji = tokenizer.encode("👻").ids
    word = tokenizer.encode("a a").ids[1:] if kind == "byte_fallback" else tokenizer.encode(" a").ids
    text = "".join(stream(tokenizer, [*emoji, *emoji[-4:-2], *word, *word]))
    assert text.startswith("👻") and text.endswith(" a a") and "\ufffd" in text


# ---- the tail -------------------------------------------------------------------------------------


@both
def test_cut_off_character_is_dropped_and_a_genuine_one_kept(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    emoji = tokenizer.encode("👻").ids[-4:]
    genuine = tokenizer.encode("x\ufffd").ids
    start = tokenizer.encode("x").ids
    assert "".join(stream(tokenizer, [*start, *emoji[:-1]])) == "x"
    assert "".join(stream(tokenizer, genuine)) == "x\ufffd"
    assert "".join(stream(tokenizer, [*genuine, *emoji[:-2]])) == "x\ufffd"
    assert "".join(stream(tokenizer, [*start, *emoji[:-1], tiny.BOS])) == "x", "a special token in between"
    assert "".join(stream(tokenizer, [tiny.BOS, *start, tiny.EOS])) == "x"


def test_a_bad_byte_in_the_tail_does_not_repeat_the_text_before() -> None:
    """Fallback decoding of both together would turn the good character into four U+FFFD more."""
    tokenizer = TOKENIZERS["byte_fallback"]
    ghost, bad = tokenizer.encode("👻").ids[-4:], tokenizer.token_to_id("<0xFF>")
    assert "".join(stream(tokenizer, [*ghost, bad])) == "👻\ufffd"


# ---- stop strings ---------------------------------------------------------------------------------


def cut_at_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The definition: characters come one by one; at the first that completes a stop string, cut it off."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - len(max(ending, key=len))], True
    return text, False


@settings(max_examples=500)
@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
)
def test_matcher_against_the_definition(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher, out = StopMatcher(stops), []
    for piece in pieces:
        out.append(matcher.push(piece))
        if matcher.matched:
            break
    given_before_flush = "".join(out)
    out.append(matcher.flush())
    expected, stopped = cut_at_stop("".join(pieces), stops)
    assert ("".join(out), matcher.matched is not None) == (expected, stopped)
    if stopped:
        assert given_before_flush == expected
        assert all(stop not in expected for stop in stops)


@settings(max_examples=200)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
    st.text("abc", max_size=9),
)
def test_text_is_given_as_early_as_possible(stops: tuple[str, ...], text: str) -> None:
    """What is held back after a piece is a real start of a stop string, and no longer than needed."""
    matcher = StopMatcher(stops)
    out = matcher.push(text)
    if matcher.matched is None:
        held = text[len(out) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@both
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("the cat sat", ("cat",), "the "),
        ("the cat sat", ("t s",), "the ca"),  # across a token border
        ("a b c d", ("c d e", "b c"), "a "),
        ("abab", ("abx", "ab"), ""),  # one the start of another
        ("aab", ("ab",), "a"),  # the start of a stop string inside a stop string
        ("x 😀 y", ("😀",), "x "),
        ("x 😀 y", (" 😀 y",), "x"),
        ("the cat sa", ("sat",), "the cat sa"),  # held back, never completed: given in the end
    ],
)
def test_stop_strings(kind: str, text: str, stops: tuple[str, ...], expected: str) -> None:
    tokenizer = TOKENIZERS[kind]
    detokenizer, pieces = Detokenizer(tokenizer, stops), []
    for token_id in tokenizer.encode(text).ids:
        pieces.append(detokenizer.push(token_id))
        if detokenizer.stopped:
            break
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == expected
    assert detokenizer.stopped == (expected != text)


@both
def test_stop_found_only_in_the_flushed_tail(kind: str) -> None:
    """U+FFFD is held back as a possible half; only the flush shows that it was the stop string."""
    tokenizer = TOKENIZERS[kind]
    detokenizer = Detokenizer(tokenizer, ["b\ufffd"])
    early = "".join(map(detokenizer.push, tokenizer.encode("ab\ufffd").ids))
    assert early == "a" and not detokenizer.stopped
    assert detokenizer.finish() == "" and detokenizer.stopped


# ---- behind a prompt ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("text", ["once a time there was a cat", "naïve 日本語 text", FAMILY + " and more"])
def test_prompt_and_completion_join_to_the_text(kind: str, text: str) -> None:
    """A SentencePiece-like decoder drops the first word's space; a completion's first word keeps it."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    for cut in range(1, len(ids)):
        prompt = full_text(tokenizer, ids[:cut])
        if prompt.endswith("\ufffd"):
            continue  # cut inside a character: half of it is in neither text
        completion = "".join(stream(tokenizer, ids[cut:], prompt_ids=ids[:cut]))
        assert prompt + completion == full_text(tokenizer, ids), cut


@both
def test_a_prompt_cut_inside_a_character_is_not_repeated(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("a😀 cat").ids
    cut = next(i for i in range(2, len(ids)) if full_text(tokenizer, ids[:i]).endswith("\ufffd"))
    completion = "".join(stream(tokenizer, ids[cut:], prompt_ids=ids[:cut]))
    assert completion == full_text(tokenizer, ids[cut:])


def test_the_engine_decodes_behind_the_prompt(tmp_path: Path) -> None:
    """End to end with a decoder that strips; negative control: decoded alone, the space is lost."""
    tokenizer = TOKENIZERS["byte_fallback"]
    word = tokenizer.token_to_id("▁c")
    folder = tiny.make_folder(
        tmp_path / "model", tiny.config(vocab_size=tokenizer.get_vocab_size()), tokenizer=tokenizer
    )
    llm = tiny.load(folder, parts={"sampler": lambda logits, batch: torch.full((len(logits),), word)})
    output = llm.generate("a", SamplingParams(max_tokens=2))[0]
    assert output.text == " c c"
    assert "".join(stream(tokenizer, output.token_ids)) == "c c"
