"""Quantised files as an enemy wrote them: a model loads, or one typed line says why not.

The same as test_hostile_files.py, for every method of quantisation: any value at any key of the
`quantization_config`, any change of any tensor, files cut anywhere and files that change while they are read.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hostile
import pytest
import quantized_folders
import tiny
import torch
from hostile import use, wrong_outcome
from quantized_folders import GGUF_MATRICES, METHODS, gguf_file
from safetensors.torch import load_file, save_file

from minillm.config import EngineConfig
from minillm.errors import UnreadableFile, WeightsError
from minillm.model.gguf.convert import convert
from minillm.model.loader import load_model
from minillm.model.quantization import stored
from minillm.model.quantization.config import stored_quantization
from minillm.model.quantization.settings import Settings

ENGINE = EngineConfig(device="cpu", dtype="float32", backend="reference", max_model_len=32)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every method; no test changes them."""
    base = tmp_path_factory.mktemp("sound")
    return {method: quantized_folders.make(base / method, method) for method in METHODS}


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def with_quantization(folder: Path, quantization: object) -> None:
    text = json.dumps(config_of(folder) | {"quantization_config": quantization})
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize("method", METHODS)
def test_the_folders_are_sound(sound: dict[str, Path], method: str) -> None:
    """The control of all others. Matrices keep their codes, and logits are numbers."""
    for backend in ("reference", "auto"):
        use(sound[method], backend)
        llm = tiny.load(sound[method], backend=backend)
        assert llm.engine.model.config.layers[0].quantization
        assert llm.logits([5, 9, 30, 7]).isfinite().all()


# ---- the quantization_config: every key, every value -------------------------------------------------

TOKEN = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
MORE: dict[str, dict[str, Any]] = {
    "packed": {
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "sparsity_config": {"format": "dense", "targets": []},
        "transform_config": {},
    },
    "int": {},
    "float": {"ignore": ["lm_head", "re:.*router$"]},
    "fp8": {"modules_to_not_convert": ["lm_head"], "scale_fmt": "float", "expert_dtype": "fp8"},
    "awq": {"modules_to_not_convert": ["lm_head"], "do_fuse": False, "modules_to_fuse": {}},
    "gptq": {
        "dynamic": {"-:.*router": {}, "+:.*proj": {"bits": 4, "group_size": 16, "sym": True}},
        "modules_in_block_to_quantize": [["self_attn.q_proj", "k_proj", "v_proj", "o_proj"], ["mlp.up_proj"]],
        "lm_head": False,
        "pack_dtype": "int32",
    },
    "mxfp4": {"modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"], "dequantize": False},
    "gguf": {},
}


def rich(folder: Path, method: str) -> dict[str, Any]:
    """The `quantization_config` of a folder, with keys that it could have."""
    config = config_of(folder)["quantization_config"] | MORE[method]
    for group in config.get("config_groups", {}).values():
        group |= {"input_activations": dict(TOKEN), "format": config["format"]}
        group["weights"] |= {"dynamic": False, "observer": "minmax", "observer_kwargs": {"a": [1]}}
    found: dict[str, Any] = json.loads(json.dumps(config))
    return found


def variants(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`config` with each hostile value at each place, and without what is there."""
    made = {}
    for place, (_, key) in enumerate(hostile.places(config)):
        for number, value in enumerate(hostile.VALUES):
            changed = copy.deepcopy(config)
            container, key = list(hostile.places(changed))[place]
            container[key] = value
            made[f"place {place} {str(key)[:40]!r}, value {number} {str(value)[:20]!r}"] = changed
        changed = copy.deepcopy(config)
        container, key = list(hostile.places(changed))[place]
        del container[key]
        made[f"place {place} {str(key)[:40]!r} left out"] = changed
    return made


def wrong_variants(folder: Path, configs: Mapping[str, dict[str, Any]]) -> list[str]:
    """Wrong outcomes. A folder is loaded once for all configs that mean the same."""
    tensors = load_file(folder / WEIGHTS)
    modules = {name.rpartition(".")[0] for name in tensors} | tensors.keys()
    modules |= {name.removesuffix("_blocks") for name in tensors}
    seen, wrong = set(), []
    for name, changed in configs.items():
        config = json.loads(json.dumps(changed))

        def work(config: Any = config) -> None:
            meaning = tuple(map(stored_quantization(config).scheme_of, sorted(modules)))
            if meaning not in seen:
                seen.add(meaning)
                with_quantization(folder, config)
                use(folder)

        reason = wrong_outcome(work)
        wrong += [f"{name}: {reason}"] if reason else []
    return wrong


@pytest.mark.parametrize("method", METHODS)
def test_any_value_at_any_key(sound: dict[str, Path], tmp_path: Path, method: str) -> None:
    folder = copied(sound[method], tmp_path / "model")
    config = rich(folder, method)
    if method == "gguf":  # one place for each matrix: two are enough
        config["types"] = dict(list(config["types"].items())[:2])
    assert wrong_variants(folder, variants(config)) == []


def test_what_is_not_checked_shows(
    sound: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the checks of the settings, other errors come up."""
    folder = copied(sound["gptq"], tmp_path / "model")
    monkeypatch.setattr(Settings, "integer", lambda self, key, default: self.get(key, default))
    monkeypatch.setattr(Settings, "choice", lambda self, key, choices, default=None: self.get(key, default))
    made = variants(config_of(folder)["quantization_config"])
    wrong = wrong_variants(folder, {name: config for name, config in made.items() if "'group_size'" in name})
    assert any("raised TypeError" in line for line in wrong)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_group_wider_than_any_matrix(sound: dict[str, Path], tmp_path: Path, backend: str) -> None:
    """It is one scale for each output, and takes no memory for inputs that are not there."""
    made = {}
    for strategy in ({"strategy": "group", "group_size": (1 << 31) - 8}, {"strategy": "channel"}):
        folder = copied(sound["int"], tmp_path / strategy["strategy"])  # type: ignore[arg-type]
        config = config_of(folder)["quantization_config"]
        config["config_groups"]["group_0"]["weights"] |= strategy
        with_quantization(folder, config)
        made[strategy["strategy"]] = tiny.load(folder, backend=backend).logits([5, 9, 30, 7])
    assert torch.equal(made["group"], made["channel"])


# ---- the tensors ---------------------------------------------------------------------------------------


def fuzz(
    sound: Mapping[str, Path], base: Path, seeds: range, backends: Sequence[str] = ("reference", "auto")
) -> list[str]:
    """Wrong outcomes, each with the seed that makes it again: config, bytes and tensors in turns."""
    wrong = []
    for seed in seeds:
        chance, method = random.Random(seed), METHODS[seed % len(METHODS)]
        victim, how = copied(sound[method], base / "victim"), seed // len(METHODS) % 4
        if how == 0:
            config = config_of(victim)["quantization_config"]
            text = hostile.tamper_json(json.dumps(config), chance)
            with_quantization(victim, json.loads(text))
            changed = "config.json"
        elif how == 1:
            hostile.tamper(victim / WEIGHTS, chance)
            changed = WEIGHTS
        else:
            changed = hostile.tamper_tensor(victim / WEIGHTS, chance)
        reason = wrong_outcome(partial(use, victim, chance.choice(backends)))
        wrong += [f"seed {seed}, {method}, {changed}: {reason}"] if reason else []
        shutil.rmtree(victim)
    return wrong


def test_tampered_files_are_typed_errors(sound: dict[str, Path], tmp_path: Path) -> None:
    assert fuzz(sound, tmp_path, range(64)) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_tampered_files_are_typed_errors_at_length(sound: dict[str, Path], tmp_path: Path, part: int) -> None:
    assert fuzz(sound, tmp_path, range(1000 * (part + 1), 1000 * (part + 1) + 160)) == []


def test_the_fuzz_notices_what_is_untyped(
    sound: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: where shapes and dtypes are not compared, other errors come up."""

    def unchecked(name: str, tensors: Mapping[str, object], parts: Mapping[str, object]) -> list[str]:
        return [end for end in parts if end in tensors]

    monkeypatch.setattr(stored, "require_parts", unchecked)
    assert fuzz(sound, tmp_path, range(16, 64), ["reference"]) != []


@pytest.mark.parametrize("shape", [[1 << 62, 1 << 62, 0], [0], [1] * 100_000, [1 << 40, 0]], ids=len)
@pytest.mark.parametrize("part", ["weight_packed", "weight_g_idx", "weight_scale"])
def test_shapes_that_no_tensor_can_have(
    sound: dict[str, Path], tmp_path: Path, part: str, shape: list[int]
) -> None:
    """Their sizes are compared before anything is made of them."""
    folder = copied(sound["packed"], tmp_path / "model")
    tensors, name = load_file(folder / WEIGHTS), f"model.layers.0.mlp.up_proj.{part}"
    removed = tensors.pop(name)
    save_file(tensors, folder / WEIGHTS)
    data = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    kind = {torch.int32: "I32", torch.float16: "F16"}[removed.dtype]
    end, more = len(data) - 8 - size, removed.element_size() if 0 not in shape else 0
    header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + more]}
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :] + bytes(more))
    with pytest.raises(WeightsError, match=name) as caught:
        load_model(folder, ENGINE)
    assert len(str(caught.value)) < 1000


def test_a_long_act_order_is_not_read(sound: dict[str, Path], tmp_path: Path) -> None:
    """A file of a terabyte of zeros takes no space on a disk, and would fill any memory."""
    folder = copied(sound["gptq"], tmp_path / "model")
    tensors, name = load_file(folder / WEIGHTS), "model.layers.0.mlp.up_proj.g_idx"
    del tensors[name]
    save_file(tensors, folder / WEIGHTS)
    data = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, end = json.loads(data[8 : 8 + size]), len(data) - 8 - size
    header[name] = {"dtype": "I32", "shape": [1 << 38], "data_offsets": [end, end + (1 << 40)]}
    text = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data[8 + size :])
        file.truncate(file.tell() + (1 << 40))
    with pytest.raises(WeightsError, match=r"g_idx' has shape \[274877906944\]"):
        load_model(folder, ENGINE)


# ---- files that are cut, and files that change -----------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_files_that_are_cut(sound: dict[str, Path], tmp_path: Path, method: str) -> None:
    """In the header, between tensors, in the middle of each, and one byte before the end."""
    folder = copied(sound[method], tmp_path / "model")
    data = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    offsets = [entry["data_offsets"] for entry in header.values()]
    cuts = {0, 4, 8, 8 + size // 2, 8 + size, len(data) - 1}
    cuts |= {8 + size + begin for begin, _ in offsets[::4]}
    cuts |= {8 + size + (begin + end) // 2 for begin, end in offsets[1::4]}
    for cut in sorted(cuts - {len(data)}):
        (folder / WEIGHTS).write_bytes(data[:cut])
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            load_model(folder, ENGINE)
    (folder / WEIGHTS).write_bytes(data)
    load_model(folder, ENGINE)


@pytest.mark.parametrize("how", ["deleted", "truncated", "emptied", "replaced by a folder"])
@pytest.mark.parametrize("method", ["packed", "gptq", "fp8", "mxfp4", "gguf"])
def test_a_file_that_changes_while_loading(
    sound: dict[str, Path], tmp_path: Path, method: str, how: str
) -> None:
    folder = copied(sound[method], tmp_path / "model")
    path = folder / WEIGHTS

    def change(at: int, seen: list[int]) -> None:
        seen.append(1)
        if len(seen) != at:
            return
        if how in ("truncated", "emptied"):
            os.truncate(path, 0 if how == "emptied" else 300)
            return
        path.unlink()
        if how == "replaced by a folder":
            path.mkdir()

    for at in (1, 3, 7):
        seen: list[int] = []
        with pytest.raises((UnreadableFile, WeightsError), match=r"model\.safetensors"):
            load_model(folder, ENGINE, progress=lambda done, total, at=at, seen=seen: change(at, seen))
        assert len(seen) == at
        shutil.rmtree(folder)
        copied(sound[method], folder)


# ---- GGUF ------------------------------------------------------------------------------------------------


def convert_and_use(file: Path, out: Path) -> None:
    try:
        convert(file, out, keep=True)
        use(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_damaged_blocks(tmp_path: Path, kind: str) -> None:
    """Bytes of a GGUF file changed, and the file cut; its blocks are kept."""
    file = gguf_file(tmp_path, dict.fromkeys(GGUF_MATRICES, kind))
    data = file.read_bytes()
    convert_and_use(file, tmp_path / "out")  # the control
    wrong = []
    for seed in range(10):
        chance = random.Random(seed)
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 10, 1000])):
            damaged[-1 - chance.randrange(len(data) * 3 // 4)] = chance.choice([0, 0x7C, 0xFC, 0xFF, 0x7E])
        file.write_bytes(damaged if seed % 3 else data[: chance.randrange(len(data))])
        reason = wrong_outcome(partial(convert_and_use, file, tmp_path / "out"))
        wrong += [f"seed {seed}: {reason}"] if reason else []
    assert wrong == []


def test_a_block_whose_scale_is_no_number(tmp_path: Path) -> None:
    """Its bytes are kept, and refused by the name of its matrix."""
    file = gguf_file(tmp_path, dict.fromkeys(GGUF_MATRICES, "Q8_0"))
    convert(file, tmp_path / "kept", keep=True)
    tensors, name = load_file(tmp_path / "kept" / WEIGHTS), "model.layers.0.mlp.up_proj"
    data = bytearray(file.read_bytes())
    at = data.index(bytes(tensors[name][3].tolist()))  # a row begins with a scale
    data[at : at + 2] = struct.pack("<e", float("nan"))
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=r"layers\.0\.mlp\.up_proj"):
        convert_and_use(file, tmp_path / "out")
