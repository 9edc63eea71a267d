"""Inputs of attention for the benchmarks: equal sequences with shuffled pages, and the same data for SDPA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.ops.contract import AttentionMetadata

BLOCK = 16


@dataclass
class Paged:
    """q, caches and metadata of sequences of equal length, with shuffled pages."""

    q: Tensor
    k: Tensor
    v: Tensor
    meta: AttentionMetadata

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def dense(self, heads: int, kv_len: int) -> list[Tensor]:
        """q, k, v as [num_seqs, heads, tokens, head_dim] with the pages in order, as SDPA needs them."""
        num_seqs, dim = len(self.meta.kv_len), self.q.shape[-1]
        q = self.q.view(num_seqs, -1, heads, dim).transpose(1, 2)
        pages = self.meta.block_table.long()
        k, v = (cache[pages].flatten(1, 2)[:, :kv_len].transpose(1, 2) for cache in (self.k, self.v))
        return [q.contiguous(), k.contiguous(), v.contiguous()]


def paged(
    random: Callable[..., Tensor], num_seqs: int, q_len: int, kv_len: int, heads: int, kv_heads: int, dim: int
) -> Paged:
    """Sequences of `q_len` new rows and `kv_len` keys; `random(*shape)` makes the numbers on a device."""
    per_seq = -(-kv_len // BLOCK)
    table = torch.randperm(num_seqs * per_seq).int().view(num_seqs, per_seq)
    cache = (num_seqs * per_seq, BLOCK, kv_heads, dim)
    q, k, v = random(num_seqs * q_len, heads, dim), random(*cache), random(*cache)
    positions = torch.arange(kv_len - q_len, kv_len).repeat(num_seqs)
    slots = (table.repeat_interleave(q_len, 0).gather(1, (positions // BLOCK)[:, None])[:, 0]) * BLOCK
    starts = torch.arange(num_seqs + 1, dtype=torch.int32) * q_len
    kv_lens = torch.full((num_seqs,), kv_len, dtype=torch.int32)
    columns = (positions, slots.long() + positions % BLOCK, table, starts, kv_lens)
    return Paged(q, k, v, AttentionMetadata(*(column.to(q.device) for column in columns)))
