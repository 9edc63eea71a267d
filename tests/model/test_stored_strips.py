"""Stored matrices are read in strips: the same rows as of the whole matrix, and never all in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
import zero_checkpoints
from quantized_cases import Case, all_cases, awq, gguf, mxfp4
from safetensors.torch import load_file, save_file

from minillm.config import EngineConfig
from minillm.errors import UnreadableFile, UnsupportedModel, WeightsError
from minillm.model.checkpoint import StoredTensor, stored_tensors
from minillm.model.loader import load_model
from minillm.model.quantization import strips as module
from minillm.model.quantization.strips import item, narrowed, strips

CASES = {case.name: case for case in all_cases()}


def in_file(case: Case, folder: Path) -> dict[str, StoredTensor]:
    tensors = {f"m{end}": tensor.contiguous() for end, tensor in case.tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    return {name.removeprefix("m"): tensor for name, tensor in stored_tensors(folder).items()}


@pytest.mark.parametrize("name", CASES)
def test_strips_are_rows_of_the_whole(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    whole, row = case.scheme.read(case.module, case.tensors, case.shape), 0
    for strip in strips(case.module, case.scheme, case.shape, in_file(case, tmp_path), 1):
        made = case.scheme.read(case.module, strip.tensors, strip.shape)
        expected = whole.rows(row, row + strip.shape[0])
        assert (strip.first, strip.shape[1], made.form) == (row, case.shape[1], whole.form)
        for part in ("codes", "scales", "minima", "order"):
            ours, theirs = getattr(made, part), getattr(expected, part)
            assert torch.equal(ours, theirs) if theirs is not None else ours is None
        row += strip.shape[0]
    assert row == case.shape[0]


@pytest.mark.parametrize("made", [awq(32, "f16", 32, 96), gguf("Q4_1", 32, 96), mxfp4(24, 64)])
def test_no_strip_is_larger_than_asked(made: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limit, this is one strip."""
    stored, part = in_file(made, tmp_path), made.scheme.codes_part
    limit = stored[part].nbytes // 2
    for asked, number in ((limit, 2), (2 * limit, 1)):
        monkeypatch.setattr(module, "_STRIP_BYTES", asked)
        sizes = [s.tensors[part].nbytes for s in strips("m", made.scheme, made.shape, stored)]
        assert len(sizes) >= number and max(sizes) <= asked and sum(sizes) == stored[part].nbytes
    assert len(sizes) == 1


def test_narrowed_along_every_axis(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(4 * 6 * 5).view(4, 6, 5), "b": torch.tensor(7.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = stored_tensors(tmp_path)
    for axis in range(3):
        assert torch.equal(narrowed(stored["a"], axis, 1, 3), tensors["a"].narrow(axis, 1, 2))
    assert torch.equal(narrowed(item(stored["a"], 2), 1, 2, 5), tensors["a"][2, :, 2:5])
    assert torch.equal(narrowed(stored["b"]), tensors["b"])


def test_a_file_that_shrinks_or_vanishes(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(64, 64)}, tmp_path / "model.safetensors")
    stored = stored_tensors(tmp_path)["a"]
    with pytest.raises(WeightsError, match="ends inside 'a'"):
        narrowed(replace(stored, offset=stored.offset + 4))
    stored.path.unlink()
    with pytest.raises(UnreadableFile):
        narrowed(stored)


# ---- a tensor with the matrices of all experts -----------------------------------------------------

EXPERTS = 4
SMALLEST = {"hidden_size": 64, "intermediate_size": 64, "num_local_experts": EXPERTS}


def _experts(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    zero_checkpoints.write(folder, families.config("gpt_oss", **SMALLEST), {"quant_method": "mxfp4"})
    return folder


def _load(folder: Path) -> None:
    load_model(folder, EngineConfig(device="cpu", backend="reference", dtype="bfloat16"))


@pytest.mark.parametrize("count", [None, 0, 1, EXPERTS - 1, EXPERTS + 1])
@pytest.mark.parametrize("end", ["gate_up_proj_blocks", "down_proj_scales"])
def test_every_expert_must_be_there(tmp_path: Path, end: str, count: int | None) -> None:
    """With too few experts, bytes of the next tensor would be read as weights."""
    folder = _experts(tmp_path)
    _load(folder)
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.0.mlp.experts.{end}"
    whole = tensors[name]
    tensors[name] = whole.flatten()[0].clone() if count is None else whole[[0] * count]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=f"{end}' has shape") as caught:
        _load(folder)
    assert "requires 4 experts" in caught.value.hint


def test_matrices_that_are_stored_transposed_are_refused(tmp_path: Path) -> None:
    """A square one would be loaded the wrong way round."""
    folder = families.make_folder(tmp_path / "model", "gpt2")
    _load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UnsupportedModel, match=r"c_attn' is quantised and stored \[in, out\]"):
        _load(folder)


# ---- memory ---------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from minillm.config import EngineConfig
from minillm.model.loader import load_model
from minillm.model.memory import weight_bytes
from minillm.model.quantization import filling, strips
def status(what):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(what)) * 1024
engine = EngineConfig(device="cpu", dtype="bfloat16", quantization=sys.argv[4] or None)
load_model(Path(sys.argv[1]), engine)   # imports and first-use buffers do not count
base = status("VmRSS")
if sys.argv[3] == "whole":
    strips._STRIP_BYTES, filling._ROUNDED = 1 << 40, 1 << 24
model = load_model(Path(sys.argv[2]), engine)
print((status("VmHWM") - base) / weight_bytes(model.config, model.dtype))
"""
ROWS = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        }
    },
    "ignore": ["lm_head"],
}
COLUMNS = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
# What is stored, the size between the matrices of an MLP, and `quantization`.
DENSE: dict[str, tuple[dict[str, Any] | None, int, str]] = {
    "rows": (ROWS, 49152, ""),
    "columns": (COLUMNS, 98304, ""),
    "fp8": (FP8, 49152, ""),
    "awq": (AWQ, 65536, ""),
    "16 bits to int4": (None, 32768, "int4"),
}
EXPERT_LAYERS: dict[str, tuple[dict[str, Any] | None, dict[str, int], str]] = {
    "experts": ({"quant_method": "mxfp4"}, {"hidden_size": 1024, "intermediate_size": 1024}, ""),
    "experts to int4": (
        None,
        {"hidden_size": 512, "intermediate_size": 512, "num_local_experts": 256},
        "int4",
    ),
}
LARGE = {"hidden_size": 2048, "num_hidden_layers": 1}
SMALL = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "scheme", ["rows", *(pytest.param(s, marks=pytest.mark.slow) for s in [*DENSE, *EXPERT_LAYERS][1:])]
)
def test_peak_memory_is_near_the_packed_size(scheme: str, tmp_path: Path) -> None:
    """Three matrices of 96 MiB, or two layers of experts; read as a whole, one of them is too much."""
    if scheme in EXPERT_LAYERS:
        quantization, sizes, asked = EXPERT_LAYERS[scheme]
        small = families.config("gpt_oss", hidden_size=64, intermediate_size=64)
        large = families.config("gpt_oss", **({"num_local_experts": 64} | sizes))
    else:
        quantization, inner, asked = DENSE[scheme]
        small, large = tiny.config(**SMALL), tiny.config(**LARGE, intermediate_size=inner)
    zero_checkpoints.write(tmp_path / "small", small, quantization)
    assert zero_checkpoints.write(tmp_path / "large", large, quantization) > 150 << 20

    def growth(how: str) -> float:
        folders = [str(tmp_path / name) for name in ("small", "large")]
        command = [sys.executable, "-c", MEASURE, *folders, how, asked]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert 0.9 < growth("strips") <= 1.1
    if scheme not in EXPERT_LAYERS:  # one expert is read at a time in any case
        assert growth("whole") > 1.1
