"""How a case of tasks 5.3 to 5.6 is made: a step's plan, or every step of an engine without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request
from minillm.engine.scheduler import rank
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
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


class Stage:
    """A scheduler of the student's class, with sequences in given states."""

    def __init__(
        self,
        scheduler_class: Any,
        num_free: int,
        states: Iterable[SequenceState],
        prefix_caching: bool = False,
        **sizes: int,
    ) -> None:
        states = list(states)
        used = sum(blocks_for(state.computed, BLOCK_SIZE) for state in states)
        pool, events = BlockPool(used + num_free, BLOCK_SIZE), Events()
        self.memory = KVCacheManager(pool, "lab", events, prefix_caching)
        config = EngineConfig(block_size=BLOCK_SIZE, **{**SIZES, **sizes})
        self.scheduler = scheduler_class(config, self.memory, events)
        self.sequences = [state.make(i, pool) for i, state in enumerate(states)]
        for state, sequence in zip(states, self.sequences, strict=True):
            if state.is_waiting:
                self.scheduler.add(Request(sequence.request_id, [sequence]))
            else:
                self.scheduler.running.append(sequence)
        self.scheduler.running.sort(key=lambda sequence: sequence.rank)

    def plan(self, now: float = 0.0) -> tuple[StepPlan, Words]:
        """The plan of the next step, and the same in words."""
        before = [_progress(sequence) for sequence in self.sequences]
        plan = self.scheduler.schedule(now)
        changed = [
            sequence
            for sequence, progress in zip(self.sequences, before, strict=True)
            if sequence not in plan.preempted and _progress(sequence) != progress
        ]
        return plan, self.shown(plan, changed)

    def shown(self, plan: StepPlan, changed: Iterable[Sequence] = ()) -> Words:
        """The plan in words. `changed`: sequences whose blocks or computed tokens have changed already."""
        work = ["decode " + " ".join(map(name, plan.decode))] if plan.decode else []
        work += [f"prefill {name(c.sequence)} {c.start}-{c.end}" for c in plan.prefill]
        takes = " ".join(f"{name(s)}+{count}" for s, count in plan.blocks.items() if count)
        waiting = " ".join(name(s) for s in self.sequences if s not in self.scheduler.running)
        text = f"{', '.join(work) or 'nothing'}; blocks {takes or '+0'} of {self.memory.available}"
        text += f"; waiting: {waiting}" if waiting else ""
        names = " ".join(map(name, changed))
        return Words(text + (f"; already changed: {names}" if names else ""))


def _progress(sequence: Sequence) -> tuple[int, list[int]]:
    return sequence.num_computed_tokens, list(sequence.block_table.block_ids)


def step_case(title: str, num_free: int, *states: SequenceState, now: float = 0.0) -> Case:
    """The plan of one step: the sequences that run, their new blocks, and the waiting sequences."""
    return Case(title, lambda scheduler: Stage(scheduler, num_free, states).plan(now)[1])


def twice_case(title: str, num_free: int, *states: SequenceState) -> Case:
    """Two plans; in between the oldest sequence is cancelled. The second must not change the first."""

    def run(scheduler_class: Any) -> list[Words]:
        stage = Stage(scheduler_class, num_free, states)
        first, shown = stage.plan()
        for oldest in stage.scheduler.running[:1]:
            stage.scheduler.remove(oldest)
        second, again = stage.plan()
        is_same = "the same plan object" if second is first else "another plan object"
        return [shown, again, stage.shown(first), Words(is_same)]

    return Case(f"{title}, planned twice", run, "aliasing")


def in_turns_case(title: str, num_free: int, *states: SequenceState) -> Case:
    """Two schedulers in turns, each with its own memory; the second has its sequences in reverse."""

    def run(scheduler_class: Any) -> list[Words]:
        stages = [Stage(scheduler_class, num_free, order) for order in (states, states[::-1])]
        return [stages[i].plan()[1] for i in (0, 1, 0)]

    return Case(f"{title}, two schedulers in turns", run, "aliasing")


def random_states(random: Random) -> list[SequenceState]:
    """A few running sequences in any state, and perhaps some that wait."""

    def one() -> SequenceState:
        prompt, kind = random.randrange(1, 31), random.choice(("decode", "prefill", "waiting"))
        priority = random.choice((0, 0, 1))
        if kind == "decode":
            answered = random.randrange(1, 9)
            return SequenceState(prompt, prompt + answered - 1, answered, priority=priority)
        computed = 0 if kind == "waiting" else random.randrange(prompt)
        return SequenceState(prompt, computed, 0, random.choice((0, 0, 2)), kind == "waiting", priority)

    return [one() for _ in range(random.randrange(2, 7))]


def more_steps(random: Random) -> Iterator[Case]:
    """Random sequences, much and little memory."""
    for i in range(12):
        states = random_states(random)
        yield step_case(f"random sequences {i + 1}", random.randrange(0, 12), *states)


def serving_case(title: str, num_blocks: int, *asks: Ask, **config: Any) -> Case:
    """Every step of an engine without a model."""
    return Case(title, lambda scheduler: serve({"scheduler": scheduler}, asks, num_blocks, True, **config))
