"""The cases of lab 7: each section of the kernel, the whole kernel, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.bench.traffic import Shape, tiled
from minillm.labs.grader.cuda_cost import barriers, bytes_moved, sectors_read, wavefronts, within
from minillm.labs.grader.cuda_kernels import Kernels
from minillm.labs.grader.cuda_lab import Section
from minillm.labs.grader.lab import Case, Side, Words

SOURCE = Path(__file__).with_name("lab7.cu")
TILE = DIM = 32
WARPS = 4  # of a block
# A warp-wide access without bank conflicts is one wavefront. Per tile: 32 accesses of a warp write it; the
# score of a key reads q and the key, the column of a value reads the weight and the value: 2 x 32 x 8 reads a
# thread.
WRITE, READ = TILE, 2 * TILE * 8 * WARPS


def random(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that are the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def section(number: str, name: str) -> Section:
    """The section of task `number`, the body of function `name`."""
    return Section(str(SOURCE), name, task=number)


def case(name: str, run: Callable[..., Any], *arguments: Any, side: Side = "answer") -> Case:
    """A case that calls `run` with these arguments."""
    return Case(name, partial(run, *arguments), side)


# ---- 7.1 ---------------------------------------------------------------------------------------------------


def load(firsts: list[int], n: int, behind: int, kernels: Kernels) -> list[Any]:
    """The tile after it was loaded at each of `firsts`, and whether every byte was fetched once.

    `behind`: rows that lie in memory behind the matrix; they hold 99.
    """
    matrix, tile = random(n + behind, DIM), torch.full((TILE, DIM), torch.nan)
    matrix[n:] = 99
    first = torch.tensor(firsts, dtype=torch.int32)
    arguments: dict[str, Any] = {"from": matrix, "to": tile, "first": first, "loads": len(firsts), "n": n}
    kernels.run("run_load", **arguments)
    counted, rows = kernels.counted, sum(min(TILE, max(0, n - at)) for at in firsts)
    # Reading `first` is a sector a warp.
    fetched = counted.global_read_sectors - WARPS * len(firsts)
    return [
        tile,
        within("sectors fetched", fetched, rows * DIM * 4 // 32, 1.0),
        *bytes_moved(counted, {"from": rows * DIM * 4}),
        barriers(counted, len(firsts)),
    ]


LOADS = (
    case("a full tile", load, [0], 64, 0),
    case("a tile that is partly past the end", load, [32], 40, 0),
    case("a matrix of 20 rows, other data behind it", load, [0], 20, 50),
    case("a tile in part past the end, other data behind it", load, [32], 40, 50),
    case("a partial tile after a full one", load, [0, 32], 40, 0, side="aliasing"),
    case("the same tile again", load, [7, 7], 39, 0, side="aliasing"),
)


def more_loads(random: Random) -> Iterator[Case]:
    """Tiles anywhere in a matrix of any length."""
    for _ in range(2):
        n = random.randint(1, 90)
        yield case(f"tiles of a matrix of {n} rows", load, [random.randrange(n), random.randrange(n)], n, 40)


# ---- 7.2 ---------------------------------------------------------------------------------------------------


def scores(first_row: int, first_key: int, scale: float, seed: int, kernels: Kernels) -> list[Any]:
    """The 32 x 32 scores of one tile, and the reads of shared memory."""
    q, k, found = random(TILE, DIM, seed=seed), random(TILE, DIM, seed=seed + 1), torch.zeros(TILE, TILE)
    kernels.run("run_scores", q=q, k=k, to=found, first_row=first_row, first_key=first_key, scale=scale)
    return [found, wavefronts(kernels.counted, 2 * WRITE + READ), barriers(kernels.counted, 1)]


SCORES = (
    case("the diagonal tile", scores, 32, 32, 0.25, 0),
    case("a tile without hidden keys", scores, 64, 32, 0.25, 0),
    case("rows between two tiles of keys, another scale", scores, 40, 32, 2.0, 3),
)


def more_scores(random: Random) -> Iterator[Case]:
    """Rows and keys at any distance."""
    for _ in range(2):
        row, key, seed = random.randint(0, 90), random.randint(0, 90), random.randrange(10**6)
        yield case(f"rows from {row}, keys from {key}", scores, row, key, 0.5, seed)


# ---- 7.3 ---------------------------------------------------------------------------------------------------


def softmax(shifts: list[float], seed: int, kernels: Kernels) -> list[Any]:
    """Weights and state over tiles whose scores are shifted; the last tile is masked as on the diagonal."""
    tiles = len(shifts)
    given = random(tiles, TILE, TILE, seed=seed) + torch.tensor(shifts)[:, None, None]
    given[-1][torch.ones(TILE, TILE).triu(1).bool()] = -torch.inf
    weights, state = torch.zeros(tiles, TILE, TILE), torch.zeros(tiles, 4 * TILE, 3)
    kernels.run("run_softmax", given=given, weights=weights, state=state, tiles=tiles)
    needed = 4 * WARPS * tiles
    return [
        weights,
        state,
        within("shuffles of a warp", kernels.counted.warp_operations, needed, 2.0),
        barriers(kernels.counted, 0),
    ]


SOFTMAX = (
    case("one tile", softmax, [0.0], 2),
    case("three tiles, the largest score in the second", softmax, [0.0, 6.0, -3.0], 2),
    case("scores that exp cannot hold", softmax, [200.0, 300.0], 4),
    case("scores that fall", softmax, [0.0, -5.0, -200.0], 5, side="aliasing"),
)


def more_softmax(random: Random) -> Iterator[Case]:
    """Tiles with any shifts."""
    for _ in range(2):
        shifts = [float(random.randint(-20, 20)) for _ in range(random.randint(1, 4))]
        yield case(f"tiles shifted by {shifts}", softmax, shifts, random.randrange(10**6))


# ---- 7.4 ---------------------------------------------------------------------------------------------------


def values(factor: float, seed: int, kernels: Kernels) -> list[Any]:
    """The output after one tile, and the reads of shared memory."""
    out = random(TILE, DIM, seed=seed)
    weights, rows = random(TILE, TILE, seed=seed + 1), random(TILE, DIM, seed=seed + 2)
    kernels.run("run_values", given=weights, values=rows, out=out, factor=factor)
    return [out, wavefronts(kernels.counted, 2 * WRITE + READ), barriers(kernels.counted, 1)]


VALUES = (
    case("factor 1", values, 1.0, 3),
    case("factor 1/8", values, 0.125, 3),
    case("factor 0, the first tile", values, 0.0, 9),
)


def more_values(random: Random) -> Iterator[Case]:
    """Any factor."""
    for _ in range(2):
        factor = random.random()
        yield case(f"factor {factor:.3f}", values, factor, random.randrange(10**6))


# ---- 7.5, 7.7 ----------------------------------------------------------------------------------------------


def attention(heads: int, n: int, seed: int, kernels: Kernels, is_checked: bool = True) -> list[Any]:
    """The whole kernel: its output, and whether the inputs are as before."""
    q, k, v = (random(heads, n, DIM, seed=seed + i) for i in range(3))
    before, out = [x.clone() for x in (q, k, v)], torch.full((heads, n, DIM), torch.nan)
    kernels.run("run_attention", is_checked, q=q, k=k, v=v, out=out, heads=heads, n=n, scale=DIM**-0.5)
    kept = all(torch.equal(old, new) for old, new in zip(before, (q, k, v), strict=True))
    return [out, Words("q, k, v as before" if kept else "q, k or v was changed")]


def unchecked(n: int, kernels: Kernels) -> list[Any]:
    """The whole kernel without checks: tells a missing barrier from data that were never loaded."""
    return attention(1, n, 6, kernels, is_checked=False)


def cost(heads: int, n: int, kernels: Kernels) -> list[Words]:
    """What the whole kernel moves, and how often it waits.

    A block of rows i sees i + 1 tiles of keys. q and out are moved once, K and V once for each tile.
    """
    attention(heads, n, 6, kernels)
    counted, blocks = kernels.counted, -(-n // TILE)
    tiles = heads * blocks * (blocks + 1) // 2
    expected = tiled(Shape(n, n, num_heads=heads, num_kv_heads=heads, head_dim=DIM))
    names = {"q": "q", "k": "k_cache", "v": "v_cache", "out": "out"}
    # Per tile K, V and the weights are written and two matrices are multiplied; q is written once per block.
    shared = tiles * (3 * WRITE + 2 * READ) + heads * blocks * WRITE
    return [
        *bytes_moved(counted, {name: sum(expected[theirs]) for name, theirs in names.items()}),
        sectors_read(counted, 1.25),
        wavefronts(counted, shared),
        barriers(counted, 4 * tiles, 1.5),
    ]


WHOLE = (
    case("one tile", attention, 1, 32, 6),
    case("less than a tile", attention, 2, 5, 7),
    case("three tiles, the last in part", attention, 1, 70, 8),
    case("40 rows, without looking for races", unchecked, 40),
    case("what 40 rows cost", cost, 1, 40, side="cost"),
    case("two heads, one row more than a tile", attention, 2, 33, 9, side="aliasing"),
)


def more_whole(random: Random) -> Iterable[Case]:
    """Any number of rows."""
    heads, n = random.randint(1, 2), random.randint(1, 64)
    return [case(f"{heads} heads, {n} rows", attention, heads, n, random.randrange(10**6))]


# ---- 7.6 ---------------------------------------------------------------------------------------------------


def layout(kernels: Kernels) -> list[Any]:
    """A tile written and read back, and the wavefronts of an access of a row and of a column."""
    rows, columns = torch.zeros(TILE, DIM), torch.zeros(TILE, DIM)
    kernels.run("run_layout", rows=rows, columns=columns)
    by_rows, by_columns = (kernels.counted[f"check_{name}"].shared_wavefronts for name in ("rows", "columns"))
    writing = by_rows // 2  # check_rows writes as check_columns does, and reads back in the same pattern
    return [
        rows,
        columns,
        within("wavefronts of 64 accesses to a row", by_rows, 2 * TILE),
        within("wavefronts of 128 reads of eight rows of a column", by_columns - writing, 4 * DIM),
    ]


def more_layout(_: Random) -> Iterable[Case]:
    """The one case covers every row and column."""
    return LAYOUT


LAYOUT = (case("every number has its own word, and no access waits", layout, side="cost"),)
