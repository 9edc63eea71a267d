"""Worlds: the conditions under which the same requests run, and the bits they must give in all of them.

    alone        one request at a time, whole prompts, nothing cached, no drafts     the others must equal it
    in company   2 or all at once, in another order                                                  G1
    scheduled    small chunks, prefix hits, a pool so small that it preempts, drafts, one thread     G2

The requests are random token ids: half greedy, half sampled, all with seeds. Compared are the token ids and
the logits of every token over the whole vocabulary, with `torch.equal`. Equal text would prove little.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import Sequence
from minillm.engine.watch import RowWatch
from minillm.memory.block_table import blocks_for
from minillm.model.loader import LoadedModel

NEW_TOKENS = 8
LENGTHS = (1, 15, 16, 17, 3, 33, 48, 64, 65, 90, 130, 200)
SIMULATED = (1, 15, 17, 48)  # a simulated GPU computes a few tokens a second
SHARED = 40  # tokens that the longer prompts begin with, for prefix hits


@dataclass(frozen=True)
class World:
    """A name and what it changes: engine options, requests at once (0: all), the order, the pool, threads."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    at_once: int = 0
    order: str = "given"
    warm: bool = False
    tight: bool = False
    one_thread: bool = False


ALONE = World("alone", {"prefix_caching": False, "draft_model": None}, at_once=1)
COMPANY = (
    World("all in one batch", {"prefix_caching": False, "draft_model": None}),
    World("reversed", {"prefix_caching": False, "draft_model": None}, order="reversed"),
    World("in pairs", {"prefix_caching": False, "draft_model": None}, at_once=2),
    World("shuffled, 3 at once", {"prefix_caching": False, "draft_model": None}, 3, "shuffled"),
)


def scheduled(config: EngineConfig) -> list[World]:
    """The worlds of G2; those with drafts use the engine's own draft model, else drafts from the text."""
    draft = {"draft_model": config.draft_model or "ngram"}
    none = {"draft_model": None}
    long = {"num_draft_tokens": 4, "adaptive_draft": False}
    worlds = [
        World("chunks of 7", {"prefill_chunk": 7, **none}),
        World("prefix hits", none, warm=True),
        World("preemption", {"prefill_chunk": 16, **none}, tight=True),
        World("drafts", {**draft, **long}),
        World("one thread", none, one_thread=True),
        World("chunks of 1, alone", {"prefill_chunk": 1, **none}, at_once=1),
        World("61 tokens a step", {"max_num_batched_tokens": 61, "prefill_chunk": 50, **none}),
        World("preemption, prefix hits, drafts", {**draft, **long}, warm=True, tight=True),
        World("drafts of measured length", {**draft, "adaptive_draft": True}, order="reversed"),
        World(
            "chunks of 16, prefix hits, drafts, shuffled",
            {"prefill_chunk": 16, **draft, **long},
            5,
            "shuffled",
            True,
        ),
    ]
    if config.draft_verification == "rejection":  # its draws depend on drafts; `config` says so
        return [world for world in worlds if world.options.get("draft_model") is None]
    return worlds


@dataclass
class Answer:
    """What a request gave: token ids, and the logits of each of them."""

    token_ids: list[int]
    rows: list[Tensor]


@dataclass(frozen=True)
class Requests:
    """The prompts and the parameters that every world runs."""

    prompts: list[list[int]]
    params: list[SamplingParams]


def make_requests(model: LoadedModel) -> Requests:
    """Requests that fit the model's context."""
    rng, most = random.Random(5), model.max_model_len - NEW_TOKENS
    vocabulary = model.config.vocab_size
    common = [rng.randrange(vocabulary) for _ in range(SHARED)]
    prompts = []
    lengths = SIMULATED if model.decoder.ops.name == "simt" else LENGTHS
    for length in (n for n in lengths if n <= most) if most > 0 else (1,):
        own = [rng.randrange(vocabulary) for _ in range(length)]
        prompts.append([*common, *own][:length] if length > SHARED else own)
    new = max(1, min(NEW_TOKENS, model.max_model_len - 1))
    return Requests(
        prompts,
        [
            SamplingParams(max_tokens=new, temperature=0.8 * (i % 2), seed=i, ignore_eos=True)
            for i in range(len(prompts))
        ],
    )


def world_engine(
    model: LoadedModel, config: EngineConfig, draft: LoadedModel | None, world: World, requests: Requests
) -> Engine:
    """An engine for a world. Its pool holds all requests, or is so small that it preempts."""
    options = dict(world.options)
    draft = draft if options.get("draft_model", config.draft_model) not in (None, "ngram") else None
    size = config.block_size
    per_token = sum(m.config.kv_bytes_per_token(m.dtype.itemsize) for m in (model, draft) if m)
    each = [blocks_for(len(prompt) + NEW_TOKENS + 8, size) for prompt in requests.prompts]
    count = max(each) + 2 if world.tight else sum(each) + 8
    changed = replace(
        config,
        kv_memory=count * size * per_token,
        diverge_record=None,
        guarantee=None,
        tenant_limits=None,
        public_prefixes=(),
        **options,
    )
    engine = Engine(model, changed, draft=draft)
    if world.tight and isinstance(engine.scheduler, Scheduler):
        engine.scheduler.headroom_tokens = 0
    return engine


def run_world(engine: Engine, world: World, requests: Requests, deadline: float) -> dict[int, Answer]:
    """Run the requests; return the answers of those that ended before `deadline` (`time.monotonic`)."""
    order = list(range(len(requests.prompts)))
    if world.order == "reversed":
        order.reverse()
    elif world.order == "shuffled":
        random.Random(9).shuffle(order)
    answers = dict[int, Answer]()
    with _threads(1 if world.one_thread else None):
        if world.warm:
            longest = max(requests.prompts, key=len)
            _drive(engine, [longest[:-1] or longest], [replace(requests.params[0], max_tokens=1)], deadline)
        at_once = world.at_once or len(order)
        for start in range(0, len(order), at_once):
            group = order[start : start + at_once]
            prompts, params = [requests.prompts[i] for i in group], [requests.params[i] for i in group]
            found = _drive(engine, prompts, params, deadline)
            answers |= {group[i]: answer for i, answer in found.items()}
            if time.monotonic() > deadline:
                break
    return answers


def _drive(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams], deadline: float
) -> dict[int, Answer]:
    """Run requests to their ends, or to the deadline; the answers that are complete."""
    rows = dict[str, list[Tensor]]()

    def give(sequence: Sequence, position: int, row: Tensor) -> None:
        rows.setdefault(sequence.request_id, []).append(row)

    engine.watch(RowWatch(_copies, give))
    pairs = zip(prompts, params, strict=True)
    ids = [engine.add_request(prompt, param) for prompt, param in pairs]
    answers = dict[int, Answer]()
    try:
        while engine.has_unfinished_requests() and time.monotonic() < deadline:
            for output in engine.step():
                if output.error is not None:
                    raise output.error
                if output.finished:
                    found = rows.pop(output.request_id, [])
                    answers[ids.index(output.request_id)] = Answer(list(output.outputs[0].token_ids), found)
    finally:
        for request_id in ids:
            engine.abort_request(request_id)
        while engine.has_unfinished_requests():
            engine.step()
        engine.watch(None)
    return answers


def _copies(logits: Tensor) -> list[Tensor]:
    return list(logits.detach().cpu().clone())


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def equal(a: Answer, b: Answer) -> bool:
    """Whether two answers have the same tokens and the same bits of logits."""
    if a.token_ids != b.token_ids or len(a.rows) != len(b.rows):
        return False
    return all(torch.equal(x, y) for x, y in zip(a.rows, b.rows, strict=True))
