"""A scheduler over the real memory and a model of nothing: tokens are counted, not computed.

Each step is checked as it is made: the order of everything that is decided, and the blocks that are counted.
"""

from __future__ import annotations

from typing import Any

from minillm import SamplingParams
from minillm.config import EngineConfig
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler, rank
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.observe.events import Event, Events
from minillm.text.detokenizer import NullDetokenizer

SIZE = 4


class Toy:
    """Scheduler, pool and cache of an engine whose model computes nothing."""

    scheduler_class = Scheduler

    def __init__(
        self, num_blocks: int, prefix_caching: bool = True, headroom: int = 32, **config: Any
    ) -> None:
        self.config = EngineConfig(block_size=SIZE, **config)
        self.events, self.trace = Events(), list[Event]()
        self.events.listeners.append(self.trace.append)
        self.pool = BlockPool(num_blocks, SIZE)
        self.memory = KVCacheManager(self.pool, "envelope", self.events, prefix_caching)
        self.scheduler = self.scheduler_class(self.config, self.memory, self.events)
        self.scheduler.headroom_tokens = headroom
        self.live: list[Sequence] = []
        self.now, self.count = 0.0, 0

    def add(self, prompt: list[int], max_tokens: int, n: int = 1, priority: int = 0) -> Sequence:
        params = SamplingParams(max_tokens=max_tokens, n=n, priority=priority)
        requests = [
            Sequence(
                f"r{self.count}",
                i,
                prompt,
                params,
                seed=0,
                max_tokens=max_tokens,
                block_table=BlockTable(self.pool),
                detokenizer=NullDetokenizer(),
                arrival=self.now,
                order=self.count,
            )
            for i in range(n)
        ]
        self.count += 1
        requests[0].forks = requests[1:]
        self.live.append(requests[0])
        self.scheduler.add(Request(requests[0].request_id, requests))
        return requests[0]

    def step(self) -> StepPlan:
        """What the engine does with a plan, less the arithmetic."""
        self.now += 1.0
        running, waiting = list(self.scheduler.running), self.waiting
        plan = self.scheduler.schedule(self.now)
        self.check_order(plan, running, waiting)
        self.check_work(plan)
        self.memory.make_room(plan.num_blocks)
        free = self.pool.num_free
        for chunk in plan.prefill:
            assert chunk.start == chunk.sequence.num_computed_tokens < chunk.end <= chunk.sequence.num_tokens
            self.memory.allocate_slots(chunk.sequence, chunk.end)
            chunk.sequence.num_computed_tokens = chunk.end
        for request in plan.decode:
            self.memory.allocate_slots(request, request.num_computed_tokens + 1)
            request.num_computed_tokens += 1
        for request in [c.sequence for c in plan.prefill] + plan.decode:
            if request.num_computed_tokens == request.num_tokens:
                for sample in [request, *self._begin_forks(request)]:
                    sample.append(len(sample.output_token_ids), (), self.now)
        assert free - self.pool.num_free == plan.num_blocks, "the plan counts the blocks that are taken"
        for request in plan.blocks:
            self.memory.publish(request)
        for request in [r for r in self.live if r.finish_reason]:
            self.cancel(request)
        self.events.deliver()
        return plan

    @property
    def waiting(self) -> list[Sequence]:
        return [r for r in self.live if r not in self.scheduler.running]

    def check_order(self, plan: StepPlan, running: list[Sequence], waiting: list[Sequence]) -> None:
        """Of who ran and who waited before: the last in rank gives way, the first in rank is let in."""
        after = self.scheduler.running
        ranks = {r: rank(r, self.now) for r in self.live}
        assert [r.rank for r in after] == sorted(ranks[r] for r in after), "the running stand in order"
        assert self.scheduler.waiting.first(self.now) is min(
            self.waiting, key=ranks.__getitem__, default=None
        )
        assert len(self.scheduler.waiting) == len(self.waiting)
        for victim in plan.preempted:
            assert victim in running and victim.num_computed_tokens == 0 == len(victim.block_table.block_ids)
            assert all(ranks[r] < ranks[victim] for r in after), "nobody older gives way, nobody is let in"
        for admitted in [r for r in after if r not in running]:
            assert all(ranks[admitted] < ranks[r] for r in self.waiting if r in waiting), "nobody overtakes"

    def check_work(self, plan: StepPlan) -> None:
        """Nobody is left out who could run, nothing is counted twice."""
        config, memory, after = self.config, self.memory, self.scheduler.running
        assert sorted(r.order for r in plan.sequences) == sorted(r.order for r in plan.blocks)
        assert plan.num_blocks == sum(plan.blocks.values()) <= memory.available
        assert sum(1 + r.num_forks for r in after) <= min(config.max_num_seqs, config.max_num_batched_tokens)
        budget = config.max_num_batched_tokens - plan.num_rows
        room = memory.available - plan.num_blocks
        assert budget >= 0
        for r in after:
            if not r.is_prefilling:  # decoded, or just admitted with all but one token cached
                assert r in plan.sequences
            elif r not in plan.sequences:
                end = min(r.num_computed_tokens + config.prefill_chunk, r.num_tokens)
                assert budget == 0 or room < blocks_for(end, SIZE) - len(
                    r.block_table.block_ids
                ) + self.copies(r)
        for chunk in plan.prefill:
            r, size = chunk.sequence, chunk.end - chunk.start
            is_whole = size == min(config.prefill_chunk, r.num_tokens - chunk.start)
            assert is_whole or budget == 0 or room == 0, (
                "a chunk is short of budget, of memory, or it is whole"
            )
        first = self.scheduler.waiting.first(self.now)
        if first and budget and not plan.preempted:
            assert not self.fits(first, room), "who is next in turn waits for a reason"

    def fits(self, request: Sequence, room: int) -> bool:
        """Whether a waiting request could be let in beside the running ones, with `room` blocks left."""
        running, found = self.scheduler.running, self.memory.match(request)
        if sum(1 + r.num_forks for r in [*running, request]) > self.config.max_num_seqs:
            return False
        taken = self.memory.available - self.memory.available_without(found)
        left = room - taken - (blocks_for(request.num_tokens + 1, SIZE) - len(found) + self.copies(request))
        return left >= self.headroom() if running else left >= 0

    def headroom(self) -> int:
        """Blocks that the running ones take for their next tokens, as far as they may go on."""
        blocks = 0
        for r in self.scheduler.running:
            most = len(r.prompt_token_ids) + r.max_tokens
            soon = min(r.num_tokens + self.scheduler.headroom_tokens, most)
            blocks += max(0, blocks_for(soon, SIZE) - len(r.block_table.block_ids))
        return blocks

    @staticmethod
    def copies(request: Sequence) -> int:
        """Each fork copies a block that its source has partly filled."""
        return request.num_forks if request.num_tokens % SIZE else 0

    def cancel(self, request: Sequence) -> None:
        self.live.remove(request)
        self.scheduler.remove(request)

    def run(self, most: int = 2000) -> list[StepPlan]:
        plans = []
        while self.live:
            plans.append(self.step())
            assert len(plans) < most, "somebody never ends"
        return plans

    def of(self, kind: str) -> list[str]:
        return [event.request_id for event in self.trace if event.kind == kind]

    def _begin_forks(self, request: Sequence) -> list[Sequence]:
        forks, request.forks = request.forks, []
        for fork in forks:
            self.memory.fork(request, fork, request.num_computed_tokens)
            self.scheduler.fork(request, fork)
            self.live.append(fork)
        return forks


def prompt(length: int, salt: int = 0) -> list[int]:
    return [salt * 1000 + i for i in range(length)]
