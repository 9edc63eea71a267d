"""One step of the engine, in four phases, and which requests a failure concerns.

    schedule   which sequences run, wait or are preempted            (tables change: preemption, prefix hits)
    reserve    every block of the step is taken                      (tables change)
    run        drafts are proposed, the worker executes, drafts are verified
    commit     tokens are appended, drafts rolled back, blocks published    (everything changes)

A step is all or nothing (contract C6). A part may raise in it, and Ctrl-C may interrupt it at any line. In
phase `run` the engine's state does not change. After an exception the planned sequences end with it. After an
interrupt they lose their blocks, keep their tokens and compute them again, with the same bits (contract C2).
In any other phase tables may be half changed, so nothing of the KV memory is relied upon: pool, prefix cache
and scheduler are made anew, and every sequence goes back to waiting. A sequence whose own change was cut in
two ends with an error. `recovery.py` does this. It costs time and the cached prefixes, never an answer.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import Literal

from minillm.engine.assembly import Machinery
from minillm.engine.batch import PlannedStep, make_input, reserve
from minillm.engine.checked import check_plan
from minillm.engine.commit import Commit
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler, StepPlan
from minillm.engine.sequence import Sequence
from minillm.speculation.lookahead import Leave
from minillm.worker.step import StepOutput

Phase = Literal["idle", "schedule", "reserve", "run", "commit"]


class Stepper:
    """Carries out steps. `phase` says how far the step at hand has come."""

    def __init__(self, machinery: Machinery, memory: KVCacheManager, commit: Commit) -> None:
        self._worker, self._speculation = machinery.worker, machinery.speculation
        self._num_token_ids, self._rejects = machinery.model.num_token_ids, machinery.rejects
        self._memory, self._commit = memory, commit
        self.phase: Phase = "idle"
        self.step = PlannedStep(StepPlan())

    def begin(self) -> None:
        """Nothing is planned yet."""
        self.step, self.phase = PlannedStep(StepPlan()), "idle"

    def run(self, scheduler: Scheduler, now: float) -> list[Sequence]:
        """One step; returns the sequences that got a token or failed.

        Raises:
            Exception: what a part raises; `phase` and `step` say what it was doing.
        """
        self.phase = "schedule"
        plan = scheduler.schedule(now)
        self.step.plan = plan if type(scheduler) is Scheduler else check_plan(plan)
        self.phase = "reserve"
        reserve(self.step, self._memory, self._plan_lookahead(self.step.plan))
        self.phase = "run"
        output = self._execute(self.step)
        self.phase = "commit"
        return self._commit.apply(self.step, output, scheduler)

    def _plan_lookahead(self, plan: StepPlan) -> list[Leave]:
        """Leave to look ahead for the plan's decoding sequences; empty where nobody has any."""
        if self._speculation is None or not plan.decode:
            return []
        owned = [len(s.block_table.block_ids) + plan.blocks.get(s, 0) for s in plan.decode]
        room = self._memory.available - plan.num_blocks
        return self._speculation.plan(plan.decode, owned, plan.num_rows, room, self._memory.pool.block_size)

    def _execute(self, step: PlannedStep) -> StepOutput:
        if step.lookaheads and self._speculation:
            step.proposals, step.draft_seconds = self._speculation.propose(step.lookaheads)
            if not step.is_speculative:
                self._give_back_room(step)
        size = self._memory.pool.block_size
        output = self._worker.execute(make_input(step, size, self._num_token_ids, self._rejects))
        if self._speculation and step.plan.decode:
            self._speculation.saw_target(output.num_rows, output.decode_seconds)
            if output.verify:
                self._speculation.learn(step.lookaheads, step.proposals, output.verify, step.draft_seconds)
        return output

    def _give_back_room(self, step: PlannedStep) -> None:
        """Nobody had a guess: a plain step, without the room for guesses."""
        self.phase = "reserve"
        for sequence in step.plan.decode:
            self._memory.rollback(sequence, sequence.num_tokens)
        self.phase = "run"

    # A failed step ---------------------------------------------------------------------------

    def blamed(self, error: BaseException, scheduler: Scheduler, requests: List[Request]) -> list[Sequence]:
        """The sequences that must end with an error, since the step failed with `error`."""
        live = [s for request in requests for s in request.open_sequences()]
        half_changed = [s for s in live if s.is_changing]
        if not isinstance(error, Exception):
            return half_changed
        if self.phase == "schedule":
            current = getattr(scheduler, "current", None)  # a replaced scheduler need not say
            return [s for s in live if s is current] or list(live)
        return [*half_changed, *self.step.plan.sequences]
