"""Rejection sampling in the engine gives exactly the target's distribution, under every sampling option.

The tests of the op alone are in test_verify_ops.py. Here the op gets the same inputs as in the engine: the
filtered distributions of target and draft, tokens sampled with the draft's noise, uniforms from noise keys.
The control accepts every draft token, and the test must notice it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import drafting
import pytest
import tiny
import torch
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.ops.cpu import CpuOps
from minillm.ops.sampling import (
    ACCEPT,
    DRAFT,
    REPLACE,
    SamplingBatch,
    gumbel_noise,
    noise_key,
    probabilities,
    uniforms,
)
from minillm.ops.verification import verify_draft
from minillm.toolchain.compiler import find_compiler

stats = pytest.importorskip("scipy.stats")

VOCAB, DRAWS = 16, 200_000
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"top_k": 5},
    {"temperature": 0.8, "top_k": 8, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]
BONFERRONI = 0.001 / (len(SETTINGS) * 2 * 3)  # kinds of draft, positions


@cache
def keys(purpose: int, position: int) -> list[int]:
    """One key for each of `DRAWS` requests, seeds 0 to DRAWS - 1."""
    return [noise_key(seed, 0, position, purpose) for seed in range(DRAWS)]


@cache
def drawn_uniforms() -> Tensor:
    columns = [keys(ACCEPT, 0), keys(ACCEPT, 1), keys(REPLACE, 0)]
    return torch.cat([uniforms(column, 1) for column in columns], dim=1)


def batch_of(params: SamplingParams, row_keys: list[int]) -> SamplingBatch:
    seen = [1, 4, 9] if params.repetition_penalty != 1.0 else []
    return SamplingBatch([params] * len(row_keys), row_keys, [seen] * len(row_keys), VOCAB - 1)


def p_values(tokens: Tensor, accepted: Tensor, target: Tensor) -> list[float]:
    """One p-value per position: the tokens of all requests that reach it, compared with the target's row."""
    found = []
    for position in range(3):
        drawn = tokens[accepted >= position, position]
        counts = torch.bincount(drawn, minlength=VOCAB).double()
        exact = target[position].double() / target[position].double().sum()
        assert counts[exact == 0].sum() == 0, "a token with probability 0 was sampled"
        alive = exact > 0
        if alive.sum() > 1 and len(drawn) > 1000:
            expected = exact[alive] * counts.sum()
            found.append(float(stats.chisquare(counts[alive], expected).pvalue))
    return found


def distributions(setting: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """(target probabilities [3, VOCAB], draft probabilities [2, VOCAB], draft tokens [DRAWS, 2])."""
    params = SamplingParams(**{"temperature": 1.0, **setting})
    generator = torch.Generator().manual_seed(8)
    target, draft = torch.randn(3, VOCAB, generator=generator), torch.randn(2, VOCAB, generator=generator)
    p, q = probabilities(target, batch_of(params, [0] * 3)), probabilities(draft, batch_of(params, [0] * 2))
    # The same as `sample` on DRAWS equal rows.
    columns = [q[i].double().log() + gumbel_noise(keys(DRAFT, i), VOCAB) for i in range(2)]
    return p, q, torch.stack([column.argmax(dim=1) for column in columns], dim=1)


@pytest.fixture(scope="module")
def ops() -> CpuOps:
    """One CPU path is enough: all of them share the verification code."""
    if find_compiler() is None:
        pytest.skip("no compiler")
    return CpuOps()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_targets_distribution_under_every_option(ops: CpuOps, setting: dict[str, Any]) -> None:
    p, q, drafted = distributions(setting)
    target = p.expand(DRAWS, 3, VOCAB)
    for probs in (q.expand(DRAWS, 2, VOCAB), None):
        # Without probabilities any draft is valid that does not depend on the uniforms.
        draft = drafted if probs is not None else torch.tensor([[4, 2]]).expand(DRAWS, 2)
        tokens, accepted = ops.verify_draft(draft, probs, target, drawn_uniforms())
        assert min(p_values(tokens, accepted, p), default=1.0) > BONFERRONI
        assert accepted.sum() > 0 or probs is None


def test_control_accepting_everything_is_noticed() -> None:
    p, _, drafted = distributions({})
    tokens = torch.cat([drafted, drafted[:, :1]], dim=1)
    assert p_values(tokens, torch.full((DRAWS,), 2), p)[0] < 1e-12


# ---- in the engine --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return drafting.make_pair(tmp_path_factory.mktemp("pair"), noise=0.3)


def second_tokens(llm: LLM, count: int = 8000) -> Tensor:
    """The second token of many answers to one prompt, by seed: it is the first that can be drafted."""
    params = [
        SamplingParams(max_tokens=3, temperature=1.0, top_k=6, seed=i, ignore_eos=True) for i in range(count)
    ]
    outputs = llm.generate([[9] * 5] * count, params)
    return torch.bincount(torch.tensor([o.token_ids[1] for o in outputs]), minlength=tiny.VOCAB_SIZE)


def same_distribution(a: Tensor, b: Tensor) -> float:
    """The p-value for two sets of tokens from one distribution; rare ids are counted together."""
    common = a + b >= 20
    table = torch.stack([torch.cat([x[common], x[~common].sum().view(1)]) for x in (a, b)])
    return float(stats.chi2_contingency(table[:, table.sum(dim=0) > 0]).pvalue)


@pytest.fixture(scope="module")
def plain(pair: tuple[Path, Path]) -> Tensor:
    return second_tokens(drafting.load(pair[0]))


def test_answers_have_the_targets_distribution(pair: tuple[Path, Path], plain: Tensor) -> None:
    rejecting = {"draft_verification": "rejection", "draft_model": pair[1], "num_draft_tokens": 2}
    assert same_distribution(second_tokens(drafting.load(pair[0], **rejecting)), plain) > 0.001

    def accept_all(draft: Tensor, probs: Tensor, target: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        length = (draft >= 0).sum(dim=1)
        padded = torch.cat([draft, torch.full((len(draft), 1), -1)], dim=1)
        return padded.scatter(1, length.unsqueeze(1), 5), length

    control = drafting.load(pair[0], **rejecting, parts={"verify_draft": accept_all})
    assert same_distribution(second_tokens(control, 1200), plain) < 1e-12


def test_control_one_key_for_two_draws_is_noticed(
    pair: tuple[Path, Path], plain: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uniform that refused a token also chooses its replacement: hardly wrong, so it takes many draws."""
    monkeypatch.setattr("minillm.engine.batch.REPLACE", ACCEPT)
    rejecting = {"draft_verification": "rejection", "draft_model": pair[1], "num_draft_tokens": 2}
    assert same_distribution(second_tokens(drafting.load(pair[0], **rejecting)), plain) < 1e-6


def test_no_two_draws_have_one_key(pair: tuple[Path, Path]) -> None:
    """Of each position its draw, its acceptance and its replacement; in all steps of all sequences."""
    llm = drafting.load(pair[0], draft_model=pair[1], draft_verification="rejection", num_draft_tokens=3)
    worker, steps = llm.engine.worker, list[Any]()
    own = worker.execute
    worker.execute = lambda step: (steps.append(step), own(step))[1]  # type: ignore[method-assign]
    params = [
        SamplingParams(max_tokens=12, temperature=1.0, seed=i // 2, n=2, ignore_eos=True) for i in (0, 2)
    ]
    llm.generate([[9] * 5, [9] * 5], params)
    verified = [rows for step in steps for rows in step.verify if rows.branches]
    assert len(verified) > 10
    for rows in verified:
        used = [*rows.keys, *rows.accept_keys, rows.replace_key]
        assert len(rows.keys) == len(rows.accept_keys) + 1 == len(rows.branches[0]) + 1
        assert len(set(used)) == len(used)
    own_keys = {(i, j, p, purpose): noise_key(i, j, p, purpose)
                for i in (0, 1) for j in (0, 1) for p in range(13) for purpose in range(4)}  # fmt: skip
    assert len(set(own_keys.values())) == len(own_keys)
    by_key = {key: name for name, key in own_keys.items()}
    for rows in verified:
        (seed, index, position, purpose) = by_key[rows.replace_key]
        assert purpose == REPLACE
        assert [by_key[k] for k in rows.accept_keys] == [
            (seed, index, position + i, ACCEPT) for i in range(len(rows.accept_keys))
        ]
        assert [by_key[k] for k in rows.keys] == [
            (seed, index, position + i, 0) for i in range(len(rows.keys))
        ]


def test_greedy_is_the_case_of_one_possible_token(pair: tuple[Path, Path]) -> None:
    params = SamplingParams(max_tokens=30, temperature=0.0, logprobs=3, ignore_eos=True)
    prompts = [[5 + i, 7] * 4 for i in range(12)]
    known = drafting.load(pair[0]).generate(prompts, params)
    for draft_model in (pair[1], "ngram"):
        llm = drafting.load(pair[0], draft_model=draft_model, draft_verification="rejection")
        assert drafting.differing(llm.generate(prompts, params), known) == []
        assert tiny.all_free(llm)


def test_draws_do_not_depend_on_the_company(pair: tuple[Path, Path]) -> None:
    """The tokens are the same alone and among requests with longer or shorter drafts."""
    llm = drafting.load(pair[0], draft_model=pair[1], draft_verification="rejection", num_draft_tokens=4)
    prompts = [[5 + i, 7, 9] for i in range(12)]
    params = [
        SamplingParams(max_tokens=3 + 4 * i, temperature=1.0, seed=i, ignore_eos=True) for i in range(12)
    ]
    together = llm.generate(prompts, params)
    alone = [llm.generate(p, q)[0] for p, q in zip(prompts, params, strict=True)]
    assert [o.token_ids for o in together] == [o.token_ids for o in alone]
    assert any(o.metrics.accepted for o in alone) and any(
        o.metrics.accepted < o.metrics.drafted for o in alone
    )


def test_the_definition_and_the_kernel_agree(ops: CpuOps) -> None:
    """The backend of this machine equals the definition on the first thousand draws."""
    p, q, drafted = distributions(SETTINGS[-1])
    some = slice(0, 1000)
    arguments = (
        drafted[some],
        q.expand(1000, 2, VOCAB),
        p.expand(1000, 3, VOCAB),
        drawn_uniforms()[some],
    )
    for found, defined in zip(ops.verify_draft(*arguments), verify_draft(*arguments), strict=True):
        assert torch.equal(found, defined)
