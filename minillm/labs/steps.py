"""A step as a whole, for lab 5: cases and known mistakes of `schedule` and `_start`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler, StepPlan
from minillm.labs.lab import Mistake
from minillm.labs.plans import Seat, serving_case, step_case
from minillm.labs.serving import Ask
from minillm.memory.block_table import blocks_for


class Steps(Scheduler):
    """Pieces of `schedule`, for schedulers that put them together differently."""

    def _plan_decode(self, plan: StepPlan, requests: Sequence[Request] | None = None) -> int:
        for request in requests or [r for r in self.running if not r.is_prefilling]:
            if request in self.running and self._fits(plan, request, request.num_computed_tokens + 1):
                plan.decode.append(request)
        return self._config.max_num_batched_tokens - len(plan.decode)

    def _plan_prefill(self, plan: StepPlan, budget: int) -> int:
        for request in [r for r in self.running if r.is_prefilling]:
            if budget > 0 and request in self.running:
                budget -= self._prefill(plan, request, budget)
        return budget


class PrefillFirst(Steps):
    """Prompts first, answers with what is left of the budget."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        decoding = [r for r in self.running if not r.is_prefilling]
        budget = self._plan_prefill(plan, self._config.max_num_batched_tokens)
        if decoding[:budget]:
            self._plan_decode(plan, decoding[:budget])
        self._admit(plan, budget - len(plan.decode), now)
        return plan


class OneOrTheOther(Steps):
    """Answers wait while a prompt is prefilled."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        budget = self._plan_prefill(plan, self._config.max_num_batched_tokens)
        self._admit(plan, budget, now)
        if not plan.prefill:
            self._plan_decode(plan)
        return plan


class AdmitsFirst(Steps):
    """New prompts before those that have begun."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        budget = self._plan_decode(plan)
        begun = [r for r in self.running if r.is_prefilling]
        self._admit(plan, budget, now)
        budget -= sum(chunk.end - chunk.start for chunk in plan.prefill)
        for request in begun:
            if budget > 0 and request in self.running:
                budget -= self._prefill(plan, request, budget)
        return plan


class StaticBatches(Steps):
    """Nobody is let in before everybody has finished."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        was_idle = not self.running
        budget = self._plan_prefill(plan, self._plan_decode(plan))
        if was_idle:
            self._admit(plan, budget, now)
        return plan


class DecodeIsFree(Steps):
    """Answers cost nothing of the budget."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        self._plan_decode(plan)
        self._admit(plan, self._plan_prefill(plan, self._config.max_num_batched_tokens), now)
        return plan


class RunsThePreempted(Steps):
    """Goes on with a request that an older one has preempted in this very step."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        for request in [r for r in self.running if not r.is_prefilling]:
            if self._fits(plan, request, request.num_computed_tokens + 1):
                plan.decode.append(request)
        budget = self._config.max_num_batched_tokens - len(plan.decode)
        self._admit(plan, self._plan_prefill(plan, budget), now)
        return plan


class Doors(Scheduler):
    """The engine's `_start` with one idea exchanged."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        needed = blocks_for(request.num_tokens + 1, self._memory.pool.block_size) - len(found)
        return self._memory.available_without(found) - plan.num_blocks - needed - self._copies(request)

    def _is_open(self, left: int) -> bool:
        return left >= self._headroom() or (not self.running and left >= 0)

    def _start(self, plan: StepPlan, request: Request) -> bool:
        found = self._memory.match(request)
        if not self._is_open(self._left(plan, request, found)):
            return False
        self._memory.start_from(request, found)
        return True


class NoHeadroom(Doors):
    """Lets in whoever fits now."""

    def _is_open(self, left: int) -> bool:
        return left >= 0


class AlwaysHeadroom(Doors):
    """Keeps blocks back even where nobody runs."""

    def _is_open(self, left: int) -> bool:
        return left >= max(self._headroom(), 2)


class LooksAtNothing(Doors):
    """Lets everybody in."""

    def _is_open(self, left: int) -> bool:
        return True


class CountsFoundTwice(Doors):
    """Found blocks that nobody uses are counted as available, and as had."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        return (
            super()._left(plan, request, found)
            + self._memory.available
            - self._memory.available_without(found)
        )


class NeedsItAll(Doors):
    """Found blocks are asked for again."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        return super()._left(plan, request, found) - len(found)


class ForgetsThePlan(Doors):
    """What this step has promised already is given once more."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        return super()._left(plan, request, found) + plan.num_blocks


class ForgetsSamples(Doors):
    """The blocks that other samples copy are left out."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        return super()._left(plan, request, found) + self._copies(request)


class TakesNothingFound(Doors):
    """Found blocks make room, but the request computes them again."""

    def _start(self, plan: StepPlan, request: Request) -> bool:
        return self._is_open(self._left(plan, request, self._memory.match(request)))


STEP_CASES = (
    serving_case("a long prompt comes while another answers", 40, Ask(3, 9), Ask(30, 3, at=2)),
    serving_case("prompts one after the other", 60, *[Ask(9, 3, at=i) for i in range(6)], Ask(20, 2, at=1)),
    serving_case("twelve answers at once", 60, *[Ask(4, 9) for _ in range(10)], Ask(20, 2, at=3)),
    step_case("three answers, one of them has a full block", 0, Seat(8, 8, 1), Seat(6, 6, 1), Seat(6, 6, 1)),
)
STEP_MISTAKES = (
    Mistake("prompts go before answers: who is being answered stutters", PrefillFirst),
    Mistake("a step does both: answers need not wait while a prompt is prefilled", OneOrTheOther),
    Mistake("new requests are let in before the begun ones have had their chunk", AdmitsFirst),
    Mistake("this is static batching: let new requests in at every step", StaticBatches),
    Mistake("the answers' tokens are not taken off the budget", DecodeIsFree),
    Mistake("a request is planned that an older one has preempted in this step", RunsThePreempted),
)
DOOR_CASES = (
    step_case("nobody runs", 9, Seat(30, is_waiting=True)),
    step_case("it just fits", 8, Seat(30, is_waiting=True)),
    step_case("it does not fit", 7, Seat(30, is_waiting=True)),
    step_case("headroom for one that runs", 12, Seat(8, 8, 1), Seat(6, is_waiting=True)),
    step_case("a block less", 11, Seat(8, 8, 1), Seat(6, is_waiting=True)),
    step_case("much less", 5, Seat(8, 8, 1), Seat(6, is_waiting=True)),
    step_case("three samples", 15, Seat(8, 8, 1), Seat(10, forks=2, is_waiting=True)),
    step_case("a block less for three samples", 14, Seat(8, 8, 1), Seat(10, forks=2, is_waiting=True)),
    serving_case("a second question to a story, in a small pool", 12, Ask(30, 6), Ask(34, 4, at=5, story=0)),
    serving_case(
        "the same with another running", 14, Ask(30, 2), Ask(3, 20, at=5), Ask(34, 4, at=6, story=0)
    ),
)
DOOR_MISTAKES = (
    Mistake("no headroom: those who run will need blocks in their next tokens", NoHeadroom),
    Mistake("headroom is asked for where nobody runs: the request would wait for ever", AlwaysHeadroom),
    Mistake("nobody asks whether there is room", LooksAtNothing),
    Mistake("found blocks that nobody uses are counted as available: `available_without`", CountsFoundTwice),
    Mistake("found blocks need not be had again", NeedsItAll),
    Mistake("blocks that this step has promised already are counted as available", ForgetsThePlan),
    Mistake("the blocks for the copies of other samples are missing", ForgetsSamples),
    Mistake("the found blocks are not taken: `start_from`", TakesNothingFound),
)
