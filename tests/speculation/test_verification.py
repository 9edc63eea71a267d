"""Verification over logits made by hand: broken rows in every place of every branch, under both rules.

A row that holds NaN or infinity ends its branch before it: the result is that of the branch cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm import SamplingParams
from minillm.ops.reference import ReferenceOps
from minillm.ops.sampling import ACCEPT, REPLACE, SamplingBatch, noise_key
from minillm.speculation.verification import Verifier
from minillm.worker.step import DraftRows, VerifyResult

VOCAB, NUM_IDS = 12, 11
OPS = ReferenceOps()


def sampler(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The reference's, which is shown finite rows only."""
    assert logits.isfinite().all()
    return OPS.sample(logits, batch)


def rule(draft: Tensor, probs: Tensor | None, target: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    assert target.isfinite().all()
    return OPS.verify_draft(draft, probs, target, draws)


def rows_of(branches: list[list[int]], seed: int, rejects: bool = False, **params: Any) -> DraftRows:
    made = SamplingParams(**({"temperature": 1.0, "logprobs": 2} | params))
    count = max(map(len, branches), default=0)

    def keys(number: int, purpose: int = 0) -> list[int]:
        return [noise_key(seed, 0, 5 + i, purpose) for i in range(number)]

    rows = DraftRows(
        3, 9, [[0]] * max(1, len(branches)), branches, made.filters, keys(count + 1), [], made.logprobs
    )
    if rejects:
        rows.accept_keys, rows.replace_key = keys(count, ACCEPT), keys(1, REPLACE)[0]
    return rows


def logits_of(branches: list[list[int]], seed: int) -> Tensor:
    """Rows in which the drafted tokens are likely; equal ones where branches begin alike."""
    made = dict[tuple[int, ...], Tensor]()
    for branch in branches or [[]]:
        for depth in range(len(branch) + 1):
            if tuple(branch[:depth]) not in made:
                generator = torch.Generator().manual_seed(seed + 31 * len(made))
                made[tuple(branch[:depth])] = torch.randn(VOCAB, generator=generator)
            if depth < len(branch):
                made[tuple(branch[:depth])][branch[depth]] += 4.0
    return torch.stack([made[tuple(b[:depth])] for b in branches or [[]] for depth in range(len(b) + 1)])


def verify(rows: Sequence[DraftRows], logits: Tensor, rejects: bool) -> list[VerifyResult]:
    return Verifier(OPS, sampler, rule if rejects else None).verify(rows, logits, NUM_IDS)


def cut(rows: DraftRows, broken: set[int]) -> DraftRows:
    """The same draft, each branch ended before its first broken row."""
    branches, start = list[list[int]](), 0
    for branch in rows.branches:
        bad = [i for i in range(1, len(branch) + 1) if start + i in broken]
        branches.append(branch[: bad[0] - 1] if bad else branch)
        start += len(branch) + 1
    return replace(rows, branches=branches)


DRAFTS = [
    [[4, 5, 6, 7]],
    [[4]],
    [],
    [[4, 5], [4, 6]],
    [[4, 5, 6], [8, 5, 6], [8, 9, 6]],
]
BROKEN = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("branches", DRAFTS, ids=str)
@pytest.mark.parametrize("rejects", [False, True])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_k": 4, "top_p": 0.9}], ids=str)
def test_a_broken_row_ends_its_branch(
    branches: list[list[int]], rejects: bool, params: dict[str, Any]
) -> None:
    if rejects and len(branches) > 1:
        pytest.skip("rejection verifies chains")
    prefixes = [tuple(b[:depth]) for b in branches or [[]] for depth in range(len(b) + 1)]
    for seed in range(12):
        whole, clean = rows_of(branches, seed, rejects, **params), logits_of(branches, seed)
        (healthy,) = verify([whole], clean, rejects)
        assert healthy.tokens and len(healthy.logprobs or []) == len(healthy.tokens)
        for place, prefix in enumerate(prefixes):
            broken = {i for i, other in enumerate(prefixes) if other == prefix}  # alike, so broken alike
            logits = clean.clone()
            logits[list(broken), seed % VOCAB] = BROKEN[seed % 3]
            (found,) = verify([whole], logits, rejects)
            if place in (0, *(i for i, other in enumerate(prefixes) if not other)):
                assert found == VerifyResult([], 0, None), "its own row: nothing is emitted"
                continue
            shorter = cut(whole, broken)
            kept = torch.cat([_rows(clean, whole, i, len(b) + 1) for i, b in enumerate(shorter.branches)])
            (expected,) = verify([shorter], kept, rejects)
            assert found == expected, (seed, place)


def test_control_some_drafts_stand_and_some_fall() -> None:
    for rejects in (False, True):
        (branch,) = DRAFTS[0]
        found = [
            verify([rows_of([branch], s, rejects)], logits_of([branch], s), rejects)[0] for s in range(12)
        ]
        assert len({len(result.tokens) for result in found}) > 2


def _rows(logits: Tensor, rows: DraftRows, branch: int, count: int) -> Tensor:
    start = sum(len(b) + 1 for b in rows.branches[:branch])
    return logits[start : start + count]


@pytest.mark.parametrize("rejects", [False, True])
def test_a_result_does_not_depend_on_the_company(rejects: bool) -> None:
    """Chains of all lengths, none, one broken; log-probabilities wanted by some, the first not among them."""
    drafts = [[], [[4, 5, 6, 7]], [[4]], [], [[8, 9]], [[1, 2, 3]]]
    tops = [None, None, 3, 0, None, 2]
    lanes = [
        rows_of(b, 20 + i, rejects, logprobs=t) for i, (b, t) in enumerate(zip(drafts, tops, strict=True))
    ]
    logits = [logits_of(b, 20 + i) for i, b in enumerate(drafts)]
    logits[4][1, 0] = float("nan")
    alone = [verify([lane], own, rejects)[0] for lane, own in zip(lanes, logits, strict=True)]
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 5]):
        found = verify([lanes[i] for i in order], torch.cat([logits[i] for i in order]), rejects)
        assert found == [alone[i] for i in order]
    assert [len(r.logprobs[0]) if r.logprobs else None for r in alone][:2] == [None, None]
    assert all(r.logprobs and len(r.logprobs) == len(r.tokens) for i, r in enumerate(alone) if i in (2, 3, 5))


def test_the_penalty_sees_the_tokens_before_each_row() -> None:
    """What a branch has drafted so far counts as seen in its later rows, and in no other branch's."""
    params = {"repetition_penalty": 1e9, "temperature": 0.0}
    branches = [[4, 5], [4, 6]]
    rows = replace(rows_of(branches, 0, **params), seen=[1])
    logits = torch.zeros(6, VOCAB)
    logits[:, 1], logits[:, 4], logits[:, 6], logits[:, 5] = 9.0, 8.0, 7.0, 6.0
    (found,) = verify([rows], logits, False)
    # 1 was seen: 4. Then 4 is seen too: 6, which the second branch drafted. Then 6 is: 5.
    assert (found.tokens, found.branch) == ([4, 6, 5], 1)
