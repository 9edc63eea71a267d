"""The first difference of two answers: its place, and a small part of both answers around it.

[[7.5, 2.0], Words("1 pass")], ...      "step 2, row 1, column 3"
    a list of lists: steps              rows of (place, expected, actual): what the report shows as a table
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.lab import Words

# Students may sum in any order, so answers may differ by rounding.
_RTOL = {torch.bfloat16: 2e-2, torch.float16: 2e-3}
_CORNER = (3, 4)  # rows and columns shown of a tensor
_ITEMS = 6  # items shown of a list
_BEFORE = 2  # rows shown before the difference
_CHARS = 24  # characters shown of a text


@dataclass(frozen=True)
class Difference:
    """`where` says the place: "step 2, row 1, column 4"; it is empty for the whole answer.

    `rows`: (place, expected, actual) of the items around the difference, which has ">" before its place.
    """

    where: str
    expected: str
    actual: str
    rows: tuple[tuple[str, str, str], ...] = ()


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
    names = ["row", "column"][-len(index) :] if len(index) > 1 else ["element"]
    names = [f"dimension {i}" for i in range(len(index) - 2)] + names
    place = ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))
    rows = _tensor_rows(expected, actual, index)
    return Difference(_join(where, place), _corner(expected, index), _corner(actual, index), rows)


def _tensor_rows(expected: Tensor, actual: Tensor, index: list[int]) -> tuple[tuple[str, str, str], ...]:
    """The rows around the difference, a few columns of each; a vector's elements, one a row."""
    for i in index[:-2]:
        expected, actual = expected[i], actual[i]
    if not index:
        return (("> value", _number(expected.item()), _number(actual.item())),)
    at, column = (index[-2], index[-1]) if len(index) > 1 else (index[0], 0)
    name = (
        f"columns {column}-{min(column + _CORNER[1], expected.shape[-1]) - 1}, row" if len(index) > 1 else ""
    )
    columns = slice(column, column + _CORNER[1]) if len(index) > 1 else slice(None)
    rows = []
    for i in _near(at, expected.shape[0]):
        left, right = (_numbers(x[i][columns] if len(index) > 1 else x[i]) for x in (expected, actual))
        rows.append((f"{'>' if i == at else ' '} {name or 'element'} {i}", left, right))
    return tuple(rows)


def _numbers(values: Tensor) -> str:
    return " ".join(_number(value) for value in values.reshape(-1).tolist())


def _number(value: float) -> str:
    return f"{value:9.4g}" if isinstance(value, float) else f"{value:>6}"


def _near(at: int, size: int) -> range:
    """The indices of a few items around `at`."""
    start = max(0, at - _BEFORE)
    return range(start, min(size, start + _ITEMS))


def _join(where: str, place: str) -> str:
    return f"{where}, {place}" if where and place else where or place


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
    is_steps = all(isinstance(item, list | tuple | Tensor | Words) for item in expected)
    name = "step" if is_steps and not where else "part" if is_steps else "item"
    for i, (left, right) in enumerate(zip(expected, actual, strict=False)):
        found = difference(left, right, _join(where, f"{name} {i + 1}"))
        if found and _is_flat(expected) and _is_flat(actual):
            # One item of a list is not enough to find the mistake, so show several.
            shown = str(list(expected[i : i + _ITEMS])), str(list(actual[i : i + _ITEMS]))
            return Difference(found.where, *shown, _item_rows(expected, actual, i, name))
        if found:
            return found
    if len(expected) != len(actual):
        i = min(len(expected), len(actual))
        return Difference(
            _join(where, f"{name} {i + 1}"),
            f"{len(expected)} items: {describe(expected)}",
            f"{len(actual)} items: {describe(actual)}",
            _item_rows(expected, actual, i, name),
        )
    return None


def _is_flat(items: list[Any] | tuple[Any, ...]) -> bool:
    return not any(isinstance(item, list | tuple | Tensor) for item in items)


def _item_rows(
    expected: list[Any] | tuple[Any, ...], actual: list[Any] | tuple[Any, ...], at: int, name: str
) -> tuple[tuple[str, str, str], ...]:
    """The items around the difference; "-" where a list has ended."""

    def shown(items: list[Any] | tuple[Any, ...], i: int) -> str:
        return describe(items[i]) if i < len(items) else "-"

    near = _near(at, max(len(expected), len(actual)))
    return tuple(
        (f"{'>' if i == at else ' '} {name} {i + 1}", shown(expected, i), shown(actual, i)) for i in near
    )


def _text_difference(expected: str, actual: str, where: str) -> Difference | None:
    if expected == actual:
        return None
    pairs = zip(expected, actual, strict=False)
    shorter = min(len(expected), len(actual))
    at = next((i for i, (left, right) in enumerate(pairs) if left != right), shorter)
    return Difference(
        _join(where, f"character {at + 1}"), repr(expected[at : at + _CHARS]), repr(actual[at : at + _CHARS])
    )
