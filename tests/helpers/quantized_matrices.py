"""Quantised matrices for the tests of every backend's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

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


def blocks_of(made: QuantizedMatrix) -> Tensor:
    """The blocks of 16 outputs as in csrc/shared/codes_layout.h, by plain Python: bytes [blocks, n]."""
    form, (out, size) = made.form, made.shape
    line = 32 // form.bits
    group = form.group if 0 < form.group < size else -(-size // line) * line
    groups, tables = form.num_groups(size), [made.scales, *([] if made.minima is None else [made.minima])]
    in_chunk = 2 if 16 * len(tables) * tables[0].dtype.itemsize < 64 else 1
    shifts = torch.tensor([i % 2 * 16 + i // 2 * form.bits for i in range(line)])
    blocks = []
    for first in range(0, out, 16):
        block = b""
        for chunk in range(0, groups, in_chunk):
            for g in range(chunk, chunk + in_chunk):
                for table in tables:
                    column = torch.zeros(16, dtype=table.dtype)
                    if g < groups:
                        column[: min(16, out - first)] = table[first : first + 16, g]
                    block += column.numpy().tobytes()
            for g in range(chunk, min(chunk + in_chunk, groups)):
                codes = made.codes[first : first + 16, g * group : (g + 1) * group].long()
                filled = torch.zeros(16, -(-codes.shape[1] // line) * line, dtype=torch.int64)
                filled[: len(codes), : codes.shape[1]] = codes
                words = (filled.view(16, -1, line) << shifts).sum(-1).T.contiguous()
                block += words.view(torch.int32)[:, ::2].contiguous().numpy().tobytes()  # the lower halves
        blocks.append(torch.frombuffer(bytearray(block), dtype=torch.uint8))
    return torch.stack(blocks)
