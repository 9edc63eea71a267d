"""Stored quantised matrices of every format, made without any library and the same everywhere.

All bits of all words are used, so that every code and every zero point comes up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.model.quantization.config import stored_quantization
from minillm.model.quantization.gguf import GGUF_SCHEMES, gguf_scheme
from minillm.model.quantization.stored import StoredScheme

MODULE = "model.layers.0.mlp.down_proj"
EXPERT = "model.layers.0.mlp.experts.down_proj"
_SCALES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True)
class Case:
    """One matrix: its config, its tensors by part, and how its library is asked."""

    name: str
    config: dict[str, Any]
    shape: tuple[int, int]
    tensors: dict[str, Tensor]

    @property
    def method(self) -> str:
        return str(self.config["quant_method"])

    @property
    def module(self) -> str:
        return EXPERT if self.method == "mxfp4" else MODULE

    @property
    def scheme(self) -> StoredScheme:
        if self.method == "gguf":
            return gguf_scheme(self.config["type"])
        scheme = stored_quantization(self.config).scheme_of(self.module)
        if scheme is None:
            raise LookupError(self.name)
        return scheme


def mixed(seed: int, *shape: int) -> Tensor:
    """Integers in [0, 2**31) without pattern, from arithmetic alone: int64 of the shape."""
    count = int(torch.tensor(shape).prod()) if shape else 1
    x = torch.arange(1, count + 1) * 0x9E3779B97F4A7C1 + seed * 0x1234567
    for factor in (0x2545F4914F6CDD1D, 0x369DEA0F31A53F85):
        x = (x ^ (x >> 29)) * factor
    return ((x >> 31) & 0x7FFFFFFF).reshape(shape)


def words(seed: int, *shape: int) -> Tensor:
    """int32 with all bits used."""
    return (mixed(seed, *shape) ^ (mixed(seed + 1, *shape) << 5)).to(torch.int32)


def scales(seed: int, dtype: str, *shape: int) -> Tensor:
    """Scales between 2**-12 and 1, some of them zero or negative."""
    numbers = mixed(seed, *shape)
    values = (numbers + 1).double() / 2**31 * 2.0 ** -(mixed(seed + 1, *shape) % 12)
    values = torch.where(numbers % 17 == 0, 0.0, torch.where(numbers % 7 == 0, -values, values))
    return values.to(_SCALES[dtype])


def _groups(in_features: int, group: int) -> int:
    return 1 if group == -1 else -(-in_features // group)


def act_order(in_features: int, group: int) -> Tensor:
    """The groups of the inputs, mixed: int32 [in]."""
    return (torch.arange(in_features) // group)[mixed(77, in_features).argsort()].to(torch.int32)


def packed(
    bits: int, symmetric: bool, strategy: str, group: int, dtype: str, out: int, inputs: int, order: bool
) -> Case:
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
    if strategy == "group":
        weights |= {"group_size": group, "actorder": "group" if order else None}
    groups = _groups(inputs, group)
    num_scales = (1,) if strategy == "tensor" else (out, groups)
    tensors = {
        ".weight_packed": words(bits, out, -(-inputs * bits // 32)),
        ".weight_scale": scales(2, dtype, *num_scales),
        ".weight_shape": torch.tensor([out, inputs]),
    }
    if not symmetric:
        tensors[".weight_zero_point"] = words(3, -(-out * bits // 32), groups)
    if order:
        tensors[".weight_g_idx"] = act_order(inputs, group)
    name = (
        f"packed-{bits}-{'sym' if symmetric else 'asym'}-{strategy}{group}-{dtype}-{out}x{inputs}"
        + "-order" * order
    )
    return Case(name, compressed("pack-quantized", weights), (out, inputs), tensors)


def plain_codes(
    kind: str, symmetric: bool, strategy: str, group: int, dtype: str, out: int, inputs: int
) -> Case:
    """int-quantized and float-quantized."""
    weights: dict[str, Any] = {"num_bits": 8, "type": kind, "symmetric": symmetric, "strategy": strategy}
    tensors = {".weight": fp8(4, out, inputs) if kind == "float" else signed(4, out, inputs)}
    num_scales: tuple[int, ...] = (1,) if strategy == "tensor" else (out, _groups(inputs, group))
    if strategy == "group":
        weights["group_size"] = group
    if strategy == "block":
        weights["block_structure"] = [group, group]
        num_scales = -(-out // group), -(-inputs // group)
    seed = 5 if torch.Size(num_scales).numel() > 1 else 6  # a single scale is not zero
    tensors[".weight_scale"] = scales(seed, dtype, *num_scales)
    if not symmetric:
        tensors[".weight_zero_point"] = signed(6, *num_scales)
    name = f"{kind}-{'sym' if symmetric else 'asym'}-{strategy}{group}-{dtype}-{out}x{inputs}"
    return Case(name, compressed(f"{kind}-quantized", weights), (out, inputs), tensors)


def signed(seed: int, *shape: int) -> Tensor:
    return (mixed(seed, *shape) % 256 - 128).to(torch.int8)


def fp8(seed: int, *shape: int) -> Tensor:
    """Every code of e4m3 that is a number."""
    codes = mixed(seed, *shape) % 256
    return torch.where((codes & 0x7F) == 0x7F, codes - 1, codes).to(torch.uint8).view(torch.float8_e4m3fn)


def compressed(stored: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": 1.5,
    }


def blocks(block: int | None, dtype: str, out: int, inputs: int) -> Case:
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    if block is None:
        tensors = {".weight": fp8(7, out, inputs), ".weight_scale_inv": scales(8, dtype)}
        return Case(f"fp8-whole-{dtype}-{out}x{inputs}", config, (out, inputs), tensors)
    grid = -(-out // block), -(-inputs // block)
    found = (mixed(8, *grid) % 40 + 100).to(torch.uint8).view(torch.float8_e8m0fnu)
    if dtype != "e8m0":
        found = scales(8, dtype, *grid)
    tensors = {".weight": fp8(7, out, inputs), ".weight_scale_inv": found}
    return Case(
        f"fp8-{block}-{dtype}-{out}x{inputs}",
        config | {"weight_block_size": [block, block]},
        (out, inputs),
        tensors,
    )


def awq(group: int, dtype: str, out: int, inputs: int) -> Case:
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    groups = _groups(inputs, group)
    tensors = {
        ".qweight": words(9, inputs, out // 8),
        ".qzeros": words(11, groups, out // 8),
        ".scales": scales(13, dtype, groups, out),
    }
    return Case(f"awq-{group}-{dtype}-{out}x{inputs}", config, (out, inputs), tensors)


def gptq(
    bits: int, symmetric: bool, version: int, group: int, out: int, inputs: int, order: bool = False
) -> Case:
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": order}
    config["checkpoint_format"] = "gptq_v2" if version == 2 else "gptq"
    groups = _groups(inputs, group)
    zeros = words(15, groups, -(-out * bits // 32))
    ones = 0x11111111 if bits == 4 else 0x01010101
    zeros = (
        zeros & ~ones if version == 1 else zeros | ones
    )  # none is 0: there libraries differ, see the tests
    if symmetric:
        word = (
            (0x77777777 if bits == 4 else 0x7F7F7F7F)
            if version == 1
            else (0x88888888 if bits == 4 else 0x80808080)
        )
        zeros = torch.full_like(zeros.long(), word).to(torch.int32)
    regular = (torch.arange(inputs) // (inputs if group == -1 else group)).to(torch.int32)
    tensors = {
        ".qweight": words(17, -(-inputs * bits // 32), out),
        ".qzeros": zeros,
        ".scales": scales(19, "f16", groups, out),
        ".g_idx": act_order(inputs, group) if order else regular,
    }
    name = f"gptq{version}-{bits}-{'sym' if symmetric else 'asym'}-{group}-{out}x{inputs}" + "-order" * order
    return Case(name, config, (out, inputs), tensors)


def mxfp4(out: int, inputs: int) -> Case:
    tensors = {
        "_blocks": (mixed(21, out, inputs // 32, 16) % 256).to(torch.uint8),
        "_scales": (mixed(22, out, inputs // 32) % 253).to(torch.uint8),
    }
    return Case(f"mxfp4-{out}x{inputs}", {"quant_method": "mxfp4"}, (out, inputs), tensors)


def gguf(type_name: str, out: int, inputs: int) -> Case:
    """Random bytes, with scales that are numbers."""
    scheme = GGUF_SCHEMES[type_name]
    data = (mixed(23, out * inputs // scheme.numbers, scheme.num_bytes) % 256).to(torch.uint8)
    for at in {"Q6_K": (208,), "Q4_K": (0, 2), "Q4_1": (0, 2)}.get(type_name, (0,)):
        data[:, at : at + 2] = scales(24 + at, "f16", len(data), 1).view(torch.uint8)
    return Case(
        f"gguf-{type_name}-{out}x{inputs}",
        {"quant_method": "gguf", "type": type_name},
        (out, inputs),
        {"": data.reshape(out, -1)},
    )


def all_cases() -> list[Case]:
    """Odd shapes: K no multiple of the group, N none of 8, one group, act-order, ragged blocks."""
    made: list[Case] = []

    def add(make: Callable[..., Case], *arguments: Any) -> None:
        made.append(make(*arguments))

    for bits in (4, 8):
        for dtype in ("f16", "bf16", "f32"):
            add(packed, bits, True, "group", 32, dtype, 13, 96, False)
            add(packed, bits, True, "channel", -1, dtype, 9, 37, False)
            if (bits, dtype) != (8, "f32"):
                add(packed, bits, False, "group", 32, dtype, 13, 96, False)
                add(packed, bits, False, "channel", -1, dtype, 11, 45, False)
        add(packed, bits, True, "tensor", -1, "bf16", 5, 24, False)
        add(packed, bits, True, "group", 64, "bf16", 10, 104, False)
        add(packed, bits, False, "group", 64, "f16", 10, 104, False)
        add(packed, bits, False, "group", 128, "f16", 9, 128, False)
        add(packed, bits, True, "group", 32, "f16", 7, 128, True)
        add(packed, bits, False, "group", 32, "bf16", 9, 128, True)
    for strategy, group in (("tensor", -1), ("channel", -1), ("group", 32)):
        for dtype in ("f16", "bf16", "f32"):
            add(plain_codes, "int", True, strategy, group, dtype, 7, 64)
            add(plain_codes, "float", True, strategy, group, dtype, 7, 64)
        add(plain_codes, "int", False, strategy, group, "bf16", 7, 64)
    for dtype in ("bf16", "f32"):
        add(plain_codes, "float", True, "block", 128, dtype, 130, 200)
        add(plain_codes, "float", True, "block", 16, dtype, 37, 50)
    for dtype in ("bf16", "f32", "e8m0"):
        add(blocks, 128, dtype, 256, 128)
        add(blocks, 128, dtype, 140, 300)
        add(blocks, 16, dtype, 5, 7)
    add(blocks, None, "f32", 5, 12)
    for group, out, inputs in ((32, 24, 96), (128, 8, 128), (-1, 16, 40)):
        for dtype in ("f16", "bf16", "f32"):
            add(awq, group, dtype, out, inputs)
    for bits in (4, 8):
        for version in (1, 2):
            for symmetric in (True, False):
                add(gptq, bits, symmetric, version, 32, 32, 96)
                add(gptq, bits, symmetric, version, -1, 13, 64)
                add(gptq, bits, symmetric, version, 64, 12, 96)
                add(gptq, bits, symmetric, version, 32, 20, 128, True)
    add(gptq, 4, False, 1, 64, 9, 160, True)
    add(mxfp4, 5, 96)
    add(mxfp4, 3, 32)
    for name, inputs in (("Q8_0", 96), ("Q4_0", 32), ("Q4_1", 96), ("Q4_K", 512), ("Q6_K", 768)):
        add(gguf, name, 5, inputs)
    return made
