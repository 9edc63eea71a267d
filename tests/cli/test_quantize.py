"""`minillm quantize`: what it writes, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from quantizing import SMALL, make_model, run, shorten, write_story
from safetensors.torch import load_file
from torch import Tensor

from minillm.config import EngineConfig
from minillm.model.checkpoint import stored_tensors
from minillm.model.compress import text
from minillm.model.compress.quality import measure
from minillm.model.loader import load_model
from minillm.ops.contract import Matrix
from minillm.ops.quantized import QuantizedMatrix

ENGINE = EngineConfig(dtype="float32", device="cpu", backend="reference", max_model_len=32)


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path)


@pytest.fixture
def story(tmp_path: Path) -> str:
    return write_story(tmp_path)


def unpacked(stored: dict[str, Tensor], name: str, group: int) -> Tensor:
    """The weights of a pack-quantized matrix of 4 bits, from the words of the format's definition."""
    out, size = stored[f"{name}.weight_shape"].tolist()
    words = stored[f"{name}.weight_packed"].long() & 0xFFFFFFFF
    codes = torch.stack([words >> 4 * i & 15 for i in range(8)], dim=-1).flatten(1)[:, :size]
    zeros: Any = 8
    if f"{name}.weight_zero_point" in stored:
        words = stored[f"{name}.weight_zero_point"].long() & 0xFFFFFFFF
        zeros = torch.stack([words >> 4 * i & 15 for i in range(8)], dim=1).flatten(0, 1)[:out]
        zeros = zeros.repeat_interleave(group, 1)
    scales = stored[f"{name}.weight_scale"].float().repeat_interleave(group, 1)
    return scales * (codes - zeros).float()


# ---- written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_folder(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], asymmetric: bool, calibrated: bool
) -> None:
    out = model.parent / "small"
    words = ["--asymmetric"] * asymmetric + ["--calibrate" if calibrated else "--evaluate", story]
    report = run(capsys, model, out, "--scheme", "w4a16", "--group", "32", *words)
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    matrices = [name.removesuffix(".weight") for name in before if "proj" in name]
    assert len(matrices) == report["matrices"] == 14
    for name in before.keys() - {f"{matrix}.weight" for matrix in matrices}:
        assert torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype
    for name in matrices:
        assert f"{name}.weight" not in after
        error = unpacked(after, name, 32) - before[f"{name}.weight"].float()
        scales = after[f"{name}.weight_scale"].float().repeat_interleave(32, 1)
        if not calibrated:
            assert (error.abs() <= scales * 0.6).all()
        assert 0 < error.norm() < 0.3 * before[f"{name}.weight"].float().norm()
    settings = json.loads((out / "config.json").read_text())
    described = settings.pop("quantization_config")
    assert settings == SMALL
    assert described["ignore"] == ["lm_head"] and described["format"] == "pack-quantized"
    assert described["config_groups"]["group_0"]["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": not asymmetric, "strategy": "group", "group_size": 32,
        "dynamic": False,
    }  # fmt: skip
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert sum(t.nbytes for t in stored_tensors(out).values()) == report["bytes"] < report["original_bytes"]
    assert report["method"] == ("GPTQ" if calibrated else "round to nearest")
    assert report["original_perplexity"] > 1 and 0 < report["greedy_agreement"] <= 1
    assert [path.name for path in model.parent.iterdir() if path.name.startswith(".")] == []


def test_what_is_measured_is_what_is_written(
    model: Path, story: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The perplexity of a plain model with the numbers of the written one."""
    out, plain = model.parent / "small", model.parent / "plain"
    report = run(capsys, model, out, "--scheme", "w4a16", "--group", "32", "--calibrate", story)
    stored = load_file(out / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in stored.items() if name.endswith("weight")}
    for name in [name for name in stored if name.endswith(".weight_packed")]:
        module = name.removesuffix(".weight_packed")
        weights[f"{module}.weight"] = unpacked(stored, module, 32)
    tiny.make_folder(plain, SMALL | {"torch_dtype": "float32"}, tensors=weights)
    again = run(capsys, plain, model.parent / "other", "--scheme", "w8a16", "--calibrate", story)
    assert again["original_perplexity"] == report["perplexity"]
    assert again["original_perplexity"] != report["original_perplexity"]


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "fp8"])
def test_the_engine_loads_the_same_numbers(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    out = model.parent / "small"
    group = ["--group", "32", "--asymmetric"] * (scheme == "w4a16")
    report = run(capsys, model, out, "--scheme", scheme, *group, "--calibrate", story)
    loaded = load_model(out, ENGINE)
    matrices = [matrix for matrix in loaded.decoder.matrices if isinstance(matrix, QuantizedMatrix)]
    assert len(matrices) == 8  # q, k and v are one, gate and up likewise
    found = measure(loaded.decoder, text.Texts(story).windows(loaded)[1])
    assert found.perplexity != report["original_perplexity"]
    assert found.perplexity == report["perplexity"]


def test_on_what_the_model_writes_itself(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, model, model.parent / "a", "--scheme", "w8a16", "--calibrate", "self")
    assert report["calibration"] == {"text": "written by the model itself", "tokens": 6 * 32}
    assert report["evaluation"] == {"text": "written by the model itself", "tokens": 3 * 32}
    assert report["perplexity"] == pytest.approx(report["original_perplexity"], rel=0.05)
    again = run(capsys, model, model.parent / "b", "--scheme", "w8a16", "--calibrate", "self")
    assert (model.parent / "a/model.safetensors").read_bytes() == (
        model.parent / "b/model.safetensors"
    ).read_bytes()
    assert again["perplexity"] == report["perplexity"]


def test_every_expert_has_inputs_of_its_own(
    tmp_path: Path, story: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = families.make_folder(tmp_path / "moe", "mixtral", hidden_size=64, intermediate_size=64)
    report = run(
        capsys, source, tmp_path / "small", "--scheme", "w4a16", "--group", "32", "--calibrate", story
    )
    stored = load_file(tmp_path / "small" / "model.safetensors")
    experts = [name for name in stored if ".experts." in name and name.endswith("packed")]
    assert len(experts) == 2 * 5 * 3 and report["matrices"] == 2 * (4 + 5 * 3)
    ignored = json.loads((tmp_path / "small/config.json").read_text())["quantization_config"]["ignore"]
    assert ignored == ["lm_head", *(f"model.layers.{i}.block_sparse_moe.gate" for i in range(2))]
    for name in ignored:
        assert f"{name}.weight" in stored


def test_what_is_ignored_stays(model: Path, story: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "small"
    words = ["--ignore", "down_proj", "--ignore", "model.layers.1.self_attn.o_proj", "--evaluate", story]
    run(capsys, model, out, "--scheme", "fp8", *words)
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    plain = [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.down_proj",
    ]
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    assert sorted(described["ignore"]) == sorted(["lm_head", *plain])
    for name in plain:
        assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
    quantised = "model.layers.0.self_attn.o_proj"
    assert after[f"{quantised}.weight"].dtype == torch.float8_e4m3fn
    restored = after[f"{quantised}.weight"].float() * after[f"{quantised}.weight_scale"].float()
    assert torch.allclose(restored, before[f"{quantised}.weight"].float(), rtol=0.07, atol=0.02)


@pytest.mark.parametrize(
    "scheme", [("w8a16",), ("w4a16", "--group", "32", "--asymmetric"), ("fp8",)], ids=str
)
def test_transformers_loads_it(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], scheme: tuple[str, ...]
) -> None:
    """Its weights are our numbers, each rounded to bfloat16 once."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    out = model.parent / "small"
    run(capsys, model, out, "--scheme", *scheme, "--calibrate", story)
    config = transformers.CompressedTensorsConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, quantization_config=config)
    decoder = load_model(out, ENGINE).decoder
    for ours, layer in zip(decoder.weights().layers, theirs.model.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        gate_up = [mlp.gate_proj.weight, mlp.up_proj.weight]
        for found, matrix in (
            (qkv, ours.qkv),
            ([attention.o_proj.weight], ours.o),
            (gate_up, ours.gate_up),
            ([mlp.down_proj.weight], ours.down),
        ):
            assert isinstance(matrix, Matrix) and isinstance(matrix.weight, QuantizedMatrix)
            assert torch.equal(torch.cat(found), matrix.weight.dequantize().bfloat16())
    ids = torch.arange(2, 34)
    window = text.Windows(ids.view(1, -1), "")
    caches = [window.cache(decoder.config) for _ in theirs.model.layers]
    keys, values = [cache.k for cache in caches], [cache.v for cache in caches]
    logits = decoder.logits(decoder.forward(ids, keys, values, window.metadata()))
    distance = (theirs.float()(ids.view(1, -1)).logits[0] - logits).norm() / logits.norm()
    assert distance < 0.05
