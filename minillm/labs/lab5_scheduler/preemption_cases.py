"""Task 5.4, blocks for a sequence and who loses them: cases and known mistakes of `_fits`."""

from __future__ import annotations

from minillm.engine.scheduler import Scheduler, StepPlan
from minillm.engine.sequence import Sequence
from minillm.labs.grader.lab import Mistake
from minillm.labs.grader.serving import Ask
from minillm.labs.lab5_scheduler.plan_cases import SequenceState, serving_case, step_case


class Victims(Scheduler):
    """The engine's `_fits` with one idea exchanged."""

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
    """The sequence that has run for longest goes."""

    def _victim(self, sequence: Sequence) -> Sequence:
        return self.running[0]


class PreemptsItself(Victims):
    """Whoever needs a block gives up its own."""

    def _victim(self, sequence: Sequence) -> Sequence:
        return sequence


class NeverWaits(Victims):
    """The newest, in its prefill, is preempted rather than asked to wait."""

    def _waits(self, sequence: Sequence) -> bool:
        return False


class WaitsForDecode(Victims):
    """Even one that decodes waits: its blocks help nobody."""

    def _waits(self, sequence: Sequence) -> bool:
        return self.running[-1] is sequence and len(self.running) > 1


class CountsFreeOnly(Victims):
    """Blocks of the prefix cache that nobody uses are left out."""

    def _available(self) -> int:
        return self._memory.pool.num_free


class ForgetsPromises(Victims):
    """Every sequence is shown the same blocks."""

    def _promised(self, plan: StepPlan) -> int:
        return 0


class ForgetsTheCopies(Victims):
    """The blocks for other samples are asked for by nobody."""

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
        "two newer ones must go",
        0,
        SequenceState(10, 8, forks=1),
        SequenceState(4, 4, 1),
        SequenceState(4, 4, 1),
    ),
    serving_case("unused blocks of the prefix cache", 12, Ask(30, 2), Ask(34, 4, at=6), Ask(3, 9, at=6)),
)
FIT_MISTAKES = (
    Mistake(
        "the oldest is preempted: the newest goes, or nobody would ever be sure to finish", PreemptsOldest
    ),
    Mistake("whoever needs a block preempts itself: newer sequences go first", PreemptsItself),
    Mistake("the newest is preempted in its prefill: it can wait and keep what it has computed", NeverWaits),
    Mistake(
        "a newest that decodes waits, and keeps blocks that nobody else can get: preempt it", WaitsForDecode
    ),
    Mistake("blocks that only the prefix cache holds can be had, too: ask for `available`", CountsFreeOnly),
    Mistake("blocks are promised twice: those already in the plan are gone", ForgetsPromises),
    Mistake("the blocks for other samples (`forks`) are not counted", ForgetsTheCopies),
)
