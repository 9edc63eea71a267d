"""Random traffic through a random engine, with an oracle for its answers and for its books.

A storm has requests with shared prefixes, forks, tenants, priorities, aborts and deadlines. Its engine has a
random pool, block size, chunk size and drafter. The oracle:

    answers   each request runs alone first, without speculation, chunks and cached prefixes; the storm's
              answer must have the same tokens, texts and log-probabilities, to the last bit
    books     after every step each block has exactly the owners that the tables and the prefix cache name,
              and used + free = pool; unused slots are filled with NaN, so a stale one cannot be read unseen
    events    the trace alone gives every metric, and every allocated block is freed in it
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
from drafting import TOKEN_BYTES, make_pair, poison
from scenarios import NoHeadroom, metric_faults, pool_faults, trace_faults

from minillm import MinillmError, SamplingParams
from minillm.config import EngineConfig, engine_config
from minillm.engine.engine import Engine
from minillm.engine.outputs import Completion, RequestOutput
from minillm.engine.scheduler import Scheduler
from minillm.model.loader import LoadedModel
from minillm.observe.events import Event
from minillm.speculation.pairing import load_draft
from minillm.speculation.proposal import DraftSequence
from minillm.speculation.scripted import RandomDrafter, ScriptedDrafter

MAX_STEPS = 3000
TENANTS = (None, "a", "b")
STOP_TEXTS = ("e", " t", "cat")
DRAFTERS = ("none", "none", "model", "model tree", "ngram", "random", "random tree", "right", "wrong", "some")


@dataclass
class Call:
    """A request of the storm. `at`: the step before which it is added. `abort`: the step before which it
    is aborted, or None. `overdue`: its deadline has passed at its first step."""

    at: int
    prompt: list[int]
    params: SamplingParams
    tenant: str | None
    abort: int | None
    overdue: bool


@dataclass
class World:
    """The engine of a storm: its options, its drafter and its scheduler."""

    num_blocks: int
    options: dict[str, Any]
    drafter: str
    scheduler: type[Scheduler]

    @property
    def plain(self) -> dict[str, Any]:
        """The options of the engine that runs each request alone: the same pool, nothing else."""
        size = self.options["block_size"]
        return {"block_size": size, "prefix_caching": False}


class Storms:
    """Makes and runs storms over one target and one draft model."""

    def __init__(self, folder: Path) -> None:
        self.target, self.draft = make_pair(folder)
        self.kinds = set[str]()  # of all events so far
        self.model: LoadedModel = tiny.load(self.target, backend="native").engine.model

    @cached_property
    def draft_model(self) -> LoadedModel:
        config = engine_config({"dtype": "float32", "device": "cpu", "draft_model": self.draft})
        loaded = load_draft(self.model, config)
        assert loaded is not None
        return loaded

    def faults(
        self,
        seed: int,
        planted: Callable[[], AbstractContextManager[Any]] = nullcontext,
        drafter: str | None = None,
    ) -> list[str]:
        """Run storm `seed`; return what is wrong. `planted` is active in the storm, not in the oracle."""
        chance = random.Random(seed)
        world = _world(chance)
        world.drafter = drafter or world.drafter
        calls = [_call(chance, world) for _ in range(chance.randint(6, 20))]
        alone = [self._alone(world, call) for call in calls]
        with planted():
            storm = Storm(self._engine(world, alone), calls)
            try:
                storm.run()
            except Exception as error:
                storm.found.append(f"raised {error!r}")
        storm.compare(alone)
        self.kinds |= {event.kind for event in storm.trace}
        return [f"storm {seed} ({world}): {fault}" for fault in storm.found]

    def _alone(self, world: World, call: Call) -> RequestOutput | str:
        """The answer of a request that has an engine for itself, or the name of the error it gets."""
        engine = Engine(self.model, self._config(world.num_blocks, 1, world.plain))
        try:
            return _only(engine, call.prompt, replace(call.params, deadline=None))
        except MinillmError as error:
            return type(error).__name__

    def _engine(self, world: World, alone: list[RequestOutput | str]) -> Engine:
        options, parts = dict(world.options), {"scheduler": world.scheduler}
        name, _, shape = world.drafter.partition(" ")
        if name != "none":
            options |= {"draft_tree": (2, 2, 1)} if shape else {"num_draft_tokens": 3}
        if name == "ngram":
            options["draft_model"] = "ngram"
        elif name == "random":
            parts["drafter"] = lambda model, config: RandomDrafter(tiny.VOCAB_SIZE)
        elif name in ("right", "wrong", "some"):
            parts["drafter"] = _scripted(alone, {"right": 1.0, "wrong": 0.0, "some": 0.6}[name])
        draft = self.draft_model if name == "model" else None
        options |= {"draft_model": self.draft} if draft else {}
        config = self._config(world.num_blocks, 2 if draft else 1, options)
        engine = Engine(self.model, config, parts, draft)
        assert engine.pool.num_blocks == world.num_blocks
        return engine

    def _config(self, num_blocks: int, models: int, options: Mapping[str, Any]) -> EngineConfig:
        kv_memory = num_blocks * options["block_size"] * TOKEN_BYTES * models
        return engine_config({"kv_memory": kv_memory, "dtype": "float32", "device": "cpu", **options})


class Storm:
    """One run. `found`: what is wrong."""

    def __init__(self, engine: Engine, calls: list[Call]) -> None:
        self.engine, self.calls = engine, calls
        self.found: list[str] = []
        self.trace: list[Event] = []
        self.ids: list[str] = []  # of the calls; the name of an error if the call was refused
        self.outputs: dict[str, RequestOutput] = {}
        self.finals: Counter[str] = Counter()

    def run(self) -> None:
        """Add, abort and step until every request has ended; check the books after every step."""
        self.engine.events.listeners.append(self.trace.append)
        waiting, self.ids = list(enumerate(self.calls)), [""] * len(self.calls)
        for step in range(MAX_STEPS):
            for i, call in [(i, call) for i, call in waiting if call.at <= step]:
                self.ids[i] = self._submit(call)
            waiting = [(i, call) for i, call in waiting if call.at > step]
            for i, call in enumerate(self.calls):
                if call.abort == step:
                    self.engine.abort_request(self.ids[i])
            if not waiting and not self.engine.has_unfinished_requests():
                break
            for output in self.engine.step():
                self.outputs[output.request_id] = output
                self.finals[output.request_id] += output.finished
            self.found += [f"after step {step}: {fault}" for fault in book_faults(self.engine)]
            poison(SimpleNamespace(engine=self.engine))  # type: ignore[arg-type]
            if self.found:
                return
        self.found += pool_faults(self.engine) + trace_faults(self.trace)
        self.found += metric_faults(self.outputs.values(), self.trace)

    def _submit(self, call: Call) -> str:
        try:
            return self.engine.add_request(call.prompt, call.params, call.tenant)
        except MinillmError as error:
            return type(error).__name__

    def compare(self, alone: list[RequestOutput | str]) -> None:
        """Compare every answer with that of the request alone."""
        for call, request_id, expected in zip(self.calls, self.ids, alone, strict=True):
            if isinstance(expected, str):
                if request_id != expected:
                    self.found.append(f"{request_id or 'not added'}, but alone {expected}")
            elif self.finals[request_id] != 1:
                self.found.append(f"{request_id} ended {self.finals[request_id]} times")
            else:
                output = self.outputs[request_id]
                pairs = zip(output.outputs, expected.outputs, strict=True)
                if output.error or not all(_agree(call, *pair) for pair in pairs):
                    self.found.append(f"{request_id} differs from the request alone: {output.error!r}")


def book_faults(engine: Engine) -> list[str]:
    """Blocks whose owners are not those that the tables of the live sequences and the prefix cache name."""
    pool, cache, owners = engine.pool, engine.memory.cache, Counter[int]()
    for request in engine._registry.requests():
        for sequence in request.sequences:
            owners.update(sequence.block_table.block_ids)
            if sequence.draft.branch_blocks:
                return [f"{request.request_id} keeps draft branches between steps"]
    unused = 0
    if cache is not None:
        unused = sum(owners[block] == 0 for block in cache._by_block)
        owners.update(list(cache._by_block))  # ids; a mapping would count its values
    found = [
        f"block {i} has {pool.ref_count(i)} owners, not {owners[i]}"
        for i in range(pool.num_blocks)
        if pool.ref_count(i) != owners[i]
    ]
    stats = engine.stats()
    if stats["used_blocks"] + stats["free_blocks"] != pool.num_blocks or stats["cached_blocks"] != unused:
        found.append(f"{stats}, {unused} cached blocks without a sequence")
    if pool.num_free + len(+owners) != pool.num_blocks:
        found.append(f"{pool.num_free} free and {len(+owners)} used blocks of {pool.num_blocks}")
    return found


def _agree(call: Call, found: Completion, expected: Completion) -> bool:
    """Whether an answer is that of the request alone, or the beginning of it if the request was ended."""
    count, is_cut = len(found.token_ids), found.finish_reason in ("cancelled", "deadline")
    if is_cut and not (call.overdue if found.finish_reason == "deadline" else call.abort is not None):
        return False
    whole = (found.text, found.finish_reason, count)
    if not is_cut and whole != (expected.text, expected.finish_reason, len(expected.token_ids)):
        return False
    return found.token_ids == expected.token_ids[:count] and _rows(found)[:count] == _rows(expected)[:count]


def _rows(completion: Completion) -> list[list[tuple[int, float]]]:
    """The log-probabilities with their order."""
    return [list(row.items()) for row in completion.logprobs or []]


def _only(engine: Engine, prompt: list[int], params: SamplingParams) -> RequestOutput:
    request_id, outputs = engine.add_request(prompt, params), dict[str, RequestOutput]()
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    return outputs[request_id]


def _scripted(alone: list[RequestOutput | str], acceptance: float) -> Callable[..., ScriptedDrafter]:
    """A drafter that knows the answers; requests with equal prompts may get each other's."""
    known = {
        (tuple(output.prompt_token_ids), i): completion.token_ids
        for output in alone
        if not isinstance(output, str)
        for i, completion in enumerate(output.outputs)
    }

    def answer(sequence: DraftSequence) -> list[int]:
        return known.get((tuple(sequence.prompt_token_ids), sequence.index), [])

    return lambda model, config: ScriptedDrafter(answer, tiny.VOCAB_SIZE, acceptance)


# ---- random worlds and requests -----------------------------------------------------------------------


def _world(chance: random.Random) -> World:
    size = chance.choice((1, 3, 4, 8, 16))
    options = {
        "block_size": size,
        "prefill_chunk": chance.choice((1, 5, 16, 64, 512)),
        "max_num_seqs": chance.choice((1, 3, 8, 32, 32)),
        "max_num_batched_tokens": chance.choice((16, 24, 64, 2048)),
        "prefix_caching": chance.random() < 0.8,
        "adaptive_draft": chance.random() < 0.2,
        "seed": chance.randrange(99),
    }
    options["max_num_batched_tokens"] = max(options["max_num_batched_tokens"], options["prefill_chunk"])
    scheduler = chance.choice((NoHeadroom, NoHeadroom, Scheduler))
    return World(-(-chance.choice((60, 90, 140, 400)) // size), options, chance.choice(DRAFTERS), scheduler)


def _call(chance: random.Random, world: World) -> Call:
    shared = [(7 * i + chance.randrange(2)) % 290 + 2 for i in range(chance.choice((0, 8, 16, 33, 48)))]
    if chance.random() < 0.7:
        shared = [(7 * i) % 290 + 2 for i in range(len(shared))]
    prompt = shared + [chance.randrange(2, 299) for _ in range(chance.randint(1, 12))]
    if chance.random() < 0.2:
        prompt = [5, 6, 7, 8] * chance.randint(1, 8)  # n-grams find it
    overdue, at = chance.random() < 0.06, chance.randrange(12)
    params = SamplingParams(
        max_tokens=chance.choice((1, 2, 8, 20, 40)),
        temperature=chance.choice((0.0, 0.0, 0.7, 1.0, 1.5)),
        top_k=chance.choice((0, 0, 5, 50)),
        top_p=chance.choice((1.0, 1.0, 0.8)),
        min_p=chance.choice((0.0, 0.0, 0.02)),
        repetition_penalty=chance.choice((1.0, 1.0, 1.2)),
        seed=chance.randrange(50),
        n=min(chance.choice((1, 1, 1, 2, 3)), world.options["max_num_seqs"]),
        ignore_eos=chance.random() < 0.8,
        stop=chance.choice(((), (), STOP_TEXTS)),
        logprobs=chance.choice((None, None, 0, 2, tiny.VOCAB_SIZE)),
        priority=chance.choice((0, 0, -1, 3)),
        deadline=1e-9 if overdue else None,
    )
    abort = at + chance.randrange(12) if chance.random() < 0.15 else None
    return Call(at, prompt, params, chance.choice(TENANTS), abort, overdue)
