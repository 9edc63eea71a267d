"""How a case of tasks 5.3 to 5.6 is made: a step's plan, or every step of an engine without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request
from minillm.engine.scheduler import StepPlan, rank
from minillm.engine.sequence import Sequence
from minillm.labs.grader.lab import Case, Words
from minillm.labs.grader.serving import BLOCK_SIZE, SIZES, Ask, name, serve
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.observe.events import Events
from minillm.text.detokenizer import NullDetokenizer


def waiting_sequence(number: int, priority: int = 0, arrival: float = 0.0, index: int = 0) -> Sequence:
    """A waiting sequence of request number `number`, with a prompt of one token and one output token."""
    params, table = SamplingParams(priority=priority), BlockTable(BlockPool(1, 1))
    return Sequence(
        f"req-{number}", index, [1], params, 0, 1, table, NullDetokenizer(), arrival=arrival, order=number
    )


@dataclass(frozen=True)
class SequenceState:
    """A sequence in a plan: its prompt tokens, computed tokens, output tokens, and samples to fork."""

    prompt: int
    computed: int = 0
    answered: int = 0
    forks: int = 0
    is_waiting: bool = False
    priority: int = 0
    arrival: float = 0.0

    def make(self, number: int, pool: BlockPool) -> Sequence:
        """The sequence, with its blocks; `number` is the number of its request."""
        sequence = waiting_sequence(number, self.priority, self.arrival)
        sequence.prompt_token_ids = [1] * self.prompt
        sequence.output_token_ids = [1] * self.answered
        sequence.num_computed_tokens, sequence.max_tokens = self.computed, 40
        sequence.forks = [waiting_sequence(number, index=i + 1) for i in range(self.forks)]
        sequence.rank, sequence.block_table = rank(sequence, self.arrival), BlockTable(pool)
        sequence.block_table.grow(self.computed)
        return sequence


def step_case(title: str, num_free: int, *states: SequenceState, now: float = 0.0) -> Case:
    """The plan of one step: the sequences that run, their new blocks, and the waiting sequences."""

    def run(scheduler_class: Any) -> Words:
        used = sum(blocks_for(state.computed, BLOCK_SIZE) for state in states)
        pool, events = BlockPool(used + num_free, BLOCK_SIZE), Events()
        memory = KVCacheManager(pool, "lab", events, prefix_caching=False)
        scheduler = scheduler_class(EngineConfig(block_size=BLOCK_SIZE, **SIZES), memory, events)
        sequences = [state.make(i, pool) for i, state in enumerate(states)]
        for state, sequence in zip(states, sequences, strict=True):
            if state.is_waiting:
                scheduler.add(Request(sequence.request_id, [sequence]))
            else:
                scheduler.running.append(sequence)
        scheduler.running.sort(key=lambda sequence: sequence.rank)
        return _shown(scheduler.schedule(now), scheduler.running, sequences, memory)

    return Case(title, run)


def _shown(
    plan: StepPlan, running: list[Sequence], sequences: list[Sequence], memory: KVCacheManager
) -> Words:
    """The plan in words."""
    work = ["decode " + " ".join(map(name, plan.decode))] if plan.decode else []
    work += [f"prefill {name(c.sequence)} {c.start}-{c.end}" for c in plan.prefill]
    takes = " ".join(f"{name(s)}+{count}" for s, count in plan.blocks.items() if count)
    waiting = " ".join(name(s) for s in sequences if s not in running)
    text = f"{', '.join(work) or 'nothing'}; blocks {takes or '+0'} of {memory.available}"
    return Words(text + (f"; waiting: {waiting}" if waiting else ""))


def serving_case(title: str, num_blocks: int, *asks: Ask, **config: Any) -> Case:
    """Every step of an engine without a model."""
    return Case(title, lambda scheduler: serve({"scheduler": scheduler}, asks, num_blocks, True, **config))
