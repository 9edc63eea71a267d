"""The filtering half of lab 1: cases and known mistakes of the penalty, top-k and top-p, and their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.lab import Case, Mistake
from minillm.ops.sampling import NEG_INF, filter_logits, keep_top, penalise_repetition

Filter = Callable[[Tensor, SamplingParams], Tensor]

# --- 1.1 repetition penalty ---------------------------------------------------------------------------


def penalty_case(seen: list[int], penalty: float) -> Case:
    """Penalise ids of a row with positive, negative and zero logits; the row itself must survive."""

    def run(penalise: Callable[..., Tensor]) -> list[Tensor]:
        logits = torch.tensor([2.0, -1.0, 0.5, -3.0, 0.0, 4.0])
        return [penalise(logits, seen, penalty), logits]

    return Case(f"seen {seen}, penalty {penalty}", run)


def at_seen(change: Callable[[Tensor, float, int], Tensor]) -> Callable[..., Tensor]:
    """A penalty that puts change(logit, penalty, times seen) at every seen id."""

    def penalise(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
        out = logits.clone()
        for token_id in set(seen):
            out[token_id] = change(logits[token_id], penalty, list(seen).count(token_id))
        return out

    return penalise


def penalise_in_place(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """The right numbers, written into the argument."""
    return logits.copy_(penalise_repetition(logits, seen, penalty))


def by_sign(logit: Tensor, factor: float) -> Tensor:
    """The rule: towards minus infinity, whatever the sign."""
    return logit / factor if logit > 0 else logit * factor


PENALTY_CASES = (penalty_case([0, 1, 5], 2.0), penalty_case([3, 0, 0, 3, 4], 1.5), penalty_case([], 1.3))
PENALTY_MISTAKES = (
    Mistake(
        "penalty applied to negative logits by dividing, which makes them likelier: multiply those",
        at_seen(lambda logit, penalty, times: logit / penalty),
    ),
    Mistake(
        "positive logits are multiplied and negative ones divided: that rewards repetition",
        at_seen(lambda logit, penalty, times: by_sign(logit, 1 / penalty)),
    ),
    Mistake(
        "an id is penalised once for each time it was seen; how often does not matter",
        at_seen(lambda logit, penalty, times: by_sign(logit, penalty**times)),
    ),
    Mistake(
        "the penalty is subtracted; it is a factor", at_seen(lambda logit, penalty, times: logit - penalty)
    ),
    Mistake("the logits given were changed; work on a copy", penalise_in_place),
)

# --- 1.2 top-k and top-p ------------------------------------------------------------------------------


def top_case(name: str, logits: list[float], top_k: int, top_p: float) -> Case:
    """keep_top of `logits`."""
    return Case(
        f"{name}: top_k {top_k}, top_p {top_p}", lambda keep: keep(torch.tensor(logits), top_k, top_p)
    )


def nucleus(
    drops: Callable[[Tensor, Tensor, float], Tensor],
) -> Callable[[Tensor, int, float], Tensor]:
    """keep_top where `drops(sum up to and with an id, its probability, top_p)` says what goes."""

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
    """Top-k by comparing with the k-th logit: ties of it stay, and more than k are kept."""
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], NEG_INF)
    return keep_top(logits, 0, top_p)


def top_p_first(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The nucleus of the whole distribution, and the top-k of that."""
    return keep_top(keep_top(logits, 0, top_p), top_k, 1.0)


def keep_sorted(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The right values in the wrong places."""
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
        "top-p drops the token that crosses the threshold; it is the last one kept",
        nucleus(lambda total, probs, top_p: total > top_p),
    ),
    Mistake("ties go to the highest id; they go to the lowest", keep_ties_high),
    Mistake("all ties of the k-th logit are kept; exactly k ids stay, the lowest first", keep_all_ties),
    Mistake("top-p is taken of the whole distribution; it is taken of what top-k has left", top_p_first),
    Mistake("the result is in sorted order; each logit must go back to its own id", keep_sorted),
    Mistake(
        "top_k 0 drops everything; it means off", lambda x, k, p: keep_top(x, k, p) if k else x * 0 + NEG_INF
    ),
    Mistake(
        "ids with a probability below top_p are dropped; top-p sums probabilities from the likeliest on",
        nucleus(lambda total, probs, top_p: (probs < top_p) if top_p < 1 else probs < 0),
    ),
)

# --- 1.3 the chain of filters -------------------------------------------------------------------------


def filter_case(**params: Any) -> Case:
    """The distribution filter_logits leaves: an amount added to all logits is the implementation's affair."""
    logits = [2.0, 1.0, -1.0, 0.0, 1.5, -20.0]
    text = ", ".join(f"{name} {value:g}" for name, value in params.items())
    return Case(
        f"log-softmax of the result, {text}",
        lambda filter_: filter_(torch.tensor(logits), SamplingParams(**params)).log_softmax(-1),
    )


def cold_case(filter_: Filter) -> Tensor:
    """Probabilities so near to temperature 0 that only the maximum has any; large logits overflow there."""
    return filter_(torch.tensor([200.0, 100.0, -300.0]), SamplingParams(temperature=1e-37)).softmax(-1)


def scaled_after(logits: Tensor, params: SamplingParams) -> Tensor:
    """Filters at temperature 1, and the temperature on what is left."""
    return filter_logits(logits, replace(params, temperature=1.0)) / params.temperature


def min_p_with(keeps: Callable[[Tensor, float], Tensor]) -> Filter:
    """filter_logits with another rule for min-p: keeps(probabilities, min_p)."""

    def apply(logits: Tensor, params: SamplingParams) -> Tensor:
        scaled = filter_logits(logits, replace(params, min_p=0.0))
        kept = keeps(scaled.softmax(-1), params.min_p) if params.min_p else scaled == scaled
        return torch.where(kept, scaled, NEG_INF)

    return apply


def without_maximum(logits: Tensor, params: SamplingParams) -> Tensor:
    """Divided by the temperature as they are."""
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
        "temperature applied after top-p: it must come first, since it changes the probabilities",
        scaled_after,
    ),
    Mistake(
        "the logits are multiplied by the temperature; divide",
        lambda x, params: filter_logits(x, replace(params, temperature=1 / params.temperature)),
    ),
    Mistake(
        "min-p is compared with the probability itself; the bar is min_p times the largest probability",
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
