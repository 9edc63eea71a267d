"""Task 5.4, blocks for a sequence, and preemption: cases and known mistakes of `_fits`."""

from __future__ import annotations

from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
from minillm.labs.grader.lab import Mistake
from minillm.labs.grader.serving import Ask
from minillm.labs.lab5_scheduler.costs import FIT_COST, FIT_TOO_MUCH
from minillm.labs.lab5_scheduler.plan_cases import (
    SequenceState,
    in_turns_case,
    serving_case,
    step_case,
    twice_case,
)


class Victims(Scheduler):
    """The engine's `_fits`; subclasses replace one part of it."""

    def _victim(self, sequence: Sequence) -> Sequence:
        return self.running[-1]

    def _waits(self, sequence: Sequence) -> bool:
        return self.running[-1] is sequence and sequence.is_prefilling and len(self.running) > 1

    def _available(self) -> int:
        return self._memory.available

    def _promised(self, plan: StepPlan) -> int:
        return plan.num_blocks

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        needed = self._memory.shortage(sequence, num_tokens) + forks
        while needed and self._promised(plan) + needed > self._available():
            if self._waits(sequence):
                return False
            victim = self._victim(sequence)
            self._preempt(plan, victim)
            if victim is sequence:
                return False
        plan.take(sequence, needed)
        return True


class PreemptsOldest(Victims):
    """Preempts the oldest sequence."""

    def _victim(self, sequence: Sequence) -> Sequence:
        return self.running[0]


class OldestInEverything(Victims):
    """The oldest sequence takes the place of the newest in every rule."""

    def _victim(self, sequence: Sequence) -> Sequence:
        return self.running[0]

    def _waits(self, sequence: Sequence) -> bool:
        return self.running[0] is sequence and sequence.is_prefilling and len(self.running) > 1


class WaitsAlone(Victims):
    """Waits in its prefill even if no other sequence runs."""

    def _waits(self, sequence: Sequence) -> bool:
        return self.running[-1] is sequence and sequence.is_prefilling


class AnyPrefillWaits(Victims):
    """A sequence in its prefill never takes a block from another."""

    def _waits(self, sequence: Sequence) -> bool:
        return sequence.is_prefilling and len(self.running) > 1


class PreemptsOnce(Victims):
    """Preempts one sequence and does not look again."""

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        needed = self._memory.shortage(sequence, num_tokens) + forks
        if needed and plan.num_blocks + needed > self._memory.available:
            if self._waits(sequence):
                return False
            victim = self._victim(sequence)
            self._preempt(plan, victim)
            if victim is sequence:
                return False
        plan.take(sequence, needed)
        return True


class PreemptsAllNewer(Victims):
    """Preempts every newer sequence at once."""

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        needed = self._memory.shortage(sequence, num_tokens) + forks
        if needed and plan.num_blocks + needed > self._memory.available:
            while self.running[-1] is not sequence:
                self._preempt(plan, self.running[-1])
        return super()._fits(plan, sequence, num_tokens, forks)


class KeepsOneFree(Victims):
    """One block too many is required."""

    def _promised(self, plan: StepPlan) -> int:
        return plan.num_blocks + 1


class RunsItself(Victims):
    """Says that the sequence fits after it has preempted it."""

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        return super()._fits(plan, sequence, num_tokens, forks) or sequence in plan.preempted


class CountsNothing(Victims):
    """The blocks are not counted in the plan."""

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        fits = super()._fits(plan, sequence, num_tokens, forks)
        if fits:
            plan.num_blocks -= plan.blocks.pop(sequence)
        return fits


class CountsAll(Victims):
    """All blocks for the tokens are counted, also those that the sequence has."""

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        return super()._fits(plan, sequence, num_tokens, forks + len(sequence.block_table.block_ids))


class PreemptsItself(Victims):
    """A sequence that needs a block preempts itself."""

    def _victim(self, sequence: Sequence) -> Sequence:
        return sequence


class NeverWaits(Victims):
    """Preempts the newest sequence even in its prefill, when it could wait."""

    def _waits(self, sequence: Sequence) -> bool:
        return False


class WaitsForDecode(Victims):
    """A sequence that decodes waits too, so no other sequence can use its blocks."""

    def _waits(self, sequence: Sequence) -> bool:
        return self.running[-1] is sequence and len(self.running) > 1


class CountsFreeOnly(Victims):
    """Unused blocks of the prefix cache are not counted as available."""

    def _available(self) -> int:
        return self._memory.pool.num_free


class ForgetsPromises(Victims):
    """Ignores the blocks that the plan has already counted."""

    def _promised(self, plan: StepPlan) -> int:
        return 0


class ForgetsTheCopies(Victims):
    """The blocks for other samples are not counted."""

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        return super()._fits(plan, sequence, num_tokens, 0)


FIT_CASES = (
    step_case(
        "three answers, one of them has a full block",
        0,
        SequenceState(8, 8, 1),
        SequenceState(6, 6, 1),
        SequenceState(6, 6, 1),
    ),
    step_case("the newest one has a full block", 0, SequenceState(6, 6, 1), SequenceState(8, 8, 1)),
    step_case("the newest one is in its prefill", 0, SequenceState(6, 6, 1), SequenceState(30, 8)),
    step_case("two answers, and one block", 1, SequenceState(8, 8, 1), SequenceState(8, 8, 1)),
    step_case(
        "two newer sequences must be preempted",
        0,
        SequenceState(10, 8, forks=1),
        SequenceState(4, 4, 1),
        SequenceState(4, 4, 1),
    ),
    step_case("an older prompt needs blocks", 0, SequenceState(30, 8), SequenceState(8, 8, 1)),
    step_case("the only one is in its prefill", 0, SequenceState(30, 8)),
    step_case(
        "one of three newer sequences is enough", 0, SequenceState(8, 8, 1), *[SequenceState(6, 6, 1)] * 3
    ),
    step_case(
        "two blocks are missing, newer sequences hold one each",
        0,
        SequenceState(10, 8, forks=1),
        *[SequenceState(3, 3, 1)] * 3,
    ),
    step_case("one block, exactly as needed", 1, SequenceState(8, 8, 1)),
    twice_case("two answers, and one block", 1, SequenceState(8, 8, 1), SequenceState(8, 8, 1)),
    in_turns_case("two answers, and one block", 1, SequenceState(8, 8, 1), SequenceState(8, 8, 1)),
    serving_case("unused blocks of the prefix cache", 12, Ask(30, 2), Ask(34, 4, at=6), Ask(3, 9, at=6)),
    FIT_COST,
)
FIT_MISTAKES = (
    Mistake(
        "the oldest is preempted: preempt the newest, otherwise no sequence is sure to finish",
        PreemptsOldest,
    ),
    Mistake(
        "the oldest is preempted, and waits in its prefill: both rules are about the newest",
        OldestInEverything,
    ),
    Mistake("a sequence that needs a block preempts itself: preempt the newest", PreemptsItself),
    Mistake("it waits in its prefill although it runs alone: nothing would ever free a block", WaitsAlone),
    Mistake(
        "a sequence in its prefill takes no block from a newer one: only the newest waits", AnyPrefillWaits
    ),
    Mistake("one sequence is preempted, and the blocks may still be missing: look again", PreemptsOnce),
    Mistake("all newer sequences are preempted: stop as soon as there are enough blocks", PreemptsAllNewer),
    Mistake("one block more than needed is required", KeepsOneFree),
    Mistake("a sequence that was preempted itself is said to fit: return False", RunsItself),
    Mistake("the blocks are not counted in the plan: call `plan.take`", CountsNothing),
    Mistake("blocks that the sequence has already are counted again: use `shortage`", CountsAll),
    Mistake("the newest is preempted in its prefill: it can wait and keep its computed tokens", NeverWaits),
    Mistake(
        "the newest waits although it decodes, so no other sequence can use its blocks: preempt it",
        WaitsForDecode,
    ),
    Mistake("unused blocks of the prefix cache are not counted: use `available`", CountsFreeOnly),
    Mistake("blocks are counted twice: subtract the blocks that are already in the plan", ForgetsPromises),
    Mistake("the blocks for other samples (`forks`) are not counted", ForgetsTheCopies),
    *FIT_TOO_MUCH,
)
