"""A stored matrix in strips: some of its rows at a time, read straight from the file.

A strip of rows of a stored matrix is a stored matrix itself, with fewer outputs. Which bytes belong to it
follows from the shapes that the scheme gives to both:

    AWQ, rows 8 to 23 of [out 64, in 128]     whole            strip            read
    .qweight                                  [128, 64 / 8]    [128, 16 / 8]    words 1 and 2 of every row
    .scales                                   [1, 64]          [1, 16]          numbers 8 to 23 of every row

So no matrix is ever whole in memory, even where the file has it transposed. A part that has no outputs, as
the order of the inputs, belongs to every strip.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.config import shown
from minillm.config.files import open_file, unreadable
from minillm.errors import WeightsError
from minillm.model.checkpoint import INCOMPLETE, StoredTensor
from minillm.model.quantization.stored import Header, Shape, StoredScheme

_STRIP_BYTES = 4 << 20  # of codes


class Strip(NamedTuple):
    """Rows of a matrix, from row `first` on: a matrix [rows, in] of the same scheme."""

    first: int
    shape: Shape
    tensors: dict[str, Tensor]


def strips(
    name: str, scheme: StoredScheme, shape: Shape, stored: Mapping[str, StoredTensor], rows: int = 0
) -> Iterator[Strip]:
    """The strips of the module `name`, in order; `rows`: of a strip, 0: about 4 MiB of codes.

    Raises:
        UnreadableFile: the file has vanished since its header was read, or a read fails.
        WeightsError: a part is missing or has another shape or dtype; the file ends inside it.
    """
    parts = scheme.parts(shape)
    scheme.require_parts(name, headers_of(stored), shape)
    said = {end: narrowed(stored[end]) for end, part in parts.items() if part.says_shape and end in stored}
    scheme.require_shape(name, said, shape)
    out, step = shape[0], scheme.strip_rows
    wanted = rows or _STRIP_BYTES * out // stored[scheme.codes_part].nbytes
    wanted = max(step, wanted // step * step)
    for first in range(0, out, wanted):
        last = min(first + wanted, out)
        tensors = {
            end: narrowed(tensor, *_extent(scheme, shape, end, tensor.shape, range(first, last)))
            for end, tensor in stored.items()
            if end in parts and end not in said
        }
        yield Strip(first, (last - first, shape[1]), tensors)


def headers_of(stored: Mapping[str, StoredTensor]) -> dict[str, Header]:
    """Dtypes and shapes, by part. Raises WeightsError for a dtype that no scheme uses."""
    return {end: Header(tensor.any_dtype, tensor.shape) for end, tensor in stored.items()}


def item(tensor: StoredTensor, index: int) -> StoredTensor:
    """One of the equal parts along the first axis: an expert's."""
    nbytes = tensor.nbytes // tensor.shape[0]
    return replace(tensor, shape=tensor.shape[1:], offset=tensor.offset + index * nbytes, nbytes=nbytes)


def _extent(
    scheme: StoredScheme, shape: Shape, end: str, whole: tuple[int, ...], rows: range
) -> tuple[int, int, int | None]:
    """The axis of a part along which its outputs lie, and where `rows` begin and end on it."""
    kind = scheme.parts(shape)[end].shapes.index(whole)

    def of(outputs: int) -> tuple[int, ...]:
        return scheme.parts((outputs, shape[1]))[end].shapes[kind]

    few, twice = of(scheme.strip_rows), of(2 * scheme.strip_rows)
    axis = next((i for i, size in enumerate(few) if size != twice[i]), None)
    if axis is None:
        return 0, 0, None
    return axis, of(rows.start)[axis] if rows.start else 0, of(rows.stop)[axis]


def narrowed(tensor: StoredTensor, axis: int = 0, first: int = 0, last: int | None = None) -> Tensor:
    """A stored tensor from `first` to `last` along one axis; None: to its end. Raises as `strips`."""
    sizes = list(tensor.shape)
    inner = math.prod(sizes[axis + 1 :]) * tensor.any_dtype.itemsize
    stride = sizes[axis] * inner if sizes else inner
    if last is not None:
        sizes[axis] = last - first
    run = sizes[axis] * inner if sizes else inner
    data = bytearray(math.prod(sizes) * tensor.any_dtype.itemsize)
    view = memoryview(data)
    with open_file(tensor.path) as file:
        for i, at in enumerate(range(0, len(data), max(1, run))):
            offset = tensor.offset + i * stride + first * inner
            try:
                done = os.preadv(file.fileno(), [view[at : at + run]], offset)
            except OSError as error:
                raise unreadable(tensor.path, error) from None
            if done != run:
                raise WeightsError(f"{tensor.path.name} ends inside {shown(tensor.name)}", INCOMPLETE)
    return torch.frombuffer(data, dtype=tensor.any_dtype).view(sizes)
