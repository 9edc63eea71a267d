"""What real folders say beside the weights: generation_config.json, ends of text, sizes in errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm import SamplingParams
from minillm.cli.main import main
from minillm.config.sizes import format_apart
from minillm.engine.sequence import Sequence
from minillm.errors import KVCapacityError, UsageError
from minillm.model.generation import not_honoured
from minillm.text.detokenizer import StopMatcher

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}


# ---- generation_config.json -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("suppress_tokens", [5]), ("begin_suppress_tokens", [5]), ("bad_words_ids", [[5]]), ("num_beams", 4),
        ("no_repeat_ngram_size", 3), ("min_new_tokens", 5), ("max_length", 20), ("typical_p", 0.9),
        ("presence_penalty", 1.5), ("forced_eos_token_id", 2), ("sequence_bias", [[[5], 1.0]]),
        ("exponential_decay_length_penalty", [5, 1.1]), ("a_key_of_next_year", 1), ("guidance_scale", 1.5),
    ],
)  # fmt: skip
def test_what_is_not_obeyed_is_named(
    tmp_path: Path, key: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.load(tiny.make_folder(tmp_path, generation={key: value, "temperature": 0.5}))
    assert f"{key}={value}"[:30] in caplog.text and "temperature" not in caplog.text


def test_control_what_changes_no_text_is_not_named() -> None:
    harmless = {
        "_from_model_config": True, "bos_token_id": 1, "pad_token_id": [0], "transformers_version": "5.24.0",
        "use_cache": True, "num_beams": 1, "typical_p": 1.0, "suppress_tokens": None, "bad_words_ids": [],
        "max_length": 256, "min_length": 0, "cache_implementation": "static", "output_scores": False,
        "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "max_new_tokens": 9,
        "repetition_penalty": 1.1, "stop_strings": ["x"], "eos_token_id": [1, 2],
    }  # fmt: skip
    assert not_honoured(harmless, context=256) == []


def test_stop_strings_of_the_model_end_a_text(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path, settings=NAMED, generation={"stop_strings": ["cat", "</s>"]})
    tokenizer = tiny.load(folder).tokenizer
    for end in (tokenizer.encode("cat"), [tiny.EOS]):
        script = iter([*tokenizer.encode("the "), *end, 50, 51])
        llm = tiny.load(folder, parts={"sampler": lambda logits, batch, s=script: torch.tensor([next(s)])})
        output = llm.generate([[5, 6]], tiny.load(folder).default_params)[0]
        assert (output.text, output.finish_reason) == ("the ", "stop")


def test_stop_strings_without_a_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.make_folder(tmp_path, generation={"stop_strings": ["cat"]})
    (folder / "tokenizer.json").unlink()
    llm = tiny.load(folder)
    assert "stop_strings" in caplog.text and llm.default_params.stop == ()
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        llm.generate([[5, 6]], SamplingParams(stop="cat"))


# ---- ends of text ---------------------------------------------------------------------------------


def test_inspect_says_where_each_end_of_text_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny.config(eos_token_id=[6, tiny.EOS])
    tiny.make_folder(tmp_path, cfg, settings=NAMED, generation={"eos_token_id": 6})
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    fields = {field["key"]: field for field in json.loads(capsys.readouterr().out)["config"]}
    assert fields["eos_token_ids"]["value"] == [6, tiny.EOS]
    assert fields["eos_token_ids"]["source"] == (
        "6: generation_config.json, config.json; 1: config.json, tokenizer"
    )
    assert "allowed_keys" not in fields


def test_inspect_takes_allowed_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny.make_folder(tmp_path, tiny.config(my_key=1)))
    assert main(["inspect", folder]) == 4
    assert "--allow-config-key my_key" in capsys.readouterr().err
    assert main(["inspect", folder, "--allow-config-key", "my_key", "--json"]) == 0
    fields = {field["key"]: field for field in json.loads(capsys.readouterr().out)["config"]}
    assert fields["allowed_keys"] == {
        "key": "allowed_keys",
        "value": ["my_key"],
        "source": "allowed by the user",
    }


# ---- sizes in errors ------------------------------------------------------------------------------


def test_sizes_that_differ_look_different() -> None:
    assert format_apart(1 << 16, 1 << 20) == ["64.0 KiB", "1.0 MiB"]
    assert format_apart((1 << 16) - 1, 1 << 16) == ["65,535 B", "65,536 B"]
    assert format_apart(1 << 16, 1 << 16) == ["64.0 KiB", "64.0 KiB"]


def test_one_byte_below_a_block(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path)
    block = 16 * tiny.BLOCK_BYTES
    with pytest.raises(KVCapacityError, match=f"{block - 1:,} B does not hold one block.* {block:,} B"):
        tiny.load(folder, kv_memory=block - 1)
    tiny.load(folder, kv_memory=block)


# ---- many stop strings ----------------------------------------------------------------------------


class Counted(str):
    """Counts how often a text is compared or hashed."""

    uses = 0

    def __eq__(self, other: object) -> bool:
        Counted.uses += 1
        return str.__eq__(self, other)

    def startswith(self, *args: Any) -> bool:
        Counted.uses += 1
        return str.startswith(self, *args)

    def __contains__(self, other: Any) -> bool:
        Counted.uses += 1
        return str.__contains__(self, other)

    __hash__ = str.__hash__


def test_a_token_is_not_compared_with_each_of_many_stop_strings() -> None:
    """The step is shared: 5,000 stop strings of one request must not slow its neighbours."""
    stops = [Counted(f"stop {number:04}") for number in range(5000)]
    matcher = StopMatcher(stops)
    Counted.uses = 0
    for _ in range(10):
        assert matcher.push("xyz") == "xyz"
    assert Counted.uses < 500
    assert matcher.push("a stop 4321!") == "a " and matcher.matched == "stop 4321"


def test_control_the_count_sees_a_scan() -> None:
    stops = [Counted(f"stop {number:04}") for number in range(5000)]
    Counted.uses = 0
    assert not any(stop.startswith("x") for stop in stops)
    assert Counted.uses == 5000


def test_stop_token_ids_are_a_set() -> None:
    """Looking for a token in a million ids takes one look."""
    sequence = Sequence("", 0, [1], SamplingParams(stop_token_ids=list(range(5, 99))), 0, 9, None, None)  # type: ignore[arg-type]
    assert sequence._stop_token_ids == frozenset(range(5, 99))
