"""An engine without a model: the scheduler over the block pool, where a step computes nothing.

Which requests run, which wait and which lose their blocks is decided by counts of tokens and blocks alone. So
plans for a memory of any size, and the cost of scheduling itself, need no weights and no GPU. A step gives
every planned sequence its token and nothing else.
"""

from __future__ import annotations

import time

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable
from minillm.observe.events import Events
from minillm.text.detokenizer import NullDetokenizer


class DryEngine:
    """Scheduler and pool. `preemptions` and `most_running` are counted over all steps."""

    def __init__(self, config: EngineConfig, num_blocks: int) -> None:
        self.memory = KVCacheManager(
            BlockPool(num_blocks, config.block_size), "dry", Events(), prefix_caching=False
        )
        self.scheduler = Scheduler(config, self.memory, Events())
        self.steps = self.preemptions = self.most_running = self._submitted = 0

    def add(self, prompt_tokens: int, new_tokens: int) -> None:
        """Queue a request with a prompt of so many tokens."""
        params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        sequence = Sequence(
            f"{self._submitted}",
            0,
            [0] * prompt_tokens,
            params,
            seed=0,
            max_tokens=new_tokens,
            block_table=BlockTable(self.memory.pool),
            detokenizer=NullDetokenizer(),
            order=self._submitted,
        )
        self._submitted += 1
        self.scheduler.add(Request(sequence.request_id, [sequence]))

    @property
    def is_busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.scheduler.running or len(self.scheduler.waiting))

    def step(self) -> StepPlan:
        """Plan a step and do what the engine does with a plan, less the arithmetic."""
        now = time.perf_counter()
        plan = self.scheduler.schedule(now)
        self.most_running = max(self.most_running, len(self.scheduler.running))
        for chunk in plan.prefill:
            self._compute(chunk.sequence, chunk.end, now)
        for sequence in plan.decode:
            self._compute(sequence, sequence.num_computed_tokens + 1, now)
        self.steps += 1
        self.preemptions += len(plan.preempted)
        return plan

    def _compute(self, sequence: Sequence, end: int, now: float) -> None:
        self.memory.allocate_slots(sequence, end)
        sequence.num_computed_tokens = end
        if end == sequence.num_tokens:
            sequence.append(0, (), now)
        if sequence.finish_reason:
            self.scheduler.remove(sequence)
