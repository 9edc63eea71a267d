"""Token ids of a converted tokenizer: those of llama.cpp, on its own test strings.

The vocabularies of llama.cpp may not be part of this repository. With MINILLM_GGUF_VOCAB=FOLDER the test
reads them there: files NAME.gguf, NAME.gguf.inp (texts) and NAME.gguf.out (ids). Two stand-ins are always
tested: the shipped model's tokenizer, and a SentencePiece vocabulary of words made here, against llama.cpp's
rule written out as the slow loop that it is.
"""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import ggufs
import pytest
from tokenizers import Tokenizer

from minillm.errors import TokenizerError
from minillm.model.gguf.header import read_header
from minillm.model.gguf.metadata import Metadata
from minillm.model.gguf.pretokenizers import RULES, pre_tokenizer
from minillm.model.gguf.vocabulary import Vocabulary
from minillm.model.locate import ZOO

VOCABULARIES = Path(os.environ.get("MINILLM_GGUF_VOCAB", "."))
FILES = sorted(VOCABULARIES.glob("*.gguf")) if "MINILLM_GGUF_VOCAB" in os.environ else []
TEXTS = [
    "", " ", "  ", "Hello world", " Hello  World!", "\n\n \t\n", "it's we'll 'S I'M", "3.14 and 1234567",
    "naïve café 日本語 🦙", "don't\r\nstop", "x" * 50, "a\u00a0b", "<|endoftext|>x", "  four    spaces   ",
]  # fmt: skip


def made(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(Vocabulary.read(Metadata("m.gguf", metadata)).tokenizer_json())


def plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """The values as a file's reader gives them."""
    return {
        key: [getattr(item, "value", item) for item in content] if isinstance(content, list) else content
        for key, content in metadata.items()
    }


# ---- llama.cpp's own ------------------------------------------------------------------------------


@pytest.mark.skipif(not FILES, reason="MINILLM_GGUF_VOCAB names no folder of llama.cpp's vocabularies")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_ids_equal_llama_cpps(file: Path) -> None:
    tokenizer = made(read_header(file).metadata)
    texts = Path(f"{file}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{file}.out").read_text().split("\n")
    assert len(texts) > 40 and len(lines) >= len(texts)
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False).ids == [int(n) for n in line.split()], text


# ---- stand-ins ------------------------------------------------------------------------------------


def test_a_byte_level_tokenizer_comes_back() -> None:
    original = Tokenizer.from_file(str(ZOO / "storyteller-6m" / "tokenizer.json"))
    back = made(plain(ggufs.tokenizer(4096)))
    for text in TEXTS:
        assert back.encode(text).ids == original.encode(text).ids, text
        assert back.decode(back.encode(text).ids) == original.decode(original.encode(text).ids)


def test_control_another_pre_tokenizer_gives_other_ids() -> None:
    back = made(plain(ggufs.tokenizer(4096)) | {"tokenizer.ggml.pre": "smollm"})
    right = made(plain(ggufs.tokenizer(4096)))
    assert back.encode("it is 1234567").ids != right.encode("it is 1234567").ids


CUTS = {
    "gpt-2": ("I'LL pay 12345 now\n\n ok", ["I", "'", "LL", " pay", " 12345", " now", "\n\n", " ok"]),
    "llama-bpe": ("I'LL pay 12345 now\n\n ok", ["I", "'LL", " pay", " ", "123", "45", " now", "\n\n", " ok"]),
    "qwen2": ("I'LL pay 123 now\n\n ok", ["I", "'LL", " pay", " ", "1", "2", "3", " now", "\n\n", " ok"]),
    "smollm": ("pay 12 now!?", ["pay", " ", "1", "2", " now", "!?"]),
    "deepseek-v3": ("pay 12345 中文 x", ["pay", " ", "123", "45", " ", "中文", " x"]),
    "tekken": ("HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
}


@pytest.mark.parametrize("name", CUTS)
def test_rules_cut_as_they_should(name: str) -> None:
    text, pieces = CUTS[name]
    splitter = made(plain(ggufs.tokenizer(300)) | {"tokenizer.ggml.pre": name}).pre_tokenizer
    found = splitter.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in found] == pieces


def test_every_rule_compiles_and_loses_nothing() -> None:
    for name in RULES:
        tokenizer = made(
            plain(ggufs.tokenizer(300)) | {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False}
        )
        for text in TEXTS[:-2]:
            assert tokenizer.decode(tokenizer.encode(text).ids) == text, name
    assert pre_tokenizer("") == RULES["default"]
    with pytest.raises(TokenizerError, match="no-such-rule"):
        pre_tokenizer("no-such-rule")


# ---- SentencePiece --------------------------------------------------------------------------------


def words(**changes: Any) -> dict[str, Any]:
    """A vocabulary with letters, runs of spaces of equal score, and words from joined halves."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds, scores = [2, 3, 3, *[6] * 256], [0.0] * 259
    pieces = [
        "an",
        "th",
        "the",
        "▁t",
        "▁the",
        "he",
        "in",
        "ing",
        "▁a",
        "and",
        "▁and",
        "ab",
        "aba",
        "ba",
        "▁th",
    ]
    for i, piece in enumerate(pieces):
        tokens, kinds, scores = [*tokens, piece], [*kinds, 1], [*scores, -float(i)]
    for n in range(2, 9):
        tokens, kinds, scores = [*tokens, "▁" * n], [*kinds, 1], [*scores, -1e9]
    for i, letter in enumerate(["▁", *"abcdefghijklmnopqrstuvwxyz"]):
        tokens, kinds, scores = [*tokens, letter], [*kinds, 1], [*scores, -1000.0 - i]
    content = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores}
    return {f"tokenizer.ggml.{key}": value for key, value in (content | changes).items()}


def llama_cpp(metadata: dict[str, Any], text: str) -> list[int]:
    """llama.cpp's rule: join the neighbours whose token has the highest score, the leftmost of equals."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    symbols = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        joined = [
            (scores[ids[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ids
        ]
        if not joined:
            break
        at = -max(joined)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    known = [[ids[s]] if s in ids else [ids[f"<0x{byte:02X}>"] for byte in s.encode()] for s in symbols]
    return [token for part in known for token in part]


def test_scores_become_merges() -> None:
    metadata = words()
    tokenizer = made(metadata)
    generator = random.Random(3)
    parts = [
        "the",
        "and",
        "in",
        "ing",
        "ababa",
        "aba",
        "é",
        "🦙",
        "Z",
        " ",
        "  ",
        "     ",
        "           ",
        "t",
        "he",
    ]
    texts = ["".join(generator.choices(parts, k=generator.randrange(1, 9))) for _ in range(500)]
    for text in [*texts, *TEXTS[:-2]]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == llama_cpp(metadata, text), text
        assert tokenizer.encode(text).ids[0] == 1, "BOS"
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_control_other_scores_give_other_ids() -> None:
    metadata = words()
    scores = [-s if -100 < s < 0 else s for s in metadata["tokenizer.ggml.scores"]]
    assert made(words(scores=scores)).encode("the and").ids != made(metadata).encode("the and").ids


def test_a_space_is_put_in_front_only_where_the_file_says_so() -> None:
    tokenizer = made(words(add_space_prefix=False, add_bos_token=False))
    assert tokenizer.encode("the").tokens == ["the"]
    assert tokenizer.decode(tokenizer.encode("the").ids) == "the"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tokens": ["a", "a"], "token_type": [1, 1], "scores": [0.0, 0.0]}, "two ids"),
    ({"tokens": [], "token_type": [], "scores": []}, "no tokens"),
    ({"scores": [0.0]}, "must hold"),
    ({"scores": None}, "scores"),
    ({"token_type": [1, 2]}, "must hold"),
    ({"token_type": [float("nan")] * 308}, "must hold integers"),
    ({"token_type": [1.0] * 308}, "must hold integers"),
    ({"tokens": [1, 2]}, "not a list of texts"),
    ({"scores": [float("nan")] * 308}, "score"),
    ({"scores": [0.0] * 308}, "no order"),
    ({"tokens": ["x" * 100_000], "token_type": [1], "scores": [0.0]}, "100000 characters"),
    ({"add_eos_token": 3}, "add_eos_token"),
]


@pytest.mark.parametrize(("changes", "word"), WRONG, ids=lambda case: str(case)[:40])
def test_a_vocabulary_that_makes_no_sense_is_refused(changes: dict[str, Any], word: str) -> None:
    metadata = {k: v for k, v in words(**changes).items() if v is not None}
    with pytest.raises(Exception, match=word) as caught:
        made(metadata)
    assert caught.type.__module__ == "minillm.errors"


def test_merges_that_do_not_fit_are_refused() -> None:
    for merges in (["no-pair"], ["zz qq"], [3]):
        with pytest.raises(Exception, match=r"merge|vocabulary") as caught:
            made(plain(ggufs.tokenizer(300)) | {"tokenizer.ggml.merges": merges})
        assert caught.type.__module__ == "minillm.errors"


def test_ends_of_text_are_known_by_key_and_by_text() -> None:
    metadata = plain(ggufs.tokenizer(300))
    metadata["tokenizer.ggml.tokens"][290] = "<|im_end|>"
    metadata["tokenizer.ggml.merges"] = []
    ends = Vocabulary.read(Metadata("m", metadata | {"tokenizer.ggml.eot_token_id": 5})).end_ids()
    assert ends == [0, 5, 290]


def test_ids_without_a_token_stay_without_one() -> None:
    metadata = plain(ggufs.tokenizer(300)) | {"tokenizer.ggml.merges": []}
    metadata["tokenizer.ggml.tokens"] += ["[PAD300]", "[PAD301]"]
    metadata["tokenizer.ggml.token_type"] += [5, 5]
    assert max(made(metadata).get_vocab().values()) == 299
