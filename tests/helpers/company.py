"""A tiny model with head_dim 32, and helpers that test whether a result has the same bits in any batch."""

from __future__ import annotations

import tiny
import torch
from torch import Tensor

from minillm import LLM, SamplingParams

WIDE = {"hidden_size": 192, "intermediate_size": 416, "num_attention_heads": 6, "num_key_value_heads": 2}
SHAPE = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32}
PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(length)] for i, length in enumerate((1, 5, 33, 70))]
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
DTYPES = ["float32", "bfloat16"]


def answers(llm: LLM, prompts: list[list[int]]) -> list[tuple[list[int], Tensor]]:
    """For each prompt: its tokens and their log-probabilities [tokens, vocab_size]."""
    found = []
    for output in llm.generate(prompts, GREEDY):
        rows = [[value for _, value in sorted(row.items())] for row in output.logprobs]
        found.append((output.token_ids, torch.tensor(rows)))
    return found


def same(a: list[tuple[list[int], Tensor]], b: list[tuple[list[int], Tensor]]) -> bool:
    return all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


def prefilled(llm: LLM, ids: list[int]) -> Tensor:
    """Log-probabilities after each token, computed by prefill only."""
    return llm.logits(ids).log_softmax(-1)
