"""A step as bytes, for a worker in another process: JSON for the structure, then float32 data of the tensors.

    8 bytes: length of the JSON | JSON | tensor | tensor | ...

No pickle: bytes from another process must not be able to run code. Each value must have the declared type of
its field; anything else is a `WireError`. Reading never allocates more memory than the bytes hold. Values are
not checked: a wrong token id of the right type is accepted. JSON keeps 64-bit integers and, as Python writes
it, the exact float64 and infinity.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from minillm.config.sampling import SamplingFilters
from minillm.errors import WireError
from minillm.ops.sampling import Filters, SamplingBatch
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
    """Encode a step's input or output as bytes for `from_bytes`."""
    tensors: list[Tensor] = []
    header = json.dumps(_plain(step, tensors)).encode()
    numbers = (array("f", t.detach().float().flatten().tolist()).tobytes() for t in tensors)
    return b"".join([_LENGTH.pack(len(header)), header, *numbers])


def from_bytes(data: bytes) -> StepInput | StepOutput:
    """Decode the bytes of `to_bytes`.

    Raises:
        WireError: the bytes are incomplete or are not a step.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        reader = _Reader(data, start)
        step: StepInput | StepOutput = reader.step(json.loads(data[_LENGTH.size : start].decode()))
    except (struct.error, ValueError, LookupError, TypeError, OverflowError, RuntimeError) as error:
        raise WireError(
            f"not a step: {type(error).__name__}", "both sides must run the same minillm"
        ) from None
    if reader.at != len(data):
        raise WireError("not a step: the length is wrong", "both sides must run the same minillm")
    return step


def _plain(value: Any, tensors: list[Tensor]) -> Any:
    """Turn `value` into JSON data: a record becomes [name, field, ...], a dict ["{}", [key, value], ...]."""
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


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The declared type of each field of a record."""
    return get_type_hints(cls)


class _Reader:
    """Turns JSON data back into records. `at` is the offset of the next tensor in the bytes."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self.at = data, start

    def step(self, plain: Any) -> Any:
        """Read a whole step, input or output."""
        return self._record(plain, StepInput if plain[0] == StepInput.__name__ else StepOutput)

    def _read(self, plain: Any, kind: Any) -> Any:
        """Read one value of type `kind`, with everything in it."""
        if kind is int or kind is float:
            return _number(plain, kind)
        if isinstance(kind, type) and kind.__name__ in _TYPES:
            return self._record(plain, kind)
        if kind is SamplingFilters or kind is Filters:
            return _filters(plain)
        if kind is Tensor:
            return self._tensor(_items(plain, "tensor"))
        origin, inner = get_origin(kind), get_args(kind)
        if origin is UnionType:  # T | None
            return None if plain is None else self._read(plain, inner[0])
        if origin is dict:
            return {
                self._read(key, inner[0]): self._read(value, inner[1]) for key, value in _items(plain, "{}")
            }
        if origin is tuple:
            return tuple(self._read(x, each) for x, each in zip(_items(plain, "[]"), inner, strict=True))
        if origin is list or origin is Sequence:
            return [self._read(item, inner[0]) for item in _items(plain, "[]")]
        if type(plain) is not kind:
            raise TypeError(f"{plain!r} is not a {kind}")
        return plain

    def _record(self, plain: Any, cls: type) -> Any:
        values = zip(_items(plain, cls.__name__), _hints(cls).values(), strict=True)
        return cls(*(self._read(value, kind) for value, kind in values))

    def _tensor(self, shape: list[Any]) -> Tensor:
        if any(_number(size, int) < 0 for size in shape):
            raise ValueError("a tensor's shape has a negative size")
        count = math.prod(shape)
        if self.at + 4 * count > len(self._data):
            raise ValueError("a tensor is incomplete")
        numbers = array("f", self._data[self.at : self.at + 4 * count])
        self.at += 4 * count
        return torch.tensor(numbers, dtype=torch.float32).view(shape)


def _items(plain: Any, name: str) -> list[Any]:
    """Return the items after the first of a list; the first must be `name`."""
    if not isinstance(plain, list) or plain[:1] != [name]:
        raise TypeError(f"not a {name}")
    return plain[1:]


def _number(plain: Any, kind: type) -> Any:
    """Return a number that fits 64 bits. An int is accepted as a float."""
    if type(plain) is not kind and not (kind is float and type(plain) is int):
        raise TypeError(f"not a {kind.__name__}")
    if type(plain) is int and not -(1 << 63) <= plain < 1 << 64:
        raise ValueError("a number of more than 64 bits")
    return plain


def _filters(plain: Any) -> SamplingFilters:
    kinds = _hints(SamplingFilters).values()
    values = zip(_items(plain, "filters"), kinds, strict=True)
    return SamplingFilters(*(_number(value, kind) for value, kind in values))
