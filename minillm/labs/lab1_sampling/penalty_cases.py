"""Task 1.1, the repetition penalty: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

import torch
from torch import Tensor

from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.lab1_sampling.costs import few_ops
from minillm.ops.sampling import NEG_INF, penalise_repetition

Penalise = Callable[[Tensor, Sequence[int], float], Tensor]
ROW = (2.0, -1.0, 0.5, -3.0, 0.0, 4.0)


def penalty_case(seen: Sequence[int], penalty: float, row: Sequence[float] = ROW) -> Case:
    """Penalise ids of a row; neither the row nor `seen` may change."""

    def run(penalise: Penalise) -> list[object]:
        logits, ids = torch.tensor(row), list(seen)
        return [penalise(logits, ids, penalty), logits, ids]

    shown = seen if len(seen) < 9 else f"{len(seen)} ids"
    return Case(f"seen {shown}, penalty {penalty:g}", run)


def two_rows(penalise: Penalise) -> list[Tensor]:
    """Two rows in turns. The first row's list grows between the calls, as in the engine."""
    first, second, seen = torch.tensor(ROW), torch.tensor(ROW[::-1]), [0]
    out = [penalise(first, seen, 2.0), penalise(second, [1, 5], 2.0)]
    seen.append(3)
    out += [penalise(first, seen, 2.0), penalise(second, [2], 2.0)]
    # New objects, which may lie where the earlier ones were: an address says nothing about a row.
    out += [penalise(torch.tensor(ROW) + i, [i, 5], 2.0) for i in range(4)]
    return [*out, first, second]


def few_operations(penalise: Penalise) -> Words:
    """The tensor operations for 5 seen ids of a large vocabulary."""
    logits = torch.linspace(-4, 4, 2000)
    with counted_work() as work:
        penalise(logits, [7, 1999, 30, 7, 1200], 1.2)
    return few_ops(work, 200, "for 4 seen ids of 2,000")


def more_penalties(random: Random) -> Iterable[Case]:
    """Random rows; about half of the ids have occurred, some of them several times."""
    for _ in range(3):
        row = [round(random.uniform(-4, 4), 2) for _ in range(random.randint(5, 40))]
        seen = [random.randrange(len(row)) for _ in range(random.randint(1, len(row)))]
        yield penalty_case(seen, round(random.uniform(0.5, 2.5), 2), row)


def at_seen(change: Callable[[Tensor, float, int], Tensor]) -> Penalise:
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


def penalise_all(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Every id is penalised."""
    return penalise_repetition(logits, range(len(logits)), penalty)


def loop_over_vocabulary(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Looks at every id of the vocabulary, one tensor operation each."""
    return torch.stack(
        [logit * 1.0 for logit in penalise_repetition(logits, seen, penalty)] if len(logits) else [logits]
    )


def by_sign(logit: Tensor, factor: float) -> Tensor:
    """The rule: every logit becomes smaller, whatever its sign."""
    return logit / factor if logit > 0 else logit * factor


PENALTY_CASES = (
    penalty_case([0, 1, 5], 2.0),
    penalty_case([3, 0, 0, 3, 4], 1.5),
    penalty_case([], 1.3),
    penalty_case([5, 1, 2], 0.5),
    penalty_case([2, 3], 4.0, [1.0, -2.0, NEG_INF, -2.0]),
    penalty_case([4, 0, 4, 4], 1.0),
    Case("two rows in turns, the seen ids of one grow", two_rows, "aliasing"),
    Case("tensor operations", few_operations, "cost"),
)
PENALTY_MISTAKES = (
    Mistake(
        "negative logits are divided by the penalty, which makes them likelier: multiply them",
        at_seen(lambda logit, penalty, times: logit / penalty),
    ),
    Mistake(
        "positive logits are multiplied by the penalty, which makes them likelier: divide them",
        at_seen(lambda logit, penalty, times: logit * penalty),
    ),
    Mistake(
        "positive logits are multiplied and negative ones divided: this makes seen ids likelier",
        at_seen(lambda logit, penalty, times: by_sign(logit, 1 / penalty)),
    ),
    Mistake(
        "negative logits stay as they are: multiply them, which makes them smaller",
        at_seen(lambda logit, penalty, times: logit / penalty if logit > 0 else logit),
    ),
    Mistake(
        "an id that was seen several times is penalised several times: penalise it once",
        at_seen(lambda logit, penalty, times: by_sign(logit, penalty**times)),
    ),
    Mistake(
        "the penalty is subtracted: it is a factor", at_seen(lambda logit, penalty, times: logit - penalty)
    ),
    Mistake("seen ids are excluded: only make them less likely", at_seen(lambda x, *_: x * 0 + NEG_INF)),
    Mistake("ids that have not occurred are penalised too: change only the ids in `seen`", penalise_all),
    Mistake("the argument `logits` is changed: work on a copy", penalise_in_place),
    Mistake(
        "every id of the vocabulary costs tensor operations: compute all seen ids at once",
        loop_over_vocabulary,
    ),
)
