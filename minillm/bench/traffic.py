"""The traffic of each attention rung, counted while the CUDA source runs, beside the least possible traffic.

    minimum   read q, K and V once and write the output once: needed by every kernel
    v1        plus the score matrix, [rows, keys] per head, written twice and read three times;
              K and V are read once for every row that sees them
    v2        K and V are read once for every *tile* of 32 rows; no score matrix
    d1        decode: K and V are read once per query head: the minimum if each has its own kv head

The formulas are exact, tile by tile; tests compare them with the simulator's counters. Bytes are those
requested from global memory (a cache in front of it is not simulated).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from minillm.ops.contract import AttentionMetadata
from minillm.ops.simt import Profile, SimtOps, profile

ROWS = KEYS = WARP = 32  # rows and keys of a tile of attention_v2, lanes of a warp
Traffic = dict[str, tuple[int, int]]  # tensor -> bytes (read, written)


@dataclass(frozen=True)
class Shape:
    """Attention of one sequence's last `q_len` rows over its `kv_len` keys, causal."""

    q_len: int
    kv_len: int
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 64
    dtype: torch.dtype = torch.float32

    @property
    def row(self) -> int:
        """Bytes of one head of one token."""
        return self.head_dim * self.dtype.itemsize

    @property
    def visible(self) -> list[int]:
        """The number of keys that each row sees."""
        return [self.kv_len - self.q_len + r + 1 for r in range(self.q_len)]


def minimum(shape: Shape) -> int:
    """Bytes of q, K, V and the output, each once."""
    own = 2 * shape.q_len * shape.num_heads * shape.row
    return own + 2 * shape.kv_len * shape.num_kv_heads * shape.row


def naive(shape: Shape) -> Traffic:
    """attention_v1: every thread loads its own data, and the scores go through global memory."""
    heads, row = shape.num_heads, shape.row
    matrix = 4 * heads * shape.q_len * shape.kv_len
    visible = heads * sum(shape.visible)
    # A warp handles 32 keys and reads the row's q once; each warp of 32 columns reads the weights again.
    warps = sum(-(-keys // WARP) for keys in shape.visible)
    again = shape.head_dim // WARP * 4 * visible
    return {
        "q": (heads * warps * row, 0),
        "k_cache": (visible * row, 0),
        "v_cache": (visible * row, 0),
        "scores": (2 * matrix + again, 2 * matrix),
        "out": (0, heads * shape.q_len * row),
    }


def tiled(shape: Shape) -> Traffic:
    """attention_v2: each tile of rows reads the tiles of keys that its last row sees."""
    heads, row, keys = shape.num_heads, shape.row, 0
    for first in range(0, shape.q_len, ROWS):
        last_key = shape.visible[min(first + ROWS, shape.q_len) - 1] - 1
        keys += min(shape.kv_len, (last_key // KEYS + 1) * KEYS)
    own = heads * shape.q_len * row
    return {
        "q": (own, 0),
        "k_cache": (heads * keys * row, 0),
        "v_cache": (heads * keys * row, 0),
        "out": (0, own),
    }


def one_by_one(shape: Shape) -> Traffic:
    """decode_d1: each row reads the keys it sees."""
    heads, row = shape.num_heads, shape.row
    pairs, own = heads * sum(shape.visible) * row, heads * shape.q_len * row
    return {"q": (own, 0), "k_cache": (pairs, 0), "v_cache": (pairs, 0), "out": (0, own)}


FORMULAS = {"v1": naive, "v2": tiled, "d1": one_by_one}


def run_rung(rung: str, shape: Shape, block_size: int = 16) -> Profile:
    """The simulator's counters for one run of `rung`."""
    generator = torch.Generator().manual_seed(0)
    num_blocks = -(-shape.kv_len // block_size)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(shape.dtype)

    q = random(shape.q_len, shape.num_heads, shape.head_dim)
    k, v = (random(num_blocks, block_size, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    meta = AttentionMetadata(
        positions=torch.arange(shape.kv_len - shape.q_len, shape.kv_len),
        slot_mapping=torch.arange(shape.kv_len - shape.q_len, shape.kv_len),
        block_table=torch.arange(num_blocks, dtype=torch.int32).unsqueeze(0),
        query_start=torch.tensor([0, shape.q_len], dtype=torch.int32),
        kv_len=torch.tensor([shape.kv_len], dtype=torch.int32),
    )
    with profile() as counted:
        SimtOps().paged_attention(q, k, v, meta, shape.head_dim**-0.5, rung=rung)
    return counted


def run_traffic(length: int, dtype: torch.dtype) -> dict[str, Any]:
    """One row per rung, in bytes: a prompt of `length` tokens for v1 and v2, the token after it for d1."""
    rows = []
    for rung, q_len in (("v1", length), ("v2", length), ("d1", 1)):
        shape = Shape(q_len, length, dtype=dtype)
        counted = run_rung(rung, shape)
        read, written, least = counted.global_read_bytes, counted.global_write_bytes, minimum(shape)
        rows.append(
            {
                "rung": rung,
                "rows": q_len,
                "keys": length,
                "read": read,
                "written": written,
                "scores": sum(counted.tensors.get("scores", (0, 0))),
                "minimum": least,
                "ratio": (read + written) / least,
                "shared_wavefronts": counted.shared_wavefronts,
                "barriers": counted.barriers,
            }
        )
    heads = f"{Shape.num_heads} heads of {Shape.head_dim} over {Shape.num_kv_heads} kv head"
    return {"dtype": str(dtype).removeprefix("torch."), "shape": heads, "rows": rows}
