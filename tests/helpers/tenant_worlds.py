"""Worlds in which tenant "b" sends the same requests while others do other things, and all that b can see.

W0   nobody else                          W2   "a" floods: more prompts than fit, in every step
W1   "a" has sent b's prompts before      W3   "a" floods, aborts at random, and its listeners raise
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny

from minillm import LLM, MinillmError, SamplingParams
from minillm.config import TenantLimits
from minillm.engine.engine import Engine
from minillm.observe.events import Event

BLOCK = 8
ITSELF = "itself"  # as `draft_model`: the model drafts for itself
B_LIMITS = TenantLimits(guaranteed_blocks=20, guaranteed_tokens_per_step=24, max_queued_tokens=150)
LIMITS: Mapping[str | None, TenantLimits] = {"b": B_LIMITS}
SYSTEM = [(11 * i) % 280 + 5 for i in range(24)]
HIDDEN = ("at", "time", "seconds", "waited")  # of events: the clock


def params(tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.8, logprobs=2, ignore_eos=True, **more)


# (step, prompt, parameters): what b sends. The last ones are refused.
REQUESTS = [
    (0, [*SYSTEM, 7, 8, 9], params(6)),
    (1, [*SYSTEM, 9, 9], params(9, n=2)),
    (2, [7] * 45, params(3)),
    (9, [*SYSTEM, 7, 8, 9], params(4)),
    (14, [7] * 41, params(5, seed=3)),
    (18, [*SYSTEM, 9, 9], params(3)),
    (19, [5] * 260, params(3)),
    (20, [6] * 90, params(2)),
    (20, [6] * 90, params(2)),
    (20, [8] * 40, params(2)),
]
STEPS = 60


@dataclass
class View:
    """All that b sees: outputs after each step, its events, its counts, its errors."""

    outputs: list[tuple[Any, ...]] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    stats: list[dict[str, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


Others = Callable[[Engine, int, random.Random], None]


def load(folder: Path, limits: Mapping[str | None, TenantLimits] | None = LIMITS, **options: Any) -> LLM:
    sizes = {"block_size": BLOCK, "kv_memory": 60 * BLOCK * tiny.BLOCK_BYTES}
    sizes |= {
        "prefill_chunk": 16,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 12,
        "max_queued_requests": 30,
    }
    if options.get("draft_model") == ITSELF:  # the pool of the same number of blocks takes twice the memory
        sizes |= {"kv_memory": 2 * sizes["kv_memory"]}
        options |= {"draft_model": str(folder)}
    return tiny.load(folder, **(sizes | {"tenant_limits": limits} | options))


def idle(engine: Engine, step: int, chance: random.Random) -> None:
    """W0."""


def flood(engine: Engine, step: int, chance: random.Random, tenant: str | None = "a") -> None:
    """W2: also b's own prompts."""
    prompts = [[chance.randrange(5, 290)] * chance.randrange(30, 200), SYSTEM + [7] * 9, [7] * 45]
    for prompt in prompts:
        with suppress(MinillmError):  # its queue is full
            engine.add_request(prompt, params(chance.randrange(1, 40)), tenant)


def storm(engine: Engine, step: int, chance: random.Random) -> None:
    """W3."""
    if step == 0:
        engine.events.listeners.append(_crash)
    flood(engine, step, chance)
    live = [r.request_id for r in engine._registry.requests() if r.tenant == "a"]
    for request_id in chance.sample(live, min(len(live), 2)):
        engine.abort_request(request_id, "a")


def _crash(event: Event) -> None:
    raise RuntimeError("a listener of a")


def warm(engine: Engine, tenant: str | None = "a") -> None:
    """W1, before b begins."""
    for _, prompt, _ in REQUESTS:
        if len(prompt) < 200:
            engine.add_request(prompt, params(3), tenant)
            while engine.has_unfinished_requests():
                engine.step()


def watch(
    llm: LLM,
    others: Others = idle,
    seed: int = 0,
    tenant: str | None = "b",
    requests: Sequence[tuple[int, list[int], SamplingParams]] = REQUESTS,
) -> View:
    """Send b's requests while `others` acts before each step; return what b sees."""
    engine, view, names, chance = llm.engine, View(), dict[str, int](), random.Random(seed)
    first = engine.events.step
    with engine.events.record() as trace:
        for step in range(STEPS):
            others(engine, step, chance)
            for number, (when, prompt, sampling) in enumerate(requests):
                if when == step:
                    try:
                        names[engine.add_request(prompt, sampling, tenant)] = number
                    except MinillmError as error:
                        view.errors.append(f"{number} {type(error).__name__}: {error}")
            for output in engine.step():
                if output.request_id in names:
                    view.outputs.append(_seen(step, names[output.request_id], output))
            view.stats.append(engine.stats(tenant))
    for event in trace:
        if event.request_id in names:
            data = {name: value for name, value in event.data.items() if name not in HIDDEN}
            data = {name: value for name, value in data.items() if name not in ("prompt", "answer")}
            view.events.append((event.kind, event.step - first, names[event.request_id], repr(data)))
    return view


def _seen(step: int, number: int, output: Any) -> tuple[Any, ...]:
    completions = [(c.token_ids, c.text, c.seed, c.finish_reason, c.logprobs) for c in output.outputs]
    return step, number, completions, output.metrics.cached_tokens, repr(output.error)


def tokens_of(view: View) -> list[Any]:
    """The last output of each of b's requests: content without time."""
    last = {number: completions for _, number, completions, *_ in view.outputs}
    return [last[number] for number in sorted(last)]
