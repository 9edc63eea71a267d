"""Tasks 2.1 and 2.2, rotary positions: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.tiny_model import random_tensor
from minillm.ops.reference import apply_rope

# --- 2.1 frequencies --------------------------------------------------------------------------------


FREQUENCY_CASES = (
    Case("theta 10000, head_dim 8", lambda frequencies: frequencies(10000.0, 8)),
    Case("theta 500000, head_dim 64", lambda frequencies: frequencies(500000.0, 64)),
    Case("theta 10, head_dim 2", lambda frequencies: frequencies(10.0, 2)),
)
FREQUENCY_MISTAKES = (
    Mistake(
        "the exponent is positive: a pair with larger i must turn more slowly",
        lambda theta, dim: theta ** (torch.arange(0, dim, 2).float() / dim),
    ),
    Mistake(
        "the exponent is i / head_dim: it must be 2 i / head_dim (there are head_dim / 2 pairs)",
        lambda theta, dim: theta ** (-torch.arange(dim // 2).float() / dim),
    ),
    Mistake(
        "one frequency per component: a pair of components shares one, so there are head_dim / 2",
        lambda theta, dim: theta ** (-torch.arange(dim).float() / dim),
    ),
    Mistake(
        "pairs are counted from 1: count from 0 (pair 0 turns one radian per position)",
        lambda theta, dim: theta ** (-torch.arange(2, dim + 2, 2).float() / dim),
    ),
)


# --- 2.2 rotation -----------------------------------------------------------------------------------


def rope_case(positions: list[int], num_heads: int, dtype: torch.dtype = torch.float32) -> Case:
    """Rotate random heads to `positions`."""

    def run(rope: Callable[..., Tensor]) -> Tensor:
        angles = torch.outer(torch.tensor(positions).float(), torch.tensor([1.0, 0.3, 0.05, 0.01]))
        return rope(random_tensor(1, len(positions), num_heads, 8).to(dtype), angles.cos(), angles.sin())

    return Case(f"{num_heads} heads at positions {positions}, {str(dtype)[6:]}", run)


def interleaved_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Component 2 i is paired with 2 i + 1: the layout of the paper and of GPT-J."""
    a, b = x.float()[..., 0::2], x.float()[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def half_interleaved_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs are read as neighbours, but written as halves."""
    return apply_rope(torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1), cos, sin)


def same_sign_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Both halves have a minus: this is not a rotation, lengths change."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos[:, None] - b * sin[:, None], b * cos[:, None] - a * sin[:, None]], -1).to(
        x.dtype
    )


ROPE_CASES = (
    rope_case([0, 1, 2, 7], num_heads=2),
    rope_case([40], num_heads=4),
    rope_case([3, 4], num_heads=1, dtype=torch.bfloat16),
)
ROPE_MISTAKES = (
    Mistake(
        "this is interleaved RoPE (pairs 2i, 2i+1): rotate halves (pairs i, i + head_dim/2)",
        interleaved_rope,
    ),
    Mistake(
        "pairs are read interleaved (x[..., 0::2]) but written as halves: read halves too",
        half_interleaved_rope,
    ),
    Mistake(
        "the rotation runs backwards: the signs of the two sin terms are swapped",
        lambda x, cos, sin: apply_rope(x, cos, -sin),
    ),
    Mistake("cos and sin are exchanged", lambda x, cos, sin: apply_rope(x, sin, cos)),
    Mistake("both sin terms have a minus: only the term of the first half has one", same_sign_rope),
    Mistake(
        "the result is float32: it must have x's dtype", lambda x, cos, sin: apply_rope(x.float(), cos, sin)
    ),
)
