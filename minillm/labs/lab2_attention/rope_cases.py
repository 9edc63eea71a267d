"""Tasks 2.1 and 2.2, rotary positions: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.grader.tiny_model import random_tensor
from minillm.labs.lab2_attention.costs import cost
from minillm.ops.reference import apply_rope

Frequencies = Callable[[float, int], Tensor]
Rope = Callable[[Tensor, Tensor, Tensor], Tensor]

# --- 2.1 frequencies --------------------------------------------------------------------------------


def frequency_case(theta: float, head_dim: int) -> Case:
    """The frequencies of one model."""
    return Case(f"theta {theta:g}, head_dim {head_dim}", lambda frequencies: frequencies(theta, head_dim))


def changed_result(frequencies: Frequencies) -> list[Tensor]:
    """The caller scales one result in place, as for long contexts; later results are as before."""
    first = frequencies(10000.0, 8)
    first *= 0.25
    return [first, frequencies(10000.0, 8), frequencies(100.0, 8), frequencies(10000.0, 4)]


def frequency_cost(frequencies: Frequencies) -> list[Words]:
    """The work for a head of 128."""
    return cost(partial(frequencies, 10000.0, 128), 10 * 64, 64 * 4, "the result", times=200)


def more_frequencies(random: Random) -> Iterable[Case]:
    """Random models."""
    for _ in range(4):
        yield frequency_case(
            round(random.uniform(2, 10 ** random.randint(1, 6)), 1), 2 * random.randint(1, 40)
        )


FREQUENCY_CASES = (
    frequency_case(10000.0, 8),
    frequency_case(500000.0, 64),
    frequency_case(10.0, 2),
    frequency_case(10000.0, 80),
    Case("a result that the caller changes", changed_result, "aliasing"),
    Case("work for head_dim 128", frequency_cost, "cost"),
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
        "the exponent is 4 i / head_dim: it must be 2 i / head_dim",
        lambda theta, dim: theta ** (-torch.arange(0, 2 * dim, 4).float() / dim),
    ),
    Mistake(
        "one frequency per component: a pair of components shares one, so there are head_dim / 2",
        lambda theta, dim: theta ** (-torch.arange(dim).float() / dim),
    ),
    Mistake(
        "each frequency comes twice: a pair of components shares one, so there are head_dim / 2",
        lambda theta, dim: (theta ** (-torch.arange(0, dim, 2).float() / dim)).repeat(2),
    ),
    Mistake(
        "pairs are counted from 1: count from 0 (pair 0 turns one radian per position)",
        lambda theta, dim: theta ** (-torch.arange(2, dim + 2, 2).float() / dim),
    ),
    Mistake(
        "the last pair turns at 1 / theta: the exponents run from 0 to less than 1, in steps of 2 / head_dim",
        lambda theta, dim: theta ** -torch.linspace(0, 1, dim // 2),
    ),
    Mistake(
        "the exponents are divided as integers, so all are 0: use `/`",
        lambda theta, dim: theta ** -(torch.arange(0, dim, 2) // dim).float(),
    ),
    Mistake(
        "the result is float64: it must be float32",
        lambda theta, dim: theta ** (-torch.arange(0, dim, 2).double() / dim),
    ),
    Mistake(
        "the exponents are computed in half precision: positions are multiplied by the error, use float32",
        lambda theta, dim: theta ** -(torch.arange(0, dim, 2).half() / dim).float(),
    ),
)


# --- 2.2 rotation -----------------------------------------------------------------------------------


def angles(positions: Sequence[int], pairs: int = 4) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles."""
    turned = torch.outer(torch.tensor(positions).float(), torch.logspace(0, -2, pairs))
    return turned.cos(), turned.sin()


def rope_case(
    positions: list[int],
    num_heads: int,
    dtype: torch.dtype = torch.float32,
    pairs: int = 4,
    is_slice: bool = False,
) -> Case:
    """Rotate random heads to `positions`; the arguments may not change."""

    def run(rope: Rope) -> list[Tensor]:
        x = random_tensor(1, len(positions), num_heads + 2 * is_slice, 2 * pairs).to(dtype)
        cos, sin = angles(positions, pairs)
        x = x[:, 2:] if is_slice else x
        return [rope(x, cos, sin), x, cos, sin]

    name = f"{num_heads} heads of {2 * pairs} at positions {positions}, {str(dtype)[6:]}"
    return Case(name + (", a slice of a wider tensor" if is_slice else ""), run)


def rope_in_turns(rope: Rope) -> list[Tensor]:
    """Tensors of one shape at other positions in turns: queries, keys, and the next step of both."""
    rows = [random_tensor(seed, 3, 2, 8) for seed in range(4)]
    at = [angles(positions) for positions in ([0, 1, 2], [5, 9, 7], [0, 1, 2], [3, 4, 5])]
    out = [rope(x, cos, sin) for x, (cos, sin) in zip(rows, at, strict=True)]
    out.append(rope(rows[0], *at[1]))
    out += [rope(random_tensor(i, 3, 2, 8), *angles([i, 0, 2 * i])) for i in range(4)]
    return [*out, *rows]


def rope_cost(rope: Rope) -> list[Words]:
    """The work for 64 tokens with 8 heads of 32."""
    x, (cos, sin) = random_tensor(1, 64, 8, 32), angles(range(64), 16)
    return cost(partial(rope, x, cos, sin), 150, x.numel() * 4, "x", times=40)


def more_ropes(random: Random) -> Iterable[Case]:
    """Random positions and sizes."""
    for _ in range(3):
        positions = [random.randrange(90) for _ in range(random.randint(1, 6))]
        yield rope_case(positions, random.randint(1, 5), pairs=random.randint(1, 9))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates in the dtype of the arguments."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


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


def uses_new_a(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The second half is computed from the first half after its rotation."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    a = a * cos - b * sin
    return torch.cat([a, b * cos + a * sin], dim=-1).to(x.dtype)


def rope_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The numbers are correct, but they are written into the argument."""
    return x.copy_(apply_rope(x, cos, sin))


def rope_by_token(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One token after the other."""
    return torch.cat([apply_rope(x[i : i + 1], cos[i : i + 1], sin[i : i + 1]) for i in range(len(x))])


ROPE_CASES = (
    rope_case([0, 1, 2, 7], num_heads=2),
    rope_case([40], num_heads=4),
    rope_case([3, 4], num_heads=1, dtype=torch.bfloat16),
    rope_case([11, 3, 70, 25], num_heads=4, dtype=torch.bfloat16, pairs=16),
    rope_case([9, 2, 2], num_heads=3, pairs=1),
    rope_case([6, 50, 7], num_heads=2, is_slice=True),
    Case("other positions in turns", rope_in_turns, "aliasing"),
    Case("work for 64 tokens with 8 heads of 32", rope_cost, "cost"),
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
    Mistake("the second half is computed from the new first half: both need the old one", uses_new_a),
    Mistake(
        "the result is float32: it must have x's dtype", lambda x, cos, sin: apply_rope(x.float(), cos, sin)
    ),
    Mistake(
        "a bfloat16 x is rotated in bfloat16: compute in float32, and round once at the end",
        lambda x, cos, sin: turned(x, cos.to(x.dtype), sin.to(x.dtype)),
    ),
    Mistake("the argument `x` is changed: write to a new tensor", rope_in_place),
    Mistake("tokens, or components, are rotated one by one: rotate all of them at once", rope_by_token),
)
