"""A new safetensors file, written from front to back: first what will be in it, then the numbers.

    header(entries)     the length and the JSON that `checkpoint.py` reads
    append(out, tensor) the bytes of the next tensor, or of a piece of it

The header lists shapes and dtypes of all tensors, so these are known before the first number is written, and
no tensor waits in memory for the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import BufferedWriter
from typing import Any, NamedTuple

import torch

from minillm.model.checkpoint import num_bytes

SAFETENSORS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.int64: "I64",
}


class Entry(NamedTuple):
    """A tensor to be written; `dtype` as the format calls it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return num_bytes(self.dtype, self.shape)


def header(entries: Iterable[Entry]) -> bytes:
    """The first bytes of a file with these tensors in this order."""
    listed: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        listed[entry.name] = {
            "dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(listed).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text


def append(out: BufferedWriter, piece: torch.Tensor) -> int:
    """Write the numbers of a tensor; returns the number of bytes."""
    return out.write(piece.contiguous().flatten().view(torch.uint8).numpy().data)
