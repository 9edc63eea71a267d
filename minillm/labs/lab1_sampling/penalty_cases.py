"""Task 1.1, the repetition penalty: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Mistake
from minillm.ops.sampling import penalise_repetition


def penalty_case(seen: list[int], penalty: float) -> Case:
    """Penalise ids of a row with positive, negative and zero logits; the argument must not change."""

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
    """The numbers are correct, but they are written into the argument."""
    return logits.copy_(penalise_repetition(logits, seen, penalty))


def by_sign(logit: Tensor, factor: float) -> Tensor:
    """The rule: every logit becomes smaller, whatever its sign."""
    return logit / factor if logit > 0 else logit * factor


PENALTY_CASES = (penalty_case([0, 1, 5], 2.0), penalty_case([3, 0, 0, 3, 4], 1.5), penalty_case([], 1.3))
PENALTY_MISTAKES = (
    Mistake(
        "negative logits are divided by the penalty, which makes them likelier: multiply them",
        at_seen(lambda logit, penalty, times: logit / penalty),
    ),
    Mistake(
        "positive logits are multiplied and negative ones divided: this makes seen ids likelier",
        at_seen(lambda logit, penalty, times: by_sign(logit, 1 / penalty)),
    ),
    Mistake(
        "an id that was seen several times is penalised several times: penalise it once",
        at_seen(lambda logit, penalty, times: by_sign(logit, penalty**times)),
    ),
    Mistake(
        "the penalty is subtracted: it is a factor", at_seen(lambda logit, penalty, times: logit - penalty)
    ),
    Mistake("the argument `logits` is changed: work on a copy", penalise_in_place),
)
