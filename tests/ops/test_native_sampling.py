"""The native sampler draws the same tokens as the reference, and computes the same log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from native import DTYPES, REFERENCE, random
from torch import Tensor

from minillm import SamplingParams
from minillm.ops.cpu import CpuOps
from minillm.ops.sampling import SamplingBatch, filter_logits, noise_key

SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 1e-50},
    {"temperature": 1e300},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10_000},
    {"top_p": 1e-9},
    {"top_p": 0.3},
    {"top_p": 0.9, "temperature": 3.0},
    {"top_p": 0.999999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.02, "temperature": 1.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5, "temperature": 0.0},
    {"repetition_penalty": 1e300, "top_k": 3},
]


def logits_of(kind: str, rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    if kind == "equal":
        return torch.zeros(rows, vocab, dtype=dtype)
    if kind == "ties":
        return random(rows, vocab, scale=2).round().to(dtype)
    logits = random(rows, vocab, dtype=dtype, scale=4)
    return logits.masked_fill(random(rows, vocab, seed=9) > 0.5, -math.inf) if kind == "masked" else logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "ties", "equal", "masked"])
def test_sample_draws_what_the_reference_draws(native_ops: CpuOps, kind: str, dtype: torch.dtype) -> None:
    for vocab, num_ids in [(1, 1), (17, 17), (1000, 990)]:
        params = [SamplingParams(**options) for options in SETTINGS for _ in range(20)]
        keys = [noise_key(seed, 0, 3) for seed in range(len(params))]
        seen = [[1, 1, 5, 0, 999_999] if p.repetition_penalty != 1.0 and vocab > 5 else [] for p in params]
        seen = [[i for i in row if i < vocab] for row in seen]
        batch = SamplingBatch(params, keys, seen, num_ids)
        logits = logits_of(kind, len(params), vocab, dtype)
        if kind == "masked":
            logits[:, 0] = 0  # at least one id is possible
        assert native_ops.sample(logits, batch).tolist() == REFERENCE.sample(logits, batch).tolist()


def test_sample_keeps_exactly_what_the_filters_keep(native_ops: CpuOps) -> None:
    """Many draws from few ids: every id that the filters keep is drawn, and no other id."""
    logits = random(1, 12, seed=5, scale=1.5)
    for options in ({"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.9, "min_p": 0.1}):
        params = SamplingParams(temperature=2.0, **options)
        batch = SamplingBatch([params] * 3000, [noise_key(s, 0, 0) for s in range(3000)], [[]] * 3000, 12)
        drawn = set(native_ops.sample(logits.expand(3000, -1), batch).tolist())
        assert drawn == set((filter_logits(logits[0], params) > -math.inf).nonzero().flatten().tolist())


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_logprobs(native_ops: CpuOps, dtype: torch.dtype) -> None:
    logits = torch.cat([logits_of(kind, 3, 257, dtype) for kind in ("plain", "ties", "masked")])
    tokens, tops = torch.arange(9) * 20, [0, 1, 5, 257, 2, 1000, 0, 3, 64]
    exact = logits.double().log_softmax(-1)
    found = native_ops.token_logprobs(logits, tokens, tops)
    for row, (mine, theirs) in enumerate(
        zip(found, REFERENCE.token_logprobs(logits, tokens, tops), strict=True)
    ):
        assert list(mine) == list(theirs)
        for token_id, value in mine.items():
            assert value == pytest.approx(float(exact[row, token_id]), rel=3e-7, abs=3e-7)
