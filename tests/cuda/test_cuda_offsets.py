# ruff: noqa: E501 - a mutant is a line of the table
"""Offsets beyond 2^31 numbers and grids beyond 65,535, in the simulator.

The tensors have 4 to 70 GB, of which a few pages are ever touched (far.py).

A kernel that indexes a cache, a weight, logits or scratch runs on the far end of each of them, and must give the bits
that it gives at the near end. Of large grids only the last blocks run. Each kernel is run beside mutants that keep an
offset in 32 bits: they read or write elsewhere. Others have too many blocks along y: a chip refuses such a launch.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import random
from far import FAR, Attention, InSplits, Naive, OnTensorCores, far_end, rows_beyond, same, untouched
from test_cuda_mutants import build
from torch import Tensor

from minillm.ops.simt import KernelLibrary, SimtError, schedule
from minillm.toolchain.sanitizer import sanitizing

if not sys.platform.startswith("linux") or sanitizing():
    pytest.skip("needs memory that is not there until it is touched", allow_module_level=True)

MOST_RESIDENT = 64 << 20  # bytes that a run may add to the process

# (kernel, what is kept in 32 bits, line or part of it, what stands there instead)
MUTANTS = [
    ("attention_v1", "rows of scores", "(static_cast<int64_t>(head) * p.sequences.num_tokens", "(head * p.sequences.num_tokens"),
    ("attention_v1", "rows of the cache", "int64_t slot = slot_of", "int slot = slot_of"),
    ("attention_v1", "rows of q", "token * p.q_stride", "static_cast<int>(token * p.q_stride)"),
    ("attention_v1", "rows of out", "(static_cast<int64_t>(token) * p.num_heads", "(token * p.num_heads"),
    ("attention_v2", "rows of the cache", "int64_t at = (slots[key]", "int at = (int)(slots[key]"),
    ("attention_v2", "rows of q", "static_cast<const T*>(p.q) + at * p.q_stride", "static_cast<const T*>(p.q) + (int)(at * p.q_stride)"),
    ("attention_v2", "rows of out", "int64_t token = row_start", "int token = row_start"),
    ("decode_d1", "rows of the cache", "(const void* cache, int64_t slot)", "(const void* cache, int slot)"),
    ("decode_d1", "rows of q", "token * p.q_stride + head", "(int)(token * p.q_stride) + head"),
    ("decode_d1", "rows of out", "(token * p.num_heads + head) * kDim + d]", "(int)((token * p.num_heads + head) * kDim) + d]"),
    ("decode_d1", "rows of the block table", "paging.h: static_cast<int64_t>(sequence) * s.max_blocks", "sequence * s.max_blocks"),
    ("attention_v3", "rows of the cache", "tensor_tile.h: static_cast<int64_t>(slot) * row_bytes_", "slot * row_bytes_"),
    ("attention_v3", "rows of q", "tensor_tile.h: (rows.token_start + row / rows.group) * p.q_stride", "(int)((rows.token_start + row / rows.group) * p.q_stride)"),
    ("attention_v3", "rows of out", "splits.h: rows.flat(row, p.num_heads) * kDim", "(int)(rows.flat(row, p.num_heads) * kDim)"),
    ("decode_d2", "rows of the cache", "tensor_tile.h: static_cast<int64_t>(slot) * row_bytes_", "slot * row_bytes_"),
    ("decode_d2", "rows of q", "tensor_tile.h: (rows.token_start + row / rows.group) * p.q_stride", "(int)((rows.token_start + row / rows.group) * p.q_stride)"),
    ("decode_d2", "rows of out", "splits.h: rows.flat(row, p.num_heads) * kDim", "(int)(rows.flat(row, p.num_heads) * kDim)"),
    ("decode_d3", "rows of the cache", "tensor_tile.h: static_cast<int64_t>(slot) * row_bytes_", "slot * row_bytes_"),
    ("decode_d3", "rows of parts, written", "store_wide(scratch.out + at * kDim", "store_wide(scratch.out + (int)(at * kDim)"),
    ("decode_d3", "rows of parts, read", "load_wide<Columns>(scratch.out + at * kDim", "load_wide<Columns>(scratch.out + (int)(at * kDim)"),
    ("decode_d3", "rows of out", "row * kDim + column, result", "(int)(row * kDim) + column, result"),
    ("rope_and_cache", "rows of k's cache", "(p.k_cache) + slot * kv_size", "(p.k_cache) + (int)(slot * kv_size)"),
    ("rope_and_cache", "rows of v's cache", "(p.v_cache) + slot * kv_size", "(p.v_cache) + (int)(slot * kv_size)"),
    ("rope_and_cache", "rows of q", "token * p.q_stride", "(int)(token * p.q_stride)"),
    ("rope_and_cache", "rows of q's result", "token * q_size", "(int)(token * q_size)"),
    ("rope_and_cache", "rows of k", "token * p.k_stride", "(int)(token * p.k_stride)"),
    ("rope_and_cache", "rows of v", "token * p.v_stride", "(int)(token * p.v_stride)"),
    ("rope_and_cache", "rows of cosines", "p.cos + p.positions[token] * half", "p.cos + (int)(p.positions[token] * half)"),
    ("rope_and_cache", "rows of sines", "p.sin + p.positions[token] * half", "p.sin + (int)(p.positions[token] * half)"),
    ("linear_l1", "rows of x and of the weight", "static_cast<int64_t>(first + row) * columns", "(first + row) * columns"),
    ("linear_l1", "rows of y", "static_cast<int64_t>(row) * p.out", "row * p.out"),
    ("linear_l3", "rows of x and of the weight", "static_cast<int64_t>(first + row) * columns", "(first + row) * columns"),
    ("linear_l3", "rows of y", "static_cast<int64_t>(row) * p.out", "row * p.out"),
    ("linear_l4", "rows of x and of the weight", "static_cast<int64_t>(first + row) * columns", "(first + row) * columns"),
    ("linear_l4", "rows of y", "static_cast<int64_t>(to) * p.out", "to * p.out"),
    ("linear_l2", "rows of x and of the weight", "static_cast<int64_t>(first + row) * columns", "(first + row) * columns"),
    ("linear_l2", "rows of y", "static_cast<int64_t>(row) * p.out", "row * p.out"),
    ("linear_l5", "rows of x and of the weight", "static_cast<int64_t>(first + row) * columns", "(first + row) * columns"),
    ("linear_l5", "rows of y", "static_cast<int64_t>(token) * p.out", "token * p.out"),
    ("norm", "rows", "static_cast<int64_t>(blockIdx.x / p.parts) * p.stride", "static_cast<int>(blockIdx.x / p.parts * p.stride)"),
    ("gather", "rows of the table", "p.ids[row] * p.size", "(int)(p.ids[row] * p.size)"),
    ("gather", "rows of positions", "p.position_ids[row] * p.size", "(int)(p.position_ids[row] * p.size)"),
    ("gather", "rows of the result", "(p.y) + row * p.size", "(p.y) + (int)(row * p.size)"),
    ("map", "numbers", "int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads", "int i = blockIdx.x * kThreads"),
    ("activation", "rows of a launch", "int64_t row = blockIdx.y", "int row = blockIdx.y"),
    ("activation", "rows before the second launch", "static_cast<int64_t>(first) * (kGated", "first * (kGated"),
    ("activation", "results before the second launch", "static_cast<int64_t>(first) * p.size", "first * p.size"),
    ("combine", "rows of the result", "int64_t token = blockIdx.x", "int token = blockIdx.x"),
    ("combine", "rows of the experts' outputs", "row * p.size", "(int)(row * p.size)"),
    ("route", "rows of logits", "p.logits) + token * p.num_experts", "p.logits) + (int)(token * p.num_experts)"),
    ("route", "rows of the chosen", "int64_t place = token * p.per_token", "int place = token * p.per_token"),
    ("verify", "rows of the draw", "int64_t request = blockIdx.x", "int request = blockIdx.x"),
    ("verify", "rows of the acceptance", "stands(const DraftArgs& p, int64_t request", "stands(const DraftArgs& p, int request"),
    ("copy_blocks", "source", "p.source[pair] * words", "(int)(p.source[pair] * p.block_bytes) / (int)sizeof(Word)"),
    ("copy_blocks", "destination", "p.destination[pair] * words", "(int)(p.destination[pair] * p.block_bytes) / (int)sizeof(Word)"),
]  # fmt: skip
# (kernel, what is too large, [(text, replacement)], what is noticed)
PLACE_IN_V1 = "int key = blockIdx.z * kThreads + threadIdx.x, token = blockIdx"
GRIDS = [
    ("copy_blocks", "pairs along y", [("dim3(p.count, per_pair)", "dim3(per_pair, p.count)")], "launch"),
    ("copy_blocks", "the first 65,535 pairs", [("dim3(p.count, per_pair)", "dim3(p.count < 65535 ? p.count : 65535, per_pair)")], "wrong numbers"),
    ("activation", "a row too many in a launch", [("kMostRows = 65535", "kMostRows = 65536")], "launch"),
    ("attention_v1", "tokens along y", [("dim3 pairs(tokens, p.num_heads,", "dim3 pairs(p.num_heads, tokens,"), (f"{PLACE_IN_V1}.x, head = blockIdx.y", f"{PLACE_IN_V1}.y, head = blockIdx.x")], "launch"),
]  # fmt: skip


# ---- the kernels: whether they do at the far end what they do at the near end ------------------------


def decode_d1(library: KernelLibrary) -> bool:
    """Also a block table with more than 2^31 entries."""
    attention, seqs = Attention(library), rows_beyond(256)
    table = untouched(seqs, 256, dtype=torch.int32)
    table[-1, : len(attention.blocks[0])] = attention.blocks[0]
    last = attention.run(blocks=table, seqs=seqs)[:, -1:]
    return attention.is_right() and same([attention.run()[:, -1:]], [last])


def rope_and_cache(library: KernelLibrary) -> bool:
    angle = random(1, 16, seed=3)
    given = random(1, 2, 32), random(1, 1, 32, seed=1), random(1, 1, 32, seed=2), angle.cos(), angle.sin()

    def run(rows: int) -> list[Tensor]:
        """The last token; its position and its slot are the last ones."""
        positions, slots = (untouched(rows, dtype=torch.int64) for _ in range(2))
        positions[-1] = slots[-1] = rows - 1
        found = untouched(rows, 2, 32), untouched(rows, 1, 32), untouched(rows, 1, 32)
        names = zip(("q", "k", "v", "cos", "sin"), (far_end(t, rows) for t in given), strict=True)
        library.run(
            "run", **dict(names), positions=positions, slots=slots, q_out=found[0], k_cache=found[1], v_cache=found[2],
            num_tokens=rows, num_heads=2, num_kv_heads=1, head_dim=32, rotary_dim=32,
        )  # fmt: skip
        return list(found)

    return same(run(1), run(rows_beyond(16)))


def matrix(run: Callable[..., Tensor], tile: int, size: int, dtype: torch.dtype) -> bool:
    """The last block of many rows of x and y, then of many rows of the weight, which has `tile` rows."""
    x, weight = random(tile, size, dtype=dtype), random(tile, size, dtype=dtype, seed=1)
    near, out = run(x, weight), rows_beyond(size)
    rows = 65535 * tile
    far_rows = run(far_end(x, rows), far_end(weight, -(-FAR // rows) // tile * tile + tile))
    far_out = run(x, far_end(weight, out // tile * tile + tile))
    assert rows * size > FAR, "the rows lie beyond 2^31"
    return same([near] * 2, [far_rows[:, -tile:], far_out[:, -tile:]])


def linear(tile: int, size: int, dtype: torch.dtype = torch.float32) -> Callable[[KernelLibrary], bool]:
    """With tiles of `tile` x `tile`."""

    def is_right(library: KernelLibrary) -> bool:
        def run(x: Tensor, weight: Tensor) -> Tensor:
            sizes = {"rows": len(x), "in": x.shape[1], "out": len(weight)}
            y, bias = (untouched(*shape, dtype=dtype) for shape in ((len(x), len(weight)), (len(weight),)))
            library.run("run", x=x, weight=weight, bias=bias, y=y, **sizes)
            return y

        return matrix(run, tile, size, dtype)

    return is_right


def linear_l5(library: KernelLibrary) -> bool:
    """Tiles of 64 x 64: the last one has the last rows and columns."""

    def run(x: Tensor, weight: Tensor) -> Tensor:
        y, sizes = untouched(len(x), len(weight)), {"rows": len(x), "in": x.shape[1], "out": len(weight)}
        bias = untouched(len(weight), dtype=torch.bfloat16)
        library.run("run", x=x, weight=weight, bias=bias, y=y, **sizes, shape=3)
        return y

    return matrix(run, 64, 520, torch.bfloat16)


def norm(library: KernelLibrary) -> bool:
    weight, bias = random(130, seed=2), random(130, seed=3)

    def run(rows: int) -> list[Tensor]:
        x, residual = far_end(random(1, 130), rows), far_end(random(1, 130, seed=1), rows)
        found = {name: untouched(rows, 130) for name in ("y", "moved", "layer", "sum")}
        found["heads"] = far_end(random(1, 260, seed=4), rows)
        sizes = {"rows": rows, "size": 130, "stride": 260}
        library.run("run", x=x, residual=residual, weight=weight, bias=bias, **found, **sizes)
        return list(found.values())

    return same(run(1), run(rows_beyond(130)))


def activation(library: KernelLibrary) -> bool:
    """Two launches, as grid.y ends at 65,535: the last numbers of the last row of each."""
    size, rows = 40_000, 65_536

    def run(rows: int, gated: int) -> Tensor:
        x = far_end(random(2, (1 + gated) * size)[-min(rows, 2) :], rows)
        y = untouched(rows, size)
        library.run("run", x=x, y=y, rows=rows, size=size, function=0, gated=gated)
        return y[..., -64:]

    for gated in (0, 1):
        far = run(rows, gated)
        if not same([run(1, gated)], [far]) or not far[-2].count_nonzero() or torch.equal(far[-2], far[-1]):
            return False
    return True


def combine(library: KernelLibrary) -> bool:
    def run(rows: int) -> list[Tensor]:
        place = far_end(torch.tensor([[rows, rows + 2, rows + 1]]), rows)
        outputs, weights = far_end(random(3, 130), rows + 3), far_end(random(1, 3, seed=1), rows)
        y = untouched(rows, 130)
        library.run(
            "run", outputs=outputs, weights=weights, place=place, y=y, rows=rows, size=130, per_token=3
        )
        return [y[:, 128:]]

    return same(run(1), run(rows_beyond(130)))


def route(library: KernelLibrary) -> bool:
    def run(rows: int) -> list[Tensor]:
        chosen, weights = untouched(rows, 140, dtype=torch.int64), untouched(rows, 140)
        sizes = {"rows": rows, "num_experts": 140, "per_token": 140, "renormalize": 0}
        library.run("run", logits=far_end(random(1, 140), rows), chosen=chosen, weights=weights, **sizes)
        return [chosen, weights]

    return same(run(1), run(rows_beyond(140)))


def gather(library: KernelLibrary) -> bool:
    """The last row of both tables, for the last row of the result."""

    def run(rows: int) -> list[Tensor]:
        table, positions = far_end(random(1, 130), rows), far_end(random(1, 130, seed=1), rows)
        ids, y = far_end(torch.tensor([rows - 1]), rows), untouched(rows, 130)
        sizes = {"rows": rows, "size": 130, "scale": 1.5, "is_learned": 1}
        library.run("run", table=table, ids=ids, positions=positions, position_ids=ids, y=y, **sizes)
        return [y]

    return same(run(1), run(rows_beyond(130)))


def maps(library: KernelLibrary) -> bool:
    def run(rows: int) -> list[Tensor]:
        x, other = far_end(random(1, 256), rows), far_end(random(1, 256, seed=1), rows)
        found = {name: untouched(rows, 256) for name in ("sum", "product", "quotient")}
        library.run("run", x=x, other=other, **found, rows=rows, size=256, number=3.0)
        return list(found.values())

    return same(run(1), run(rows_beyond(256)))


def verify(library: KernelLibrary) -> bool:
    """Two drafted tokens stand, the third is refused, and one is drawn in its place."""

    def run(requests: int) -> list[Tensor]:
        none = [torch.zeros(1, dtype=torch.int64) for _ in range(6)]
        names = zip(("sampled", "drafted", "parents", "node_start", "walked", "nodes"), none, strict=True)
        draft_probs, target = (random(1, n, 301, seed=n).softmax(-1) for n in (3, 4))
        draft_probs[0, [0, 1, 2], [5, 6, 7]] = torch.tensor([1e-6, 1e-6, 1.0])
        uniforms = far_end(torch.full((1, 4), 0.7, dtype=torch.float64), requests)
        tokens, accepted = untouched(requests, 4, dtype=torch.int64), untouched(requests, dtype=torch.int64)
        library.run(
            "run", **dict(names), trees=0, draft=far_end(torch.tensor([[5, 6, 7]]), requests),
            draft_probs=far_end(draft_probs, requests), target_probs=far_end(target, requests), uniforms=uniforms,
            tokens=tokens, accepted=accepted, requests=requests, k=3, vocab=301, certain=0,
        )  # fmt: skip
        return [tokens, accepted]

    return run(1)[1].item() == 2 and same(run(1), run(rows_beyond(3 * 301)))


def copy_blocks(library: KernelLibrary) -> bool:
    """To the far end, and back; then the last of more pairs than grid.y can count."""
    count, size, pairs = rows_beyond(128), 128, 65_540
    cache, small = untouched(count, size), random(size)
    cache[0] = small
    for source, destination in ((0, count - 1), (count - 1, 1)):
        numbers = torch.tensor([source]), torch.tensor([destination])
        library.run(
            "run", cache=cache, source=numbers[0], destination=numbers[1], block_bytes=4 * size, count=1
        )
    source, destination = torch.arange(pairs), torch.arange(pairs, 2 * pairs)
    cache[pairs - 1] = small
    library.run("run", cache=cache, source=source, destination=destination, block_bytes=4 * size, count=pairs)
    return all(torch.equal(cache[i], small) for i in (1, -1, 2 * pairs - 1))


RUNS: dict[str, Callable[[KernelLibrary], bool]] = {
    "attention_v1": lambda library: Naive(library).is_right(),
    "attention_v2": lambda library: Attention(library).is_right(),
    "attention_v3": lambda library: OnTensorCores(library).is_right(),
    "decode_d1": decode_d1,
    "decode_d2": lambda library: OnTensorCores(library).is_right(),
    "decode_d3": lambda library: InSplits(library).is_right(),
    "rope_and_cache": rope_and_cache,
    "linear_l1": linear(16, 2064),
    "linear_l2": linear(16, 2064),
    "linear_l3": linear(128, 264),
    "linear_l4": linear(64, 520, torch.bfloat16),
    "linear_l5": linear_l5,
    "norm": norm,
    "gather": gather,
    "map": maps,
    "activation": activation,
    "combine": combine,
    "route": route,
    "verify": verify,
    "copy_blocks": copy_blocks,
}
WITH_ALL_BLOCKS = (
    "attention_v1",
    "attention_v2",
    "attention_v3",
    "decode_d1",
    "decode_d2",
    "decode_d3",
)  # they choose themselves


def run(kernel: str, library: KernelLibrary) -> bool:
    if kernel in WITH_ALL_BLOCKS:
        return RUNS[kernel](library)
    with schedule(last_blocks=1):
        return RUNS[kernel](library)


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("kernel", RUNS)
def test_offsets_beyond_two_to_the_31(kernel, tmp_path):
    library = build(kernel, tmp_path)
    before = resident()
    assert run(kernel, library)
    assert resident() - before < MOST_RESIDENT


@pytest.mark.parametrize(
    ("kernel", "old", "new"), [pytest.param(k, o, n, id=f"{k}: {w}") for k, w, o, n in MUTANTS]
)
def test_an_offset_in_32_bits_is_noticed(kernel, old, new, tmp_path):
    assert seen(kernel, build(kernel, tmp_path, old, new)) in ("wrong numbers", "out of bounds")


@pytest.mark.parametrize(
    ("kernel", "edits", "caught_by"), [pytest.param(k, e, by, id=f"{k}: {w}") for k, w, e, by in GRIDS]
)
def test_a_grid_past_the_limit_is_noticed(kernel, edits, caught_by, tmp_path):
    assert seen(kernel, build(kernel, tmp_path, edits=edits)) == caught_by


def test_every_kernel_that_indexes_memory_is_here():
    from test_cuda_mutants import RUNS as all_kernels

    assert set(RUNS) == set(all_kernels) == {kernel for kernel, *_ in MUTANTS}


def seen(kernel: str, library: KernelLibrary) -> str:
    """What is noticed of a mutant."""
    try:
        return "nothing" if run(kernel, library) else "wrong numbers"
    except SimtError as error:
        return error.kind
