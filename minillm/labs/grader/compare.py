"""The first difference of two answers: its index, and a small part of both answers from there on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Students may sum in any order, so answers may differ by rounding.
_RTOL = {torch.bfloat16: 2e-2, torch.float16: 2e-3}
_CORNER = (3, 4)  # rows and columns shown of a tensor
_ITEMS = 6  # items shown of a list
_CHARS = 24  # characters shown of a text


@dataclass(frozen=True)
class Difference:
    """`where` is an index such as "[1][0, 3]"; it is empty for the whole answer."""

    where: str
    expected: str
    actual: str


def difference(expected: Any, actual: Any, where: str = "") -> Difference | None:
    """The first place where `actual` differs from `expected`; None if they are equal.

    Answers are tensors, numbers, text, None, and lists or tuples of answers.
    """
    if isinstance(expected, Tensor):
        return _tensor_difference(expected, actual, where)
    if isinstance(expected, list | tuple):
        return _list_difference(expected, actual, where)
    if isinstance(expected, str) and isinstance(actual, str):
        return _text_difference(expected, actual, where)
    if isinstance(expected, float) and isinstance(actual, int | float):
        same = math.isclose(expected, actual, rel_tol=1e-4, abs_tol=1e-6)
    else:
        same = type(expected) is type(actual) and bool(expected == actual)
    return None if same else Difference(where, describe(expected), describe(actual))


def describe(value: Any) -> str:
    """`value` in a few words."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a {kind} tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _tensor_difference(expected: Tensor, actual: Any, where: str) -> Difference | None:
    alike = isinstance(actual, Tensor) and (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if not alike:
        return Difference(where, describe(expected), describe(actual))
    if expected.is_floating_point():
        rtol = _RTOL.get(expected.dtype, 1e-4)
        wrong = ~torch.isclose(actual, expected, rtol=rtol, atol=rtol / 10, equal_nan=True)
    else:
        wrong = actual != expected
    if not bool(wrong.any()):
        return None
    index = [int(i) for i in wrong.nonzero()[0]]
    return Difference(f"{where}{index}" if index else where, _corner(expected, index), _corner(actual, index))


def _corner(tensor: Tensor, index: list[int]) -> str:
    """A few numbers of `tensor` from `index` on, in its last two dimensions."""
    for i in index[:-2]:
        tensor = tensor[i]
    last = index[-2:]
    sizes = _CORNER[-len(last) :] if last else ()
    for dim, (start, size) in enumerate(zip(last, sizes, strict=True)):
        tensor = tensor.narrow(dim, start, min(size, tensor.shape[dim] - start))
    rows = tensor.tolist() if tensor.dim() == 2 else [tensor.reshape(-1).tolist()]
    return "\n".join(" ".join(f"{value:9.4g}" for value in row) for row in rows)


def _list_difference(expected: list[Any] | tuple[Any, ...], actual: Any, where: str) -> Difference | None:
    if not isinstance(actual, list | tuple):
        return Difference(where, describe(expected), describe(actual))
    for i, (left, right) in enumerate(zip(expected, actual, strict=False)):
        found = difference(left, right, f"{where}[{i}]")
        if found and all(isinstance(item, int) for item in (*expected, *actual)):
            # One id of a list is not enough to find the mistake, so show several.
            return Difference(found.where, str(expected[i : i + _ITEMS]), str(actual[i : i + _ITEMS]))
        if found:
            return found
    if len(expected) != len(actual):
        return Difference(
            f"{where}[{min(len(expected), len(actual))}]",
            f"{len(expected)} items: {describe(expected)}",
            f"{len(actual)} items: {describe(actual)}",
        )
    return None


def _text_difference(expected: str, actual: str, where: str) -> Difference | None:
    if expected == actual:
        return None
    pairs = zip(expected, actual, strict=False)
    shorter = min(len(expected), len(actual))
    at = next((i for i, (left, right) in enumerate(pairs) if left != right), shorter)
    return Difference(f"{where}[{at}]", repr(expected[at : at + _CHARS]), repr(actual[at : at + _CHARS]))
