"""The ops of a layer in float64, written directly from their formulas: kernels are compared with these.

They use no code of the package. Attention handles one row and one head at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.double().chunk(2, -1)
    return gate / (1 + torch.exp(-gate)) * up


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of x [tokens, heads, dim] as a complex number; cos, sin [tokens, dim / 2]."""
    a, b = x.double().chunk(2, -1)
    turned = torch.complex(a, b) * torch.complex(cos.double(), sin.double()).unsqueeze(1)
    return torch.cat([turned.real, turned.imag], -1)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tables: list[list[int]],
    q_lens: list[int],
    kv_lens: list[int],
    scale: float,
    window: int | None,
) -> Tensor:
    out = torch.full(q.shape, math.nan, dtype=torch.float64)
    group, block_size = q.shape[1] // k_cache.shape[2], k_cache.shape[1]
    row = 0
    for table, q_len, kv_len in zip(tables, q_lens, kv_lens, strict=True):
        slots = [(table[p // block_size], p % block_size) for p in range(kv_len)]
        keys = torch.stack([k_cache[s] for s in slots]).double() if slots else k_cache.new_empty(0)
        values = torch.stack([v_cache[s] for s in slots]).double() if slots else keys
        for position in range(kv_len - q_len, kv_len):
            first = 0 if window is None else max(0, position + 1 - window)
            for head in range(q.shape[1]):
                k, v = (t[first : position + 1, head // group] for t in (keys, values))
                out[row, head] = (k @ q[row, head].double() * scale).softmax(0) @ v
            row += 1
    return out


def error(found: Tensor, exact: Tensor) -> float:
    """Relative Frobenius distance; infinite if there is a NaN, so that every comparison fails."""
    if found.shape != exact.shape or found.isnan().any():
        return math.inf
    norm = float(exact.norm())
    return float((found.double() - exact).norm()) / norm if norm else float(found.double().norm())
