"""One step of the engine in four phases, and which sequences a failure affects.

    schedule   decide which sequences run, wait or are preempted     (tables change: preemption, prefix hits)
    reserve    allocate every block of the step                      (tables change)
    run        propose drafts, execute the worker, verify drafts
    commit     append tokens, roll back drafts, publish blocks       (everything changes)

A step is all or nothing (contract C6). A part may raise, and Ctrl-C may interrupt it at any line. In phase
`run` the engine's state does not change. After an exception in it the planned sequences end with that error.
After an interrupt they lose their blocks, keep their tokens and recompute them with the same bits (contract
C2). In any other phase block tables may be half changed, so the KV memory is not trusted: the pool, the
prefix cache and the scheduler are replaced, and every sequence waits again. A sequence whose own state is
half changed ends with an error. `recovery.py` does this. Time and cached prefixes are lost, answers are not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Literal

from minillm.engine.assembly import Machinery
from minillm.engine.batch import PlannedStep, make_input, reserve
from minillm.engine.checked import check_plan
from minillm.engine.commit import Commit
from minillm.engine.live_change import LiveChange
from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import LanePlan, StepPlan
from minillm.engine.tenant_memory import KVMemory
from minillm.engine.tenant_scheduler import AnyScheduler, TenantScheduler
from minillm.engine.watch import StepWatch
from minillm.speculation.lookahead import LookaheadBudget
from minillm.worker.step import StepOutput

Phase = Literal["idle", "schedule", "reserve", "run", "commit"]


class Stepper:
    """Runs steps. `phase` is the phase of the current step."""

    def __init__(
        self, machinery: Machinery, memory: KVMemory, commit: Commit, live_change: LiveChange
    ) -> None:
        self._worker, self._speculation = machinery.worker, machinery.speculation
        self._num_token_ids, self._rejects = machinery.model.num_token_ids, machinery.rejects
        self._memory, self._commit, self._live_change = memory, commit, live_change
        self.phase: Phase = "idle"
        self._entered = 0.0  # when the phase began
        self.step = PlannedStep(StepPlan())
        self.watch: StepWatch | None = None

    def use_watch(self, watch: StepWatch | None) -> None:
        """Let `watch` see the logits and the tokens of every step; None: nobody."""
        self.watch = self._worker.watch = watch

    def begin(self) -> None:
        """Start a new step with an empty plan."""
        self.step, self.phase = PlannedStep(StepPlan()), "idle"

    def run(self, scheduler: AnyScheduler, now: float) -> list[Sequence]:
        """Run one step; return the sequences that got a token or failed.

        Raises:
            Exception: what a part raises; `phase` and `step` say where.
        """
        self._enter("schedule")
        plan = scheduler.schedule(now)
        self.step.plan = plan if type(scheduler) in (Scheduler, TenantScheduler) else check_plan(plan)
        self._enter("reserve")
        reserve(self.step, self._memory, self._plan_lookahead(self.step.plan))
        self._enter("run")
        if self.watch is not None:
            self.watch.begin(self.step)
        output = self._execute(self.step)
        self._live_change.check_step()
        self._enter("commit")
        changed = self._commit.apply(self.step, output, scheduler)
        if self.watch is not None:
            self.watch.end(self.step, output)
        self._enter("idle")
        return changed

    def _enter(self, phase: Phase) -> None:
        """Go to the next phase; the time of the one that ends is known then."""
        now = time.perf_counter()
        if self.phase != "idle":
            self.step.phases[self.phase] = now - self._entered
        self.phase, self._entered = phase, now

    def _plan_lookahead(self, plan: StepPlan) -> list[LookaheadBudget]:
        """The look-ahead budget of each decoding sequence; empty if the step does not speculate."""
        if self._speculation is None or not plan.decode:
            return []
        most, size = self._speculation.max_tokens, self._memory.pool.block_size
        whole = LanePlan(plan.decode, most - plan.num_rows, self._memory.available - plan.num_blocks)
        budgets = dict[Sequence, LookaheadBudget]()
        for number, lane in enumerate(plan.lanes or [whole]):
            owned = [len(s.block_table.block_ids) + plan.blocks.get(s, 0) for s in lane.decode]
            planned = self._speculation.plan(
                lane.decode, owned, most - lane.rows, lane.blocks, size, adaptive=not lane.is_reserved
            )
            group = number if lane.is_reserved else -1  # the others share one
            own = [budget._replace(group=group) for budget in planned]
            budgets.update(zip(lane.decode, own, strict=True))
        return [budgets[sequence] for sequence in plan.decode]

    def _execute(self, step: PlannedStep) -> StepOutput:
        if step.lookaheads and self._speculation:
            step.proposals, step.draft_seconds = self._speculation.propose(step.lookaheads)
            self._free_lookahead(step)
        size = self._memory.pool.block_size
        output = self._worker.execute(make_input(step, size, self._num_token_ids, self._rejects))
        if self._speculation and step.plan.decode:
            self._speculation.record_target(output.num_rows, output.decode_seconds)
            if output.verify:
                self._speculation.learn(step.lookaheads, step.proposals, output.verify, step.draft_seconds)
        return output

    def _free_lookahead(self, step: PlannedStep) -> None:
        """Free the look-ahead blocks of each sequence without a draft.

        Whether others have drafts, so that the step verifies, decides nothing for it (contract C12).
        """
        self.phase = "reserve"
        for i, proposal in enumerate(step.proposals):
            if not proposal.branches:
                sequence = step.plan.decode[i]
                self._memory.rollback(sequence, sequence.num_tokens)
                tables = [sequence.block_table.block_ids]
                step.lookaheads[i] = replace(step.lookaheads[i], block_tables=tables)
        self.phase = "run"

    # A failed step ---------------------------------------------------------------------------

    def affected(
        self, error: BaseException, scheduler: AnyScheduler, requests: List[Request]
    ) -> list[Sequence]:
        """The sequences that must end with an error because the step failed with `error`."""
        live = [s for request in requests for s in request.open_sequences()]
        half_changed = [s for s in live if s.is_changing]
        if not isinstance(error, Exception):
            return half_changed
        if self.phase == "schedule":
            current = getattr(scheduler, "current", None)  # a replaced scheduler may not have it
            return [s for s in live if s is current] or list(live)
        return [*half_changed, *self.step.plan.sequences]
