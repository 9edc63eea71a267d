"""The tokenizer library fails in every way it knows: the error is typed, and is one request's own.

Real panics, made by tokenizer files that cannot work, and invented errors at every call of the library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from tokenizers import Tokenizer as RustTokenizer

from minillm import SamplingParams
from minillm.errors import TokenizerError, UsageError
from minillm.text.detokenizer import Detokenizer
from minillm.text.tokenizer import Tokenizer

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
BROKEN_AT_LOAD = {
    "precompiled": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "prefix": {"model": {"continuing_subword_prefix": "é" * 13}},
}
BROKEN_AT_ENCODE = {
    "template without its token": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "gone", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {},
        }
    },
}


class Panic(BaseException):
    """As the library's own, which cannot be imported."""


def changed(folder: Path, changes: dict[str, Any]) -> Path:
    """The folder with another tokenizer.json; what is said of "model" is added to it."""
    path = tiny.make_folder(folder) / "tokenizer.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = content[key] | value if key == "model" else value
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("changes", BROKEN_AT_LOAD.values(), ids=BROKEN_AT_LOAD)
def test_a_panic_while_loading(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = changed(tmp_path, changes)
    with pytest.raises(BaseException) as panic:  # the control: this is what the library does
        RustTokenizer.from_file(str(folder / "tokenizer.json"))
    assert not isinstance(panic.value, Exception)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json") as caught:
        tiny.load(folder)
    assert "\n" not in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("changes", BROKEN_AT_ENCODE.values(), ids=BROKEN_AT_ENCODE)
def test_a_panic_while_encoding(tmp_path: Path, changes: dict[str, Any]) -> None:
    llm = tiny.load(changed(tmp_path, changes))
    with pytest.raises(BaseException) as panic:
        llm.engine.model.tokenizer.rust.encode("secret")
    assert not isinstance(panic.value, Exception)
    for call in (llm.generate, llm.stream, llm.engine.add_request):
        with pytest.raises(TokenizerError) as caught:
            call("secret")
        assert "secret" not in str(caught.value)
    assert tiny.all_free(llm) and llm.generate([5, 6], GREEDY)[0].error is None


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_the_settings_of_training_are_not_obeyed(tmp_path: Path, setting: str) -> None:
    """With a stride above the length, the library panics at every text; padding takes any memory."""
    direction = {"direction": "Right", "strategy": "LongestFirst"}
    settings = {
        "truncation": direction | {"max_length": 4, "stride": 8},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
    }  # fmt: skip
    text = "once upon a time there was a cat"
    expected = tiny.byte_level_tokenizer().encode(text).ids
    folder = changed(tmp_path, {setting: settings[setting]})
    assert Tokenizer(folder).encode(text) == expected


def dropping(tmp_path: Path) -> RustTokenizer:
    """The library's tokenizer of a folder that keeps BPE dropout, a setting of training."""
    library = tiny.byte_level_tokenizer()
    library.model.dropout = 0.5  # type: ignore[attr-defined]
    library.save(str(tmp_path / "tokenizer.json"))
    return RustTokenizer.from_file(str(tmp_path / "tokenizer.json"))


def test_the_same_text_becomes_the_same_tokens(tmp_path: Path) -> None:
    text = "once upon a time there was a cat " * 8
    drawn = {tuple(dropping(tmp_path).encode(text).ids) for _ in range(20)}
    assert len(drawn) > 1, "control: the library leaves merges out at random"
    tokenizer, expected = Tokenizer(tmp_path), tiny.byte_level_tokenizer().encode(text).ids
    assert [tokenizer.encode(text) for _ in range(5)] == [expected] * 5


class Broken:
    """The library's tokenizer, one of whose methods raises."""

    def __init__(self, rust: RustTokenizer, method: str, error: BaseException) -> None:
        self._rust, self._method, self._error = rust, method, error

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            raise self._error
        return getattr(self._rust, name)


@pytest.mark.parametrize("error", [Panic("secret"), ValueError("secret"), MemoryError()], ids=repr)
@pytest.mark.parametrize("call", [lambda t: t.encode("secret"), lambda t: t.decode([5])])
def test_what_the_library_raises_is_typed(
    tmp_path: Path, call: Callable[[Tokenizer], Any], error: BaseException
) -> None:
    tokenizer = Tokenizer(tiny.make_folder(tmp_path))
    tokenizer.rust, method = tokenizer.rust, "encode" if "encode" in call.__code__.co_names else "decode"
    tokenizer.rust = Broken(tokenizer.rust, method, error)  # type: ignore[assignment]
    with pytest.raises(TokenizerError) as caught:
        call(tokenizer)
    assert "secret" not in str(caught.value) and type(error).__name__ in str(caught.value)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_stays_one(tmp_path: Path, interrupt: type[BaseException]) -> None:
    tokenizer = Tokenizer(tiny.make_folder(tmp_path))
    tokenizer.rust = Broken(tokenizer.rust, "encode", interrupt())  # type: ignore[assignment]
    with pytest.raises(interrupt):
        tokenizer.encode("text")


@pytest.mark.parametrize("at", range(5))
def test_a_panic_while_decoding_in_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The library panics at one call of one request: that request ends, and nobody else notices."""
    from tokenizers import decoders

    calls = 0

    class Stream:
        def __init__(self, **options: Any) -> None:
            self._own = decoders.DecodeStream(**options)

        def step(self, tokenizer: RustTokenizer, token_id: int) -> Any:
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise Panic
            return self._own.step(tokenizer, token_id)

    expected = [o.text for o in tiny.load(folder).generate([[5, 6], [7, 8]], GREEDY)]
    monkeypatch.setattr("minillm.text.detokenizer.DecodeStream", Stream)
    llm = tiny.load(folder)
    outputs = llm.generate([[5, 6], [7, 8]], GREEDY)
    failed = [o for o in outputs if o.error is not None]
    assert len(failed) == 1 and isinstance(failed[0].error, TokenizerError)
    assert failed[0].finish_reason == "error"
    (served,) = (i for i, o in enumerate(outputs) if o.error is None)
    assert outputs[served].text == expected[served] and tiny.all_free(llm)


def test_ids_that_nobody_can_decode(folder: Path) -> None:
    """A replaced sampler may draw an id the tokenizer lacks: it is a token without text."""
    rust = tiny.byte_level_tokenizer()
    stream = Detokenizer(rust, (), [tiny.VOCAB_SIZE - 1])
    assert [stream.push(i) for i in (tiny.VOCAB_SIZE - 1, 40, 1 << 31)] == ["", rust.decode([40]), ""]
    assert stream.finish() == ""
    for bad in (-1, 1 << 40):  # no ids at all
        with pytest.raises(TokenizerError):
            Detokenizer(rust).push(bad)


@pytest.mark.parametrize("ids", [[tiny.VOCAB_SIZE], [2**31], [2**70], [-1], [True], [1.0], ["1"], [None]])
def test_ids_outside_the_vocabulary_are_refused_before_a_step(llm: Any, ids: list[Any]) -> None:
    for call in (llm.generate, llm.stream, llm.engine.add_request, llm.logits):
        with pytest.raises(UsageError):
            call([5, *ids])
    assert not llm.engine.has_unfinished_requests() and tiny.all_free(llm)


def test_a_tokenizer_that_makes_ids_the_model_lacks(tmp_path: Path) -> None:
    """A post-processor may write any number."""
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"x": {"id": "x", "ids": [tiny.VOCAB_SIZE], "tokens": ["x"]}},
    }
    llm = tiny.load(changed(tmp_path, {"post_processor": processor}))
    for call in (llm.generate, llm.stream, llm.engine.add_request):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            call("the cat")


@pytest.mark.parametrize("token", ["<0xZZ>", "<0x >1>", "<0xéé>"])
def test_tokens_that_only_look_like_bytes(token: str) -> None:
    from tokenizers import decoders, models

    rust = RustTokenizer(models.BPE({token: 0, "a": 1}, []))
    rust.decoder = decoders.ByteFallback()
    stream = Detokenizer(rust)
    assert stream.push(0) + stream.push(1) + stream.finish() == f"{token}a"
