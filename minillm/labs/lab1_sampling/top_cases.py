"""Task 1.2, top-k and then top-p: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

import torch
from torch import Tensor

from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.grader.tiny_model import random_tensor
from minillm.labs.lab1_sampling.costs import few_ops, little_memory, sorts
from minillm.ops.sampling import NEG_INF, keep_top

Keep = Callable[[Tensor, int, float], Tensor]
VOCAB = 2000


def top_case(name: str, logits: Sequence[float], top_k: int, top_p: float) -> Case:
    """keep_top of `logits`, which may not change."""

    def run(keep: Keep) -> list[Tensor]:
        row = torch.tensor(logits)
        return [keep(row, top_k, top_p), row]

    return Case(f"{name}: top_k {top_k}, top_p {top_p:g}", run)


def in_turns(keep: Keep) -> list[Tensor]:
    """Rows of one size in turns, two of them equal; earlier results must stay as they were."""
    uses = ((1, 3, 1.0), (2, 0, 0.6), (3, 3, 0.5), (1, 5, 1.0), (4, 3, 1.0), (5, 3, 1.0))
    return [keep(random_tensor(seed, 8), top_k, top_p) for seed, top_k, top_p in uses]


def cost_case(top_k: int, top_p: float) -> Case:
    """Sorts, operations and memory for a large row."""

    def run(keep: Keep) -> list[Words]:
        row = 3 * random_tensor(4, VOCAB)
        with counted_work() as work:
            keep(row, top_k, top_p)
        words = few_ops(work, 200, f"for {VOCAB:,} ids")
        return [sorts(work), words, little_memory(work, 8 * VOCAB, 100, "a row in float64")]

    return Case(f"work for {VOCAB:,} ids, top_k {top_k}, top_p {top_p:g}", run, "cost")


def more_tops(random: Random) -> Iterable[Case]:
    """Random rows with equal logits."""
    for _ in range(4):
        row = [round(random.uniform(-2, 2), 1) for _ in range(random.randint(4, 30))]
        top_k, top_p = random.choice([0, 1, 2, 3, 50]), random.choice([1.0, random.uniform(0.05, 0.98)])
        yield top_case(f"{len(row)} random logits", row, top_k, round(top_p, 4))


def cut(ordered: Tensor, top_k: int) -> None:
    """Top-k of a row in descending order."""
    if top_k:
        ordered[top_k:] = NEG_INF


def crossed(total: Tensor, probs: Tensor, top_p: float) -> Tensor:
    """The ids before which the sum of probabilities has already reached `top_p`."""
    return (total - probs >= top_p) if top_p < 1 else probs < 0


def keep_with(
    cut: Callable[[Tensor, int], None] = cut,
    drops: Callable[[Tensor, Tensor, float], Tensor] = crossed,
    ties: Callable[[Tensor], Tensor] = lambda logits: logits.sort(descending=True, stable=True).indices,
    returns: Callable[[Tensor, Tensor], Tensor] = lambda row, ids: torch.empty_like(row).scatter_(
        0, ids, row
    ),
    is_cut_first: bool = True,
) -> Keep:
    """keep_top with another step, to make a known mistake.

    `drops(sum including the id, its probability, top_p)` says which ids top-p drops.
    """

    def keep(logits: Tensor, top_k: int, top_p: float) -> Tensor:
        ids = ties(logits)
        row = logits[ids]
        if is_cut_first:
            cut(row, top_k)
        probs = row.double().softmax(-1)
        row[drops(probs.cumsum(-1), probs, top_p)] = NEG_INF
        if not is_cut_first:
            cut(row, top_k)
        return returns(row, ids)

    return keep


def highest_first(logits: Tensor) -> Tensor:
    """Ids in descending order of logits; of equal logits the highest id is first."""
    return logits.sort(stable=True).indices.flip(0)


def cut_without_ties(ordered: Tensor, top_k: int) -> None:
    """Keeps all ids that are equal to the k-th."""
    if 0 < top_k < len(ordered):
        ordered[ordered < ordered[top_k - 1].clone()] = NEG_INF


def cut_always(ordered: Tensor, top_k: int) -> None:
    """top_k 0 keeps nothing."""
    ordered[top_k:] = NEG_INF


def cut_one_more(ordered: Tensor, top_k: int) -> None:
    """Keeps k + 1 ids."""
    cut(ordered, top_k + 1 if top_k else 0)


def sort_twice(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Each filter sorts the row. The result is correct."""
    kept = keep_top(logits, top_k, 1.0)
    return keep_top(kept, 0, top_p) if top_p < 1 else kept


def top_p_then_top_k(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Top-p of the whole distribution and then top-k, each with its own sort."""
    kept = keep_top(logits, 0, top_p) if top_p < 1 else logits
    return keep_top(kept, top_k, 1.0) if top_k or kept is logits else kept


def keep_in_place(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The result is correct, but it is written into the argument."""
    return logits.copy_(keep_top(logits, top_k, top_p))


HALVES = [0.0, -0.7, -1.4, -2.1, -2.8]  # probabilities near 1/2, 1/4, 1/8 ...
TOP_CASES = (
    top_case("only top-k", [1.0, 3.0, 2.0, 0.0, 2.5], 3, 1.0),
    top_case("only top-p", [-1.4, 0.0, -2.1, -0.7, -2.8], 0, 0.6),
    top_case("both", HALVES, 3, 0.85),
    top_case("ties", [1.0, 2.0, 2.0, 2.0, 0.0], 2, 1.0),
    top_case("four equal logits", [0.5, 0.5, 0.5, 0.5], 0, 0.5),
    top_case("a tiny nucleus", HALVES, 0, 0.01),
    top_case("nothing to drop", HALVES, 0, 1.0),
    top_case("nothing to drop, unlikely ids", [0.0, -40.0, -80.0, -1.0], 0, 1.0),
    top_case("more than there are", HALVES, 9, 1.0),
    top_case("excluded ids", [NEG_INF, 1.0, NEG_INF, 0.5, 0.0], 3, 0.7),
    Case("rows in turns", in_turns, "aliasing"),
    cost_case(50, 0.9),
)
TOP_MISTAKES = (
    Mistake(
        "top-p drops the token that crosses the threshold: that token is the last one to keep",
        keep_with(drops=lambda total, probs, top_p: total > top_p if top_p < 1 else probs < 0),
    ),
    Mistake(
        "if the sum is exactly top_p, one id too many is kept: keep the fewest ids that reach top_p",
        keep_with(drops=lambda total, probs, top_p: total - probs > top_p if top_p < 1 else probs < 0),
    ),
    Mistake("of equal logits the highest id is kept: keep the lowest", keep_with(ties=highest_first)),
    Mistake(
        "all ids equal to the k-th logit are kept: keep exactly k ids, the lowest first",
        keep_with(cut=cut_without_ties),
    ),
    Mistake("one id more than top_k is kept", keep_with(cut=cut_one_more)),
    Mistake(
        "top-p is applied to the whole distribution: apply it after top-k", keep_with(is_cut_first=False)
    ),
    Mistake(
        "top-p is applied to the whole distribution, and the row sorted twice: sort once, top-k first",
        top_p_then_top_k,
    ),
    Mistake(
        "the result is in sorted order: each logit must go back to its own id",
        keep_with(returns=lambda row, ids: row),
    ),
    Mistake(
        "the sort is undone with `row[ids]`: the value at place i of the sorted row belongs at id ids[i]",
        keep_with(returns=lambda row, ids: row[ids]),
    ),
    Mistake("top_k 0 drops everything; it means off", keep_with(cut=cut_always)),
    Mistake(
        "top_p 1 drops ids: it means off. In floating point the sum reaches 1 before the last id",
        keep_with(drops=lambda total, probs, top_p: total - probs >= top_p),
    ),
    Mistake(
        "ids with a probability below top_p are dropped: sum probabilities, beginning with the largest",
        keep_with(drops=lambda total, probs, top_p: probs < top_p if top_p < 1 else probs < 0),
    ),
    Mistake(
        "the row is sorted more than once: one sort serves both filters, and `scatter` undoes it", sort_twice
    ),
    Mistake("the argument `logits` is changed: work on a copy", keep_in_place),
)
