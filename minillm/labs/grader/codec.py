"""Answers as JSON: they travel from the student's process to the grader's, and only plain values arrive.

    3, 0.5, True, "text", None     themselves
    lists and tuples               a list
    bytes, Words, Cost             {"bytes": base64}, {"words": text}, {"cost": text}
    Counted                        {"counted": [text, count]}
    Raised                         {"raised": [kind, message, ...]}
    a tensor                       {"tensor": [dtype, shape, base64]}
    anything else                  {"other": its type}: equal to nothing

An object of the student's file is never trusted: a subclass is copied to its plain type by that type's own
methods, so its `__eq__`, `__iter__` or `__torch_function__` are not called. Left out: pickle, which runs
code.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.lab import Cost, Counted, Words

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8)
    + (torch.int8, torch.int16, torch.int32, torch.int64)
}
_MAX_DEPTH = 32


@dataclass(frozen=True)
class Raised:
    """An answer that is an exception. The same type is the same answer; a diagnosis also needs the `place`.

    `place`: where the engine or the simulator raised it; "" if the file itself did.
    """

    kind: str
    message: str
    is_typed: bool
    place: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and other.kind == self.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    def __repr__(self) -> str:
        return f"raises {self.kind}"


@dataclass(frozen=True, eq=False)
class Foreign:
    """An answer that is not a plain value; it equals nothing."""

    text: str

    def __repr__(self) -> str:
        return self.text


def encode(value: Any, depth: int = 0) -> Any:
    """`value` as what JSON can hold."""
    kind = type(value)  # not isinstance: an object may lie about its __class__
    if value is None or kind is bool:
        return value
    for plain, copy in _PLAIN.items():
        if issubclass(kind, plain):
            return copy(value)
    if issubclass(kind, list | tuple) and depth < _MAX_DEPTH:
        copied = (list if issubclass(kind, list) else tuple).__getitem__(value, slice(None))
        return [encode(item, depth + 1) for item in copied]
    return _encode_object(value, kind)


def decode(message: Any) -> Any:
    """The value that was encoded.

    Raises:
        ValueError: the message is not one of `encode`.
    """
    if message is None or isinstance(message, bool | int | float | str):
        return message
    if isinstance(message, list):
        return [decode(item) for item in message]
    if not isinstance(message, dict) or len(message) != 1:
        raise ValueError("not an answer")
    ((kind, content),) = message.items()
    try:
        return _DECODERS[kind](content)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError("not an answer") from error


def _encode_object(value: Any, kind: type) -> Any:
    if kind is Words:
        return {"words": encode(value.text)}
    if kind is Cost:
        return {"cost": encode(value.text)}
    if kind is Counted:
        return {"counted": [encode(value.text), encode(value.count)]}
    if kind is Raised:
        return {"raised": [encode(x) for x in (value.kind, value.message, value.is_typed, value.place)]}
    if issubclass(kind, Tensor):
        try:
            return {"tensor": _encode_tensor(value)}
        except (RuntimeError, TypeError, KeyError, NotImplementedError):
            return {"other": "a tensor without plain numbers"}
    name = type.__getattribute__(kind, "__name__")
    return {"other": f"an object of type {encode(name)}"}


def _encode_tensor(value: Tensor) -> list[Any]:
    with torch._C.DisableTorchFunctionSubclass():
        plain = Tensor.as_subclass(value, Tensor).detach().cpu().resolve_conj().resolve_neg().contiguous()
        name = str(plain.dtype).removeprefix("torch.")
        data = bytearray(plain.numel() * _DTYPES[name].itemsize)
        if data:
            torch.frombuffer(data, dtype=plain.dtype).copy_(plain.reshape(-1))
    return [name, list(plain.shape), base64.b64encode(data).decode()]


def _decode_tensor(content: Any) -> Tensor:
    name, shape, text = content
    dtype, data = _DTYPES[name], bytearray(base64.b64decode(text, validate=True))
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("not a shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("the bytes do not fill the shape")
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


def _decode_raised(content: Any) -> Raised:
    kind, message, is_typed, place = content
    return Raised(_text(kind), _text(message), is_typed is True, _text(place))


def _decode_counted(text: Any, count: Any) -> Counted:
    return Counted(_text(text), _text(count))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


# Methods of the plain type itself return an object of exactly this type.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: lambda value: int.__add__(value, 0),
    float: lambda value: float.__add__(value, 0.0),
    str: lambda value: str.__getitem__(value, slice(None)),
    bytes: lambda value: {"bytes": base64.b64encode(bytes.__getitem__(value, slice(None))).decode()},
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda content: base64.b64decode(content, validate=True),
    "words": lambda content: Words(_text(content)),
    "cost": lambda content: Cost(_text(content)),
    "counted": lambda content: _decode_counted(*content),
    "raised": _decode_raised,
    "tensor": _decode_tensor,
    "other": lambda content: Foreign(_text(content)),
}
