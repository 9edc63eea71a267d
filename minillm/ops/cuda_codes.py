"""Quantised matrices for the CUDA kernels: made on the host, kept where the kernels read them.

    host    begin_codes_ --> header | order | blocks of zeros -- one copy --> device

    rows 20 to 40    device  | block 0 | block 1 | block 2 | block 3 |      16 outputs each
                                       +---------+---------+
                                       copied to the host, some rows written, and copied back

The layout is that of csrc/cpu (csrc/shared/codes_layout.h). A tensor of the checkpoint may end in the middle of
a block, so a block is written on top of what it has. Memory on the host is one matrix while it is begun, and
one piece of it while it is filled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm.config.quantization import Form
from minillm.ops.contract import PackedWeight
from minillm.ops.quantized import QuantizedMatrix

_HEADER = 64  # bytes
_OUTPUTS = 16  # of a block


def begin_codes(ops: Any, shape: tuple[int, int], form: Form, order: Tensor | None = None) -> Tensor:
    """The bytes of a matrix [out, in] of zeros, on the host. `ops` is a namespace of torch's ops."""
    what = (*shape, form.codes, form.group or shape[1], form.wide, form.minimum)
    data = torch.empty(ops.codes_bytes(*what, order is not None), dtype=torch.uint8)
    ops.begin_codes_(data, *what, order)
    return data


def put_codes(ops: Any, weight: PackedWeight, first: int, rows: QuantizedMatrix) -> None:
    """Write rows of the matrix's form, from row `first` on."""
    from_block, to_block = first // _OUTPUTS, -(-(first + rows.shape[0]) // _OUTPUTS)
    count, all_blocks = to_block - from_block, -(-weight.out_features // _OUTPUTS)
    piece = begin_codes(ops, (count * _OUTPUTS, weight.in_features), rows.form)
    block = (len(piece) - _HEADER) // count
    start = len(weight.data) - (all_blocks - from_block) * block
    there = weight.data[start : start + count * block]
    piece[_HEADER:] = there
    ops.put_codes_(piece, first - from_block * _OUTPUTS, rows.codes, rows.scales, rows.minima)
    there.copy_(piece[_HEADER:])
