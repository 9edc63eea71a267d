"""Tiny models with longrope: original length 32, context 128, and other divisors for long sequences.

`long_only` and `short_only` have the same weights, and the same divisors for all sequences: a long sequence
of the model must equal the same sequence of `long_only`, and a short one that of `short_only`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import tiny
import torch
from torch import Tensor

from minillm import LLM, SamplingParams

ORIGINAL, CONTEXT = 32, 128
SHORT = [1.0 + 0.02 * pair for pair in range(12)]
LONG = [1.5 + 0.6 * pair for pair in range(12)]
KINDS = {"model": (SHORT, LONG), "short_only": (SHORT, SHORT), "long_only": (LONG, LONG)}


def make_folders(base: Path, family: str = "phi3", **changes: Any) -> dict[str, Path]:
    """A folder for each of the three kinds. Phi-3 rotates 24 of 32 components of a head."""
    return {name: make_folder(base / name, *both, family, **changes) for name, both in KINDS.items()}


def make_folder(
    base: Path, short: list[float], long: list[float], family: str = "phi3", **changes: Any
) -> Path:
    """A folder of the family with these divisors; a family that rotates whole heads has some more."""
    if family != "phi3":
        short, long = [*short, 1.3, 1.4, 1.5, 1.6], [*long, 9.0, 9.5, 10.0, 10.5]
    original = changes.get("original_max_position_embeddings", ORIGINAL)
    scaling = {
        "type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,  # here Gemma 3 reads it, Phi-3 at the top level
    }
    shape = {"max_position_embeddings": CONTEXT, "original_max_position_embeddings": original}
    return families.make_folder(base, family, **{**shape, "rope_scaling": scaling, **changes})


def prompt(length: int, seed: int = 0) -> list[int]:
    return [(seed * 7919 + i * 104_729 + 11) % 300 for i in range(length)]


def params(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(
        **{
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "logprobs": tiny.VOCAB_SIZE,
            **more,
        }
    )


Answer = tuple[list[int], Tensor]


def answers(llm: LLM, prompts: list[list[int]], wanted: list[SamplingParams]) -> list[Answer]:
    """The tokens of every sample and their log-probabilities [tokens, vocab_size]."""
    found = []
    for output in llm.generate(prompts, wanted):
        assert output.error is None
        for sample in output.outputs:
            rows = [[value for _, value in sorted(row.items())] for row in sample.logprobs or []]
            found.append((sample.token_ids, torch.tensor(rows)))
    return found


def differing(a: list[Answer], b: list[Answer], exact: bool) -> list[int]:
    """The answers whose tokens, or log-probabilities, differ: in any bit, or by more than rounding."""
    pairs = enumerate(zip(a, b, strict=True))
    return [i for i, (x, y) in pairs if x[0] != y[0] or not _close(x[1], y[1], exact)]


def _close(a: Tensor, b: Tensor, exact: bool) -> bool:
    return torch.equal(a, b) if exact else torch.allclose(a, b, rtol=0, atol=1e-3)
