"""Task 1.3, the chain of filters (temperature, top-k and top-p, min-p): cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.grader.lab import Case, Mistake
from minillm.ops.sampling import NEG_INF, filter_logits

Filter = Callable[[Tensor, SamplingParams], Tensor]


def filter_case(**params: Any) -> Case:
    """The log-softmax of filter_logits: an implementation may add a constant to all logits."""
    logits = [2.0, 1.0, -1.0, 0.0, 1.5, -20.0]
    text = ", ".join(f"{name} {value:g}" for name, value in params.items())
    return Case(
        f"log-softmax of the result, {text}",
        lambda filter_: filter_(torch.tensor(logits), SamplingParams(**params)).log_softmax(-1),
    )


def cold_case(filter_: Filter) -> Tensor:
    """Probabilities at a temperature so near 0 that only the maximum is above 0; large logits overflow."""
    return filter_(torch.tensor([200.0, 100.0, -300.0]), SamplingParams(temperature=1e-37)).softmax(-1)


def scaled_after(logits: Tensor, params: SamplingParams) -> Tensor:
    """Filters at temperature 1, then divides by the temperature."""
    return filter_logits(logits, replace(params, temperature=1.0)) / params.temperature


def min_p_with(keeps: Callable[[Tensor, float], Tensor]) -> Filter:
    """filter_logits with another rule for min-p: keeps(probabilities, min_p)."""

    def apply(logits: Tensor, params: SamplingParams) -> Tensor:
        scaled = filter_logits(logits, replace(params, min_p=0.0))
        kept = keeps(scaled.softmax(-1), params.min_p) if params.min_p else scaled == scaled
        return torch.where(kept, scaled, NEG_INF)

    return apply


def without_maximum(logits: Tensor, params: SamplingParams) -> Tensor:
    """Divides by the temperature without subtracting the maximum."""
    kept = filter_logits(logits, params) > NEG_INF
    return torch.where(kept, logits / params.temperature, NEG_INF)


FILTER_CASES = (
    filter_case(temperature=0.5),
    filter_case(temperature=2.0, top_p=0.7),
    filter_case(temperature=0.7, top_k=4, top_p=0.9),
    filter_case(temperature=1.0, min_p=0.3),
    filter_case(temperature=2.0, min_p=0.4),
    Case("softmax of the result, temperature 1e-37", cold_case),
)
FILTER_MISTAKES = (
    Mistake(
        "temperature is applied after top-p: it must come first, because it changes the probabilities",
        scaled_after,
    ),
    Mistake(
        "the logits are multiplied by the temperature; divide",
        lambda x, params: filter_logits(x, replace(params, temperature=1 / params.temperature)),
    ),
    Mistake(
        "the probability is compared with min_p: compare it with min_p times the largest probability",
        min_p_with(lambda probs, min_p: probs >= min_p),
    ),
    Mistake("min-p is missing", min_p_with(lambda probs, min_p: probs > 0)),
    Mistake(
        "top-k and top-p are missing",
        lambda x, params: filter_logits(x, replace(params, top_k=0, top_p=1.0)),
    ),
    Mistake(
        "the maximum is not subtracted: at a tiny temperature the logits overflow to inf",
        without_maximum,
    ),
)
