"""Who runs in the next step: the simplest policy that can never get stuck.

First come, first served, with reservation: a request starts only when the blocks it could need at
the most (prompt plus max_tokens) are not promised to anyone else. So a request that has started
always finishes; nothing is ever preempted. The price is memory that is promised and mostly unused,
which is what continuous batching with preemption will win back.

    pool      [ a a a . | b b . . . . | free ]     promised to a: 4 blocks, to b: 6; owned: 3 and 2
    waiting   c (needs 5)  d (needs 1)             c does not fit yet, and d does not overtake it

A step decodes every running request and fills what is left of the token budget with prompt chunks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from minillm.config import EngineConfig
from minillm.engine.prefill import Chunk
from minillm.engine.request import Request, RequestGroup


@dataclass
class StepPlan:
    """What one step does: a prefill batch, a decode batch, or both."""

    prefill: list[Chunk] = field(default_factory=list)
    decode: list[Request] = field(default_factory=list)


def max_running(config: EngineConfig) -> int:
    """Sequences that can run at once: each takes at least one token of a step's budget."""
    return min(config.max_num_seqs, config.max_num_batched_tokens)


class Scheduler:
    """First come, first served, over `num_blocks` blocks."""

    def __init__(self, config: EngineConfig, num_blocks: int) -> None:
        self._config, self._num_blocks = config, num_blocks
        self.waiting: deque[RequestGroup] = deque()
        self.running: list[RequestGroup] = []

    def add(self, group: RequestGroup) -> None:
        """Queue a request that is known to fit the whole pool."""
        self.waiting.append(group)

    def remove(self, group: RequestGroup) -> None:
        """Forget a request, wherever it is."""
        if group in self.running:
            self.running.remove(group)
        else:
            self.waiting.remove(group)

    def schedule(self, now: float) -> StepPlan:
        """Admit what fits, then plan one step. An idle engine gets an empty plan."""
        self._admit(now)
        plan = StepPlan()
        active = [r for group in self.running for r in group.requests if not r.finish_reason]
        plan.decode = [r for r in active if r.output_token_ids]
        budget = self._config.max_num_batched_tokens - len(plan.decode)
        for request in (r for r in active if r.is_prefilling and r.index == 0):
            start = request.num_computed_tokens
            size = min(self._config.prefill_chunk, budget, len(request.prompt_token_ids) - start)
            if size <= 0:
                break
            plan.prefill.append(Chunk(request, start, start + size))
            budget -= size
        return plan

    def _admit(self, now: float) -> None:
        block_size = self._config.block_size
        promised = sum(group.blocks_needed(block_size) for group in self.running)
        seqs = sum(len(group.requests) for group in self.running)
        while self.waiting:
            group = self.waiting[0]
            promised += group.blocks_needed(block_size)
            seqs += len(group.requests)
            if promised > self._num_blocks or seqs > max_running(self._config):
                return
            group.admitted = now
            self.running.append(self.waiting.popleft())
