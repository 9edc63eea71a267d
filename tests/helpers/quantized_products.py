"""Checks of products with quantised matrices, for every backend: how wrong they may be, and contract C2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from cases import random
from quantized_matrices import packed
from torch import Tensor

from minillm.config.quantization import CODES, Codes, Form
from minillm.ops.contract import Ops
from minillm.ops.quantized import QuantizedMatrix, rounded_x

WHOLE: tuple[Codes, ...] = ("int8", "int4", "uint4")  # may meet activations in int8
CODES_AND_INT8_X = [*((codes, False) for codes in CODES), *((codes, True) for codes in WHOLE)]
_SEGMENT = 128  # inputs that share a scale of fixed-point numbers, at most (csrc/cpu/codes_int16.h)


def check_product(
    ops: Ops,
    made: QuantizedMatrix,
    dtype: torch.dtype,
    rows: int,
    with_bias: bool = False,
    fixed: bool = False,
    device: str = "cpu",
) -> None:
    """Against float64, with the same bits in any batch; and lookups of its rows, to the bit."""
    out, size = made.shape
    whole, x = packed(ops, made, dtype), random(rows, size, seed=rows).to(dtype)
    bias, what = random(out).to(dtype) if with_bias else None, f"{made.form}, {size} -> {out}, {dtype}"

    def multiply(x: Tensor) -> Tensor:
        return ops.linear(x.to(device), whole, None if bias is None else bias.to(device)).cpu()

    multiplied = rounded_x(x, made.form, made.order) if made.form.int8_x else x
    assert is_right(multiply(x), made, multiplied, bias, fixed).all(), what
    assert not differing_parts(multiply, x), what
    ids, exact = torch.tensor([0, out - 1, out // 2]), made.dequantize().to(dtype)
    assert torch.equal(ops.embedding(ids.to(device), whole).cpu(), exact[ids]), what
    assert torch.equal(ops.unpack_weight(whole).cpu(), exact), what


def is_right(
    found: Tensor, made: QuantizedMatrix, x: Tensor, bias: Tensor | None = None, fixed: bool = False
) -> Tensor:
    """Whether each number of a product is as near to the exact one as its arithmetic allows.

        sums        fp32: 2e-6 of the sum of |x| |w|
        fixed       activations of 16 bits become fixed-point numbers: half a unit of each input
        the result  is rounded once

    `x` is what is multiplied: with activations in int8 the rounded ones, in float64.
    """
    weights, x = made.dequantize().double(), x.double()
    offset = torch.zeros(1) if bias is None else bias.double()
    exact = x @ weights.T + offset
    sums = 2e-6 * (x.abs() @ weights.abs().T + offset.abs())
    if fixed:
        sums += half_units(x, made.form, made.order) @ weights.abs().T
    kind = torch.finfo(found.dtype)
    rounding = kind.eps / 2 * (exact.abs() + sums).clamp_min(kind.smallest_normal)
    return (found.double() - exact).abs() <= sums + rounding


def is_fixed(cpu_isa: str, codes: Codes, dtype: torch.dtype) -> bool:
    """Whether a native product without `int8_x` makes fixed-point numbers of its activations."""
    return cpu_isa == "avx2" and dtype != torch.float32 and codes != "fp8"


def half_units(x: Tensor, form: Form, order: Tensor | None) -> Tensor:
    """Half of the last place of fixed-point numbers that give the largest of a segment 15 bits."""
    in_order = torch.arange(x.shape[1]) if order is None else order.long()
    units = torch.zeros(x.shape, dtype=torch.float64)
    for group in in_order.split(form.group or x.shape[1]):
        for segment in group.split(_SEGMENT):
            largest = x[:, segment].double().abs().amax(dim=1, keepdim=True)
            units[:, segment] = 2.0 ** (largest.log2().floor() - 15)
    return units


def with_wrong_scales(made: QuantizedMatrix) -> QuantizedMatrix:
    """The same matrix, its scales 1 % too large: a control."""
    return replace(made, scales=(made.scales.double() * 1.01).to(made.scales.dtype))


def parts_of(rows: int) -> list[slice]:
    """The first rows, few and many; some in the middle, one of them alone; the last one."""
    first = [slice(0, count) for count in (1, 2, 7, 8, 9, 64, 70, 512) if count < rows]
    middle = [slice(start, end) for start, end in ((4, 5), (37, 45), (41, 42)) if end <= rows]
    return [*first, *middle, slice(rows - 1, rows)]


def differing_parts(multiply: Callable[[Tensor], Tensor], x: Tensor) -> list[slice]:
    """The parts whose rows have other bits than among all rows: none, by contract C2."""
    whole = multiply(x)
    return [part for part in parts_of(len(x)) if not torch.equal(multiply(x[part]), whole[part])]
