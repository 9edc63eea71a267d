"""Tasks 2.3 to 2.6, grouped-query attention: known mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minillm.labs.grader.lab import Mistake
from minillm.labs.lab2_attention.attention_cases import Attend
from minillm.ops.reference import grouped_query_attention


def softmax_rows(scores: Tensor, hidden: Tensor) -> Tensor:
    """The weights of visible keys."""
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)


def bare_softmax(scores: Tensor, hidden: Tensor) -> Tensor:
    """A softmax that does not subtract the maximum."""
    weights = scores.masked_fill(hidden, float("-inf")).exp()
    return weights / weights.sum(-1, keepdim=True)


def attention_with(
    scale_by: Callable[[float], float] = lambda scale: scale,
    align: Callable[[int, int], int] = lambda q_len, kv_len: kv_len - q_len,
    kv_head: Callable[[int, int, int], int] = lambda head, heads, kv_heads: head // (heads // kv_heads),
    window_by: Callable[[int | None], int | None] = lambda window: window,
    weigh: Callable[[Tensor, Tensor], Tensor] = softmax_rows,
    is_relative: bool = True,
    is_causal: bool = True,
) -> Attend:
    """Attention, computed head by head; each argument replaces one step, to make a known mistake."""

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        (q_len, heads, _), (kv_len, kv_heads, _) = q.shape, k.shape
        row = torch.arange(q_len)[:, None] + align(q_len, kv_len)
        col = torch.arange(kv_len)
        seen = window_by(window)
        oldest = row if is_relative else torch.arange(q_len)[:, None]
        hidden = (col > row) & is_causal
        if seen is not None:
            hidden |= col <= oldest - seen
        rows = []
        for head in range(heads):
            source = kv_head(head, heads, kv_heads)
            scores = q[:, head].float() @ k[:, source].float().T * scale_by(scale)
            rows.append(weigh(scores, hidden) @ v[:, source].float())
        return torch.stack(rows, dim=1).to(q.dtype)

    return attend


def in_place(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """The result is correct, but q is scaled in place."""
    q *= scale
    return grouped_query_attention(q, k, v, 1.0, window)


def row_by_row(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """One row after the other."""
    first = len(k) - len(q)
    return torch.cat(
        [
            grouped_query_attention(q[i : i + 1], k[: first + i + 1], v[: first + i + 1], scale, window)
            for i in range(len(q))
        ]
    )


def full_mask(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Builds the mask of all tokens, and uses its last rows."""
    torch.ones(len(k), len(k)).tril()
    return grouped_query_attention(q, k, v, scale, window)


def with_copies(attend: Attend) -> Attend:
    """The same result, but k and v are copied for each query head."""

    def copying(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        for x in (k, v):
            x.repeat_interleave(q.shape[1] // k.shape[1], 1)
        return attend(q, k, v, scale, window)

    return copying


def in_float32(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """The result stays float32."""
    return grouped_query_attention(q.float(), k, v, scale, window)


NO_MASK = Mistake(
    "there is no causal mask: rows see keys that come after them",
    attention_with(is_causal=False),
)
TOP_LEFT = Mistake(
    "mask is aligned top-left; the cache needs bottom-right: row r is token r + kv_len - q_len",
    attention_with(align=lambda q_len, kv_len: 0),
)
NOT_ITSELF = Mistake(
    "a row does not see its own key: hide keys with col > row, not col >= row",
    attention_with(align=lambda q_len, kv_len: kv_len - q_len - 1),
)
ONE_MORE = Mistake(
    "a row sees one key too many: the last key that it sees is its own",
    attention_with(align=lambda q_len, kv_len: kv_len - q_len + 1),
)
MASK_MISTAKES = (TOP_LEFT, NO_MASK, NOT_ITSELF, ONE_MORE)
CHANGED_Q = Mistake("the argument `q` is changed (`q *= scale`): work on a copy", in_place)
BY_ROW = Mistake("the rows, or the keys, are computed one by one: compute all of them at once", row_by_row)
FULL_MASK = Mistake(
    "a mask of kv_len x kv_len is built: only the q_len last rows are needed, and decode has one", full_mask
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
    CHANGED_Q,
)
PROMPT_MISTAKES = (
    Mistake(
        "large scores overflow: subtract the maximum of a row, as `softmax` does",
        attention_with(weigh=bare_softmax),
    ),
    Mistake("the result is float32: it must have q's dtype", in_float32),
    BY_ROW,
)
FIRST_HEAD = Mistake("every head reads kv head 0", attention_with(kv_head=lambda head, heads, kv_heads: 0))
HEAD_MISTAKES = (
    Mistake(
        "heads are tiled (h % kv) instead of grouped (h // group): heads 0, 1, 2 share kv head 0",
        attention_with(kv_head=lambda head, heads, kv_heads: head % kv_heads),
    ),
    FIRST_HEAD,
    Mistake(
        "the kv heads are used in reverse order",
        attention_with(kv_head=lambda head, heads, kv_heads: kv_heads - 1 - head // (heads // kv_heads)),
    ),
)
COPIES = "k and v are copied for each query head: group the query heads, and read each kv head once"
# Both at once is common: copies are the usual way to write this.
GROUP_MISTAKES = (
    Mistake(COPIES, with_copies(grouped_query_attention)),
    *HEAD_MISTAKES,
    *(Mistake(f"{m.diagnosis}. Also, {COPIES}", with_copies(m.wrong)) for m in HEAD_MISTAKES),
    *(Mistake(f"{m.diagnosis}. Also, {COPIES}", with_copies(m.wrong)) for m in SCORE_MISTAKES),
    *(Mistake(f"{m.diagnosis}. Also, {COPIES}", with_copies(m.wrong)) for m in MASK_MISTAKES),
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
    Mistake(
        "the window counts from the row number in the chunk: count from the token's position",
        attention_with(is_relative=False),
    ),
)
