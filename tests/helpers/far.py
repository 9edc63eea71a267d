"""Tensors of gigabytes of which a few pages are ever touched, and attention at their far end.

near   [ values ]                          far   [ untouched ...                      | values ]
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch
from cases import random
from torch import Tensor

from minillm.ops.simt import KernelLibrary, schedule

FAR = 2**31  # numbers; an offset in 32 bits ends below
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # older versions of Python do not name it


def untouched(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros that take no memory until they are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def far_end(values: Tensor, rows: int) -> Tensor:
    """A tensor of `rows` rows that ends in `values`."""
    tensor = untouched(rows, *values.shape[1:], dtype=values.dtype)
    tensor[-len(values) :] = values
    return tensor


def rows_beyond(numbers: int, extra: int = 3) -> int:
    """More rows of so many numbers than 2^31 numbers hold."""
    return FAR // numbers + extra


def same(near: list[Tensor], far: list[Tensor]) -> bool:
    """Whether `far` ends in what `near` has, and that is something."""
    return all(
        bool(a.count_nonzero()) and torch.equal(b[-len(a) :], a) for a, b in zip(near, far, strict=True)
    )


# ---- attention -------------------------------------------------------------------------------------

ROWS, KEYS = 3, 40


class Attention:
    """Three new rows of a sequence of 40 keys, which may be far out in q, in the output and in the cache."""

    heads, kv_heads, dim, block_size, dtype = 2, 1, 32, 16, torch.float32
    blocks_of_grid = 0  # that run; 0: all
    counts_tokens = False  # the grid and the scratch memory are as large as the number of tokens says
    seen, last_heads = ROWS, 2  # the rows and heads that those blocks compute

    def __init__(self, library: KernelLibrary) -> None:
        self.library = library
        count = -(-KEYS // self.block_size)
        self.q = random(ROWS, self.heads, self.dim, dtype=self.dtype, seed=3)
        shape = count, self.block_size, self.kv_heads, self.dim
        self.caches = [random(*shape, dtype=self.dtype, seed=s) for s in (1, 2)]
        self.blocks = torch.arange(count, dtype=torch.int32).view(1, -1)

    def sizes(self) -> dict[str, Any]:
        return dict(
            num_heads=self.heads, num_kv_heads=self.kv_heads, head_dim=self.dim, block_size=self.block_size
        )

    def options(self) -> dict[str, Any]:
        return {"scale": 0.2, "window": 0, "softcap": 0.0, "sinks": torch.zeros(self.heads)}

    def run(
        self, first: int = 0, q: Tensor | None = None, caches: list[Tensor] | None = None, blocks=None, seqs=1
    ) -> Tensor:
        """The rows are those from `first` on, of the last of `seqs` sequences."""
        q = self.q if q is None else q
        k_cache, v_cache = caches or self.caches
        blocks = self.blocks if blocks is None else blocks
        out = untouched(first + ROWS, self.heads, self.dim, dtype=self.dtype)
        start = far_end(torch.tensor([first, first + ROWS], dtype=torch.int32), seqs + 1)
        tokens = first + ROWS if self.counts_tokens else ROWS
        kv_len = far_end(torch.tensor([KEYS], dtype=torch.int32), seqs)
        with schedule(last_blocks=self.blocks_of_grid or int(seqs > 1)):
            self.library.run(
                "run", q=q, k_cache=k_cache, v_cache=v_cache, out=out, block_table=blocks, query_start=start,
                kv_len=kv_len, **self.before(tokens), num_seqs=seqs,
                max_blocks=blocks.shape[1], num_tokens=tokens, q_stride=q.stride(0), **self.after(tokens),
            )  # fmt: skip
        return out

    def before(self, tokens: int) -> dict[str, Any]:
        return {}

    def after(self, tokens: int) -> dict[str, Any]:
        return {**self.sizes(), **self.options()}

    def is_right(self) -> bool:
        near, rows = self.run()[-self.seen :], rows_beyond(self.heads * self.dim)
        far_rows = self.run(rows - ROWS, q=far_end(self.q, rows))
        blocks = rows_beyond(self.caches[0][0].numel(), len(self.blocks[0]))
        caches = [far_end(cache, blocks) for cache in self.caches]
        far_cache = self.run(caches=caches, blocks=self.blocks + blocks - len(self.blocks[0]))
        last = slice(-self.last_heads, None)
        return same([near[:, last]] * 2, [far_rows[:, last], far_cache[:, last]])


class Naive(Attention):
    """Only the last row of the last head: each of the three grids has one block for a row and head."""

    heads, seen, last_heads, blocks_of_grid, counts_tokens = 8, 1, 1, 1, True

    def after(self, tokens: int) -> dict[str, Any]:
        shape = self.heads, tokens
        scratch = {"scores": untouched(*shape, KEYS), "sums": untouched(*shape), "max_kv_len": KEYS}
        return {**self.sizes(), "scale": 0.2, "window": 0, **scratch}


class OnTensorCores(Attention):
    """The harness has heads of 64 in bfloat16."""

    heads, kv_heads, dim, block_size, dtype, last_heads = 6, 2, 64, 4, torch.bfloat16, 6

    def after(self, tokens: int) -> dict[str, Any]:
        return {"splits": 1}

    def before(self, tokens: int) -> dict[str, Any]:
        return {"softmax": untouched(1), "parts": untouched(1)}


class InSplits(OnTensorCores):
    """Both blocks of the first grid, one for each kv head; of the second the last, four rows each."""

    counts_tokens, blocks_of_grid, seen = True, 5, ROWS

    def before(self, tokens: int) -> dict[str, Any]:
        shape = tokens, self.heads
        return {"softmax": untouched(*shape, 2), "parts": untouched(*shape, self.dim)}
