# ruff: noqa: E501 - a mutant is a line of the table
"""attention_v4 with one wrong line each: each mutant is caught by the check that the table names.

A mutant runs in `fast`, which shows wrong numbers, deadlocks and misuse of a word, then in `check`. Copies that nobody
waits for are under way when the block ends: an error, before its numbers are looked at.
"""

from __future__ import annotations

from pathlib import Path

import oracle
import pytest
import torch
from cases import Case
from mutants import SURVIVED, WRONG, compile_here, copy_sources, drop_lines, make_edits, verdict
from torch import Tensor

from minillm.ops.simt import KernelLibrary
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

LEFT = "copy not waited for"
V4, TILE = "attention_v4.cu", "hopper_tile.h"
FREED_LATE = """    if (key_tile * kTileKeys <= group_last) add_hopper_tile(part, query, k, v, key_tile * kTileKeys, scale);
    __syncwarp();
    if (thread % 32 == 0) mbarrier_arrive(stages.empty[stage]);
"""
FREED_EARLY = "".join(FREED_LATE.splitlines(keepends=True)[i] for i in (1, 2, 0))
# What with_tensor_types chooses besides.
OTHERS = ("if (p.head_dim == 128)", "if (p.dtype == DType::f16)")

# (file, name of the mutant, text, replacement, what catches it)
MUTANTS = [
    (V4, "the tile not waited for", "mbarrier_wait(stages.full[stage], parity);", "", LEFT),
    (V4, "the other parity", "mbarrier_wait(stages.full[stage], parity);", "mbarrier_wait(stages.full[stage], parity ^ 1);", LEFT),
    (V4, "the stage not waited for", "mbarrier_wait(empty[stage], parity ^ 1);", "", "mbarrier"),
    (V4, "freed before it is multiplied", FREED_LATE, FREED_EARLY, WRONG),
    (TILE, "bytes of K alone", "kBytes = 2 * kTileSize", "kBytes = kTileSize", LEFT),
    (TILE, "too many bytes", "kBytes = 2 * kTileSize", "kBytes = 3 * kTileSize", "deadlock"),
    (TILE, "no fence after cp.async", "fence_proxy_async();  // wgmma sees", "// wgmma sees", "no proxy fence"),
    (TILE, "foreign keys of the last page", "(tile + 1) * kTileKeys <= rows_.kv_len", "tile * kTileKeys <= rows_.kv_len", WRONG),
    (TILE, "V as K lies", "wgmma<T, Major::mn>(to.out", "wgmma<T, Major::k>(to.out", WRONG),
    (TILE, "no fence before the scores", "wgmma_fence(scores);", "", "wgmma"),
]  # fmt: skip
SLOW = [
    (V4, "the stage's other parity", "mbarrier_wait(empty[stage], parity ^ 1);", "mbarrier_wait(empty[stage], parity);", "deadlock"),
    (V4, "half of the arrivals", "kConsumers / 32);", "kConsumers / 64);", "deadlock"),
    (V4, "no fence after init", "fence_mbarrier_init();", "", "no proxy fence"),
    (V4, "no barrier after init", "__syncthreads();", "", "race"),
    (TILE, "a key past the end", "key < rows_.kv_len", "key <= rows_.kv_len", WRONG),
    (TILE, "cp.async not waited for", "wait_copies<0>();", "", WRONG),
    (TILE, "no swizzle", "(chunk % 8 ^ row % 8)", "(chunk % 8)", WRONG),
    (TILE, "the scores not waited for", "wgmma_wait<0>(scores);", "", "wgmma"),
    (TILE, "boxes a slot further", "rows_.kv_head, slot}", "rows_.kv_head, slot + 1}", "out of bounds"),
]  # fmt: skip

# Whole tiles by boxes, more of them than stages; a last tile by cp.async; two blocks of rows.
CASE = Case([(70, 330), (3, 64)], heads=2, kv_heads=1, dim=64)


def build(folder: Path, *edits: tuple[str, str, str]) -> KernelLibrary:
    """The kernel for heads of 64 in bfloat16."""
    copy_sources(folder, (V4, TILE, "query_tiles.h", "paging.h", "tensor_tile.h", "splits.h"))
    make_edits(folder, edits)
    drop_lines(folder / "tensor_tile.h", OTHERS)
    return compile_here(folder, "hopper_attention.cu", [])


def attention(library: KernelLibrary) -> tuple[Tensor, Tensor]:
    q, k_cache, v_cache, meta, tables = CASE.build(torch.bfloat16)
    out = torch.full(q.shape, torch.nan, dtype=q.dtype)
    library.run(
        "run", q=q, k_cache=k_cache, v_cache=v_cache, out=out, block_table=meta.block_table,
        query_start=meta.query_start, kv_len=meta.kv_len, num_seqs=2, max_blocks=meta.block_table.shape[1],
        num_tokens=len(q), q_stride=q.stride(0), block_size=CASE.block_size,
    )  # fmt: skip
    lens = [n for n, _ in CASE.seqs], [n for _, n in CASE.seqs]
    return out, oracle.paged_attention(q, k_cache, v_cache, tables, *lens, 0.2, None)


def is_right(out: Tensor, exact: Tensor) -> bool:
    return oracle.error(out, exact) < 6e-3


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return build(tmp_path_factory.mktemp("right"))


def test_control_the_kernel_itself_survives(right):
    assert verdict(attention, right, right, is_right) == SURVIVED


@pytest.mark.parametrize(
    ("file", "old", "new", "caught"),
    [
        *(pytest.param(f, o, n, c, id=name) for f, name, o, n, c in MUTANTS),
        *(pytest.param(f, o, n, c, id=name, marks=pytest.mark.slow) for f, name, o, n, c in SLOW),
    ],
)
def test_each_mutant_is_caught(file, old, new, caught, right, tmp_path):
    assert verdict(attention, build(tmp_path, (file, old, new)), right, is_right) == caught
