"""KV caches in 8 bits for the tests of kernels: attention cases over codes, and rows that are hard to code.

Slots that no sequence owns hold codes of -1 and the scale NaN: every byte of such a cache is 0xFF.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from cases import Case
from torch import Tensor

from minillm.ops import kv_codes
from minillm.ops.contract import AttentionMetadata, LayerCache

ROWS = {
    "zeros": [0.0, -0.0, 0.0, 0.0],
    "ties": [127.0, 0.5, 1.5, -2.5],
    "ties of fp8": [448.0, 17.0, 19.0, -0.0009765625],
    "minus zero": [1.0, -0.0, 0.0, -1.0],
    "tiny": [1e-44, -3e-45, 0.0, 1e-45],
    "small": [2e-38, -1e-38, 3e-39, 0.0],
    "a scale that rounds to one": [8.4e-43, -7e-43, 5e-43, 0.0],
    "huge": [3e38, -3e38, 1e38, 1.0],
    "one outlier": [1000.0, 0.1, -0.2, 4.0],
    "NaN": [1.0, math.nan, 2.0, 3.0],
    "infinity": [1.0, math.inf, 2.0, 3.0],
    "minus infinity": [1.0, 0.0, -math.inf, 3.0],
}


class Built(NamedTuple):
    q: Tensor
    cache: LayerCache  # in 8 bits
    numbers: LayerCache  # what it stands for
    meta: AttentionMetadata
    tables: list[list[int]]


def empty(shape: tuple[int, int, int, int], kind: str = "int8") -> LayerCache:
    """Caches for K and V of logical `shape` in which no slot is written."""
    whole = (*shape[:3], shape[3] + 4)
    dtype = kv_codes.DTYPES[kind]
    return LayerCache(*(torch.full(whole, -1, dtype=torch.int8).view(dtype) for _ in range(2)))


def views(ops: Any, cache: LayerCache) -> tuple[kv_codes.CodedRows, kv_codes.CodedRows]:
    """The codes and scales of K and of V."""
    return ops.view_keys(cache.k), kv_codes.rows(cache.v)


def raw(codes: Tensor) -> Tensor:
    """The bytes of codes: what torch.equal can compare."""
    return codes.contiguous().view(torch.uint8)


def build(ops: Any, case: Case, dtype: torch.dtype, kind: str = "int8") -> Built:
    """The case with codes of its keys and values."""
    q, k_cache, v_cache, meta, tables = case.build(dtype)
    cache = empty(tuple(k_cache.shape), kind)
    for view, plain in zip(views(ops, cache), (k_cache, v_cache), strict=True):
        codes, scales = kv_codes.quantize(plain, kv_codes.DTYPES[kind])
        view.codes.copy_(codes), view.scales.copy_(scales)
    numbers = LayerCache(*(view.dequantize() for view in views(ops, cache)))
    return Built(q, cache, numbers, meta, tables)
