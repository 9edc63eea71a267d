"""Known mistakes of task 9.3, `verify_draft`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.labs.grader.lab import Mistake
from minillm.ops.verification import draw_leftover, verify_draft


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
    deciding: Callable[[int], int] = lambda at: at  # column of the uniform that decides about a draft
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
                if bool(self.stands(uniforms[i, self.deciding(at)], p, q, token)):
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


@dataclass(frozen=True)
class Changed:
    """The engine's tokens of each request, changed: draft, tokens, accepted -> tokens."""

    change: Callable[[list[int], list[int], int], list[int]]

    def __call__(self, draft: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        tokens, accepted = verify_draft(draft, *rest)
        rows = [
            self.change([t for t in drafted if t >= 0], said, count)
            for drafted, said, count in zip(draft.tolist(), tokens.tolist(), accepted.tolist(), strict=True)
        ]
        return torch.tensor(rows), accepted


def likeliest(p: Tensor, q: Tensor) -> tuple[Tensor, None]:
    """All weight on the id with the largest max(p - q, 0)."""
    return torch.eye(len(p), dtype=p.dtype)[(p - q).argmax()], None


def in_place(draft: Tensor, q: Tensor | None, p: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Marks rejected drafts in the caller's tensor."""
    tokens, accepted = verify_draft(draft, q, p, uniforms)
    for row, count in zip(draft, accepted.tolist(), strict=True):
        row[count:] = -1
    return tokens, accepted


class Kept:
    """Writes all results to the same tensors."""

    def __init__(self) -> None:
        self._tokens, self._accepted = (
            torch.zeros(512, 9, dtype=torch.int64),
            torch.zeros(512, dtype=torch.int64),
        )

    def __call__(self, draft: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        tokens, accepted = verify_draft(draft, *rest)
        if len(draft) > 512:
            return tokens, accepted
        kept = self._tokens[: len(draft), : tokens.shape[1]].copy_(tokens)
        return kept, self._accepted[: len(draft)].copy_(accepted)


def squared(draft: Tensor, q: Tensor | None, p: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Makes a table of ids by ids."""
    torch.ones(p.shape[-1], p.shape[-1])
    return verify_draft(draft, q, p, uniforms)


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
    Mistake(
        "the uniform of the first column decides about every draft: column i decides about draft i",
        Accepts(deciding=lambda at: 0),
    ),
    Mistake(
        "the uniform of the next column is used: column i decides about draft i",
        Accepts(deciding=lambda at: at + 1),
    ),
    Mistake(
        "the likeliest of max(p - q, 0) replaces a rejected token: it must be drawn",
        Accepts(replaces=likeliest),
    ),
    Mistake(
        "a rejected token is replaced by a draw from |p - q|: where q is larger, the weight is 0",
        Accepts(replaces=lambda p, q: ((p - q).abs(), None)),
    ),
    Mistake(
        "a rejected token is emitted: emit its replacement",
        Changed(
            lambda drafted, said, count: (
                [*drafted[: count + 1], *said][: len(said)] if count < len(drafted) else said
            )
        ),
    ),
    Mistake(
        "no token replaces a rejected one: a pass always gives one more token",
        Changed(
            lambda drafted, said, count: (
                [*said[:count], *[-1] * (len(said) - count)] if count < len(drafted) else said
            )
        ),
    ),
    Mistake(
        "pad with -1: 0 is a token", Changed(lambda drafted, said, count: [max(token, 0) for token in said])
    ),
    Mistake("rejected drafts are changed in the caller's tensor: make new tensors", in_place),
    Mistake("a second call changes the result of the first: make new tensors", Kept()),
    Mistake("a table of ids by ids is made: each row needs only its own ids", squared),
)
