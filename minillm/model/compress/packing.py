"""Matrices in compressed-tensors format: which tensors a matrix becomes, and what config.json says of them.

    pack-quantized, integers of 4 and 8 bits             float-quantized, fp8
    NAME.weight_packed      int32 [out, in * bits / 32]  NAME.weight        e4m3 [out, in]
        .weight_scale       [out, groups]                    .weight_scale  [out, 1]
        .weight_shape       int64 [2]
        .weight_zero_point  int32 [out * bits / 32, groups]      asymmetric only

    int32   | 7 | 6 | 5 | 4 | 3 | 2 | 1 | 0 |      eight codes of 4 bits; the first has the lowest bits

Zeros are packed down the outputs, codes along the inputs; a last word is filled with zeros. The library calls
codes -8 ... 7 and adds 8 before it packs: what lies in the file are our codes 0 ... 15.

Groups must divide the inputs: the library refuses anything else when it reads the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm.errors import UsageError
from minillm.model.compress.grid import Grid, Rounded
from minillm.model.new_checkpoint import SAFETENSORS, Entry

Shape = tuple[int, int]


def entries(name: str, shape: Shape, grid: Grid) -> list[Entry]:
    """The tensors of a matrix [out, in] in the order of `tensors`."""
    (out, size), dtype = shape, SAFETENSORS[grid.dtype]
    scale = Entry(f"{name}.weight_scale", dtype, (out, grid.num_groups(size)))
    if grid.floating:
        return [Entry(f"{name}.weight", "F8_E4M3", shape), scale]
    found = [
        Entry(f"{name}.weight_packed", "I32", (out, _words(size, grid.bits))),
        scale,
        Entry(f"{name}.weight_shape", "I64", (2,)),
    ]
    if not grid.symmetric:
        packed = _words(out, grid.bits), grid.num_groups(size)
        found.append(Entry(f"{name}.weight_zero_point", "I32", packed))
    return found


def tensors(rounded: Rounded) -> list[Tensor]:
    """The tensors of a matrix, as `entries` lists them."""
    bits = rounded.grid.bits
    if rounded.grid.floating:
        return [rounded.codes.view(torch.float8_e4m3fn), rounded.scales]
    shape = torch.tensor(rounded.codes.shape)
    found = [pack(rounded.codes, bits), rounded.scales, shape]
    return found if rounded.zeros is None else [*found, pack(rounded.zeros.T, bits).T]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of 4 or 8 bits side by side: uint8 [rows, n] -> int32 [rows, words]."""
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (32 // bits)))
    if bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    # Through one dimension: a single row may have strides that no view in words can have.
    return codes.flatten().view(torch.int32).view(len(codes), -1)


def require_whole_groups(shapes: dict[str, Shape], grid: Grid) -> None:
    """Refuse a group that does not divide the inputs of every matrix.

    Raises:
        UsageError: the message names a matrix, the hint what fits.
    """
    if not grid.group:
        return
    for name, (_, size) in shapes.items():
        if size % grid.group:
            fits = [g for g in (128, 64, 32) if not any(inputs % g for _, inputs in shapes.values())]
            raise UsageError(
                f"{name} has {size} inputs, and the format has only whole groups, here of {grid.group}",
                f"use --group {' or '.join([*map(str, fits), 'channel'])}, or --ignore such matrices",
            )


def quantization_config(grid: Grid, ignored: list[str]) -> dict[str, Any]:
    """config.json's `quantization_config`. `ignored`: modules that are linear and stored plainly."""
    weights = {
        "num_bits": grid.bits,
        "type": "float" if grid.floating else "int",
        "symmetric": grid.symmetric,
        "strategy": "group" if grid.group else "channel",
        "group_size": grid.group or None,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if grid.floating else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
        "kv_cache_scheme": None,
    }


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // 32)
