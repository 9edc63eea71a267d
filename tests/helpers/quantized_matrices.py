"""Quantised matrices for the tests of every backend's kernels."""

from __future__ import annotations

import torch

from minillm.config.quantization import Form
from minillm.ops.contract import Ops, Weight
from minillm.ops.quantized import QuantizedMatrix, dtype_of_scales, numbers_of

# Widths that are no multiple of a line or a group, one group, several; outputs that are no multiple of 16.
SHAPES = [(33, 200), (5, 64), (130, 129), (48, 576), (16, 8), (1, 1)]
GROUPS = [0, 16, 32, 64, 128]


def matrix(form: Form, out: int, size: int, ordered: bool = False, seed: int = 0) -> QuantizedMatrix:
    """Random codes, scales of both signs, and some scales of zero."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, len(numbers_of(form.codes)), (out, size), generator=generator, dtype=torch.uint8)
    if form.codes == "fp8":
        codes[codes & 0x7F == 0x7F] = 1  # NaN, and a subnormal number in its place
    shape = out, form.num_groups(size)
    dtype = dtype_of_scales(form)
    scales = ((torch.rand(shape, generator=generator) - 0.3) * 0.02).to(dtype)
    scales[::7] = 0
    minima = ((torch.rand(shape, generator=generator) - 0.5) * 0.1).to(dtype) if form.minimum else None
    order = torch.randperm(size, generator=generator).int() if ordered else None
    return QuantizedMatrix(form, codes, scales, minima, order)


def packed(ops: Ops, made: QuantizedMatrix, dtype: torch.dtype) -> Weight:
    """In three pieces, the last one first."""
    out, size = made.shape
    whole = ops.begin_quantized((out, size), made.form, dtype, made.order)
    for first, last in [(2 * out // 3, out), (0, out // 3), (out // 3, 2 * out // 3)]:
        ops.put_quantized(whole, first, made.rows(first, last))
    return whole
