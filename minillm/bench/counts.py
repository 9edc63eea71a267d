"""Wavefronts of shared memory and mma of each rung, by exact formulas, tile by tile.

A simulator counts them too, but not for 8192 tokens: an mma takes it a millisecond. So small shapes are
counted, and the formulas are held equal to the counters (tests/cuda/test_predict_counts.py). A tile's cost
does not depend on where the tile lies, so what is right for three odd shapes is right for large ones.

    wavefronts   the 32 banks of shared memory deliver a word each; words of one bank come one after another
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from minillm.bench.traffic import Shape

WARP = 32
TILE = 32  # rows and keys of a tile of v2, keys of a tile of d1
TENSOR_KEYS, TENSOR_ROWS, SPLIT = 64, 16, 512  # csrc/cuda/attention/tensor_tile.h, splits.h
V3_WARPS = 8


def ceil_div(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


def seen(shape: Shape, row: int) -> int:
    """The number of keys that a row sees: shape.visible[row], without the list."""
    return shape.kv_len - shape.q_len + row + 1


def in_banks(words: Iterable[int]) -> int:
    """Wavefronts of a warp that reads or writes these words: the most different ones in a bank."""
    return max(Counter(word % 32 for word in set(words)).values())


@dataclass(frozen=True)
class Counts:
    """Of a launch, or of a part of one."""

    wavefronts: int = 0
    mma: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.wavefronts + other.wavefronts, self.mma + other.mma)

    def times(self, n: int) -> Counts:
        return Counts(self.wavefronts * n, self.mma * n)


def row_tiles(shape: Shape, rows: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the tiles that have up to `rows` of the sequence's new rows."""
    for first in range(0, shape.q_len, rows):
        yield first, min(rows, shape.q_len - first)


def v2_block(shape: Shape, first: int, rows: int) -> Counts:
    """attention_v2: 32 rows of one head, 4 warps of 8 rows, four threads a row."""
    dim, wide = shape.head_dim, 16 // shape.dtype.itemsize
    per_row = dim // wide  # threads that load a row, each `wide` numbers
    stored = dim * in_banks(lane // per_row * (dim + 1) + lane % per_row * wide for lane in range(WARP))
    weights = 8 * 4 * in_banks(lane // 4 * (TILE + 1) + lane % 4 for lane in range(WARP))
    tiles = ceil_div(seen(shape, first + rows - 1), TILE)
    slots = 2 + 2 * (
        2 * per_row
    )  # 8 bytes each, so two wavefronts: written once, read for each load of K and V
    each = slots + 2 * stored + 9 * dim * 4 + weights
    visited = 0  # keys that the warps visit in the second product
    for warp in range(4):
        last = (
            min(first + min(8 * warp + 8, rows), shape.q_len) - 1
        )  # rows that are not there follow the last one
        visited += seen(shape, last)
    return Counts(stored + tiles * each + visited * (1 + dim // 4))


def d1_block(shape: Shape) -> Counts:
    """decode_d1: one row of one head, 128 keys at a time, four warps."""
    dim, keys = shape.head_dim, shape.kv_len
    columns = min(ceil_div(dim, WARP), 4)  # warps that have columns of the output
    found = ceil_div(dim, WARP)
    for start in range(0, keys, 4 * TILE):
        here = min(keys - start, 4 * TILE)
        seeing, tiles = ceil_div(here, WARP), ceil_div(here, TILE)
        found += seeing * dim + ceil_div(here, 16) + 18  # q; slots of 8 bytes; maxima of tiles, weights
        found += tiles * 4 + here * columns * 3 * ceil_div(dim, 4 * WARP)
    return Counts(found)


def tensor_tile(dim: int) -> Counts:
    """A warp's 16 rows and 64 keys: ldmatrix reads K and V, and each mma multiplies 16 x 8 x 16."""
    return Counts(2 * dim, dim)


def copied_tile(dim: int) -> Counts:
    """What cp.async writes of 64 keys, K and V of 16 bits."""
    return Counts(2 * dim)


def v3_block(shape: Shape, first: int, rows: int) -> Counts:
    """attention_v3: up to 128 packed rows of a kv head; the outputs of splits wait in shared memory."""
    dim, group = shape.head_dim, shape.num_heads // shape.num_kv_heads
    tiles = ceil_div(seen(shape, (first + rows - 1) // group), TENSOR_KEYS)
    found = copied_tile(dim).times(tiles)
    for warp in range(V3_WARPS):
        last = min(first + TENSOR_ROWS * (warp + 1), first + rows) - 1
        found += tensor_tile(dim).times(ceil_div(seen(shape, last // group), TENSOR_KEYS))
        found += Counts(
            dim // 2 + ceil_div(tiles, SPLIT // TENSOR_KEYS) * dim + _stored(dim, first + rows, first, warp)
        )
    return found


def _stored(dim: int, end: int, first: int, warp: int) -> int:
    """Wavefronts of the outputs that a warp reads at the end: of its rows 0 to 7, and of 8 to 15."""
    begins = first + TENSOR_ROWS * warp
    return dim // 4 * sum(begins + 8 * half < end for half in range(2))


def decode_block(shape: Shape, keys: int, whole: bool) -> Counts:
    """A warp of decode_d3, `keys` of a kv head; of decode_d2 (`whole`), which keeps outputs like v3."""
    dim, packed = shape.head_dim, shape.num_heads // shape.num_kv_heads
    tiles, found = ceil_div(keys, TENSOR_KEYS), Counts()
    for first in range(0, packed, TENSOR_ROWS):
        found += (copied_tile(dim) + tensor_tile(dim)).times(tiles)
        if whole:
            merged = ceil_div(tiles, SPLIT // TENSOR_KEYS) * dim
            found += Counts(dim // 2 + merged + _stored(dim, packed, first, 0))
    return found


@dataclass(frozen=True)
class Tiles:
    """How a rung of linear cuts a product: outputs, tokens and columns of a block's step."""

    out: int
    tokens: int
    depth: int
    warps: int
    stages: int = 1  # 1: nothing is copied ahead
    mma_out: int = 0  # products of 16 x 8 in a warp
    mma_tokens: int = 0
    warps_tokens: int = 1

    @property
    def name(self) -> str:
        return f"{self.out}x{self.tokens}"


L1 = L2 = Tiles(16, 16, 32, 8)
L3 = Tiles(128, 128, 8, 8)
L4 = Tiles(64, 64, 64, 4, 2, 2, 4, 2)
L5 = (
    Tiles(16, 8, 64, 1, 16, 1, 1),
    Tiles(16, 16, 64, 1, 16, 1, 2),
    Tiles(32, 32, 64, 2, 12, 1, 4),
    Tiles(64, 64, 64, 4, 4, 2, 4, 2),
    Tiles(128, 128, 64, 4, 3, 4, 8, 2),
)


def l5_tiles(rows: int, out: int) -> Tiles:
    """The shape that linear_l5 chooses."""
    for tiles in L5[:3]:
        if rows <= tiles.tokens:
            return tiles
    largest = ceil_div(rows, 128) * ceil_div(out, 128)
    return L5[3] if largest < 96 else L5[4]


def linear_counts(rung: str, rows: int, out: int, size: int) -> Counts:
    """Of y [rows, out] = x [rows, size] W^T."""
    tiles = {"l1": L1, "l2": L2, "l3": L3, "l4": L4}.get(rung) or l5_tiles(rows, out)
    stages, across = ceil_div(size, tiles.depth), ceil_div(out, tiles.out)
    blocks = across * ceil_div(rows, tiles.tokens)
    if rung in (
        "l1",
        "l2",
    ):  # a warp reads a column of 2 rows of x and 16 of W; those without rows read nothing
        reading = sum(ceil_div(min(rows - first, 16), 2) for first in range(0, rows, 16))
        return Counts(blocks * stages * 32 + reading * across * 2 * size)
    if rung == "l3":  # four loads of 16 bytes, each in four wavefronts
        return Counts(blocks * (stages * 64 + 8 * 16 * size))
    products = tiles.warps * tiles.mma_out * tiles.mma_tokens
    loads = 4 * tiles.mma_out + 2 * tiles.mma_tokens  # eight rows in each: single loads of l4, ldmatrix of l5
    each = tiles.out + tiles.tokens + 4 * tiles.warps * loads
    return Counts(blocks * stages * each, blocks * stages * 4 * products)
