"""Task 1.4, the draw of a token: cases."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Case, Words
from minillm.labs.grader.tiny_model import random_tensor
from minillm.labs.lab1_sampling.costs import few_ops, little_memory
from minillm.ops.sampling import SamplingBatch, noise_key

Draw = Callable[[Tensor, SamplingBatch], Tensor]
GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=1.0)
MIXED = (  # the parameters and the seen ids of each row
    (WARM, ()),
    (GREEDY, ()),
    (SamplingParams(temperature=1.5, top_k=4, repetition_penalty=3.0), (1, 2, 3, 3, 8)),
    (replace(GREEDY, repetition_penalty=4.0), (0, 4, 5, 6, 7, 9)),
    (SamplingParams(temperature=0.7, top_p=0.6), ()),
    (SamplingParams(temperature=3.0, min_p=0.4, repetition_penalty=0.5), (10, 11)),
    (GREEDY, ()),
    (SamplingParams(temperature=2.0), ()),
)
Row = tuple[SamplingParams, Sequence[int]]


def batch_of(rows: Sequence[Row], ids: int, seed: int = 3) -> SamplingBatch:
    """A batch with the parameters and seen ids of `rows`; each row has its own key."""
    keys = [noise_key(seed, 0, row) for row in range(len(rows))]
    return SamplingBatch([params for params, _ in rows], keys, [list(seen) for _, seen in rows], ids)


def draw_case(
    name: str, rows: Sequence[Row], ids: int = 12, dtype: torch.dtype = torch.float32, seed: int = 3
) -> Case:
    """Draw one token for each row; return the tokens, and the logits, which must not change."""

    def run(draw: Draw) -> list[Tensor]:
        logits = random_tensor(5 + seed, len(rows), 12).round(decimals=1).to(dtype)
        seed_generators()
        return [draw(logits, batch_of(rows, ids, seed)), logits]

    return Case(name, run)


def seed_generators() -> None:
    """A sampler that uses a global generator then gives the same tokens in every check."""
    torch.manual_seed(0)
    python_random.seed(0)


def tie_case(draw: Draw) -> Tensor:
    """Greedy over two equal logits."""
    return draw(torch.tensor([[0.0, 3.0, 1.0, 3.0]]), SamplingBatch([GREEDY], [1], [()], 4))


def generator_case(draw: Draw) -> Words:
    """Whether the draw uses, or changes, a generator that the whole process shares."""
    seed_generators()
    before = torch.get_rng_state(), python_random.getstate()
    draw(random_tensor(5, 8, 12), batch_of(MIXED, 12))
    same = torch.equal(before[0], torch.get_rng_state()) and before[1] == python_random.getstate()
    return Words("no global generator is used" if same else "a global random generator is used")


def alone_case(draw: Draw) -> list[Any]:
    """Rows in a batch, in another order, and each alone: the other rows must not matter."""
    logits, batch = random_tensor(9, len(MIXED), 12), batch_of(MIXED, 11)
    orders = [list(range(8)), [5, 2, 7, 0], [6, 3], *([row] for row in range(8))]
    seed_generators()
    return [draw(logits[order], batch.rows(order)) for order in orders]


def turns_case(draw: Draw) -> list[Any]:
    """Two batches of one shape in turns, then the first again at the next position."""
    first, second = random_tensor(1, 8, 12), random_tensor(2, 8, 12)
    seed_generators()
    out = [draw(first, batch_of(MIXED, 12)), draw(second, batch_of(MIXED[::-1], 10, seed=4))]
    out += [draw(first, batch_of(MIXED, 12)), draw(first, batch_of(MIXED, 12, seed=5))]
    out += [draw(random_tensor(seed, 8, 12), batch_of(MIXED, 12, seed)) for seed in (6, 7, 8)]
    return [*out, first, second]


def cost_case(name: str, params: SamplingParams, rows: int = 4, vocab: int = 1500) -> Case:
    """Operations and memory for a large vocabulary."""

    def run(draw: Draw) -> list[Words]:
        logits, batch = random_tensor(4, rows, vocab), batch_of([(params, (1, 2))] * rows, vocab - 5)
        seed_generators()
        with counted_work() as work:
            draw(logits, batch)
        words = few_ops(work, 150 * rows, f"for {rows} rows of {vocab:,} ids")
        return [words, little_memory(work, 8 * rows * vocab, 150, "the logits in float64")]

    return Case(f"work for {rows} rows of {vocab:,} ids, {name}", run, "cost")


def more_draws(random: Random) -> Iterable[Case]:
    """Random parameters in one batch."""
    for _ in range(3):
        rows = [(random_params(random), random.sample(range(12), 4)) for _ in range(random.randint(1, 9))]
        yield draw_case("random parameters", rows, random.randint(5, 12), seed=random.randrange(1 << 30))


def random_params(random: Random) -> SamplingParams:
    """Greedy one time in four."""
    return SamplingParams(
        temperature=random.choice([0.0, 0.5, 1.0, 2.5]),
        top_k=random.choice([0, 0, 3]),
        top_p=random.choice([1.0, 0.7]),
        min_p=random.choice([0.0, 0.1]),
        repetition_penalty=random.choice([1.0, 2.0]),
    )


DRAW_CASES = (
    draw_case("greedy", [(GREEDY, ())] * 3),
    Case("greedy, a tie", tie_case),
    Case("the generators of torch and Python", generator_case, "aliasing"),
    draw_case("8 rows at temperature 1", [(WARM, ())] * 8),
    draw_case("temperature 2, top-k 3", [(SamplingParams(temperature=2.0, top_k=3), ())] * 8),
    draw_case("penalty 5 on seen ids, greedy", [(replace(GREEDY, repetition_penalty=5.0), range(6))] * 3),
    draw_case("only ids below 4 exist", [(WARM, ())] * 8, ids=4),
    draw_case("each row has its own parameters", MIXED),
    draw_case("each row has its own parameters, bfloat16", MIXED[::-1], 11, torch.bfloat16),
    Case("rows in a batch and alone", alone_case, "aliasing"),
    Case("two batches in turns", turns_case, "aliasing"),
    cost_case("greedy", GREEDY),
    cost_case(
        "with all filters", SamplingParams(temperature=1.2, top_k=40, top_p=0.9, repetition_penalty=1.1)
    ),
)
