"""A tiny model with head_dim 32, and helpers that test whether a result has the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import tiny
import torch
from torch import Tensor

from minillm import LLM, SamplingParams

WIDE = {"hidden_size": 192, "intermediate_size": 416, "num_attention_heads": 6, "num_key_value_heads": 2}
SHAPE = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32}
PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(length)] for i, length in enumerate((1, 5, 33, 70))]
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
THREE_SAMPLES = SamplingParams(**(GREEDY.to_dict() | {"n": 3}))
DTYPES = ["float32", "bfloat16"]
Bits = tuple[list[int], Tensor]


def bits(completion: Any) -> Bits:
    """The tokens of an output, and their log-probabilities [tokens, vocab_size] by token id."""
    rows = [[value for _, value in sorted(row.items())] for row in completion.logprobs]
    return completion.token_ids, torch.tensor(rows)


def answers(llm: LLM, prompts: list[list[int]]) -> list[Bits]:
    """For each prompt: its tokens and their log-probabilities [tokens, vocab_size]."""
    return [bits(output) for output in llm.generate(prompts, GREEDY)]


def same(a: Iterable[Bits], b: Iterable[Bits]) -> bool:
    return all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


def prefilled(llm: LLM, ids: list[int]) -> Tensor:
    """Log-probabilities after each token, computed by prefill only."""
    return llm.logits(ids).log_softmax(-1)


def small_pool(like: LLM) -> dict[str, Any]:
    """Options for 40 blocks of 3 tokens: the prompts take 38 of them, and every answer begins one more."""
    model = like.engine.model
    return {"block_size": 3, "kv_memory": 40 * 3 * model.config.kv_bytes_per_token(model.dtype.itemsize)}


def check_company(load: Callable[..., LLM]) -> list[Bits]:
    """Assert that answers have the same bits alone, with cached prefixes, forked, in company and preempted.

    `load` makes an engine with the options that it gets. Returns the answers.
    """
    llm = load()
    expected = [answers(llm, [prompt])[0] for prompt in PROMPTS]
    again = llm.generate(PROMPTS, GREEDY)
    assert again[3].metrics.cached_tokens >= 64, "its prefix was in the cache"
    assert same(expected, map(bits, again)), "with every prompt's prefix in the cache"
    forks = llm.generate([PROMPTS[2]], THREE_SAMPLES)[0].outputs
    assert same([expected[2]] * 3, map(bits, forks)), "forks of one prompt"

    assert same(expected, answers(load(), PROMPTS)), "in one batch"
    in_chunks = load(prefill_chunk=7, max_num_seqs=3, max_num_batched_tokens=61)
    assert same(expected, answers(in_chunks, PROMPTS)), "in chunks, three at a time"

    tight = load(**small_pool(llm))
    tight.engine.scheduler.headroom_tokens = 0
    kinds = list[str]()
    tight.engine.events.listeners.append(lambda event: kinds.append(event.kind))
    assert same(expected, answers(tight, PROMPTS)), "in a small pool"
    assert "preempt" in kinds
    return expected


def decoded_and_prefilled(
    load: Callable[..., LLM], ids: list[int], num_tokens: int = 20
) -> tuple[Tensor, Tensor]:
    """Logits [num_tokens, vocab_size] of an answer to `ids`: of its steps, and of a prompt that has it."""
    seen = list[Tensor]()

    def sampler(logits: Tensor, batch: Any) -> Tensor:
        seen.append(logits[0].float())
        return logits.argmax(-1)

    llm = load(parts={"sampler": sampler})
    output = llm.generate(ids, SamplingParams(max_tokens=num_tokens, ignore_eos=True))[0]
    return torch.stack(seen), llm.logits([*ids, *output.token_ids])[len(ids) - 1 : -1]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Kernels run on `count` threads, also on fewer cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
