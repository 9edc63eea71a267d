"""Recorded runs of the tiny model in which everything happens that a trace can hold."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import tiny

from minillm import LLM, SamplingParams
from minillm.config import TenantLimits
from minillm.errors import MinillmError
from minillm.observe.events import Event
from minillm.speculation.scripted import RandomDrafter

PROMPTS = [[(7 * i + j) % 250 for j in range(length)] for i, length in enumerate((3, 40, 17, 90, 33, 64))]
PUBLIC = [11 * i % 250 for i in range(20)]
LIMITS = {
    "ann": TenantLimits(guaranteed_blocks=4, guaranteed_tokens_per_step=16),
    "ben": TenantLimits(max_blocks=8),
}


def _random_drafter(model: Any, config: Any) -> RandomDrafter:
    return RandomDrafter(model.config.vocab_size)


BLOCKS = {"tenants": 12}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "drafts": {"parts": {"drafter": _random_drafter}, "adaptive_draft": False, "draft_tree": (2, 1)},
    "tenants": {"tenant_limits": LIMITS, "public_prefixes": [PUBLIC]},
    "no cache": {"prefix_caching": False},
}


def load(folder: Path, path: Path | None, name: str = "plain") -> LLM:
    """An engine with little memory that records into `path`."""
    memory = tiny.blocks(BLOCKS.get(name, 9))
    llm = tiny.load(folder, kv_memory=memory, prefill_chunk=16, max_num_seqs=6, record=path, **OPTIONS[name])
    with suppress(AttributeError):  # lanes have schedulers of their own
        llm.engine.scheduler.headroom_tokens = 0
    return llm


def submit(llm: LLM) -> list[str]:
    """Forks, prefix hits, repetitions that drafts find, tenants, a refusal; more than the memory holds."""
    ids = list[str]()
    for i, prompt in enumerate([*PROMPTS, *PROMPTS, PUBLIC + [5, 6] * 8]):
        params = SamplingParams(
            max_tokens=6 + 5 * (i % 4), temperature=0.5 * (i % 2), seed=i, ignore_eos=True, n=1 + i % 2
        )
        with suppress(MinillmError):
            ids.append(llm.engine.add_request(prompt, params, tenant=(None, "ann", "ben")[i % 3]))
    with suppress(MinillmError):
        llm.engine.add_request([1] * 1000)
    return ids


def run(llm: LLM) -> list[Event]:
    """Run the requests, abort one of them, and return every event."""
    with llm.engine.events.record() as trace:
        ids = submit(llm)
        for step in range(400):
            if step == 9:
                llm.engine.abort_request(ids[3])
            llm.engine.step()
            if not llm.engine.has_unfinished_requests():
                break
    return trace


def as_json(trace: list[Event]) -> list[Any]:
    """Events as a file would give them: tuples are lists."""
    return json.loads(json.dumps([[e.kind, e.step, e.time, e.request_id, dict(e.data)] for e in trace]))
