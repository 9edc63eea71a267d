# ruff: noqa: F401 - imports that the finished file uses
"""Lab 2: RoPE and grouped-query attention.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 2        run the checks
    minillm labs hint 2.1       a hint; --level 2 and --level 3 give more detail

Made from the engine's source by `minillm labs start 2`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def base_frequencies(theta: float, head_dim: int) -> Tensor:
    """theta ** (-2 i / head_dim) for each component pair i: float32 [head_dim / 2].

    Pair 0 turns by one radian per position; each next pair is slower by the same ratio. Every call returns
    a new tensor, which the caller may change.
    """
    # Stuck? minillm labs hint 2.1
    raise NotImplementedError("Lab 2.1 base_frequencies; hint: minillm labs hint 2.1")


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head's halves: component i is paired with i + head_dim / 2, not with its neighbour.

        (a, b) -> (a cos - b sin, b cos + a sin)     a = first half, b = second half

    All tokens and heads are rotated at once: no loop over the tokens.

    Args:
        x: [num_tokens, num_heads, head_dim]; not changed. It may be a slice of a wider tensor.
        cos, sin: float32 [num_tokens, head_dim / 2], the angles of each token's position.

    Returns:
        [num_tokens, num_heads, head_dim] in x's dtype; computed in float32, and rounded once.

    Source: Su et al., "RoFormer" (arXiv 2104.09864), in the half-rotation layout of Llama.
    """
    # Stuck? minillm labs hint 2.2
    raise NotImplementedError("Lab 2.2 apply_rope; hint: minillm labs hint 2.2")


def grouped_query_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention of one sequence's new rows over all its keys.

    Query head h reads kv head h // (num_heads / num_kv_heads): with 6 heads over 2 kv heads, heads
    0-2 share the first and 3-5 the second. Scores and softmax are float32.

        keys    0 1 2 3 4 5      q_len 2, kv_len 6: the new rows are the last of the sequence,
        row 0   x x x x x .      so the mask is aligned bottom-right; with a window of 3,
        row 1   x x x x x x      row 1 sees only keys 3 4 5

    The rows are computed at once: no loop over rows or keys. The mask has q_len rows, one in decode. k and v,
    the largest tensors, are not repeated for each query head.

    Args:
        q: [q_len, num_heads, head_dim]; not changed.
        k, v: [kv_len, num_kv_heads, head_dim]; not changed.
        scale: the factor of the scores, usually head_dim ** -0.5.
        window: the number of last keys that a row sees, its own included; None for all.

    Returns:
        [q_len, num_heads, head_dim] in q's dtype.
    """
    # Stuck? minillm labs hint 2.3
    # Stuck? minillm labs hint 2.4
    # Stuck? minillm labs hint 2.5
    # Stuck? minillm labs hint 2.6
    raise NotImplementedError("Lab 2.3 to 2.6 grouped_query_attention; hint: minillm labs hint 2.3")
