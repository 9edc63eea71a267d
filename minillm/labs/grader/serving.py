"""The engine serves a few requests, and every step is recorded: labs 4 to 6 compare these steps.

A *dry* run has no model: its loops return equal logits. So it runs the scheduler, the pool and the prefix
cache on many requests in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.outputs import RequestOutput
from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import Sequence as EngineSequence
from minillm.engine.step_plan import StepPlan
from minillm.errors import MinillmError
from minillm.labs.grader.lab import Words
from minillm.labs.grader.tiny_model import VOCAB_SIZE, fill, tiny_llm
from minillm.model.loader import LoadedModel
from minillm.observe.events import Event
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, PrefillChunk

BLOCK_SIZE = 4
SIZES: Mapping[str, Any] = {"prefill_chunk": 8, "max_num_batched_tokens": 12}
MAX_STEPS = 200


@dataclass(frozen=True)
class Ask:
    """A request: prompt and answer in tokens. Requests with the same `story` have a common beginning."""

    prompt: int
    answer: int
    at: int = 0  # it arrives before this step
    n: int = 1
    priority: int = 0
    story: int | None = None
    tenant: str | None = None


def serve(
    parts: Mapping[str, Any], asks: Sequence[Ask], num_blocks: int, dry: bool = False, **config: Any
) -> list[Any]:
    """Serve `asks`, called a, b, c ...; return every step and, unless the run is dry, the answers.

    The run ends early if a step raises a typed error, or does nothing although requests wait.
    """
    planned: list[str] = []
    happened: list[str] = []
    scheduler = _recording(parts.get("scheduler", Scheduler), planned)
    loops = {"prefill_loop": _even_logits, "decode_loop": _even_logits} if dry else {}
    engine = _engine({**loops, **parts, "scheduler": scheduler}, num_blocks, config)
    letters: dict[str, str] = {}  # of the requests, by id
    engine.events.listeners.append(lambda event: happened.extend(_words(event, letters)))
    steps: list[Any] = []
    outputs: dict[str, RequestOutput] = {}
    for number in range(MAX_STEPS):
        for i, ask in enumerate(asks):
            if ask.at == number:
                request_id = engine.add_request(_prompt(ask, i), _params(ask, i, dry), ask.tenant)
                letters[request_id] = _letter(len(letters))
        planned.clear()
        happened.clear()
        try:
            outputs |= {output.request_id: output for output in engine.step()}
        except MinillmError as error:
            steps.append(Words(", ".join([*happened, *planned, type(error).__name__])))
            break
        said = [*happened, *planned]
        is_waiting = engine.has_unfinished_requests()
        steps.append(Words(f"{', '.join(said) or 'nothing'}: {engine.stats()['free_blocks']} blocks free"))
        if (is_waiting and not said) or not (is_waiting or any(ask.at > number for ask in asks)):
            break
    answers = [[c.token_ids for c in outputs[i].outputs] for i in letters if i in outputs]
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


def _recording(make_scheduler: Callable[..., Any], planned: list[str]) -> Callable[..., Any]:
    """The scheduler; it records each plan in `planned`."""

    def make(*arguments: Any) -> Any:
        scheduler = make_scheduler(*arguments)
        schedule = scheduler.schedule

        def schedule_and_record(now: float) -> StepPlan:
            plan: StepPlan = schedule(now)
            planned.extend(f"prefill {name(c.sequence)} {c.start}-{c.end}" for c in plan.prefill)
            planned.extend(["decode " + " ".join(map(name, plan.decode))] if plan.decode else [])
            return plan

        scheduler.schedule = schedule_and_record
        return scheduler

    return make


def _even_logits(runner: ModelRunner, rows: Sequence[PrefillChunk | DecodeRow]) -> Tensor:
    """A loop without a model."""
    return torch.zeros(len(rows), VOCAB_SIZE)


def name(sequence: EngineSequence) -> str:
    """`a` for the first sequence of a request; `a1`, `a2` for its other samples."""
    return _letter(sequence.order) + (str(sequence.index) if sequence.index else "")


def _letter(number: int) -> str:
    return chr(ord("a") + number)


def _words(event: Event, letters: Mapping[str, str]) -> list[str]:
    if event.kind == "preempt":
        return [f"preempt {letters[event.request_id]}"]
    if event.kind in ("admit", "resume") and event["cached_tokens"]:
        return [f"{letters[event.request_id]} has {event['cached_tokens']} cached"]
    return [f"evict {event['blocks']}"] if event.kind == "evict" else []
