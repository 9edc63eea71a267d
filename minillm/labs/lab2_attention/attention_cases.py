"""Tasks 2.3 to 2.6, grouped-query attention: how a case is made, and known mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.tiny_model import random_tensor


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
    """Attention, computed head by head; each argument replaces one step, to make a known mistake."""

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
        "a row does not see its own key: hide keys with col > row, not col >= row",
        attention_with(align=lambda q_len, kv_len: kv_len - q_len - 1),
    ),
    Mistake(
        "a row sees one key too many: the last key that it sees is its own",
        attention_with(align=lambda q_len, kv_len: kv_len - q_len + 1),
    ),
)
SCORE_MISTAKES = (
    Mistake(
        "softmax without scale: multiply the scores by `scale`", attention_with(scale_by=lambda scale: 1.0)
    ),
    Mistake("the scale is applied twice", attention_with(scale_by=lambda scale: scale * scale)),
    Mistake(
        "the scores are divided by `scale`: multiply by it (it is head_dim ** -0.5)",
        attention_with(scale_by=lambda scale: 1 / scale),
    ),
    Mistake(
        "hidden keys get weight 0 after the softmax, so weights no longer add up to 1: mask the scores",
        attention_with(weigh=lambda scores, hidden: scores.softmax(-1).masked_fill(hidden, 0.0)),
    ),
    Mistake(
        "hidden scores are set to 0 before the softmax, so they still have weight exp(0): use -inf",
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
        "the window is one key too wide: the token's own key counts too",
        attention_with(window_by=lambda window: None if window is None else window + 1),
    ),
    Mistake(
        "the window is one key too narrow: hide keys with col <= row - window, not row - window + 1",
        attention_with(window_by=lambda window: None if window is None else window - 1),
    ),
)
