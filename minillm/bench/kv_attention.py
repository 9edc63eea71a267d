"""Decode attention over keys and values in 8 bits, in turns with a cache in the model's dtype.

    q [sequences, heads, dim]  -->  4,096 keys and values of each sequence  -->  one row of output a sequence

Decode reads each key and value once, for one row, so bytes decide. Caches are taken in turn from several
copies that together exceed the processor's caches, as those of a model's layers do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from minillm.bench.kernels import cold_copies
from minillm.bench.machine import measure_in_turns, summarise
from minillm.config import ModelConfig
from minillm.config.model import SCALE_BYTES
from minillm.ops.contract import AttentionMetadata, LayerCache, Ops
from minillm.ops.kv_codes import DTYPES, rows, write_rows

SEQUENCES, KEYS = 8, 4096
_BLOCK_SIZE = 16


def run_kv_attention(
    config: ModelConfig, ops: Ops, dtype: torch.dtype, kv_dtype: str, runs: int
) -> dict[str, Any]:
    """Seconds of one layer's attention with both caches, and their ratio, for `--json`."""
    keys, meta = KEYS, _meta(KEYS)
    q = torch.randn(SEQUENCES, config.num_attention_heads, config.head_dim).to(dtype)
    pair = plain_cache(config, dtype, keys), coded_cache(config, ops, kv_dtype, keys)
    seconds = measure_in_turns([_timer(ops, config, q, meta, cache) for cache in pair], runs)
    ratios = summarise([plain / coded for plain, coded in zip(*seconds, strict=True)])
    return {
        "kv_dtype": kv_dtype,
        "sequences": SEQUENCES,
        "keys": keys,
        "bytes": [sum(part.nbytes for part in cache) for cache in pair],
        "seconds": [asdict(summarise(each)) for each in seconds],
        "ratio": asdict(ratios),
    }


def _meta(keys: int) -> AttentionMetadata:
    """A step in which every sequence decodes the last of its tokens."""
    blocks = -(-keys // _BLOCK_SIZE)
    last = torch.full((SEQUENCES,), keys - 1)
    return AttentionMetadata(
        positions=last,
        slot_mapping=torch.arange(SEQUENCES) * blocks * _BLOCK_SIZE + last,
        block_table=torch.arange(SEQUENCES * blocks, dtype=torch.int32).view(SEQUENCES, blocks),
        query_start=torch.arange(SEQUENCES + 1, dtype=torch.int32),
        kv_len=torch.full((SEQUENCES,), keys, dtype=torch.int32),
    )


def plain_cache(config: ModelConfig, dtype: torch.dtype, keys: int) -> LayerCache:
    """One layer's cache of random numbers."""
    blocks = SEQUENCES * -(-keys // _BLOCK_SIZE)
    shape = blocks, _BLOCK_SIZE, config.num_key_value_heads, config.head_dim
    return LayerCache(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype))


def coded_cache(config: ModelConfig, ops: Ops, kv_dtype: str, keys: int) -> LayerCache:
    """The same in 8 bits, as the backend lays it out."""
    blocks, heads = SEQUENCES * -(-keys // _BLOCK_SIZE), config.num_key_value_heads
    shape = blocks, _BLOCK_SIZE, heads, config.head_dim + SCALE_BYTES
    cache = LayerCache(*(torch.zeros(shape, dtype=DTYPES[kv_dtype]) for _ in "kv"))
    slots = torch.arange(blocks * _BLOCK_SIZE)
    for view in (ops.view_keys(cache.k), rows(cache.v)):
        write_rows(view, slots, torch.randn(len(slots), heads, config.head_dim))
    return cache


def _timer(
    ops: Ops, config: ModelConfig, q: Tensor, meta: AttentionMetadata, cache: LayerCache
) -> Callable[[], float]:
    """A function that measures the seconds of one call, the mean over all copies of the cache."""
    copies = [cache]
    for _ in range(cold_copies(sum(part.nbytes for part in cache)) - 1):
        copies.append(LayerCache(cache.k.clone(), cache.v.clone()))
    following = cycle(copies)

    @torch.inference_mode()
    def once() -> float:
        start = time.perf_counter()
        for _ in copies:
            ops.paged_attention(q, *next(following), meta, config.head_dim**-0.5)
        return (time.perf_counter() - start) / len(copies)

    return once
