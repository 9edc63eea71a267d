"""Codes of 4 and 8 bits out of words, and the order of inputs out of their groups.

word of 32 bits   | 7 | 6 | 5 | 4 | 3 | 2 | 1 | 0 |      the first code has the lowest bits
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.config import shown
from minillm.errors import WeightsError


def num_words(codes: int, bits: int) -> int:
    """The words of 32 bits that hold so many codes."""
    return -(-codes * bits // 32)


def codes_of_words(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of each row: int32 [rows, words] -> uint8 [rows, count]."""
    rows, columns = words.shape
    # view(uint8) needs these strides; .contiguous() keeps others if a dimension is 1
    dense = words.clone(memory_format=torch.contiguous_format)
    data = dense.view(-1).view(torch.uint8).view(rows, 4 * columns)
    return codes_of_bytes(data, bits)[:, :count]


def codes_of_bytes(data: Tensor, bits: int) -> Tensor:
    """The codes in uint8 [rows, bytes], lower halves first where they have 4 bits."""
    return data if bits == 8 else torch.stack((data & 15, data >> 4), dim=-1).flatten(1)


def order_of(name: str, g_idx: Tensor, group: int) -> Tensor | None:
    """The order in which the inputs of each group lie side by side: int32 [in], or None: they do already.

    `g_idx` has the group of every input. A group of -1 for every input says that there is no order.

    Raises:
        WeightsError: the groups do not have `group` inputs each, but the last.
    """
    if bool((g_idx == -1).all()):
        return None
    regular = torch.arange(len(g_idx), dtype=g_idx.dtype) // group
    if torch.equal(g_idx, regular):
        return None
    order = torch.argsort(g_idx, stable=True)
    if not torch.equal(g_idx[order], regular):
        raise WeightsError(
            f"{shown(name)} does not divide {len(g_idx)} inputs into groups of {group}",
            "the file is damaged, or its config belongs to another model",
        )
    return order.to(torch.int32)
