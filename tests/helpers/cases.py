"""Shared by the tests of all kernels: random numbers, attention cases, and the limit for errors.

The error must be below a fixed bound for the dtype, and below twice the error of the same computation in
PyTorch in that dtype. Slots that a sequence does not own hold NaN, so a kernel that reads one is caught.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import oracle
import torch
from torch import Tensor

from minillm.ops.contract import AttentionMetadata
from minillm.ops.reference import ReferenceOps

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
REFERENCE = ReferenceOps()
BOUND = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def check(found: Tensor, reference: Tensor, exact: Tensor, what: object = "") -> None:
    """Assert the limit above. In float32 only the fixed bound counts."""
    dtype = found.dtype
    mine, theirs = oracle.error(found, exact), oracle.error(reference, exact)
    assert mine <= BOUND[dtype], f"{what}: error {mine:.2e}"
    # Rounding the exact result gives the least possible error. With very few numbers PyTorch's can be smaller
    # by chance, so small results are not compared with it.
    least = oracle.error(exact.to(dtype), exact)
    assert dtype == torch.float32 or mine <= 2 * max(theirs, least) + 1e-9 or exact.numel() < 64, (
        f"{what}: error {mine:.2e}, PyTorch's {theirs:.2e}"
    )


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def silu_roundings(
    dtype: torch.dtype, rows: int = 8, size: int = 257
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gate_up [rows, 2 * size]; silu(gate) * up rounded once, and rounded twice; where that is certain."""
    gate, up = (random(rows, size, dtype=dtype, scale=2, seed=s) for s in (1, 2))
    exact = gate.double() / (1 + (-gate.double()).exp())
    activated = exact.to(dtype)
    is_clear = ((exact * (1 - 1e-6)).to(dtype) == activated) & ((exact * (1 + 1e-6)).to(dtype) == activated)
    once, twice = exact * up.double(), activated.double() * up.double()
    return torch.cat([gate, up], dim=-1), once.to(dtype), twice.to(dtype), is_clear


def norm_roundings(
    dtype: torch.dtype, rows: int = 8, size: int = 257
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """(x, residual, weight), their add_rms_norm with eps 1e-5, and where its bits are certain.

    The sum is rounded, then its norm, then the product with the weight.
    """
    x, residual = (random(rows, size, dtype=dtype, seed=s) for s in (1, 2))
    weight = random(size, dtype=dtype, seed=3)
    total = (x + residual).double()
    normed = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    is_clear = (normed * (1 - 3e-6)).to(dtype) == (normed * (1 + 3e-6)).to(dtype)
    return (x, residual, weight), (normed.to(dtype).double() * weight.double()).to(dtype), is_clear


@dataclass
class Case:
    """One (number of new rows, number of keys including them) per sequence."""

    seqs: list[tuple[int, int]]
    heads: int
    kv_heads: int
    dim: int
    block_size: int = 16
    window: int | None = None

    def build(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, AttentionMetadata, list[list[int]]]:
        """Make q, the caches (NaN in every slot that no sequence owns), the metadata and the block tables."""
        q_lens, kv_lens = [q for q, _ in self.seqs], [kv for _, kv in self.seqs]
        needed = [-(-kv // self.block_size) for kv in kv_lens]
        num_blocks = sum(needed) + 3
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
        tables = [[order.pop() for _ in range(count)] for count in needed]
        shape = (num_blocks, self.block_size, self.kv_heads, self.dim)
        caches = [torch.full(shape, math.nan, dtype=dtype) for _ in range(2)]
        for cache, seed in zip(caches, (2, 3), strict=True):
            for i, (table, kv_len) in enumerate(zip(tables, kv_lens, strict=True)):
                rows = random(kv_len, self.kv_heads, self.dim, dtype=dtype, seed=seed + 10 * i)
                for p in range(kv_len):
                    cache[table[p // self.block_size], p % self.block_size] = rows[p]
        # Strided, like the rows of a fused projection.
        q = random(sum(q_lens), self.heads + 2, self.dim, dtype=dtype, seed=4)[:, : self.heads]
        meta = make_meta(tables, q_lens, kv_lens, self.block_size)
        return q, caches[0], caches[1], meta, tables


def make_meta(
    tables: list[list[int]], q_lens: list[int], kv_lens: list[int], block_size: int
) -> AttentionMetadata:
    widest = max(map(len, tables), default=0) + 1
    positions = [p for q, kv in zip(q_lens, kv_lens, strict=True) for p in range(kv - q, kv)]
    slots = [
        table[p // block_size] * block_size + p % block_size
        for table, q, kv in zip(tables, q_lens, kv_lens, strict=True)
        for p in range(kv - q, kv)
    ]
    starts = [sum(q_lens[:i]) for i in range(len(q_lens) + 1)]
    padded = torch.zeros(len(tables), widest, dtype=torch.int32)
    for i, table in enumerate(tables):
        padded[i, : len(table)] = torch.tensor(table, dtype=torch.int32)
    return AttentionMetadata(
        positions=torch.tensor(positions, dtype=torch.int64),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        block_table=padded,
        query_start=torch.tensor(starts, dtype=torch.int32),
        kv_len=torch.tensor(kv_lens, dtype=torch.int32),
    )


# The attention cases for the simulator (every thread is simulated, so they are small) and for a GPU.
CASES = [
    *(Case([(q, q)], heads=3, kv_heads=1, dim=64) for q in (1, 5, 37, 70)),
    *(Case([(1, kv)], heads=8, kv_heads=1, dim=32) for kv in (2, 31, 32, 33, 129, 257)),
    *(Case([(5, kv)], heads=2, kv_heads=2, dim=32) for kv in (33, 64, 131)),
    Case([(1, 40), (0, 20), (37, 37), (4, 70), (0, 0), (1, 1), (33, 100)], heads=3, kv_heads=1, dim=32),
    *(Case([(5, 70), (1, 9)], heads=3, kv_heads=1, dim=dim) for dim in (96, 128, 256)),
    *(Case([(7, 71), (1, 40)], heads=2, kv_heads=1, dim=32, block_size=s) for s in (1, 3, 100)),
    *(Case([(35, 80), (1, 90), (3, 3)], heads=2, kv_heads=1, dim=32, window=w) for w in (1, 17, 32, 33, 500)),
]

# For the kernels on tensor cores, whose tiles have 64 keys and whose splits 512.
TENSOR_CASES = [
    *(case for case in CASES if case.dim in (64, 128)),
    *(Case([(1, kv), (1, 65)], heads=8, kv_heads=2, dim=64) for kv in (2, 63, 64, 511, 513)),
    *(Case([(q, 513 + q)], heads=4, kv_heads=1, dim=64) for q in (2, 5, 8)),
    Case([(1, 40), (0, 20), (37, 37), (4, 70), (0, 0), (1, 1), (50, 570)], heads=3, kv_heads=1, dim=64),
    *(Case([(7, 71), (1, 40)], heads=2, kv_heads=1, dim=64, block_size=s) for s in (1, 3, 100)),
    *(
        Case([(5, 580), (1, 590), (3, 3)], heads=2, kv_heads=1, dim=64, window=w)
        for w in (1, 17, 64, 65, 530)
    ),
    Case([(3, 1030), (1, 512)], heads=8, kv_heads=2, dim=128),
]

SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 1e-50},
    {"temperature": 1e300},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10_000},
    {"top_p": 1e-9},
    {"top_p": 0.3},
    {"top_p": 0.9, "temperature": 3.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.02, "temperature": 1.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5, "temperature": 0.0},
    {"repetition_penalty": 1e300, "top_k": 3},
]
