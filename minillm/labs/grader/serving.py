"""The engine served a few requests and watched step by step: what labs 4 to 6 compare.

A *dry* run has no model in it: its loops keep the books (blocks, progress) and give equal logits, so
the scheduler, the pool and the prefix cache meet a whole day's traffic in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.decode import decode
from minillm.engine.engine import Engine
from minillm.engine.outputs import RequestOutput
from minillm.engine.prefill import Chunk, prefill
from minillm.engine.request import Request
from minillm.errors import MinillmError
from minillm.labs.grader.tiny_model import VOCAB_SIZE, fill, tiny_llm
from minillm.model.loader import LoadedModel
from minillm.model.runner import ModelRunner
from minillm.observe.events import Event

BLOCK_SIZE = 4
SIZES: Mapping[str, Any] = {"prefill_chunk": 8, "max_num_batched_tokens": 12}
MAX_STEPS = 200


@dataclass(frozen=True)
class Ask:
    """A request: prompt and answer in tokens. Asks of one `story` begin alike; by default none do."""

    prompt: int
    answer: int
    at: int = 0  # the step before which it comes
    n: int = 1
    priority: int = 0
    story: int | None = None
    tenant: str | None = None


@dataclass(frozen=True)
class Step:
    """What a step did, in words: compared and shown as a whole."""

    text: str

    def __repr__(self) -> str:
        return self.text


def serve(
    parts: Mapping[str, Any], asks: Sequence[Ask], num_blocks: int, dry: bool = False, **config: Any
) -> list[Any]:
    """Serve `asks`, called a, b, c ...; returns every step, and of a run that is not dry the answers.

    Ends early, and says so, where a step raises a typed error or does nothing though requests wait.
    """
    said: list[str] = []
    engine = _engine({**_watched_loops(said, dry), **parts}, num_blocks, config)
    engine.events.listeners.append(lambda event: said.extend(_words(event)))
    steps: list[Any] = []
    outputs: dict[str, RequestOutput] = {}
    for number in range(MAX_STEPS):
        for i, ask in enumerate(asks):
            if ask.at == number:
                engine.add_request(_prompt(ask, i), _params(ask, i, dry), ask.tenant)
        try:
            outputs |= {output.request_id: output for output in engine.step()}
        except MinillmError as error:
            steps.append(Step(", ".join([*said, type(error).__name__])))
            break
        is_waiting = engine.has_unfinished_requests()
        steps.append(Step(f"{', '.join(said) or 'nothing'}: {engine.stats()['free_blocks']} blocks free"))
        if (is_waiting and not said) or not (is_waiting or any(ask.at > number for ask in asks)):
            break
        said.clear()
    answers = [[c.token_ids for c in output.outputs] for _, output in sorted(outputs.items())]
    return steps if dry else [steps, answers]


def _engine(parts: Mapping[str, Any], num_blocks: int, config: Mapping[str, Any]) -> Engine:
    options = {"block_size": BLOCK_SIZE, **SIZES, **config}
    block_bytes = BLOCK_SIZE * _model().config.kv_bytes_per_token(torch.float32.itemsize)
    engine = Engine(_model(), EngineConfig(kv_memory=num_blocks * block_bytes, **options), parts)
    fill(engine)
    return engine


@cache
def _model() -> LoadedModel:
    return tiny_llm().engine.model


def _prompt(ask: Ask, number: int) -> list[int]:
    story = number if ask.story is None else ask.story
    return [(37 * story + i * i) % 90 for i in range(ask.prompt)]


def _params(ask: Ask, number: int, dry: bool) -> SamplingParams:
    return SamplingParams(
        max_tokens=ask.answer,
        n=ask.n,
        priority=ask.priority,
        temperature=0.0 if dry else 0.9,
        seed=number,
        ignore_eos=True,
    )


# --- what happens, in words ---------------------------------------------------------------------------


def _watched_loops(said: list[str], dry: bool) -> dict[str, Any]:
    """The two loops, noting what they are given; in a dry run without a model."""

    def prefill_loop(runner: ModelRunner, chunks: Sequence[Chunk]) -> Tensor:
        said.extend(f"prefill {name(c.request)} {c.start}-{c.end}" for c in chunks)
        if not dry:
            return prefill(runner, chunks)
        for chunk in chunks:
            chunk.request.block_table.grow(chunk.end)
            chunk.request.num_computed_tokens = chunk.end
        return torch.zeros(len(chunks), VOCAB_SIZE)

    def decode_loop(runner: ModelRunner, requests: Sequence[Request]) -> Tensor:
        said.append(f"decode {' '.join(map(name, requests))}")
        if not dry:
            return decode(runner, requests)
        for request in requests:
            request.block_table.grow(request.num_computed_tokens + 1)
            request.num_computed_tokens += 1
        return torch.zeros(len(requests), VOCAB_SIZE)

    return {"prefill_loop": prefill_loop, "decode_loop": decode_loop}


def name(request: Request) -> str:
    """`a`; its other samples are `a1`, `a2`."""
    return _letter(request.group_id) + (str(request.index) if request.index else "")


def _letter(request_id: str) -> str:
    return chr(ord("a") + int(request_id.removeprefix("req-")))


def _words(event: Event) -> list[str]:
    if event.kind == "preempt":
        return [f"preempt {_letter(event.request_id)}"]
    if event.kind in ("admit", "resume") and event["cached_tokens"]:
        return [f"{_letter(event.request_id)} has {event['cached_tokens']} cached"]
    return [f"evict {event['blocks']}"] if event.kind == "evict" else []
