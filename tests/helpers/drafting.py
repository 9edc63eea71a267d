"""Shared by the tests of speculation: a target and a weaker draft model, all kinds of drafters, NaN slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny
import torch
from company import WIDE

from minillm import LLM, SamplingParams
from minillm.engine.outputs import RequestOutput
from minillm.speculation.draft_model import DraftModel
from minillm.speculation.proposal import DraftSequence
from minillm.speculation.scripted import RandomDrafter, ScriptedDrafter

CONFIG = tiny.config(**WIDE, max_position_embeddings=512)
# K and V x layers x kv heads x head_dim x float32, for one token of the target; the same for the draft model.
TOKEN_BYTES = 2 * 2 * 2 * 32 * 4


def make_pair(folder: Path, noise: float = 0.05) -> tuple[Path, Path]:
    """(target, draft): the draft's weights are the target's plus noise, so it is often right."""
    tensors = tiny.weights(CONFIG, scale=0.1)
    generator = torch.Generator().manual_seed(5)
    blurred = {
        name: tensor + noise * torch.randn(tensor.shape, generator=generator) * tensor.std()
        for name, tensor in tensors.items()
    }
    target = tiny.make_folder(folder / "target", CONFIG, tensors=tensors)
    return target, tiny.make_folder(folder / "draft", CONFIG, tensors=blurred)


def load(target: Path, **options: Any) -> LLM:
    """Load the target with native kernels, always the longest drafts, and both caches full of NaN."""
    defaults: dict[str, Any] = {"backend": "native", "kv_memory": "8MiB", "adaptive_draft": False}
    llm = tiny.load(target, **(defaults | options))
    for tensor in all_caches(llm):
        tensor.fill_(float("nan"))
    return llm


def drafter_of(llm: LLM) -> Any:
    speculation = llm.engine.speculation
    assert speculation is not None
    return speculation.drafter


def all_caches(llm: LLM) -> list[torch.Tensor]:
    """The cache tensors of the target and, if there is one, of the draft model."""
    caches = [llm.engine.worker.runner.cache]
    speculation = llm.engine.speculation
    if speculation is not None and isinstance(speculation.drafter, DraftModel):
        caches.append(speculation.drafter.runner.cache)
    return [tensor for cache in caches for tensor in (*cache.k, *cache.v)]


def answers(outputs: Sequence[RequestOutput]) -> Callable[[DraftSequence], Sequence[int]]:
    """The outputs of a run without speculation, by prompt and sample, for `ScriptedDrafter`."""
    known = {(tuple(o.prompt_token_ids), i): c.token_ids for o in outputs for i, c in enumerate(o.outputs)}
    return lambda sequence: known[tuple(sequence.prompt_token_ids), sequence.index]


def scripted(outputs: Sequence[RequestOutput], acceptance: float = 1.0) -> dict[str, Any]:
    """`parts` with a drafter that knows the answers."""
    known = answers(outputs)
    return {"drafter": lambda model, config: ScriptedDrafter(known, tiny.VOCAB_SIZE, acceptance)}


def randomly() -> dict[str, Any]:
    """`parts` with a drafter that drafts random tokens."""
    return {"drafter": lambda model, config: RandomDrafter(tiny.VOCAB_SIZE)}


def differing(found: Sequence[RequestOutput], expected: Sequence[RequestOutput]) -> list[int]:
    """Indices of outputs that differ in any bit of tokens, text, finish reasons or log-probabilities."""
    return [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not _same(a, b)]


def _same(a: RequestOutput, b: RequestOutput) -> bool:
    return len(a.outputs) == len(b.outputs) and all(
        (x.token_ids, x.text, x.finish_reason) == (y.token_ids, y.text, y.finish_reason)
        and _same_bits(x.logprobs, y.logprobs)
        for x, y in zip(a.outputs, b.outputs, strict=True)
    )


def _same_bits(a: list[dict[int, float]] | None, b: list[dict[int, float]] | None) -> bool:
    if a is None or b is None:
        return a is b
    if [list(row) for row in a] != [list(row) for row in b]:
        return False
    return torch.equal(_values(a), _values(b))


def _values(rows: list[dict[int, float]]) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row.values()], dtype=torch.float64)


def poison(llm: LLM) -> None:
    """Write NaN to every unused slot: free blocks, and the slots after the computed tokens."""
    engine = llm.engine
    pool, size = engine.pool, engine.config.block_size
    free = [i for i in range(pool.num_blocks) if pool.ref_count(i) == 0]
    target = engine.worker.runner.cache
    for tensor in all_caches(llm):
        tensor[free] = float("nan")
        of_target = any(tensor is own for own in (*target.k, *target.v))
        for request in engine.scheduler.running:
            written = request.num_computed_tokens if of_target else request.draft.num_computed_tokens
            # Only blocks with one owner: another owner of a shared block may have computed more tokens.
            for index, block in enumerate(request.block_table.block_ids):
                if pool.ref_count(block) == 1 and written < (index + 1) * size:
                    tensor[block, max(0, written - index * size) :] = float("nan")


def mixed_params(count: int, tokens: int, **more: Any) -> list[SamplingParams]:
    """A mix of greedy and sampled parameters: temperature 0.3 to 1.5, every filter, the penalty."""
    kinds: list[Mapping[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.3},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.5, "min_p": 0.05},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.9, "repetition_penalty": 1.2, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    ]
    return [
        SamplingParams(max_tokens=tokens, seed=i, **{**kinds[i % len(kinds)], **more}) for i in range(count)
    ]
