"""Task 9.3, accept or replace: cases and known mistakes of `verify_draft`.

The small cases have four tokens and powers of two, so that you can compute them on paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Mistake
from minillm.ops.verification import draw_leftover

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
        draft = torch.tensor([a.draft for a in asked])
        q = None if is_point else torch.tensor([a.q for a in asked])
        p = torch.tensor([a.p for a in asked])
        return list(verify(draft, q, p, torch.tensor([a.uniforms for a in asked], dtype=torch.float64)))

    return Case(name, run)


ACCEPT_CASES = (
    accept_case("both are accepted", Asked([1, 2], [EVEN, EVEN], [LOW, LOW, HIGH], [0.5, 0.5, 0.25])),
    accept_case("the first is rejected", Asked([0, 2], [LOW, EVEN], [HIGH, EVEN, EVEN], [0.5, 0.125, 0.75])),
    accept_case("the second is rejected", Asked([1, 0], [EVEN, LOW], [LOW, HIGH, EVEN], [0.5, 0.25, 0.75])),
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
)


@dataclass(frozen=True)
class Accepts:
    """`verify_draft`; each field replaces one part of it."""

    stands: Callable[[Tensor, Tensor, Tensor, int], Tensor] = lambda u, p, q, token: u * q[token] < p[token]
    has_bonus: bool = True
    bonus_row: Callable[[int, int], int] = lambda stands, k: stands
    bonus_leaves: bool = False  # subtract the last q from the bonus row too
    replaces: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]] = lambda p, q: (p, q)
    column: Callable[[int, int], int] = lambda stands, k: k
    keeps: Callable[[int, bool], int] = lambda stands, is_refused: stands
    reads_padding: bool = False
    goes_on: bool = False  # after a rejected draft
    point: Callable[[int, Tensor], Tensor] = lambda token, p: torch.eye(len(p), dtype=p.dtype)[token]

    def __call__(
        self, draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        number, k = draft.shape
        tokens, accepted = torch.full((number, k + 1), -1), torch.zeros(number, dtype=torch.int64)
        for i, row in enumerate(draft.tolist()):
            emitted, refused = list[int](), None
            q = target_probs[i, 0].double()
            for at, token in enumerate(row):
                if token < 0 and not self.reads_padding:
                    break
                p = target_probs[i, at].double()
                q = self.point(token, p) if draft_probs is None else draft_probs[i, at].double()
                if bool(self.stands(uniforms[i, at], p, q, token)):
                    emitted.append(token)
                elif not self.goes_on:
                    refused = q
                    break
            count = len(emitted)
            if refused is not None:
                p, left = self.replaces(target_probs[i, count].double(), refused)
                emitted.append(draw_leftover(p, left, uniforms[i, self.column(count, k)]))
            elif self.has_bonus:
                p = target_probs[i, self.bonus_row(count, k)].double()
                left = q if self.bonus_leaves else None
                emitted.append(draw_leftover(p, left, uniforms[i, self.column(count, k)]))
            tokens[i, : len(emitted)] = torch.tensor(emitted, dtype=torch.int64)
            accepted[i] = self.keeps(count, refused is not None)
        return tokens, accepted


ACCEPT_MISTAKES = (
    Mistake(
        "accepted with `<=`, so a token of probability 0 can be emitted: accept if u * q < p",
        Accepts(lambda u, p, q, token: u * q[token] <= p[token]),
    ),
    Mistake(
        "p and q are exchanged: accept if u * q < p", Accepts(lambda u, p, q, token: u * p[token] < q[token])
    ),
    Mistake(
        "q is ignored: a token that is likelier under p than under q is always accepted, use u * q < p",
        Accepts(lambda u, p, q, token: u < p[token]),
    ),
    Mistake(
        "accepted only if p is at least q: other tokens are accepted with probability p / q",
        Accepts(lambda u, p, q, token: q[token] <= p[token]),
    ),
    Mistake(
        "every draft is accepted: the answer is the draft's", Accepts(lambda u, p, q, token: p.sum() > 0)
    ),
    Mistake(
        "accepted if the draft is the target's likeliest token: that is greedy, not sampling",
        Accepts(lambda u, p, q, token: p.argmax() == token),
    ),
    Mistake(
        "no bonus token: if all drafts are accepted, draw from the row after them too",
        Accepts(has_bonus=False),
    ),
    Mistake(
        "the bonus token is drawn from the last draft's row: draw it from the next row",
        Accepts(bonus_row=lambda stands, k: max(stands - 1, 0)),
    ),
    Mistake(
        "the bonus token is drawn from row k: for a draft of n < k tokens, draw from row n",
        Accepts(bonus_row=lambda stands, k: k),
    ),
    Mistake(
        "the bonus token is drawn from max(p - q, 0): no draft was rejected, draw from p",
        Accepts(bonus_leaves=True),
    ),
    Mistake(
        "a rejected token is replaced by a draw from q: draw from max(p - q, 0)",
        Accepts(replaces=lambda p, q: (q, None)),
    ),
    Mistake(
        "a rejected token is replaced by a draw from p: draw from max(p - q, 0), otherwise tokens that are "
        "likely under q come too often",
        Accepts(replaces=lambda p, q: (p, None)),
    ),
    Mistake(
        "the uniform of the rejection is used again: use the last column for the replacement",
        Accepts(column=lambda stands, k: stands),
    ),
    Mistake(
        "`accepted` counts the last token, which was not drafted",
        Accepts(keeps=lambda stands, is_refused: stands + 1),
    ),
    Mistake(
        "`accepted` counts the rejected draft",
        Accepts(keeps=lambda stands, is_refused: stands + is_refused),
    ),
    Mistake(
        "drafts after a rejected one are accepted: their rows were computed with the rejected token",
        Accepts(goes_on=True),
    ),
    Mistake("padding is read as a token: -1 ends a request's draft", Accepts(reads_padding=True)),
    Mistake(
        "without draft_probs, q is 1 at the drafted token and 0 elsewhere",
        Accepts(point=lambda token, p: torch.full_like(p, 1 / len(p))),
    ),
)
