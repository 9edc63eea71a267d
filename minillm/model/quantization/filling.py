"""A stored tensor into the model: copied into its place, or quantised on the way.

    safetensors --pieces of 8 MiB--> copied into the parameter, perhaps to another dtype
                                 --> rows --> quantised --> put into the packed matrix

A quantised matrix is made of the numbers in the file, not of numbers rounded to the model's dtype. Its rows
are quantised as they are read: the matrix never exists in more bits than it will have. Exceptions are
matrices that are stored [in, out], or interleaved: those are first brought into order, in float32. Of the
experts of a layer, which gpt-oss stores as one tensor, one is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from minillm.config.quantization import Form
from minillm.model.checkpoint import StoredTensor
from minillm.model.quantization.rounding import quantize_rows
from minillm.model.quantization.strips import item
from minillm.ops.contract import Ops, PackedWeight, Weight
from minillm.ops.quantized import QuantizedMatrix

_BLOCK = 2 << 20  # numbers that are copied at a time
_ROUNDED = 1 << 17  # numbers that are quantised at a time: rounding takes a dozen times their memory
UpdateDigest = Callable[[bytearray], None]


def fill(target: Tensor, stored: StoredTensor, update_digest: UpdateDigest) -> None:
    """Copy a stored tensor into `target`, block by block, converting its dtype."""
    if not target.numel():
        return
    blocks, waiting = _blocks(target.view(-1) if target.is_contiguous() else target), bytearray()
    width = stored.torch_dtype.itemsize
    block: Tensor | None = next(blocks)
    for data in stored.pieces(_BLOCK * width):
        update_digest(data)
        waiting = waiting + data if waiting else data
        while block is not None and len(waiting) >= block.numel() * width:
            size = block.numel() * width
            numbers = torch.frombuffer(waiting[:size], dtype=stored.torch_dtype)
            block.copy_(numbers.view(block.shape))
            waiting, block = waiting[size:], next(blocks, None)


def _blocks(target: Tensor) -> Iterator[Tensor]:
    """`target` in blocks of at most 2,097,152 numbers, in the order of its numbers."""
    row = target.numel() // target.shape[0]
    if row > _BLOCK:
        for part in target:
            yield from _blocks(part)
    else:
        yield from target.split(max(1, _BLOCK // row))


def quantize_stored(
    ops: Ops, matrix: Weight, view: Tensor, stored: StoredTensor, update_digest: UpdateDigest
) -> None:
    """Quantise a stored tensor into the rows of `matrix` that `view` shows of it; `view` has no memory.

    Raises:
        WeightsError: a number is NaN or infinite; or as `StoredTensor.pieces`.
    """
    form, (_, size) = form_of(matrix), matrix.shape
    if view.dim() == 2 and view.stride() == (size, 1) and view.shape[1] == size:
        row = view.storage_offset() // size
        for rows in _rows(stored, size, update_digest):
            ops.put_quantized(matrix, row, quantize_rows(rows, form, stored.name))
            row += len(rows)
        return
    experts = [(part, item(stored, i)) for i, part in enumerate(view)] if view.dim() > 2 else [(view, stored)]
    ordered = torch.empty(experts[0][0].numel() // size, size)
    for part, own in experts:
        row, offset = divmod(int(part.storage_offset()), size)
        fill(ordered.as_strided(part.shape, part.stride(), offset), own, update_digest)
        for rows in ordered.split(max(1, _ROUNDED // size)):
            ops.put_quantized(matrix, row, quantize_rows(rows, form, stored.name))
            row += len(rows)


def form_of(matrix: Weight) -> Form:
    """The form of a quantised matrix."""
    form = matrix.form if isinstance(matrix, PackedWeight | QuantizedMatrix) else None
    if form is None:
        raise TypeError("this matrix is not quantised")
    return form


def _rows(stored: StoredTensor, size: int, update_digest: UpdateDigest) -> Iterator[Tensor]:
    """The rows of a stored matrix, some at a time: [rows, size]."""
    for data in stored.pieces(max(1, _ROUNDED // size) * size * stored.torch_dtype.itemsize):
        update_digest(data)
        yield torch.frombuffer(data, dtype=stored.torch_dtype).view(-1, size)
