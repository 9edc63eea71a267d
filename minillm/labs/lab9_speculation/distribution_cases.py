"""Task 9.3, the counts of each token: a few thousand draws with fixed noise, compared with the target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Words
from minillm.labs.grader.tiny_model import random_tensor
from minillm.labs.lab9_speculation.rejection_cases import Verify
from minillm.ops.sampling import noise_key, uniforms

VOCAB, DRAWS = 8, 1500
LIMIT = 30.0  # chi-squared with 7 degrees of freedom is above it once in 10,000 times


def fit(name: str, tokens: Tensor, p: Tensor) -> Words:
    """Compare the counts of the tokens with p; -1 is padding."""
    came = tokens[tokens >= 0].bincount(minlength=VOCAB)[:VOCAB].double()
    if came.sum() == 0:
        return Words(f"{name}: none came")
    wanted = p.double() * came.sum()
    parts = ((came - wanted).square() / wanted).nan_to_num(nan=0.0, posinf=math.inf)
    if parts.sum() < LIMIT:
        return Words(f"{name}: as the target")
    worst = int(parts.argmax())
    return Words(f"{name}: id {worst} came {came[worst]:.0f} times, expected about {wanted[worst]:.0f}")


def distribution_case(name: str, sharpness: float) -> Case:
    """Draft two tokens from q, many times; is the token at each position distributed as p?"""
    q, p = (random_tensor(seed, VOCAB).mul(sharpness).softmax(0) for seed in (3, 4))

    def run(verify: Verify) -> list[Words]:
        draft = torch.multinomial(
            q, 2 * DRAWS, replacement=True, generator=torch.Generator().manual_seed(5)
        ).view(DRAWS, 2)
        noise = uniforms([noise_key(6, 0, i) for i in range(DRAWS)], 3)
        tokens, _ = verify(draft, q.expand(DRAWS, 2, VOCAB), p.expand(DRAWS, 3, VOCAB), noise)
        return [fit(f"token {i + 1}", tokens[:, i], p) for i in range(3)]

    return Case(name, run)


DISTRIBUTION_CASES = (
    distribution_case(f"{DRAWS} drafts from a q near p", 0.5),
    distribution_case(f"{DRAWS} drafts from a q far from p", 1.5),
)
