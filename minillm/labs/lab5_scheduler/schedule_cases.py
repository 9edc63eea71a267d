"""Task 5.5, the plan of a whole step: cases and known mistakes of `schedule`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
from minillm.labs.grader.lab import Mistake
from minillm.labs.grader.serving import Ask
from minillm.labs.lab5_scheduler.costs import STEP_COST, STEP_TOO_MUCH
from minillm.labs.lab5_scheduler.plan_cases import (
    SequenceState,
    in_turns_case,
    serving_case,
    step_case,
    twice_case,
)


class Steps(Scheduler):
    """Parts of `schedule`, for schedulers that combine them differently."""

    def _begin(self, now: float) -> StepPlan:
        self._order_running(now)
        return StepPlan()

    def _plan_decode(self, plan: StepPlan, sequences: Iterable[Sequence] | None = None) -> int:
        for sequence in sequences or [r for r in self.running if not r.is_prefilling]:
            if sequence in self.running and self._fits(plan, sequence, sequence.num_computed_tokens + 1):
                plan.decode.append(sequence)
        return self._config.max_num_batched_tokens - len(plan.decode)

    def _plan_prefill(self, plan: StepPlan, budget: int) -> int:
        for sequence in [r for r in self.running if r.is_prefilling]:
            if budget > 0 and sequence in self.running:
                budget -= self._prefill(plan, sequence, budget)
        return budget


class PrefillFirst(Steps):
    """Prompts first, then answers with the rest of the budget."""

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        decoding = [r for r in self.running if not r.is_prefilling]
        budget = self._plan_prefill(plan, self._config.max_num_batched_tokens)
        if decoding[:budget]:
            self._plan_decode(plan, decoding[:budget])
        self._admit(plan, budget - len(plan.decode), now)
        return plan


class OneOrTheOther(Steps):
    """Answers wait while a prompt is prefilled."""

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        budget = self._plan_prefill(plan, self._config.max_num_batched_tokens)
        self._admit(plan, budget, now)
        if not plan.prefill:
            self._plan_decode(plan)
        return plan


class AdmitsFirst(Steps):
    """New prompts before started ones."""

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        budget = self._plan_decode(plan)
        begun = [r for r in self.running if r.is_prefilling]
        self._admit(plan, budget, now)
        budget -= sum(chunk.end - chunk.start for chunk in plan.prefill)
        for sequence in begun:
            if budget > 0 and sequence in self.running:
                budget -= self._prefill(plan, sequence, budget)
        return plan


class StaticBatches(Steps):
    """Admits no sequence before all running ones have finished."""

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        was_idle = not self.running
        budget = self._plan_prefill(plan, self._plan_decode(plan))
        if was_idle:
            self._admit(plan, budget, now)
        return plan


class DecodeIsFree(Steps):
    """The rows of decode are not subtracted from the budget."""

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        self._plan_decode(plan)
        self._admit(plan, self._plan_prefill(plan, self._config.max_num_batched_tokens), now)
        return plan


class RunsThePreempted(Steps):
    """Plans a sequence that was preempted in the same step."""

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        for sequence in [r for r in self.running if not r.is_prefilling]:
            if self._fits(plan, sequence, sequence.num_computed_tokens + 1):
                plan.decode.append(sequence)
        budget = self._config.max_num_batched_tokens - len(plan.decode)
        self._admit(plan, self._plan_prefill(plan, budget), now)
        return plan


class RanksOfLongAgo(Steps):
    """Uses the ranks that the sequences got when they were admitted."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        self._admit(plan, self._plan_prefill(plan, self._plan_decode(plan)), now)
        return plan


class OnePlan(Scheduler):
    """One plan object for all steps; it is cleared first."""

    _plan: StepPlan | None = None

    def schedule(self, now: float) -> StepPlan:
        fresh = super().schedule(now)
        if self._plan is None:
            self._plan = fresh
        vars(self._plan).update(vars(fresh))
        return self._plan


class OneList(Scheduler):
    """New plans with one list of sequences to decode; it is cleared first."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._decode: list[Sequence] = []

    def schedule(self, now: float) -> StepPlan:
        plan = super().schedule(now)
        self._decode[:] = plan.decode
        plan.decode = self._decode
        return plan


class OneListFromTheStart(Steps):
    """As before, but the list is in the plan while it is made."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._decode: list[Sequence] = []

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        self._decode.clear()
        plan.decode = self._decode
        self._admit(plan, self._plan_prefill(plan, self._plan_decode(plan)), now)
        return plan


class AppendsOnly(Scheduler):
    """The list of sequences to decode is never cleared."""

    _decode: tuple[Sequence, ...] = ()

    def schedule(self, now: float) -> StepPlan:
        plan = super().schedule(now)
        self._decode = (*self._decode, *plan.decode)
        plan.decode = list(self._decode)
        return plan


class OneChunk(Steps):
    """One chunk in a step."""

    def _plan_prefill(self, plan: StepPlan, budget: int) -> int:
        for sequence in [r for r in self.running if r.is_prefilling][:1]:
            budget -= self._prefill(plan, sequence, budget)
        return budget

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        self._admit(plan, self._plan_prefill(plan, self._plan_decode(plan)), now)
        return plan


class AdmitsWithAll(Steps):
    """Admission gets the whole budget again."""

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        budget = self._plan_decode(plan)
        self._plan_prefill(plan, budget)
        self._admit(plan, budget, now)
        return plan


class NoTokenForDecode(Steps):
    """Asks for the computed tokens, without the newest."""

    def schedule(self, now: float) -> StepPlan:
        plan = self._begin(now)
        for sequence in [r for r in self.running if not r.is_prefilling]:
            if sequence in self.running and self._fits(plan, sequence, sequence.num_computed_tokens):
                plan.decode.append(sequence)
        budget = self._config.max_num_batched_tokens - len(plan.decode)
        self._admit(plan, self._plan_prefill(plan, budget), now)
        return plan


STEP_CASES = (
    serving_case("a long prompt arrives during an answer", 40, Ask(3, 9), Ask(30, 3, at=2)),
    serving_case("prompts one after the other", 60, *[Ask(9, 3, at=i) for i in range(6)], Ask(20, 2, at=1)),
    serving_case("twelve answers at once", 60, *[Ask(4, 9) for _ in range(10)], Ask(20, 2, at=3)),
    step_case(
        "three answers, one of them has a full block",
        0,
        SequenceState(8, 8, 1),
        SequenceState(6, 6, 1),
        SequenceState(6, 6, 1),
    ),
    step_case(
        "a low priority has aged since its admission",
        0,
        SequenceState(6, 6, 1, priority=1),
        SequenceState(6, 6, 1, arrival=5),
        now=12,
    ),
    step_case("two prompts and an answer", 20, SequenceState(6, 6, 1), *[SequenceState(30, 27)] * 3),
    twice_case("two answers and a prompt", 9, *[SequenceState(6, 6, 1)] * 2, SequenceState(30, 8)),
    twice_case("two answers, no block", 0, SequenceState(8, 8, 1), SequenceState(6, 6, 1)),
    in_turns_case("two answers and a prompt", 9, *[SequenceState(6, 6, 1)] * 2, SequenceState(30, 8)),
    STEP_COST,
)
STEP_MISTAKES = (
    Mistake("prompts go before answers, so answers have gaps: plan decode first", PrefillFirst),
    Mistake("answers wait while a prompt is prefilled: one step can do both", OneOrTheOther),
    Mistake("new sequences are admitted before the started prompts get their chunks", AdmitsFirst),
    Mistake("this is static batching: admit new sequences in every step", StaticBatches),
    Mistake("the rows of decode are not subtracted from the budget", DecodeIsFree),
    Mistake("a sequence is planned that was preempted in the same step", RunsThePreempted),
    Mistake("the same plan object is returned in every step: make a new one", OnePlan),
    Mistake("plans have a list in common: a new plan changes the one before", OneList),
    Mistake("plans have a list in common: a new plan changes the one before", OneListFromTheStart),
    Mistake("sequences of earlier steps are still in the plan: begin with empty lists", AppendsOnly),
    Mistake("one prompt gets a chunk in a step: all started prompts get one while budget is left", OneChunk),
    Mistake("admission gets the budget that started prompts have used already", AdmitsWithAll),
    Mistake(
        "no room is made for the newest token: it needs num_computed_tokens + 1 tokens", NoTokenForDecode
    ),
    Mistake("the ranks are those of admission: call `_order_running(now)` first", RanksOfLongAgo),
    *STEP_TOO_MUCH,
)
