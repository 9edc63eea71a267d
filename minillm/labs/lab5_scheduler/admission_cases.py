"""Task 5.6, admission: cases and known mistakes of `_start`."""

from __future__ import annotations

from typing import Any

from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
from minillm.labs.grader.lab import Mistake
from minillm.labs.grader.serving import Ask
from minillm.labs.lab5_scheduler.costs import START_COST, START_TOO_MUCH
from minillm.labs.lab5_scheduler.plan_cases import (
    SequenceState,
    in_turns_case,
    serving_case,
    step_case,
    twice_case,
)
from minillm.memory.block_table import blocks_for


class Admissions(Scheduler):
    """The engine's `_start`; subclasses replace one part of it."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        needed = blocks_for(sequence.num_tokens + 1, self._memory.pool.block_size) - len(found)
        return self._memory.available_without(found) - plan.num_blocks - needed - self._copies(sequence)

    def _admits(self, left: int) -> bool:
        return left >= self._headroom() or (not self.running and left >= 0)

    def _start(self, plan: StepPlan, sequence: Sequence) -> bool:
        found = self._memory.match(sequence)
        if not self._admits(self._left(plan, sequence, found)):
            return False
        self._memory.start_from(sequence, found)
        return True


class NoHeadroom(Admissions):
    """Admits every sequence that fits now."""

    def _admits(self, left: int) -> bool:
        return left >= 0


class AlwaysHeadroom(Admissions):
    """Needs headroom even if no sequence runs."""

    def _admits(self, left: int) -> bool:
        return left >= max(self._headroom(), 2)


class LooksAtNothing(Admissions):
    """Admits every sequence."""

    def _admits(self, left: int) -> bool:
        return True


class CountsFoundTwice(Admissions):
    """Unused found blocks are counted twice: as available and as found."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        return (
            super()._left(plan, sequence, found)
            + self._memory.available
            - self._memory.available_without(found)
        )


class NeedsItAll(Admissions):
    """Found blocks are counted as needed."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        return super()._left(plan, sequence, found) - len(found)


class ForgetsThePlan(Admissions):
    """Ignores the blocks that the plan has already counted."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        return super()._left(plan, sequence, found) + plan.num_blocks


class ForgetsSamples(Admissions):
    """The blocks that other samples copy are left out."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        return super()._left(plan, sequence, found) + self._copies(sequence)


class TakesNothingFound(Admissions):
    """Counts the found blocks, but the sequence computes them again."""

    def _start(self, plan: StepPlan, sequence: Sequence) -> bool:
        return self._admits(self._left(plan, sequence, self._memory.match(sequence)))


class TakesFirst(Admissions):
    """The found blocks are taken before it is known whether there is room."""

    def _start(self, plan: StepPlan, sequence: Sequence) -> bool:
        found = self._memory.match(sequence)
        left = self._left(plan, sequence, found)
        self._memory.start_from(sequence, found)
        return self._admits(left)


class NoNextToken(Admissions):
    """Room for the known tokens only."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        size, known = self._memory.pool.block_size, sequence.num_tokens
        return super()._left(plan, sequence, found) + blocks_for(known + 1, size) - blocks_for(known, size)


class MoreThanHeadroom(Admissions):
    """One block more than the headroom must be left."""

    def _admits(self, left: int) -> bool:
        return left > self._headroom() or (not self.running and left >= 0)


class AdmitsIfIdle(Admissions):
    """Admits any sequence if no sequence runs."""

    def _admits(self, left: int) -> bool:
        return left >= self._headroom() or not self.running


class OneChunkOfRoom(Admissions):
    """Room for the first chunk only."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        size = self._memory.pool.block_size
        chunk = min(self._config.prefill_chunk, sequence.num_tokens)
        more = blocks_for(sequence.num_tokens + 1, size) - blocks_for(chunk, size)
        return super()._left(plan, sequence, found) + more


class AllocatesAtOnce(Admissions):
    """Allocates the blocks for the whole prompt."""

    def _start(self, plan: StepPlan, sequence: Sequence) -> bool:
        if not super()._start(plan, sequence):
            return False
        self._memory.allocate_slots(sequence, sequence.num_tokens)
        return True


ADMISSION_CASES = (
    step_case("no sequence runs", 9, SequenceState(30, is_waiting=True)),
    step_case("it just fits", 8, SequenceState(30, is_waiting=True)),
    step_case("it does not fit", 7, SequenceState(30, is_waiting=True)),
    step_case("headroom for one that runs", 12, SequenceState(8, 8, 1), SequenceState(6, is_waiting=True)),
    step_case("one block too few", 11, SequenceState(8, 8, 1), SequenceState(6, is_waiting=True)),
    step_case("many blocks too few", 5, SequenceState(8, 8, 1), SequenceState(6, is_waiting=True)),
    step_case("three samples", 15, SequenceState(8, 8, 1), SequenceState(10, forks=2, is_waiting=True)),
    step_case(
        "one block too few for three samples",
        14,
        SequenceState(8, 8, 1),
        SequenceState(10, forks=2, is_waiting=True),
    ),
    step_case("the last token begins a block", 8, SequenceState(32, is_waiting=True)),
    twice_case("two that wait", 12, SequenceState(20, is_waiting=True), SequenceState(9, is_waiting=True)),
    in_turns_case("one runs, one waits", 14, SequenceState(8, 8, 1), SequenceState(6, is_waiting=True)),
    serving_case(
        "a second question about a story, in a small pool", 12, Ask(30, 6), Ask(34, 4, at=5, story=0)
    ),
    serving_case(
        "the same while another sequence runs", 14, Ask(30, 2), Ask(3, 20, at=5), Ask(34, 4, at=6, story=0)
    ),
    START_COST,
)
ADMISSION_MISTAKES = (
    Mistake("no headroom: running sequences need blocks for their next tokens", NoHeadroom),
    Mistake(
        "headroom is required even if no sequence runs: the sequence would wait for ever", AlwaysHeadroom
    ),
    Mistake("the sequence is admitted without checking whether there is room", LooksAtNothing),
    Mistake("unused found blocks are counted as available: use `available_without`", CountsFoundTwice),
    Mistake("found blocks are counted as needed: they need not be allocated", NeedsItAll),
    Mistake("blocks that the plan has already counted are counted as available", ForgetsThePlan),
    Mistake("the blocks for the copies of other samples are missing", ForgetsSamples),
    Mistake("found blocks are taken although there is no room: first look, then take", TakesFirst),
    Mistake("there is no room for the first output token: count one token more", NoNextToken),
    Mistake("one block more than the headroom is required: exactly the headroom is enough", MoreThanHeadroom),
    Mistake("any sequence is admitted if no sequence runs: it must fit even then", AdmitsIfIdle),
    Mistake("only the first chunk is counted: the whole sequence must fit", OneChunkOfRoom),
    Mistake("blocks are allocated at admission: they are allocated chunk by chunk", AllocatesAtOnce),
    Mistake("the found blocks are not used: call `start_from`", TakesNothingFound),
    *START_TOO_MUCH,
)
