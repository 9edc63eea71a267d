"""longrope: which requests are short, which are long, and which are refused because they would cross.

A model whose short and long divisors differ is compared with one that has the long divisors (or the short
ones) for all sequences.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import longrope
import pytest
import tiny
import torch
from longrope import CONTEXT, ORIGINAL, params, prompt

from minillm import LLM, SamplingParams
from minillm.cli.main import main
from minillm.config import RopeConfig
from minillm.errors import LongRopeLimit, UnsupportedModel, UsageError
from minillm.model.families import load_model_config
from minillm.model.rope import layer_tables, short_length
from minillm.worker.decode import decode
from minillm.worker.prefill import prefill


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return longrope.make_folders(tmp_path_factory.mktemp("longrope"))


def load(folder: Path, backend: str = "reference", **options: Any) -> LLM:
    return tiny.load(folder, **({"backend": backend, "kv_memory": "4MiB"} | options))


# ---- which side -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 60])
def test_the_number_of_ids_decides_for_logits(folders: dict[str, Path], count: int) -> None:
    ids = prompt(count)
    found = load(folders["model"], prefill_chunk=9).logits(ids)
    wanted = {name: load(folders[name], prefill_chunk=9).logits(ids) for name in ("short_only", "long_only")}
    is_long = count > ORIGINAL
    assert torch.equal(found, wanted["long_only" if is_long else "short_only"])
    apart = (found - wanted["short_only" if is_long else "long_only"]).abs().max()
    assert count == 1 or apart > 0.1, "the sides differ clearly"


@pytest.mark.parametrize("family", ["llama", "smollm3", "gemma3_text"])
def test_layers_with_and_without_longrope(tmp_path: Path, family: str) -> None:
    """In SmolLM3 a layer has no rope, in Gemma 3 the layer with a window has another: their rows fit."""
    folders = longrope.make_folders(tmp_path, family)
    for count, name in ((20, "short_only"), (60, "long_only")):
        found, wanted = (load(folders[kind]).logits(prompt(count)) for kind in ("model", name))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("length", "max_tokens", "fits"),
    [
        (20, 12, None),
        (20, 13, 12),
        (1, 31, None),
        (1, 32, 31),
        (31, 1, None),
        (31, 2, 1),
        (31, 500, 1),
        (32, 1, 0),
        (33, 1, None),
        (33, 95, None),
        (33, 500, None),
    ],
)
def test_a_request_that_would_cross_is_refused(
    folders: dict[str, Path], length: int, max_tokens: int, fits: int | None
) -> None:
    llm = load(folders["model"])
    if fits is None:
        output = llm.generate(prompt(length), params(max_tokens))[0]
        assert len(output.token_ids) == min(max_tokens, CONTEXT - length)
        return
    refused: list[Callable[[], Any]] = [
        lambda: llm.generate([prompt(5), prompt(length)], [params(2), params(max_tokens)]),
        lambda: llm.stream(prompt(length), params(max_tokens)),
        lambda: llm.engine.add_request(prompt(length), params(max_tokens, n=2)),
    ]
    for call in refused:
        with pytest.raises(LongRopeLimit) as caught:
            call()
        hint = caught.value.hint
        assert hint.startswith(f"max_tokens of at most {fits} fits;" if fits else "shorten the prompt;")
    assert tiny.all_free(llm)
    if fits:
        assert len(llm.generate(prompt(length), params(fits))[0].token_ids) == fits


def test_the_sides_are_those_of_the_context(folders: dict[str, Path]) -> None:
    """A context that is not above the original length has short sequences only: it caps, as for any model."""
    llm = load(folders["model"], max_model_len=ORIGINAL)
    assert llm.engine.model.short_length is None
    assert len(llm.generate(prompt(20), params(100))[0].token_ids) == ORIGINAL - 20
    assert load(folders["model"], max_model_len=ORIGINAL + 1).engine.model.short_length == ORIGINAL


def test_the_pool_caps_before_the_sides_are_compared(folders: dict[str, Path]) -> None:
    """A request that the pool keeps short is short."""
    bytes_per_block = 16 * load(folders["model"]).engine.model.config.kv_bytes_per_token(4)
    llm = load(folders["model"], kv_memory=2 * bytes_per_block)
    assert len(llm.generate(prompt(20), params(100))[0].token_ids) == 2 * 16 - 20


# ---- a max_tokens that nobody gave ----------------------------------------------------------------


def test_a_default_is_lowered(folders: dict[str, Path]) -> None:
    llm, ids = load(folders["model"]), prompt(20)
    endless = replace(llm.default_params, ignore_eos=True)  # its max_tokens is the default
    for found in (
        llm.generate(ids, endless)[0],
        llm.generate(ids, SamplingParams(ignore_eos=True))[0],
        llm.stream(ids).result,
    ):
        assert len(found.token_ids) <= ORIGINAL - 20 and found.error is None
    assert len(llm.generate(ids, endless)[0].token_ids) == ORIGINAL - 20
    llm.engine.add_request(ids)
    for explicit in (16, 256):
        with pytest.raises(LongRopeLimit):
            llm.generate(ids, replace(endless, max_tokens=explicit))
    with pytest.raises(LongRopeLimit, match="shorten"):
        llm.stream(prompt(ORIGINAL))
    assert len(llm.generate(prompt(33), endless)[0].token_ids) == 16, "a long prompt has no such limit"


def test_a_default_of_generation_config_is_lowered(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["model"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 90}))
    llm = load(tmp_path)
    assert llm.default_params.max_tokens == 90
    output = llm.generate(prompt(20), replace(llm.default_params, ignore_eos=True))[0]
    assert len(output.token_ids) == ORIGINAL - 20 and output.finish_reason == "length"


def test_the_command_line(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(folders["model"]), "--backend", "reference", "--kv-memory", "4MiB"]
    common = ["generate", *model, "-p", "the cat sat", "--temperature", "0", "--json", "--quiet"]
    assert main(common) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt_tokens"] + len(found["token_ids"]) <= ORIGINAL
    assert main([*common, "-n", "100"]) == 2
    error = capsys.readouterr().err
    fits = ORIGINAL - found["prompt_tokens"]
    assert f"max_tokens of at most {fits} fits" in error and error.count("\n") == 1
    assert main([*common, "-n", str(fits)]) == 0


# ---- tables and parts -----------------------------------------------------------------------------


def test_the_tables_of_other_layers_have_the_same_rows(folders: dict[str, Path]) -> None:
    """A layer without rope, and one with another rope, read the same row of their own tables."""
    config = load_model_config(folders["model"])
    first = config.layers[0]
    plain = RopeConfig(rotary_factor=0.75)
    layers = (first, replace(first, rope=None), replace(first, rope=plain))
    tables = layer_tables(replace(config, layers=layers), 50, torch.device("cpu"))
    assert [table.cos.shape for table in tables] == [(82, 12), (82, 0), (82, 12)]
    assert torch.equal(tables[2].cos[32:64], tables[2].cos[:32])
    assert not torch.equal(tables[0].cos[32:64], tables[0].cos[:32])
    tables = layer_tables(replace(config, layers=layers), ORIGINAL, torch.device("cpu"))
    assert [len(table.cos) for table in tables] == [ORIGINAL] * 3


def test_two_original_lengths_are_refused(folders: dict[str, Path]) -> None:
    config = load_model_config(folders["model"])
    first = config.layers[0]
    assert first.rope is not None
    other = replace(first, rope=replace(first.rope, original_max_position=48))
    with pytest.raises(UnsupportedModel, match="32, 48"):
        short_length(replace(config, layers=(first, other)), CONTEXT)


@pytest.mark.parametrize(
    ("name", "loop"),
    [("prefill_loop", lambda r, c: prefill(r, c)), ("decode_loop", lambda r, b: decode(r, b))],
)
def test_a_replaced_loop_is_refused_where_there_are_two_sides(
    folders: dict[str, Path], name: str, loop: Any
) -> None:
    """A loop that passes no offset on would give a long sequence the keys of a short one."""
    with pytest.raises(UsageError, match=f"'{name}'.*max_model_len to {ORIGINAL}"):
        load(folders["model"], parts={name: loop})
    llm = load(folders["model"], parts={name: loop}, max_model_len=ORIGINAL)
    assert llm.generate(prompt(20), params(4))[0].error is None
