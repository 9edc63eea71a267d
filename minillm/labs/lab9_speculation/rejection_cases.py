"""Task 9.3, accept or replace: cases of `verify_draft`.

The small cases have four tokens and powers of two, so that you can compute them on paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Case, Words

Verify = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
Rows = Sequence[Sequence[float]]
EVEN = [0.25, 0.25, 0.25, 0.25]
FIRST = [1.0, 0.0, 0.0, 0.0]
LOW, HIGH = [0.5, 0.25, 0.25, 0.0], [0.0, 0.25, 0.25, 0.5]


@dataclass(frozen=True)
class Asked:
    """One request: drafted tokens, the draft's distributions, the target's rows, and the uniforms."""

    draft: Sequence[int]
    q: Rows
    p: Rows
    uniforms: Sequence[float]


def accept_case(name: str, *asked: Asked, is_point: bool = False) -> Case:
    """Requests verified together: tokens and accepted counts. `is_point`: draft_probs is None."""

    def run(verify: Verify) -> list[Tensor]:
        return list(verify(*inputs(asked, is_point)))

    return Case(name, run)


def inputs(asked: Sequence[Asked], is_point: bool = False) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Draft, draft_probs, target_probs and uniforms of all requests."""
    draft, p = torch.tensor([a.draft for a in asked]), torch.tensor([a.p for a in asked])
    q = None if is_point else torch.tensor([a.q for a in asked])
    return draft, q, p, torch.tensor([a.uniforms for a in asked], dtype=torch.float64)


REJECTS = Asked([1, 0], [EVEN, LOW], [LOW, HIGH, EVEN], [0.5, 0.25, 0.75])
ACCEPTS = Asked([1, 2], [EVEN, EVEN], [LOW, LOW, HIGH], [0.5, 0.5, 0.25])


def twice_case(verify: Verify) -> list[Any]:
    """Two batches in turns: the inputs and the first result must not change."""
    one, two = inputs([REJECTS, ACCEPTS]), inputs([ACCEPTS, REJECTS])
    first = list(verify(*one))
    second = list(verify(*two))
    return [first, second, list(verify(*one)), list(one), list(two)]


def cost_case(verify: Verify) -> Words:
    """The bytes written for 2 requests of 3 drafts, with 1024 ids."""
    size = 1024
    q, p = (torch.full((2, rows, size), 1 / size) for rows in (3, 4))
    draft, uniforms = torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 4), 0.5, dtype=torch.float64)
    with counted_work() as work:
        verify(draft, q, p, uniforms)
    words = "at most" if work.bytes_written <= 60 * 4 * p.numel() else "more than"
    return Words(f"{words} 60 times as many bytes written as target_probs has")


ACCEPT_CASES = (
    accept_case("both are accepted", ACCEPTS),
    accept_case("the first is rejected", Asked([0, 2], [LOW, EVEN], [HIGH, EVEN, EVEN], [0.5, 0.125, 0.75])),
    accept_case("the second is rejected", REJECTS),
    accept_case(
        "the first is rejected, the second would be accepted",
        Asked([0, 1], [LOW, EVEN], [HIGH, LOW, EVEN], [0.5, 0.5, 0.25]),
    ),
    accept_case(
        "half as likely as drafted: uniforms below, at and above 1/2",
        *(Asked([0], [LOW], [EVEN, EVEN], [u, 0.375]) for u in (0.25, 0.5, 0.75)),
    ),
    accept_case(
        "more likely than drafted",
        *(Asked([0], [EVEN], [LOW, EVEN], [u, 0.375]) for u in (0.25, 0.75, 0.9999)),
    ),
    accept_case("probability 0 in both", Asked([3], [LOW], [LOW, EVEN], [0.5, 0.5])),
    accept_case("p equals q", Asked([1, 3], [LOW, HIGH], [LOW, HIGH, EVEN], [0.9999, 0.9999, 0.625])),
    accept_case(
        "drafts of two, one and no tokens",
        Asked([1, 2], [EVEN, EVEN], [LOW, LOW, FIRST], [0.5, 0.5, 0.625]),
        Asked([1, -1], [EVEN, EVEN], [LOW, HIGH, FIRST], [0.5, 0.5, 0.625]),
        Asked([-1, -1], [EVEN, EVEN], [HIGH, FIRST, FIRST], [0.5, 0.5, 0.625]),
    ),
    accept_case(
        "no draft_probs: a point mass",
        Asked([0, 2], [], [LOW, EVEN, HIGH], [0.25, 0.125, 0.5]),
        Asked([0, 2], [], [LOW, EVEN, HIGH], [0.25, 0.5, 0.5]),
        Asked([3, 2], [], [LOW, EVEN, HIGH], [0.25, 0.5, 0.25]),
        is_point=True,
    ),
    accept_case(
        "greedy: all probability on one id",
        Asked([0, 0], [FIRST, FIRST], [FIRST, HIGH, HIGH], [0.9, 0.1, 0.5]),
        Asked([0, 0], [FIRST, FIRST], [FIRST, FIRST, FIRST], [0.9, 0.9, 0.5]),
    ),
    accept_case("a rejection, then an acceptance, in two requests", REJECTS, ACCEPTS, REJECTS),
    accept_case(
        "each column of the uniforms decides its own draft",
        *(Asked([0, 0], [LOW, LOW], [EVEN, EVEN, EVEN], u) for u in ([0.4, 0.6, 0.9], [0.6, 0.4, 0.9])),
    ),
    Case("two batches in turns, and their inputs", twice_case, "aliasing"),
    Case("2 requests with 1024 ids", cost_case, "cost"),
)


def random_verdicts(random: Random) -> Iterable[Case]:
    """Random cases: three requests with four ids, and drafts of zero to three tokens."""

    def row() -> list[float]:
        weights = [random.choice([0, 1, 2]) * random.random() for _ in range(4)]
        weights[random.randrange(4)] += 0.2
        return [weight / sum(weights) for weight in weights]

    for number in range(3):
        asked = []
        for _ in range(3):
            count = random.randint(0, 3)
            draft = [random.randrange(4) for _ in range(count)] + [-1] * (3 - count)
            rows = [row() for _ in range(7)]
            asked.append(Asked(draft, rows[:3], rows[3:], [random.random() for _ in range(4)]))
        yield accept_case(f"random drafts {number + 1}", *asked, is_point=number == 2)
