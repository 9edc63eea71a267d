"""Attention that reads values in place has the bits of attention over packed tiles, on every instruction set.

Which of the two runs depends on head_dim and on the number of rows; whether a task has one head of a
sequence or all of them, on the batch and on the number of threads. No bit may show it (contract C2).
"""

from __future__ import annotations

import pytest
import torch
from native import DTYPES, REFERENCE, Case, check, make_meta, random, threads
from oracle import paged_attention
from torch import Tensor
from torch.nn.functional import pad

from minillm.config import LayerSpec
from minillm.ops.contract import AttentionMetadata, LayerCache
from minillm.ops.cpu import CpuOps

IN_PLACE = [32, 64, 96, 128]  # dims that are read in place
SPEC = LayerSpec(70, 0.3, softcap=1.5, sinks=True)
# Decode, verification and a prompt; one register tile of rows, several, and one that is not full.
MIXED = [(1, 200), (4, 70), (1, 64), (70, 140), (2, 129), (0, 9), (1, 1)]
# Shapes of heads: groups of 1, 3, 4 and 8; a block that no tile is made of.
SHAPES = [(2, 2, 16), (9, 3, 16), (4, 1, 5), (8, 1, 32)]


def attend(ops: CpuOps, q: Tensor, cache: LayerCache, meta: AttentionMetadata) -> Tensor:
    sinks = random(q.shape[1], dtype=q.dtype, seed=5)
    return ops.variant_attention(q, cache, meta, SPEC, sinks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", IN_PLACE)
def test_in_place_is_exact(native_ops: CpuOps, dim: int, dtype: torch.dtype) -> None:
    for heads, kv_heads, block_size in SHAPES:
        case = Case(MIXED, heads, kv_heads, dim, block_size)
        q, k, v, meta, tables = case.build(dtype)
        found = native_ops.paged_attention(q, k, v, meta, dim**-0.5)
        lens = [n for n, _ in MIXED], [n for _, n in MIXED]
        exact = paged_attention(q, k, v, tables, *lens, dim**-0.5, None)
        check(found, REFERENCE.paged_attention(q, k, v, meta, dim**-0.5), exact, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", IN_PLACE)
def test_in_place_has_the_bits_of_packed_tiles(native_ops: CpuOps, dim: int, dtype: torch.dtype) -> None:
    """With eight zeros behind each head the dim is no multiple of 32, so tiles are packed: same sums."""
    for heads, kv_heads, block_size in SHAPES:
        q, k, v, meta, _ = Case(MIXED, heads, kv_heads, dim, block_size).build(dtype)
        in_place = attend(native_ops, q, LayerCache(k, v), meta)
        packed = attend(native_ops, pad(q, (0, 8)), LayerCache(pad(k, (0, 8)), pad(v, (0, 8))), meta)
        assert torch.equal(packed[..., :dim], in_place)
        assert not torch.equal(packed[..., :dim].roll(1, -1), in_place), "control: dims out of order"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [24, *IN_PLACE])
def test_a_row_has_the_same_bits_in_any_task(native_ops: CpuOps, dim: int, dtype: torch.dtype) -> None:
    """All heads in one task (one thread), one head a task (two threads, one sequence), a row of a prompt."""
    case = Case([(140, 140)] * 4, heads=6, kv_heads=2, dim=dim)
    q, k, v, _, tables = case.build(dtype)
    cache = LayerCache(k, v)
    prompts = attend(native_ops, q, cache, make_meta(tables, [140] * 4, [140] * 4, 16))
    for position in (0, 1, 63, 64, 69, 70, 139):
        rows = [140 * i + position for i in range(4)]
        step = make_meta(tables, [1] * 4, [position + 1] * 4, 16)
        for count in (1, 2):
            with threads(count):
                assert torch.equal(attend(native_ops, q[rows], cache, step), prompts[rows])
        with threads(2):
            alone = make_meta(tables[:1], [1], [position + 1], 16)
            assert torch.equal(attend(native_ops, q[rows[:1]], cache, alone), prompts[rows[:1]])
        other = attend(native_ops, q[rows].roll(1, 1), cache, step)
        assert not torch.equal(other, prompts[rows]), "control: another head's rows"
