"""The output of verify_draft is distributed as the target: chi-squared over 200,000 requests.

The target is a Markov chain over 16 tokens: row i of a request is the chain's row of the token drafted
before it. So emitted tokens must be steps of that chain for every draft. The simulator is not tested here,
since 200,000 blocks would take too long: test_verify_ops.py shows that it gives the same tokens for the
same uniforms.
"""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from verifying import backend

VOCAB = 16
SETTINGS = [
    pytest.param(name, length, draws, id=f"{name}-{length}", marks=marks)
    for name, length, draws, marks in [
        ("reference", 1, 30_000, ()),  # fewer, since it is a Python loop
        *((f"native-{path}", n, 200_000, ()) for path in ("avx512_bf16", "avx2", "generic") for n in (1, 3)),
        ("cuda", 1, 200_000, pytest.mark.gpu),
        ("cuda", 3, 200_000, pytest.mark.gpu),
    ]
]
NUM_TESTS = 2 * (2 + 4 * (2 + 4))  # with and without probabilities: every position of every setting


def chain(seed: int) -> Tensor:
    """Rows of a Markov chain [VOCAB + 1, VOCAB]; the last row is the start of the text. No step is rare."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCAB + 1, VOCAB, generator=generator).mul(2).softmax(-1) / 2 + 0.5 / VOCAB


def steps(draws: int, length: int, with_probs: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Arguments of `draws` requests: one chain drafts the tokens, another is the target."""
    generator = torch.Generator().manual_seed(length)
    target = chain(0)
    drafting = target.pow(4) / target.pow(4).sum(-1, keepdim=True) / 2 + chain(1) / 2
    before = torch.full((draws,), VOCAB)
    draft, probs, rows = [], [], [target[before]]
    for _ in range(length):
        probs.append(drafting[before])
        before = torch.multinomial(probs[-1], 1, generator=generator).squeeze(1)
        draft.append(before)
        rows.append(target[before])
    uniforms = torch.rand(draws, length + 1, dtype=torch.float64, generator=generator).clamp(1e-300)
    return (
        torch.stack(draft, 1),
        torch.stack(probs, 1) if with_probs else None,
        torch.stack(rows, 1),
        uniforms,
    )


def p_values(tokens: Tensor) -> list[float]:
    """For each position, the p-value of the emitted steps under the chain."""
    target, found = chain(0).double(), []
    target /= target.sum(-1, keepdim=True)
    before = torch.full(tokens.shape[:1], VOCAB)
    for column in tokens.T:
        there = column >= 0
        pairs = before[there] * VOCAB + column[there]
        counts = torch.bincount(pairs, minlength=target.numel()).view(target.shape).double()
        expected = counts.sum(-1, keepdim=True) * target
        rows = expected.amin(-1) >= 5  # the chi-squared test needs at least 5 expected counts
        assert rows.any()
        statistic = ((counts - expected).square() / expected)[rows].sum()
        found.append(float(chi2.sf(float(statistic), int(rows.sum()) * (VOCAB - 1))))
        before = column
    return found


@pytest.mark.parametrize("with_probs", [True, False], ids=["probs", "certain"])
@pytest.mark.parametrize(("name", "length", "draws"), SETTINGS)
def test_emitted_tokens_are_steps_of_the_target(name, length, draws, with_probs):
    with backend(name) as ops:
        tokens, accepted = ops.verify_draft(*steps(draws, length, with_probs))
    assert 0 < int((accepted == length).sum()) < len(tokens)
    assert min(p_values(tokens)) * NUM_TESTS > 0.001


@pytest.mark.parametrize("with_probs", [True, False], ids=["probs", "certain"])
def test_control_two_wrong_rules_are_noticed(with_probs):
    """The wrong rules: always accept; and after a refused draft, draw from p instead of max(p - q, 0)."""
    draft, probs, target, uniforms = steps(200_000, 1, with_probs)
    assert p_values(draft)[0] < 1e-12
    with backend("native-generic") as native:
        tokens, accepted = native.verify_draft(draft, probs, target, uniforms)
        fallen = accepted == 0
        again, _ = native.verify_draft(draft[:, :0], None, target[:, :1], uniforms[:, 1:])
    assert p_values(torch.where(fallen, again[:, 0], tokens[:, 0]).unsqueeze(1))[0] < 1e-12
