"""Tasks 2.3 to 2.6, grouped-query attention: cases. The known mistakes are in `attention_mistakes.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Words
from minillm.labs.grader.tiny_model import random_tensor
from minillm.labs.lab2_attention.costs import cost

Attend = Callable[[Tensor, Tensor, Tensor, float, int | None], Tensor]
Shape = tuple[int, int, int, int]  # q_len, kv_len, heads, kv heads


def tensors(shape: Shape, head_dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v."""
    q_len, kv_len, heads, kv_heads = shape
    q, k = (
        2 * random_tensor(seed + 2, q_len, heads, head_dim),
        2 * random_tensor(seed + 3, kv_len, kv_heads, head_dim),
    )
    return q, k, random_tensor(seed + 4, kv_len, kv_heads, head_dim)


def attention_case(
    name: str,
    shape: Shape,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    scale: float = 8**-0.5,
) -> Case:
    """Attention of the last `q_len` of `kv_len` tokens over random heads; the arguments may not change."""

    def run(attend: Attend) -> list[Tensor]:
        q, k, v = (x.to(dtype) for x in tensors(shape))
        return [attend(q, k, v, scale, window), q, k, v]

    q_len, kv_len, heads, kv_heads = shape
    text = f"{name}: q_len {q_len}, kv_len {kv_len}, {heads} heads over {kv_heads}, window {window}"
    return Case(text + (f", {str(dtype)[6:]}" if dtype != torch.float32 else ""), run)


def turns_case(*uses: tuple[Shape, int | None]) -> Case:
    """Sequences in turns: equal shapes with other numbers, other lengths, other windows."""

    def run(attend: Attend) -> list[Tensor]:
        given = [tensors(shape, seed=10 * i) for i, (shape, _) in enumerate(uses)]
        out = [attend(*qkv, 0.3, window) for qkv, (_, window) in zip(given, uses, strict=True)]
        out += [attend(*tensors(uses[0][0], seed=100 + i), 0.3, uses[0][1]) for i in range(3)]
        return [*out, attend(*given[0], 0.5, uses[0][1])]

    return Case("several sequences in turns", run, "aliasing")


def cost_case(name: str, shape: Shape, window: int | None = None, head_dim: int = 8) -> Case:
    """Operations and bytes. The scores, and float32 copies of k and v, may be written a few times."""
    q_len, kv_len, heads, kv_heads = shape
    needed = 4 * (heads * q_len * kv_len + 2 * kv_len * kv_heads * head_dim)

    def run(attend: Attend) -> list[Words]:
        q, k, v = tensors(shape, head_dim)
        action = partial(attend, q, k, v, 0.3, window)
        return cost(action, 40 * heads, needed, "the scores, k and v", times=20)

    text = f"work of {name}: q_len {q_len}, kv_len {kv_len}, {heads} heads of {head_dim} over {kv_heads}"
    return Case(text, run, "cost")


def more_attention(has_cache: bool, is_grouped: bool, has_window: bool) -> Callable[[Random], Iterable[Case]]:
    """Random sizes for a task."""

    def more(random: Random) -> Iterable[Case]:
        for _ in range(3):
            kv_len, kv_heads = random.randint(2, 12), random.randint(1, 3)
            q_len = random.randint(1, kv_len) if has_cache else kv_len
            heads = kv_heads * (random.randint(2, 4) if is_grouped else 1)
            window = random.randint(1, kv_len + 1) if has_window else None
            yield attention_case("random sizes", (q_len, kv_len, heads, kv_heads), window)

    return more


# q, k and v of one head and one prompt; then a cache; then groups; then a window.
SCORE_CASES = (
    attention_case("one head, whole prompt", (5, 5, 1, 1)),
    attention_case("three heads", (4, 4, 3, 3)),
    attention_case("one token", (1, 1, 2, 2)),
    attention_case("bfloat16", (6, 6, 2, 2), dtype=torch.bfloat16),
    attention_case("large scores", (5, 5, 2, 2), scale=40.0),
    turns_case(((4, 4, 2, 2), None), ((4, 4, 2, 2), None), ((2, 2, 2, 2), None), ((6, 6, 1, 1), None)),
    cost_case("a prompt", (96, 96, 2, 2)),
)
CACHE_CASES = (
    attention_case("a chunk", (3, 9, 2, 2)),
    attention_case("decode", (1, 6, 2, 2)),
    attention_case("all but the first token", (6, 7, 1, 1)),
    turns_case(((3, 7, 2, 2), None), ((1, 7, 2, 2), None), ((3, 8, 2, 2), None), ((3, 7, 2, 2), None)),
    cost_case("decode", (1, 6000, 2, 2)),
    cost_case("a chunk", (64, 512, 2, 2)),
)
GROUP_CASES = (
    attention_case("groups of 3", (4, 6, 6, 2)),
    attention_case("one kv head", (2, 3, 4, 1)),
    attention_case("groups of 2", (3, 3, 6, 3)),
    turns_case(((2, 5, 4, 2), None), ((2, 5, 4, 1), None), ((2, 5, 6, 2), None)),
    cost_case("decode", (1, 32, 64, 2), head_dim=256),  # a group so large that copies are most of the work
)
WINDOW_CASES = (
    attention_case("prefill", (7, 7, 4, 2), 3),
    attention_case("decode", (1, 9, 4, 2), 4),
    attention_case("a chunk", (4, 9, 4, 2), 3),
    attention_case("only the own key", (3, 5, 2, 1), 1),
    attention_case("a window as long as the sequence", (3, 5, 4, 2), 5),
    attention_case("a window longer than the sequence", (3, 5, 4, 2), 64),
    turns_case(((3, 7, 4, 2), 2), ((3, 7, 4, 2), None), ((3, 7, 4, 2), 4)),
    cost_case("decode", (1, 6000, 4, 2), window=32),
)
