"""Applies a step's output to its sequences: append tokens, roll back drafts, publish full blocks.

    StepOutput --> num_computed_tokens --> append --> roll back --> publish
                        (per sequence: each change completes, or the sequence ends with an error)

Nothing is computed here. A sequence ends with an error if its logits are NaN or infinite, or if its
detokenizer raises. The other sequences get their tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from minillm.engine.batch import PlannedStep
from minillm.engine.sequence import Sequence
from minillm.engine.tenant_memory import KVMemory
from minillm.engine.tenant_scheduler import AnyScheduler
from minillm.errors import MinillmError, is_interrupt
from minillm.observe.events import Events
from minillm.speculation.lookahead import Outcome, outcome
from minillm.worker.step import Drawn, StepOutput, VerifyResult


class Commit:
    """Applies step outputs. An exception of a detokenizer ends its own sequence and nothing else."""

    def __init__(self, memory: KVMemory, events: Events, eos_token_ids: tuple[int, ...]) -> None:
        self._memory, self._events, self._eos_token_ids = memory, events, eos_token_ids
        self._sampled: list[tuple[str, int]] = []

    def apply(self, step: PlannedStep, output: StepOutput, scheduler: AnyScheduler) -> list[Sequence]:
        """Apply the step's output; return the sequences that got a token or failed."""
        changed = list[Sequence]()
        if output.prefill:
            changed += self._take_prefill(step, output.prefill, scheduler)
        if output.verify:
            self._take_verified(step, output)
        elif output.decode:
            self._take_decoded(step.plan.decode, output.decode)
        changed += step.plan.decode
        size = self._memory.pool.block_size
        for sequence in step.plan.sequences:
            if sequence.finish_reason != "error" and sequence.has_unpublished(size):
                self._memory.publish(sequence)
        return changed

    def _take_prefill(self, step: PlannedStep, drawn: Drawn, scheduler: AnyScheduler) -> list[Sequence]:
        """Mark the chunks as computed; start the sequences whose prefill has ended, and their forks."""
        failed = list[Sequence]()
        for chunk, is_finite in zip(step.plan.prefill, drawn.finite, strict=True):
            sequence = chunk.sequence
            self._events.emit(
                "prefill_chunk",
                sequence.request_id,
                start=chunk.start,
                end=chunk.end,
                tokens=sequence.num_tokens,
            )
            sequence.num_computed_tokens = chunk.end
            if not is_finite:
                failed += self._fail_broken(sequence)
        for sequence in step.starting:
            for fork in sequence.forks if not sequence.finish_reason else ():
                scheduler.fork(sequence, fork)
            if not sequence.finish_reason:
                sequence.forks = []
        self._take_tokens(step.starting, drawn)
        return failed + [s for s in step.starting if s not in failed]

    def _take_decoded(self, sequences: list[Sequence], drawn: Drawn) -> None:
        """Append one token to each sequence."""
        self._events.emit("decode_step", rows=len(sequences))
        for sequence, is_finite in zip(sequences, drawn.finite, strict=True):
            sequence.num_computed_tokens += 1
            if not is_finite:
                self._fail_broken(sequence)
        self._take_tokens(sequences, drawn)

    def _take_tokens(self, sequences: Iterable[Sequence], drawn: Drawn) -> None:
        now = time.perf_counter()
        try:
            for sequence, token, logprobs in zip(sequences, drawn.tokens, drawn.logprobs, strict=True):
                if not sequence.finish_reason:
                    self._append(sequence, token, logprobs, now)
        finally:
            self._report_sampled(now)

    def _take_verified(self, step: PlannedStep, output: StepOutput) -> None:
        """Append each sequence's accepted draft tokens and one more token; roll back the rest."""
        self._events.emit("decode_step", rows=len(step.plan.decode))
        now, outcomes = time.perf_counter(), list[Outcome]()
        try:
            for sequence, proposal, result in zip(
                step.plan.decode, step.proposals, output.verify, strict=True
            ):
                appended = self._append_all(sequence, result, now)
                is_broken = not result.tokens and not proposal.branches
                computed = sequence.num_computed_tokens + appended + is_broken
                self._memory.rollback(sequence, computed, result.branch)
                sequence.num_computed_tokens = computed
                if is_broken:
                    self._fail_broken(sequence)
                outcomes.append(outcome(proposal, result, appended))
                sequence.draft.num_drafted += outcomes[-1].drafted
                sequence.draft.num_accepted += outcomes[-1].accepted
        finally:
            self._report_sampled(now)
            self._report_speculation(step, output, outcomes)

    def _report_speculation(self, step: PlannedStep, output: StepOutput, outcomes: list[Outcome]) -> None:
        """Emit the `speculate` event. If the step failed, it has the sequences that were done before."""
        if self._events.listeners:
            done = step.plan.decode[: len(outcomes)]
            self._events.emit(
                "speculate",
                requests=[(s.request_id, s.index) for s in done],
                outcomes=outcomes,
                rows=output.num_rows,
                draft_seconds=step.draft_seconds,
                verify_seconds=output.decode_seconds,
            )

    def _append_all(self, sequence: Sequence, result: VerifyResult, now: float) -> int:
        """Append tokens until one ends the sequence; return the number appended."""
        for count, token in enumerate(result.tokens):
            self._append(sequence, token, result.logprobs[count] if result.logprobs else None, now)
            if sequence.finish_reason:
                return count + 1
        return len(result.tokens)

    def _append(self, sequence: Sequence, token: int, logprobs: dict[int, float] | None, now: float) -> None:
        if self._events.listeners:
            self._sampled.append((sequence.request_id, sequence.index))
        try:
            sequence.append(token, self._eos_token_ids, now, logprobs)
        except BaseException as error:
            if is_interrupt(error):
                raise
            sequence.fail(error)

    def _report_sampled(self, now: float) -> None:
        """Emit the `sample` event. It is also emitted if the step fails, so the trace has every token."""
        sampled, self._sampled = self._sampled, []
        if sampled:
            self._events.emit("sample", at=now, requests=sampled)

    def _fail_broken(self, sequence: Sequence) -> list[Sequence]:
        """End a sequence whose logits are NaN or infinite, and its forks, which cannot start."""
        ended = [sequence, *sequence.forks]
        for failed in ended:
            error = MinillmError(
                f"the model's logits are NaN or infinite after {sequence.num_computed_tokens} tokens",
                "the weights may be damaged, or overflow in this dtype: try float32",
            )
            failed.error = error
            failed.end("error")
        return ended
