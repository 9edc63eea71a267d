"""Lab 2: rotary positions and grouped-query attention, the two functions that see positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.labs.lab import Case, Lab, Mistake, Part, Task
from minillm.labs.tiny import random_tensor, tiny_llm
from minillm.ops.reference import apply_rope, attend_pages

FREQUENCIES = Part("minillm.model.rope", "base_frequencies")
ROPE = Part("minillm.ops.reference", "apply_rope")
ATTENTION = Part("minillm.ops.reference", "grouped_query_attention")

# --- 2.1 frequencies ----------------------------------------------------------------------------------

FREQUENCY_CASES = (
    Case("theta 10000, head_dim 8", lambda frequencies: frequencies(10000.0, 8)),
    Case("theta 500000, head_dim 64", lambda frequencies: frequencies(500000.0, 64)),
    Case("theta 10, head_dim 2", lambda frequencies: frequencies(10.0, 2)),
)
FREQUENCY_MISTAKES = (
    Mistake(
        "the exponent is positive: pairs must turn slower, not faster, as i grows",
        lambda theta, dim: theta ** (torch.arange(0, dim, 2).float() / dim),
    ),
    Mistake(
        "the exponent is i / head_dim; it should be 2 i / head_dim (there are head_dim / 2 pairs)",
        lambda theta, dim: theta ** (-torch.arange(dim // 2).float() / dim),
    ),
    Mistake(
        "one frequency per component; two components (a pair) share one, so there are head_dim / 2",
        lambda theta, dim: theta ** (-torch.arange(dim).float() / dim),
    ),
    Mistake(
        "pairs are counted from 1; pair 0 turns one radian per position",
        lambda theta, dim: theta ** (-torch.arange(2, dim + 2, 2).float() / dim),
    ),
)

# --- 2.2 rotation -------------------------------------------------------------------------------------


def rope_case(positions: list[int], num_heads: int, dtype: torch.dtype = torch.float32) -> Case:
    """Rotate random heads to `positions`."""

    def run(rope: Callable[..., Tensor]) -> Tensor:
        angles = torch.outer(torch.tensor(positions).float(), torch.tensor([1.0, 0.3, 0.05, 0.01]))
        return rope(random_tensor(1, len(positions), num_heads, 8).to(dtype), angles.cos(), angles.sin())

    return Case(f"{num_heads} heads at positions {positions}, {str(dtype)[6:]}", run)


def interleaved_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Component 2 i paired with 2 i + 1: the layout of the paper, and of GPT-J."""
    a, b = x.float()[..., 0::2], x.float()[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def half_interleaved_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs taken as neighbours, but written as halves."""
    return apply_rope(torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1), cos, sin)


def same_sign_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Both halves with a minus: no rotation, lengths change."""
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
        "this is interleaved RoPE (pairs 2i, 2i+1); we rotate halves (pairs i, i + head_dim/2)",
        interleaved_rope,
    ),
    Mistake(
        "pairs are taken interleaved (x[..., 0::2]) but written as halves; take halves too",
        half_interleaved_rope,
    ),
    Mistake(
        "the rotation runs backwards: the signs of the two sin terms are swapped",
        lambda x, cos, sin: apply_rope(x, cos, -sin),
    ),
    Mistake("cos and sin are exchanged", lambda x, cos, sin: apply_rope(x, sin, cos)),
    Mistake(
        "both sin terms have a minus: that is no rotation, only the first half's term has one", same_sign_rope
    ),
    Mistake(
        "the result is float32; it must have x's dtype", lambda x, cos, sin: apply_rope(x.float(), cos, sin)
    ),
)

# --- 2.3 to 2.6 attention -----------------------------------------------------------------------------


def attention_case(
    name: str, q_len: int, kv_len: int, heads: int, kv_heads: int, window: int | None = None
) -> Case:
    """Attention of the last `q_len` of `kv_len` tokens over random heads."""

    def run(attend: Callable[..., Tensor]) -> Tensor:
        q = 2 * random_tensor(2, q_len, heads, 8)
        k, v = 2 * random_tensor(3, kv_len, kv_heads, 8), random_tensor(4, kv_len, kv_heads, 8)
        return attend(q, k, v, 8**-0.5, window)

    return Case(
        f"{name}: q_len {q_len}, kv_len {kv_len}, {heads} heads over {kv_heads}, window {window}", run
    )


def softmax_rows(scores: Tensor, hidden: Tensor) -> Tensor:
    """The weights of visible keys."""
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)


def attention_with(
    scale_by: Callable[[float], float] = lambda scale: scale,
    align: Callable[[int, int], int] = lambda q_len, kv_len: kv_len - q_len,
    kv_head: Callable[[int, int, int], int] = lambda head, heads, kv_heads: head // (heads // kv_heads),
    window_by: Callable[[int | None], int | None] = lambda window: window,
    weigh: Callable[[Tensor, Tensor], Tensor] = softmax_rows,
) -> Callable[..., Tensor]:
    """Attention one head at a time, with one idea at a time exchanged for a mistaken one."""

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        (q_len, heads, _), (kv_len, kv_heads, _) = q.shape, k.shape
        row = torch.arange(q_len)[:, None] + align(q_len, kv_len)
        col = torch.arange(kv_len)
        seen = window_by(window)
        hidden = (col > row) if seen is None else (col > row) | (col <= row - seen)
        rows = []
        for head in range(heads):
            source = kv_head(head, heads, kv_heads)
            scores = q[:, head] @ k[:, source].T * scale_by(scale)
            rows.append(weigh(scores, hidden) @ v[:, source])
        return torch.stack(rows, dim=1)

    return attend


MASK_MISTAKES = (
    Mistake(
        "mask is aligned top-left; the cache needs bottom-right: row r is token r + kv_len - q_len",
        attention_with(align=lambda q_len, kv_len: 0),
    ),
    Mistake(
        "there is no causal mask: rows see keys that come after them",
        attention_with(align=lambda q_len, kv_len: kv_len),
    ),
    Mistake(
        "a row does not see its own key: hide col > row, not col >= row",
        attention_with(align=lambda q_len, kv_len: kv_len - q_len - 1),
    ),
    Mistake(
        "a row sees one key too many: its own is the last one",
        attention_with(align=lambda q_len, kv_len: kv_len - q_len + 1),
    ),
)
SCORE_MISTAKES = (
    Mistake(
        "softmax without scale: multiply the scores by `scale`", attention_with(scale_by=lambda scale: 1.0)
    ),
    Mistake("the scale is applied twice", attention_with(scale_by=lambda scale: scale * scale)),
    Mistake(
        "the scores are divided by `scale`; it is a factor (head_dim ** -0.5)",
        attention_with(scale_by=lambda scale: 1 / scale),
    ),
    Mistake(
        "hidden keys get weight 0 after the softmax, so rows no longer add up to 1: mask the scores",
        attention_with(weigh=lambda scores, hidden: scores.softmax(-1).masked_fill(hidden, 0.0)),
    ),
    Mistake(
        "hidden scores are set to 0 before the softmax, which still gives them weight exp(0): use -inf",
        attention_with(weigh=lambda scores, hidden: scores.masked_fill(hidden, 0.0).softmax(-1)),
    ),
    Mistake(
        "the softmax runs over the queries; it must run over the keys (the last dimension of the scores)",
        attention_with(weigh=lambda scores, hidden: scores.masked_fill(hidden, -1e9).softmax(0)),
    ),
)
HEAD_MISTAKES = (
    Mistake(
        "heads are tiled (h % kv) instead of grouped (h // group): heads 0, 1, 2 share kv head 0",
        attention_with(kv_head=lambda head, heads, kv_heads: head % kv_heads),
    ),
    Mistake("every head reads kv head 0", attention_with(kv_head=lambda head, heads, kv_heads: 0)),
)
WINDOW_MISTAKES = (
    Mistake("the window is ignored", attention_with(window_by=lambda window: None)),
    Mistake(
        "the window is one key too wide: it counts the token itself",
        attention_with(window_by=lambda window: None if window is None else window + 1),
    ),
    Mistake(
        "the window is one key too narrow: hide col <= row - window, not col <= row - window + 1",
        attention_with(window_by=lambda window: None if window is None else window - 1),
    ),
)

# --- 2.7 the engine -----------------------------------------------------------------------------------


def engine_case(window: int | None) -> Case:
    """Logits of a prompt read in chunks through the paged cache, with the file's parts."""

    def run(parts: Any) -> Tensor:
        llm = tiny_llm(
            window,
            parts={
                "rope": parts.apply_rope,
                "attention": partial(attend_pages, parts.grouped_query_attention),
            },
        )
        return llm.logits([(7 * i) % 90 for i in range(23)])

    return Case("logits of 23 tokens in chunks of 5" + (f", window {window}" if window else ""), run)


LAB = Lab(
    2,
    "attention",
    "RoPE and grouped-query attention",
    (
        Task("2.1", "the angles", 10, FREQUENCIES, FREQUENCY_CASES, FREQUENCY_MISTAKES),
        Task("2.2", "rotate halves", 25, ROPE, ROPE_CASES, ROPE_MISTAKES),
        Task(
            "2.3",
            "scores, scale, causal mask",
            20,
            ATTENTION,
            (attention_case("one head, whole prompt", 5, 5, 1, 1), attention_case("three heads", 4, 4, 3, 3)),
            SCORE_MISTAKES + MASK_MISTAKES[1:],  # top-left and bottom-right are one while q_len = kv_len
        ),
        Task(
            "2.4",
            "keys from the cache before the new rows",
            10,
            ATTENTION,
            (attention_case("a chunk", 3, 9, 2, 2), attention_case("decode", 1, 6, 2, 2)),
            MASK_MISTAKES + SCORE_MISTAKES,
        ),
        Task(
            "2.5",
            "several query heads for one kv head",
            15,
            ATTENTION,
            (attention_case("groups of 3", 4, 6, 6, 2), attention_case("one kv head", 2, 3, 4, 1)),
            HEAD_MISTAKES + SCORE_MISTAKES + MASK_MISTAKES,
        ),
        Task(
            "2.6",
            "sliding window",
            10,
            ATTENTION,
            (attention_case("prefill", 7, 7, 4, 2, 3), attention_case("decode", 1, 9, 4, 2, 4)),
            WINDOW_MISTAKES + HEAD_MISTAKES + SCORE_MISTAKES + MASK_MISTAKES,
        ),
        Task(
            "2.7",
            "your rope and attention in the running engine",
            10,
            None,
            (engine_case(None), engine_case(6)),
        ),
    ),
)
