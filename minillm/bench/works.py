"""The work of each rung for a shape: what predict.py needs to estimate a time.

    work_of("v3", Attention(Shape(8192, 8192, 16, 16, 128, torch.bfloat16)))      a list of launches
    work_of("l5", Product(4096, 4096, 4096, torch.bfloat16))

Counts come from counts.py, bytes from traffic.py, trips of loops from the unrolling that the machine code
shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from minillm.bench import counts
from minillm.bench.chips import Chip
from minillm.bench.counts import SPLIT, TENSOR_KEYS, TENSOR_ROWS, Counts, Tiles, ceil_div, seen
from minillm.bench.predict import LINE, Estimate, Trips, Work, predict
from minillm.bench.sass import Code, code_of
from minillm.bench.traffic import Shape, Traffic, minimum, naive, one_by_one, tiled
from minillm.errors import UsageError


@dataclass(frozen=True)
class Attention:
    """`num_seqs` sequences of one shape."""

    shape: Shape
    num_seqs: int = 1


@dataclass(frozen=True)
class Product:
    """y [rows, out] = x [rows, size] W^T."""

    rows: int
    out: int
    size: int
    dtype: torch.dtype


Launch = tuple[Work, str]  # and the name of its machine code
CodeOf = Callable[[str], Code]


def _name(rung: str, shape: Shape) -> str:
    return f"{rung} {str(shape.dtype).removeprefix('torch.')} {shape.head_dim}"


def _sum(traffic: Traffic) -> int:
    return sum(read + written for read, written in traffic.values())


def _v1(a: Attention, code_at: CodeOf) -> list[Launch]:
    s, dtype = a.shape, str(a.shape.dtype).removeprefix("torch.")
    names = [f"v1 scores {dtype}", "v1 softmax", f"v1 output {dtype}"]
    traffic, rows = naive(s), a.num_seqs * s.q_len * s.num_heads
    pairs = a.num_seqs * s.num_heads * sum(s.visible)
    column, key = code_at(names[0]).loops["column"], code_at(names[2]).loops["key"]
    largest, weights = (code_at(names[1]).loops[loop] for loop in ("largest", "weights"))
    matrix = 4 * rows * s.kv_len
    busy = (
        sum(ceil_div(keys, 32) for keys in s.visible) / s.q_len / (4 * ceil_div(s.kv_len, 128))
    )  # of the warps
    chunks, columns = ceil_div(s.kv_len, 128), ceil_div(s.head_dim, 128)
    cached = sum(traffic["k_cache"]) * a.num_seqs
    least = minimum(s) * a.num_seqs // 2
    scores = Work(
        "v1 scores",
        [1] * (rows * chunks),
        4,
        (Trips("column", busy * s.head_dim / column.ffma),),
        lines=pairs * s.head_dim,
        requested=cached + matrix,
        unique=least + matrix,
        entry_waits=4,
    )
    softmax = Work(
        "v1 softmax",
        [1] * rows,
        1,
        (
            Trips("largest", s.kv_len / (32 * largest.loads)),
            Trips("weights", s.kv_len / (32 * weights.loads)),
        ),
        lines=3 * matrix // LINE,
        requested=3 * matrix,
        unique=3 * matrix,
        entry_waits=3,
    )
    output = Work(
        "v1 output",
        [1] * (rows * columns),
        min(4, ceil_div(s.head_dim, 32)),
        (Trips("key", sum(s.visible) / s.q_len / key.ffma),),
        lines=2 * pairs * ceil_div(s.head_dim, 32),
        requested=cached + 4 * pairs,
        unique=least + 4 * pairs,
        entry_waits=4,
    )
    return list(zip((scores, softmax, output), names, strict=True))


def _v2(a: Attention, code_at: CodeOf) -> list[Launch]:
    s, name = a.shape, _name("v2", a.shape)
    loops = code_at(name).loops
    blocks = [
        (first, rows, ceil_div(seen(s, first + rows - 1), 32)) for first, rows in counts.row_tiles(s, 32)
    ]
    total = sum((counts.v2_block(s, first, rows) for first, rows, _ in blocks), Counts()).times(s.num_heads)
    tiles = sum(n for _, _, n in blocks) / len(blocks)
    keys = sum(seen(s, first + rows - 1) for first, rows, _ in blocks) / len(blocks)
    trips = (
        Trips("tile", tiles),
        Trips("column", tiles * s.head_dim * 8 / loops["column"].ffma),
        Trips("key", keys * s.head_dim / 4 / loops["key"].ffma),
    )
    requested = _sum(tiled(s)) * a.num_seqs
    work = Work(
        "v2",
        [n for _, _, n in blocks] * s.num_heads * a.num_seqs,
        4,
        trips,
        wavefronts=total.wavefronts * a.num_seqs,
        lines=requested / LINE,
        requested=requested,
        unique=minimum(s) * a.num_seqs,
        dynamic_shared=_v2_dynamic(s),
    )
    return [(work, name)]


def _v2_dynamic(s: Shape) -> int:
    return 32 * (s.head_dim + 1) * 4 if s.head_dim > 128 else 0


def _v3(a: Attention, code_at: CodeOf) -> list[Launch]:
    s, group, rows = a.shape, a.shape.num_heads // a.shape.num_kv_heads, 16 * counts.V3_WARPS
    packed = s.q_len * group
    starts = [(first, min(rows, packed - first)) for first in range(0, packed, rows)][::-1]
    total = sum((counts.v3_block(s, *start) for start in starts), Counts()).times(s.num_kv_heads * a.num_seqs)
    tiles = [ceil_div(seen(s, (first + n - 1) // group), TENSOR_KEYS) for first, n in starts]
    keys = sum(min(s.kv_len, n * TENSOR_KEYS) for n in tiles)
    requested = a.num_seqs * (2 * keys * s.num_kv_heads + 2 * s.q_len * s.num_heads) * s.row
    blocks = tiles * s.num_kv_heads * a.num_seqs
    work = Work(
        "v3",
        blocks,
        counts.V3_WARPS,
        (Trips("tile", total.mma / s.head_dim / (len(blocks) * counts.V3_WARPS), ahead=1),),
        wavefronts=total.wavefronts,
        lines=requested / LINE,
        mma=total.mma,
        requested=requested,
        unique=minimum(s) * a.num_seqs,
        dynamic_shared=4 * TENSOR_KEYS * s.row + s.head_dim // 2 * 32 * counts.V3_WARPS * 4,
    )
    return [(work, _name("v3", s))]


def _d1(a: Attention, code_at: CodeOf) -> list[Launch]:
    s, name, blocks = a.shape, _name("d1", a.shape), a.num_seqs * a.shape.num_heads
    loops, chunks = code_at(name).loops, ceil_div(a.shape.kv_len, 128)
    trips: tuple[Trips, ...] = (Trips("chunk", chunks), Trips("tile", ceil_div(s.kv_len, 32)))
    if "column" in loops:  # else ptxas unrolled it
        trips += (Trips("column", chunks * s.head_dim / loops["column"].ffma),)
    work = Work(
        "d1",
        [1] * blocks,
        4,
        trips,
        wavefronts=counts.d1_block(s).wavefronts * blocks,
        lines=blocks * s.kv_len * (s.row / 16 + ceil_div(s.head_dim, 32)),  # each lane has a key of its own
        requested=_sum(one_by_one(s)) * a.num_seqs,
        unique=minimum(s) * a.num_seqs,
    )
    return [(work, name)]


def _tensor_decode(rung: str, a: Attention, code_at: CodeOf) -> list[Launch]:
    s, whole, copies = a.shape, rung == "d2", a.num_seqs * a.shape.num_kv_heads
    groups = ceil_div(s.num_heads // s.num_kv_heads, TENSOR_ROWS)
    parts = [s.kv_len] if whole else [min(SPLIT, s.kv_len - at) for at in range(0, s.kv_len, SPLIT)]
    tiles = [ceil_div(keys, TENSOR_KEYS) * groups for keys in parts for _ in range(copies)]
    total = sum((counts.decode_block(s, keys, whole) for keys in parts), Counts()).times(copies)
    cached = 2 * s.kv_len * s.row * copies * groups
    scratch = 0 if whole else (s.head_dim + 2) * 4 * s.num_heads * a.num_seqs * len(parts)
    main = Work(
        rung,
        tiles,
        1,
        (Trips("tile", sum(tiles) / len(tiles), ahead=1),),
        wavefronts=total.wavefronts,
        lines=cached / LINE,
        mma=total.mma,
        requested=cached + scratch,
        unique=minimum(s) * a.num_seqs + scratch,
        dynamic_shared=4 * TENSOR_KEYS * s.row,
        entry_waits=3,
    )
    if whole:
        return [(main, _name(rung, s))]
    rows = s.num_heads * a.num_seqs
    combine = Work(
        "d3 combine",
        [1] * ceil_div(rows, 4),
        min(4, rows),
        (Trips("splits", ceil_div(len(parts), 8)),),
        lines=scratch / LINE,
        requested=scratch,
        entry_waits=3,
    )
    return [(main, _name("d3", s)), (combine, _name("d3_combine", s))]


def _linear(rung: str, p: Product, code_at: CodeOf) -> list[Launch]:
    fixed = {"l1": counts.L1, "l2": counts.L2, "l3": counts.L3, "l4": counts.L4}
    tiles = fixed.get(rung) or counts.l5_tiles(p.rows, p.out)
    name = f"{rung} {str(p.dtype).removeprefix('torch.')}" + (f" {tiles.name}" if rung == "l5" else "")
    across, down = ceil_div(p.out, tiles.out), ceil_div(p.rows, tiles.tokens)
    total, itemsize = counts.linear_counts(rung, p.rows, p.out, p.size), p.dtype.itemsize
    written = p.rows * p.out * itemsize
    requested = (down * p.out + across * p.rows) * p.size * itemsize + written
    run = {"l1": 32, "l2": 32, "l3": 8}.get(rung, 64) * itemsize  # neighbouring bytes of a warp's load
    work = Work(
        rung,
        [1] * (across * down),
        tiles.warps,
        _linear_trips(rung, p, tiles, code_at(name)),
        wavefronts=total.wavefronts,
        lines=requested / min(run, LINE),
        mma=total.mma,
        requested=requested,
        unique=(p.out + p.rows) * p.size * itemsize + written,
        dynamic_shared=tiles.stages * (tiles.out + tiles.tokens) * tiles.depth * itemsize
        if rung == "l5"
        else 0,
    )
    return [(work, name)]


def _linear_trips(rung: str, p: Product, tiles: Tiles, code: Code) -> tuple[Trips, ...]:
    stages = ceil_div(p.size, tiles.depth)
    if rung in ("l4", "l5"):
        return (Trips("stage", stages, tiles.stages - 1),)
    if rung == "l3":  # the products are unrolled in the loop over stages
        return (Trips("stage", stages, 1),)
    share = min(1.0, ceil_div(p.rows, 2) / tiles.warps)  # a warp has two rows
    column = Trips("column", stages * tiles.depth / code.loops["column"].ffma, share=share)
    if rung == "l2":
        return Trips("stage", stages, 1), column
    # Its code has three loads of each tile, one after another, of which two run.
    return Trips("stage", stages * 2 / 3), column


ATTENTION: dict[str, Callable[[Attention, CodeOf], list[Launch]]] = {
    "v1": _v1,
    "v2": _v2,
    "v3": _v3,
    "d1": _d1,
    "d2": partial(_tensor_decode, "d2"),
    "d3": partial(_tensor_decode, "d3"),
}
LINEAR = ("l1", "l2", "l3", "l4", "l5")


def work_of(rung: str, job: Attention | Product, arch: str) -> list[Launch]:
    """The launches of a rung and the names of their machine code for sm_`arch`; none without work.

    Raises:
        UsageError: there is no such rung, or no machine code of it is on record.
    """
    code_at = partial(code_of, arch=arch)
    if isinstance(job, Product):
        if rung not in LINEAR:
            raise UsageError(f"there is no rung {rung!r} of linear", f"use {', '.join(LINEAR)}")
        return _linear(rung, job, code_at) if min(job.rows, job.out) > 0 else []
    if rung not in ATTENTION:
        raise UsageError(f"there is no rung {rung!r} of attention", f"use {', '.join(ATTENTION)}")
    return ATTENTION[rung](job, code_at) if min(job.num_seqs, job.shape.q_len, job.shape.kv_len) > 0 else []


def estimate(rung: str, job: Attention | Product, chip: Chip) -> Estimate:
    """The estimate for all launches of a rung, one after another; the longest one says what bounds it.

    Raises:
        UsageError: there is no such rung, its machine code is not on record, or the chip cannot run it.
    """
    found = [predict(work, code_of(name, chip.arch), chip) for work, name in work_of(rung, job, chip.arch)]
    if not found:
        return Estimate(0.0, "nothing to do")
    longest = max(found, key=lambda e: e.seconds)
    parts = {name: sum(e.parts.get(name, 0.0) for e in found) for e in found for name in e.parts}
    return Estimate(sum(e.seconds for e in found), longest.bound, parts, longest.resident, longest.busiest)
