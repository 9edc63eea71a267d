"""How a case of tasks 5.3 to 5.6 is made: a step's plan, or every step of an engine without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request, RequestGroup
from minillm.labs.grader.lab import Case
from minillm.labs.grader.serving import BLOCK_SIZE, SIZES, Ask, Step, name, serve
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.observe.events import Events
from minillm.text.detokenizer import NullDetokenizer


def waiting_request(number: int, priority: int = 0, arrival: float = 0.0) -> Request:
    """A request as it is queued: the `number`th one, with one token to compute and one to answer."""
    params, table = SamplingParams(priority=priority), BlockTable(BlockPool(1, 1))
    return Request(
        f"req-{number}", 0, [1], params, 0, 1, table, NullDetokenizer(), arrival=arrival, order=number
    )


@dataclass(frozen=True)
class RequestState:
    """A running request: tokens of its prompt, computed, answered so far, other samples to begin."""

    prompt: int
    computed: int = 0
    answered: int = 0
    forks: int = 0
    is_waiting: bool = False

    def take(self, index: int, pool: BlockPool) -> Request:
        """The request, with its blocks; `index` is its place in the line."""
        request = waiting_request(index)
        request.prompt_token_ids = [1] * self.prompt
        request.output_token_ids = [1] * self.answered
        request.num_computed_tokens, request.num_forks = self.computed, self.forks
        request.rank, request.max_tokens, request.block_table = (0, index, 0), 40, BlockTable(pool)
        request.block_table.grow(self.computed)
        return request


def step_case(title: str, num_free: int, *states: RequestState) -> Case:
    """The plan of one step: who runs, how many blocks each takes, who loses its place."""

    def run(scheduler_class: Any) -> Step:
        used = sum(blocks_for(state.computed, BLOCK_SIZE) for state in states)
        pool, events = BlockPool(used + num_free, BLOCK_SIZE), Events()
        memory = KVCacheManager(pool, "lab", events, prefix_caching=False)
        scheduler = scheduler_class(EngineConfig(block_size=BLOCK_SIZE, **SIZES), memory, events)
        requests = [state.take(i, pool) for i, state in enumerate(states)]
        for state, request in zip(states, requests, strict=True):
            if state.is_waiting:
                scheduler.add(RequestGroup(request.group_id, [request]))
            else:
                scheduler.running.append(request)
        plan = scheduler.schedule(0.0)
        takes = " ".join(f"{name(r)}+{count}" for r, count in plan.blocks.items() if count)
        work = ["decode " + " ".join(name(r) for r in plan.decode)] if plan.decode else []
        work += [f"prefill {name(c.request)} {c.start}-{c.end}" for c in plan.prefill]
        waiting = " ".join(name(r) for r in requests if r not in scheduler.running)
        blocks = f"blocks {takes or '+0'} of {memory.available}"
        return Step(
            f"{', '.join(work) or 'nothing'}; {blocks}" + (f"; waiting: {waiting}" if waiting else "")
        )

    return Case(title, run)


def serving_case(title: str, num_blocks: int, *asks: Ask, **config: Any) -> Case:
    """What every step does, in an engine without a model."""
    return Case(title, lambda scheduler: serve({"scheduler": scheduler}, asks, num_blocks, True, **config))
