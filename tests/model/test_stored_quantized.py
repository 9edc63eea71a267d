"""Checkpoints that are stored quantised: loaded with their own numbers, or refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from company import PROMPTS, WIDE, answers, same
from stored_models import gpt_oss, write
from torch import Tensor

from minillm.config.quantization import Form
from minillm.errors import UnsupportedModel, UsageError, WeightsError
from minillm.model.quantization.rounding import quantize_rows
from minillm.ops.quantized import QuantizedMatrix

GROUP = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
PACKED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": GROUP, "input_activations": None}},
    "ignore": ["lm_head"],
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": True}


def words(codes: Tensor) -> Tensor:
    """Eight codes of 4 bits in each int32, the first in the lowest bits: [n, in] -> [n, in / 8]."""
    parts = codes.long().unflatten(1, (-1, 8)) << (4 * torch.arange(8))
    total = parts.sum(-1)
    return torch.where(total >= 1 << 31, total - (1 << 32), total).int()


def is_quantized(name: str) -> bool:
    return name.endswith("proj.weight")


def packed(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors as compressed-tensors stores them, and the same numbers in plain."""
    stored, plain = {}, dict(tensors)
    for name, tensor in tensors.items():
        if not is_quantized(name):
            stored[name] = tensor
            continue
        made = quantize_rows(tensor, Form("int4", 32))
        stored |= {
            f"{name}_packed": words(made.codes),
            f"{name}_scale": made.scales,
            f"{name}_shape": torch.tensor(made.shape),
        }
        plain[name] = made.dequantize()
    return stored, plain


def gptq(
    tensors: dict[str, Tensor], orders: dict[int, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same as GPTQ stores it, each matrix with the order of its number of inputs; v1: zeros minus one."""
    stored, plain = {}, dict(tensors)
    for name, tensor in tensors.items():
        if not is_quantized(name):
            stored[name] = tensor
            continue
        module, size = name.removesuffix(".weight"), tensor.shape[1]
        order = orders[size]
        made = quantize_rows(tensor[:, order], Form("int4", 32))
        g_idx = torch.empty(size, dtype=torch.int32)
        g_idx[order] = torch.arange(size, dtype=torch.int32) // 32
        codes = torch.empty_like(made.codes)
        codes[:, order] = made.codes
        zeros = torch.full((made.scales.shape[1], tensor.shape[0]), 7, dtype=torch.uint8)
        stored |= {
            f"{module}.qweight": words(codes).T.contiguous(),
            f"{module}.qzeros": words(zeros),
            f"{module}.scales": made.scales.T.contiguous(),
            f"{module}.g_idx": g_idx,
        }
        plain[name] = QuantizedMatrix(made.form, made.codes, made.scales, order=order.int()).dequantize()
    return stored, plain


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of compressed-tensors, and one with the same numbers in float32."""
    base, cfg = tmp_path_factory.mktemp("stored"), tiny.config(**WIDE)
    stored, plain = packed(tiny.weights(cfg, scale=0.1))
    return write(base / "packed", cfg, stored, PACKED), write(base / "plain", cfg, plain)


def close(a: Path, b: Path, **options: Any) -> bool:
    one, other = (tiny.load(folder, **options).logits(PROMPTS[3]) for folder in (a, b))
    return torch.allclose(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_file_decides_every_number(both: tuple[Path, Path], backend: str) -> None:
    assert close(*both, backend=backend)


def test_codes_stay_codes(both: tuple[Path, Path], cpu_isa: str) -> None:
    """The engine reads 4 bits a weight, and its bits do not depend on the company."""
    llm = tiny.load(both[0], backend="native", kv_memory="64MiB")
    specs = llm.engine.model.config.layers
    assert all(
        spec.quantization == dict.fromkeys(("qkv", "o", "gate_up", "down"), Form("int4", 32))
        for spec in specs
    )
    assert (
        llm.engine.model.decoder.step_bytes()
        < 0.5 * tiny.load(both[1], backend="native").engine.model.decoder.step_bytes()
    )
    alone = [answers(llm, [prompt])[0] for prompt in PROMPTS]
    assert same(alone, answers(tiny.load(both[0], backend="native", kv_memory="64MiB"), PROMPTS))


def test_a_scheme_for_a_model_that_has_one(both: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"packed is stored quantised \(compressed-tensors\)"):
        tiny.load(both[0], quantization="int8")


@pytest.mark.parametrize("shared", [True, False], ids=["one order", "two orders"])
def test_act_order(tmp_path: Path, caplog: pytest.LogCaptureFixture, shared: bool) -> None:
    """q, k and v with one order keep their codes; with two orders they are dequantised, and it is said."""
    cfg = tiny.config(**WIDE)
    sizes = {WIDE["hidden_size"], WIDE["intermediate_size"]}
    orders = {n: torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in sizes}
    stored, plain = gptq(tiny.weights(cfg, scale=0.1), orders)
    if not shared:
        name, size = "model.layers.0.self_attn.k_proj", WIDE["hidden_size"]
        own = {f"{name}.weight": tiny.weights(cfg, scale=0.1)[f"{name}.weight"]}
        changed = gptq(own, {size: orders[size].flip(0)})
        stored, plain = stored | changed[0], plain | changed[1]
    made = write(tmp_path / "gptq", cfg, stored, GPTQ)
    with caplog.at_level(logging.WARNING):
        assert close(made, write(tmp_path / "plain", cfg, plain), backend="native")
    assert ("dequantised (routers" in caplog.text and "layer 0 qkv" in caplog.text) == (not shared)
    forms = tiny.load(made, backend="native").engine.model.config.layers[0].quantization or {}
    assert ("qkv" in forms) == shared and "down" in forms


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    """Gates and ups lie in turns in the file; the biases and the router are plain."""
    stored, plain = gpt_oss(tmp_path)
    assert close(stored, plain, backend="reference") and close(stored, plain, backend="native")
    forms = tiny.load(stored).engine.model.config.layers[0].quantization
    assert forms == dict.fromkeys(("expert_gate_up", "expert_down"), Form("fp4", 32, wide=True))


@pytest.mark.parametrize("part", ["packed", "scale", "shape"])
@pytest.mark.parametrize("damage", ["missing", "cut", "of another type", "renamed"])
def test_damaged_parts(tmp_path: Path, damage: str, part: str) -> None:
    cfg = tiny.config()
    stored, _ = packed(tiny.weights(cfg))
    name = f"model.layers.1.mlp.down_proj.weight_{part}"
    tensor = stored.pop(name)
    if damage == "cut":
        stored[name] = tensor[:1].clone()
    elif damage == "of another type":
        stored[name] = tensor.to(torch.float64) if part != "scale" else tensor.int()
    elif damage == "renamed":
        stored[name + "s"] = tensor
    made = write(tmp_path / "model", cfg, stored, PACKED)
    if damage == "missing" and part == "shape":
        tiny.load(made)  # it says nothing that the config does not
        return
    with pytest.raises((WeightsError, UnsupportedModel), match=r"down_proj|shape"):
        tiny.load(made)


@pytest.mark.parametrize("end", ["self_attn.k_scale", "self_attn.v_scale", "self_attn.o_proj.input_scale"])
@pytest.mark.parametrize("quantized", [True, False])
def test_scales_of_calibration_that_no_config_tells_of(tmp_path: Path, quantized: bool, end: str) -> None:
    """Scales of keys, values or activations in a file are refused by name, and never ignored in silence."""
    cfg, name = tiny.config(), f"model.layers.1.{end}"
    tensors = packed(tiny.weights(cfg))[0] if quantized else tiny.weights(cfg)
    made = write(tmp_path / "model", cfg, tensors | {name: torch.ones(1)}, PACKED if quantized else None)
    with pytest.raises(WeightsError, match=f"1 unexpected: {name}"):
        tiny.load(made)


@pytest.mark.parametrize("method", [None, 3, "bitsandbytes", "quanto", "modelopt", "", {"a": 1}])
def test_methods_that_are_not_supported(tmp_path: Path, method: object) -> None:
    made = write(tmp_path / "model", tiny.config(), tiny.weights(tiny.config()), {"quant_method": method})
    with pytest.raises(UnsupportedModel, match="quantization_config"):
        tiny.load(made)
