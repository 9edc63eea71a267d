"""A step as bytes, for a worker in another process: JSON for the structure, float32 behind it for tensors.

    8 bytes: length of the JSON | JSON | tensor | tensor | ...

No pickle: bytes that come from elsewhere must not be able to run anything. What does not have the expected
form is a typed error. JSON keeps integers of 64 bits and, as Python writes it, the exact float64 (infinity
included).
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from minillm.config.sampling import SamplingFilters
from minillm.errors import WireError
from minillm.ops.sampling import SamplingBatch
from minillm.worker.step import (
    DecodeRow,
    DraftRows,
    Drawn,
    Draws,
    PrefillChunk,
    StepInput,
    StepOutput,
    VerifyResult,
)

_LENGTH = struct.Struct("<Q")
_TYPES = {
    cls.__name__: cls
    for cls in (
        DecodeRow,
        DraftRows,
        Drawn,
        Draws,
        PrefillChunk,
        SamplingBatch,
        StepInput,
        StepOutput,
        VerifyResult,
    )
}


def to_bytes(step: StepInput | StepOutput) -> bytes:
    """A step's input or output as bytes that `from_bytes` reads back."""
    tensors: list[Tensor] = []
    header = json.dumps(_plain(step, tensors)).encode()
    numbers = (array("f", t.detach().float().flatten().tolist()).tobytes() for t in tensors)
    return b"".join([_LENGTH.pack(len(header)), header, *numbers])


def from_bytes(data: bytes) -> StepInput | StepOutput:
    """What `to_bytes` was given.

    Raises:
        WireError: the bytes are cut short, or are something else.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        reader = _Reader(data, start)
        step = reader.read(json.loads(data[_LENGTH.size : start]))
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(
            f"not a step: {type(error).__name__}", "both sides must run the same minillm"
        ) from None
    if not isinstance(step, StepInput | StepOutput) or reader.at != len(data):
        raise WireError("not a step: it has another type or length", "both sides must run the same minillm")
    return step


def _plain(value: Any, tensors: list[Tensor]) -> Any:
    """`value` as JSON: a record is [name, field, ...], a mapping ["{}", [key, value], ...]."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor", *value.shape]
    if isinstance(value, SamplingFilters):
        return ["filters", *value]
    if isinstance(value, dict):
        return ["{}", *([key, _plain(item, tensors)] for key, item in value.items())]
    if isinstance(value, list | tuple):
        return ["[]", *(_plain(item, tensors) for item in value)]
    name = type(value).__name__
    if name not in _TYPES:
        raise TypeError(f"a step holds plain data, not {name}")
    return [name, *(_plain(getattr(value, f.name), tensors) for f in fields(value))]


class _Reader:
    """Turns the JSON back into records; `at` is where the next tensor begins."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self.at = data, start

    def read(self, plain: Any) -> Any:
        """One value and everything in it."""
        if not isinstance(plain, list):
            return plain
        name, *rest = plain
        if name == "[]":
            return [self.read(item) for item in rest]
        if name == "{}":
            return {key: self.read(item) for key, item in rest}
        if name == "tensor":
            return self._tensor(rest)
        if name == "filters":
            return SamplingFilters(*rest)
        return _TYPES[name](*(self.read(item) for item in rest))

    def _tensor(self, shape: list[int]) -> Tensor:
        count = math.prod(shape)
        if count < 0 or self.at + 4 * count > len(self._data):
            raise ValueError("a tensor is cut short")
        numbers = array("f", self._data[self.at : self.at + 4 * count])
        self.at += 4 * count
        return torch.tensor(numbers, dtype=torch.float32).view(shape)
