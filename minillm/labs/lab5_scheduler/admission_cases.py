"""Task 5.6, who may begin: cases and known mistakes of `_start`."""

from __future__ import annotations

from typing import Any

from minillm.engine.scheduler import Scheduler, StepPlan
from minillm.engine.sequence import Sequence
from minillm.labs.grader.lab import Mistake
from minillm.labs.grader.serving import Ask
from minillm.labs.lab5_scheduler.plan_cases import SequenceState, serving_case, step_case
from minillm.memory.block_table import blocks_for


class Admissions(Scheduler):
    """The engine's `_start` with one idea exchanged."""

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
    """Lets in whoever fits now."""

    def _admits(self, left: int) -> bool:
        return left >= 0


class AlwaysHeadroom(Admissions):
    """Keeps blocks back even where nobody runs."""

    def _admits(self, left: int) -> bool:
        return left >= max(self._headroom(), 2)


class LooksAtNothing(Admissions):
    """Lets everybody in."""

    def _admits(self, left: int) -> bool:
        return True


class CountsFoundTwice(Admissions):
    """Found blocks that nobody uses are counted as available, and as had."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        return (
            super()._left(plan, sequence, found)
            + self._memory.available
            - self._memory.available_without(found)
        )


class NeedsItAll(Admissions):
    """Found blocks are asked for again."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        return super()._left(plan, sequence, found) - len(found)


class ForgetsThePlan(Admissions):
    """What this step has promised already is given once more."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        return super()._left(plan, sequence, found) + plan.num_blocks


class ForgetsSamples(Admissions):
    """The blocks that other samples copy are left out."""

    def _left(self, plan: StepPlan, sequence: Sequence, found: list[Any]) -> int:
        return super()._left(plan, sequence, found) + self._copies(sequence)


class TakesNothingFound(Admissions):
    """Found blocks make room, but the sequence computes them again."""

    def _start(self, plan: StepPlan, sequence: Sequence) -> bool:
        return self._admits(self._left(plan, sequence, self._memory.match(sequence)))


ADMISSION_CASES = (
    step_case("nobody runs", 9, SequenceState(30, is_waiting=True)),
    step_case("it just fits", 8, SequenceState(30, is_waiting=True)),
    step_case("it does not fit", 7, SequenceState(30, is_waiting=True)),
    step_case("headroom for one that runs", 12, SequenceState(8, 8, 1), SequenceState(6, is_waiting=True)),
    step_case("a block less", 11, SequenceState(8, 8, 1), SequenceState(6, is_waiting=True)),
    step_case("much less", 5, SequenceState(8, 8, 1), SequenceState(6, is_waiting=True)),
    step_case("three samples", 15, SequenceState(8, 8, 1), SequenceState(10, forks=2, is_waiting=True)),
    step_case(
        "a block less for three samples",
        14,
        SequenceState(8, 8, 1),
        SequenceState(10, forks=2, is_waiting=True),
    ),
    serving_case("a second question to a story, in a small pool", 12, Ask(30, 6), Ask(34, 4, at=5, story=0)),
    serving_case(
        "the same with another running", 14, Ask(30, 2), Ask(3, 20, at=5), Ask(34, 4, at=6, story=0)
    ),
)
ADMISSION_MISTAKES = (
    Mistake("no headroom: those who run will need blocks in their next tokens", NoHeadroom),
    Mistake("headroom is asked for where nobody runs: the sequence would wait for ever", AlwaysHeadroom),
    Mistake("nobody asks whether there is room", LooksAtNothing),
    Mistake("found blocks that nobody uses are counted as available: `available_without`", CountsFoundTwice),
    Mistake("found blocks need not be had again", NeedsItAll),
    Mistake("blocks that this step has promised already are counted as available", ForgetsThePlan),
    Mistake("the blocks for the copies of other samples are missing", ForgetsSamples),
    Mistake("the found blocks are not taken: `start_from`", TakesNothingFound),
)
