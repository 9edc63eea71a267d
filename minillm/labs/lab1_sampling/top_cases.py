"""Task 1.2, top-k and then top-p: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Mistake
from minillm.ops.sampling import NEG_INF, keep_top


def top_case(name: str, logits: list[float], top_k: int, top_p: float) -> Case:
    """keep_top of `logits`."""
    return Case(
        f"{name}: top_k {top_k}, top_p {top_p}", lambda keep: keep(torch.tensor(logits), top_k, top_p)
    )


def nucleus(
    drops: Callable[[Tensor, Tensor, float], Tensor],
) -> Callable[[Tensor, int, float], Tensor]:
    """keep_top that drops an id if `drops(sum including the id, its probability, top_p)` is true."""

    def keep(logits: Tensor, top_k: int, top_p: float) -> Tensor:
        kept = keep_top(logits, top_k, 1.0)
        ordered, ids = kept.sort(descending=True, stable=True)
        probs = ordered.softmax(-1)
        ordered[drops(probs.cumsum(-1), probs, top_p)] = NEG_INF
        return torch.empty_like(logits).index_copy_(0, ids, ordered)

    return keep


def keep_ties_high(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Among equal logits the highest id comes first."""
    return keep_top(logits.flip(0), top_k, top_p).flip(0)


def keep_all_ties(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Top-k by comparing with the k-th logit: with ties, more than k ids are kept."""
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], NEG_INF)
    return keep_top(logits, 0, top_p)


def top_p_first(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Top-p of the whole distribution, then top-k."""
    return keep_top(keep_top(logits, 0, top_p), top_k, 1.0)


def keep_sorted(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The values are correct but at the wrong ids."""
    return keep_top(logits, top_k, top_p).sort(descending=True).values


HALVES = [0.0, -0.7, -1.4, -2.1, -2.8]  # probabilities near 1/2, 1/4, 1/8 ...
TOP_CASES = (
    top_case("only top-k", [1.0, 3.0, 2.0, 0.0, 2.5], 3, 1.0),
    top_case("only top-p", [-1.4, 0.0, -2.1, -0.7, -2.8], 0, 0.6),
    top_case("both", HALVES, 3, 0.85),
    top_case("ties", [1.0, 2.0, 2.0, 2.0, 0.0], 2, 1.0),
    top_case("a tiny nucleus", HALVES, 0, 0.01),
    top_case("nothing to drop", HALVES, 0, 1.0),
)
TOP_MISTAKES = (
    Mistake(
        "top-p drops the token that crosses the threshold: that token is the last one to keep",
        nucleus(lambda total, probs, top_p: total > top_p),
    ),
    Mistake("of equal logits the highest id is kept: keep the lowest", keep_ties_high),
    Mistake("all ids equal to the k-th logit are kept: keep exactly k ids, the lowest first", keep_all_ties),
    Mistake("top-p is applied to the whole distribution: apply it after top-k", top_p_first),
    Mistake("the result is in sorted order: each logit must go back to its own id", keep_sorted),
    Mistake(
        "top_k 0 drops everything; it means off", lambda x, k, p: keep_top(x, k, p) if k else x * 0 + NEG_INF
    ),
    Mistake(
        "ids with a probability below top_p are dropped: sum probabilities, beginning with the largest",
        nucleus(lambda total, probs, top_p: (probs < top_p) if top_p < 1 else probs < 0),
    ),
)
