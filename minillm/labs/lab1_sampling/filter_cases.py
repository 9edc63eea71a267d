"""Task 1.3, the chain of filters (temperature, top-k and top-p, min-p): cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.grader.tiny_model import random_tensor
from minillm.labs.lab1_sampling.costs import few_ops, little_memory, sorts
from minillm.ops.sampling import NEG_INF, Filters, filter_logits, keep_top

Filter = Callable[[Tensor, Any], Tensor]
ROW = (2.0, 1.0, -1.0, 0.0, 1.5, -20.0)
VOCAB = 2000


def filter_case(row: Sequence[float] = ROW, **params: Any) -> Case:
    """The log-softmax of filter_logits (an implementation may add a constant to all logits), and the row."""

    def run(filter_: Filter) -> list[Tensor]:
        logits = torch.tensor(row)
        return [filter_(logits, SamplingParams(**params)).log_softmax(-1), logits]

    text = ", ".join(f"{name} {value:g}" for name, value in params.items())
    return Case(f"log-softmax of the result, {text}", run)


def cold_case(filter_: Filter) -> Tensor:
    """Probabilities at a temperature so near 0 that only the maximum is above 0; large logits overflow."""
    return filter_(torch.tensor([200.0, 100.0, -300.0]), SamplingParams(temperature=1e-37)).softmax(-1)


def in_turns(filter_: Filter) -> list[Tensor]:
    """Two rows with their own parameters in turns; earlier results must stay as they were."""
    rows = [torch.tensor(ROW), torch.tensor(ROW[::-1])]
    both = [SamplingParams(temperature=0.5, top_k=3), SamplingParams(temperature=2.0, min_p=0.2, top_k=5)]
    out = [filter_(rows[i], both[j]) for i, j in ((0, 0), (1, 1), (0, 1), (1, 0), (0, 0))]
    out += [filter_(torch.tensor(ROW) * i, SamplingParams(temperature=i, top_k=i)) for i in (1, 2, 3)]
    return [x.log_softmax(-1) for x in out]


def cost_case(**params: Any) -> Case:
    """Sorts, operations and memory for a large row."""

    def run(filter_: Filter) -> list[Words]:
        row = 3 * random_tensor(4, VOCAB)
        with counted_work() as work:
            filter_(row, SamplingParams(**params))
        words = few_ops(work, 200, f"for {VOCAB:,} ids")
        return [sorts(work), words, little_memory(work, 8 * VOCAB, 100, "a row in float64")]

    return Case(f"work for {VOCAB:,} ids, {params}", run, "cost")


def more_filters(random: Random) -> Iterable[Case]:
    """Random rows and parameters."""
    for _ in range(4):
        yield filter_case(
            [round(random.uniform(-3, 3), 2) for _ in range(random.randint(5, 20))],
            temperature=round(random.uniform(0.2, 3), 2),
            top_k=random.choice([0, 0, 2, 4]),
            top_p=random.choice([1.0, round(random.uniform(0.1, 0.95), 3)]),
            min_p=random.choice([0.0, round(random.uniform(0.02, 0.6), 3)]),
        )


# --- known mistakes -----------------------------------------------------------------------------------


def keep(scaled: Tensor, params: Filters) -> Tensor:
    """Top-k and top-p."""
    return keep_top(scaled, params.top_k, params.top_p)


def divide(logits: Tensor, params: Filters) -> Tensor:
    """The temperature."""
    return logits / params.temperature


def least(logits: Tensor, params: Filters) -> Tensor:
    """Which ids min-p keeps."""
    probs = logits.softmax(-1)
    return probs >= params.min_p * probs.max() * (1 - 1e-6)


def with_min_p(kept: Callable[[Tensor, Filters], Tensor] = least) -> Filter:
    """Min-p with another rule."""
    return lambda x, params: torch.where(kept(x, params), x, NEG_INF) if params.min_p > 0 else x


def chain(*steps: Filter) -> Filter:
    """One step after the other."""

    def run(logits: Tensor, params: Filters) -> Tensor:
        for step in steps:
            logits = step(logits, params)
        return logits

    return run


def keep_twice(scaled: Tensor, params: Filters) -> Tensor:
    """Calls keep_top for each filter, so the row is sorted for each of them."""
    kept = keep_top(scaled, params.top_k, 1.0) if params.top_k else scaled
    return keep_top(kept, 0, params.top_p) if params.top_p < 1 else kept


def top_p_then_top_k(scaled: Tensor, params: Filters) -> Tensor:
    """The two filters in the wrong order."""
    kept = keep_top(scaled, 0, params.top_p) if params.top_p < 1 else scaled
    return keep_top(kept, params.top_k, 1.0) if params.top_k else kept


def multiply(logits: Tensor, params: Filters) -> Tensor:
    """The temperature, upside down."""
    return logits * params.temperature


STEPS: tuple[tuple[str, tuple[Filter, ...]], ...] = (
    (
        "temperature is applied after top-p: it must come first, because it changes the probabilities",
        (keep, with_min_p(), divide),
    ),
    (
        "temperature is applied after top-p and before min-p: it must come first",
        (keep, divide, with_min_p()),
    ),
    ("the logits are multiplied by the temperature; divide", (multiply, keep, with_min_p())),
    ("the temperature is missing", (keep, with_min_p())),
    (
        "the probability is compared with min_p: compare it with min_p times the largest probability",
        (divide, keep, with_min_p(lambda x, params: x.softmax(-1) >= params.min_p)),
    ),
    (
        "the scaled logit is compared with min_p: compare probabilities",
        (divide, keep, with_min_p(lambda x, params: x >= params.min_p)),
    ),
    (
        "an id with exactly min_p times the largest probability is dropped: keep it",
        (divide, keep, with_min_p(lambda x, params: x - x.max() > torch.tensor(params.min_p).log())),
    ),
    ("min-p is missing", (divide, keep)),
    ("top-k and top-p are missing", (divide, with_min_p())),
    ("top-k is missing", (divide, lambda x, params: keep_top(x, 0, params.top_p), with_min_p())),
    ("top-p is missing", (divide, lambda x, params: keep_top(x, params.top_k, 1.0), with_min_p())),
    ("top-p comes before top-k: call keep_top once, with both", (divide, top_p_then_top_k, with_min_p())),
    (
        "the row is sorted more than once: one call of keep_top, for both filters, is enough",
        (divide, keep_twice, with_min_p()),
    ),
)
OVERFLOW = "the maximum is not subtracted: at a tiny temperature the logits overflow to inf"


def less_maximum(logits: Tensor, params: Filters) -> Tensor:
    """The largest logit becomes 0."""
    return logits - logits.max()


def mistakes() -> Iterator[Mistake]:
    """Each wrong chain, with and without the maximum subtracted first."""
    for diagnosis, steps in STEPS:
        yield Mistake(diagnosis, chain(less_maximum, *steps))
        if divide in steps:  # without a division nothing overflows
            yield Mistake(f"{diagnosis}. Also, {OVERFLOW}", chain(*steps))
    yield Mistake(OVERFLOW, chain(divide, keep, with_min_p()))
    yield Mistake(
        "the argument `logits` is changed: work on a copy",
        lambda x, params: x.sub_(x.max()).copy_(filter_logits(x, params)),
    )
    yield Mistake(
        "the argument `logits` is changed by an operation in place (`-=`, `/=`): work on a copy",
        lambda x, params: filter_logits(x.sub_(x.max()).div_(params.temperature), at_one(params)),
    )
    yield Mistake(
        "the maximum is subtracted from the argument in place (`-=`): work on a copy",
        lambda x, params: filter_logits(x.sub_(x.max()), params),
    )


def at_one(params: Any) -> SamplingParams:
    """The same filters without a temperature."""
    return SamplingParams(temperature=1.0, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)


FILTER_CASES = (
    filter_case(temperature=0.5),
    filter_case(temperature=2.0, top_p=0.7),
    filter_case(temperature=0.7, top_k=4, top_p=0.9),
    filter_case(temperature=1.0, top_k=3, top_p=0.8),
    filter_case(temperature=1.0, min_p=0.3),
    filter_case(temperature=2.0, min_p=0.4),
    filter_case(temperature=3.0, min_p=0.5, top_k=3),
    filter_case(temperature=1.5, min_p=1.0),
    filter_case([0.0, 0.0, 5.0, NEG_INF, 5.0], temperature=100.0, top_k=4, top_p=0.9),
    filter_case([0.002, 0.001, 0.0, -0.003], temperature=0.001, top_p=0.9),
    Case("softmax of the result, temperature 1e-37", cold_case),
    Case("rows and parameters in turns", in_turns, "aliasing"),
    cost_case(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01),
)
FILTER_MISTAKES = tuple(mistakes())
