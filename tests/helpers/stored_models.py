"""Model folders whose matrices are stored quantised, each with a twin of the same numbers in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import tiny
import torch
from company import WIDE
from quantized_cases import Case
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.config.quantization import Form
from minillm.ops.quantized import QuantizedMatrix

Twins = tuple[Path, Path]
MakeCase = Callable[[str, int, int], Case | None]
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def write(folder: Path, cfg: dict[str, Any], tensors: dict[str, Tensor], quantization: object = None) -> Path:
    more = {} if quantization is None else {"quantization_config": quantization}
    return tiny.make_folder(folder, cfg | more, tensors=tensors)


def of_cases(folder: Path, quantization: dict[str, Any], make: MakeCase) -> Twins:
    """A Llama whose matrices are the cases that `make` makes of (module, out, in); None: it is plain.

    The scales of each matrix are moved, so that no two matrices are the same.
    """
    cfg = tiny.config(**WIDE)
    stored, plain = dict[str, Tensor](), tiny.weights(cfg, scale=0.1)
    for number, (name, tensor) in enumerate(plain.items()):
        module = name.removesuffix(".weight")
        case = make(module, *tensor.shape) if tensor.dim() == 2 else None
        if case is None:
            stored[name] = tensor
            continue
        case = moved(case, number)
        stored |= {module + part: found.contiguous() for part, found in case.tensors.items()}
        plain[name] = case.scheme.read(module, case.tensors, case.shape).dequantize()
    return write(folder / "stored", cfg, stored, quantization), write(folder / "plain", cfg, plain)


def moved(case: Case, places: int) -> Case:
    """The case with its scales that many places further."""
    part = case.scheme.scales_part
    return replace(case, tensors=case.tensors | {part: case.tensors[part].roll(places)})


def smaller(case: Case, exponent: int) -> Case:
    """The case with its scales divided by 2**exponent."""
    part = case.scheme.scales_part
    return replace(case, tensors=case.tensors | {part: case.tensors[part] * 2.0**-exponent})


def gpt_oss(folder: Path) -> Twins:
    """A gpt-oss with experts in MXFP4."""
    plain = families.make_folder(folder / "plain", "gpt_oss", intermediate_size=64, hidden_size=96)
    stored, numbers = mxfp4(load_file(plain / "model.safetensors"))
    save_file(numbers, plain / "model.safetensors")
    cfg = json.loads((plain / "config.json").read_text())
    return write(folder / "stored", cfg, stored, MXFP4), plain


def mxfp4(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random experts of gpt-oss: [experts, in, rows] -> blocks and scales by row; and their numbers."""
    generator = torch.Generator().manual_seed(3)
    stored, plain = dict[str, Tensor](), dict(tensors)
    for name, tensor in tensors.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = tensor
            continue
        experts, size, rows = tensor.shape
        codes = torch.randint(0, 16, (experts, rows, size), generator=generator, dtype=torch.uint8)
        groups = size // 32
        scales = torch.randint(118, 123, (experts, rows, groups), generator=generator, dtype=torch.uint8)
        made = [
            QuantizedMatrix(Form("fp4", 32, wide=True), c, 2.0 ** (s.float() - 127)).dequantize()
            for c, s in zip(codes, scales, strict=True)
        ]
        pairs = codes.unflatten(2, (groups, 16, 2))
        stored |= {f"{name}_blocks": pairs[..., 0] | pairs[..., 1] << 4, f"{name}_scales": scales}
        plain[name] = torch.stack(made).transpose(1, 2).contiguous()
    return stored, plain
