"""A planned step, carried out: the two loops, the draws, and what was written made findable.

    StepPlan --+--> prefill_loop --> logits --+--> forks --+--> sampler --> append --> publish
               +--> decode_loop  --> logits --------------+               |
               +--> speculation  --> verdicts ----------------------------+

Where nobody has replaced `decode_loop` or `sampler`, a backend that can does both, and the look between
them, in one call (`decode_and_draw`): the same bits, and a fifth less Python.

Logits are looked at before they are used. A row that holds NaN or infinity ends its request with an
error, publishes nothing, and its neighbours never learn of it: rows of a batch share no arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice

import torch
from torch import Tensor

from minillm.engine.decode import decode, decode_and_draw
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.parts import Parts
from minillm.engine.prefill import Chunk
from minillm.engine.request import Request, RequestGroup
from minillm.engine.scheduler import Scheduler, StepPlan
from minillm.engine.speculate import Speculation
from minillm.engine.verdicts import Outcome, Verdict
from minillm.errors import MinillmError
from minillm.model.loader import LoadedModel
from minillm.model.runner import ModelRunner
from minillm.observe.events import Events
from minillm.ops.sampling import SamplingBatch, sample


class Executor:
    """Runs plans. `groups` is the engine's own table of live requests, by id."""

    def __init__(
        self,
        model: LoadedModel,
        parts: Parts,
        runner: ModelRunner,
        memory: KVCacheManager,
        scheduler: Scheduler,
        events: Events,
        groups: Mapping[str, RequestGroup],
        speculation: Speculation | None = None,
    ) -> None:
        self.parts, self._model, self._runner = parts, model, runner
        self._memory, self._scheduler, self._events, self._groups = memory, scheduler, events, groups
        self._speculation = speculation

    @torch.inference_mode()  # once for the step: entering it for every pass adds up
    def execute(self, plan: StepPlan) -> list[Request]:
        """Run a step as planned; returns the requests that got a token or failed.

        Raises:
            Exception: whatever a part raises; the requests' state is then unknown.
        """
        changed = list[Request]()
        if self._speculation:
            self._speculation.plan(plan)
        self._memory.make_room(plan.num_blocks)
        if plan.prefill:
            changed += self._run_prefill(plan.prefill)
        if plan.lookahead and self._speculation:
            changed += self._speculate(self._speculation, plan)
        elif plan.decode:
            changed += self._run_decode(plan.decode)
        for request, blocks in plan.blocks.items():
            if blocks:
                self._events.emit("alloc", request.group_id, blocks=blocks)
            if request.finish_reason != "error":
                self._memory.publish(request)
        return changed

    def _run_prefill(self, chunks: list[Chunk]) -> list[Request]:
        """Compute the chunks; those that hold their request's newest token give it the next."""
        logits = self.parts.prefill_loop(self._runner, chunks)
        for chunk in chunks:
            self._events.emit(
                "prefill_chunk",
                chunk.request.group_id,
                start=chunk.start,
                end=chunk.end,
                tokens=chunk.request.num_tokens,
            )
        healthy = self._model.decoder.ops.finite_rows(logits).tolist()
        ready, failed = list[int](), list[Request]()
        for i, chunk in enumerate(chunks):
            if not healthy[i]:
                failed.append(chunk.request)
                self._fail(chunk.request)
            elif chunk.end == chunk.request.num_tokens:
                ready.append(i)
        return failed + (
            self._start_decoding([chunks[i].request for i in ready], logits[ready]) if ready else []
        )

    def _run_decode(self, requests: list[Request]) -> list[Request]:
        """One token for each sequence."""
        started = time.perf_counter()
        own_parts = self.parts.decode_loop is decode and self.parts.sampler is sample
        if own_parts and self._runner.is_fused:
            tokens, finite, logits = decode_and_draw(self._runner, requests, self._sampling(requests))
            self._events.emit("decode_step", rows=len(requests))
            alive = self._fail_broken(requests, finite)
            if len(alive) < len(requests):
                tokens, logits = tokens[alive], logits[alive]
            self._take([requests[i] for i in alive], tokens, logits)
        else:
            logits = self.parts.decode_loop(self._runner, requests)
            self._events.emit("decode_step", rows=len(requests))
            alive = self._fail_broken(requests, self._model.decoder.ops.finite_rows(logits))
            self._draw([requests[i] for i in alive], logits if len(alive) == len(requests) else logits[alive])
        if self._speculation:
            self._speculation.saw_plain_step(len(requests), time.perf_counter() - started)
        return requests

    def _speculate(self, speculation: Speculation, plan: StepPlan) -> list[Request]:
        """One token for each sequence, and those drafted ones that stand."""
        found = speculation.run(plan)
        if found is None:
            return self._run_decode(plan.decode)
        verdicts, logits, times = found
        self._events.emit("decode_step", rows=len(plan.decode))
        logprobs = self._logprobs_of(verdicts, logits)
        now, sampled, outcomes = time.perf_counter(), list[tuple[str, int]](), list[Outcome]()
        for verdict in verdicts:
            request = verdict.guess.request
            appended = self._append(request, verdict.tokens, logprobs.get(request, []), now)
            is_broken = not verdict.tokens and not verdict.guess.draft.paths
            taken, given_back = speculation.settle(verdict, appended + is_broken)
            if is_broken:
                self._fail(request)
            sampled += [(request.group_id, request.index)] * appended
            outcome = verdict.outcome(appended)
            request.num_drafted += outcome.drafted
            request.num_accepted += outcome.accepted
            outcomes.append(outcome)
            if taken:
                self._events.emit("alloc", request.group_id, blocks=taken)
            if given_back:
                self._events.emit("free", request.group_id, blocks=given_back)
        if self._events.listeners:
            self._events.emit("sample", at=now, requests=sampled)
            self._events.emit(
                "speculate",
                requests=[(v.guess.request.group_id, v.guess.request.index) for v in verdicts],
                outcomes=outcomes,
                rows=len(logits),
                draft_seconds=times.draft,
                verify_seconds=times.verify,
            )
        return plan.decode

    def _append(
        self, request: Request, tokens: list[int], logprobs: list[dict[int, float]], now: float
    ) -> int:
        """Append tokens until one ends the request; returns how many."""
        for count, token_id in enumerate(tokens):
            if logprobs:
                request.logprobs.append(logprobs[count])
            request.append(token_id, self._model.eos_token_ids, now)
            if request.finish_reason:
                return count + 1
        return len(tokens)

    def _logprobs_of(self, verdicts: list[Verdict], logits: Tensor) -> dict[Request, list[dict[int, float]]]:
        """Log-probabilities of the tokens of the verdicts whose requests want them."""
        wanted = [v for v in verdicts if v.tokens and v.guess.request.params.logprobs is not None]
        if not wanted:
            return {}
        rows = [row for v in wanted for row in v.rows]
        tokens = torch.tensor([token for v in wanted for token in v.tokens], device=logits.device)
        tops = [v.guess.request.params.logprobs or 0 for v in wanted for _ in v.tokens]
        found = iter(self._model.decoder.ops.token_logprobs(logits[rows], tokens, tops))
        return {v.guess.request: list(islice(found, len(v.tokens))) for v in wanted}

    def _start_decoding(self, prefilled: list[Request], logits: Tensor) -> list[Request]:
        """Fork the other samples of each new prompt, then give every one its next token."""
        requests, rows = list[Request](), list[int]()
        for row, request in enumerate(prefilled):
            started = [request]
            if request.num_forks:
                forks = self._groups[request.group_id].requests[1:]
                started += [self._fork(request, fork) for fork in forks if not fork.finish_reason]
                request.num_forks = 0
            requests += started
            rows += [row] * len(started)
        self._draw(requests, logits[rows])  # their logits have been looked at
        return requests

    def _fork(self, source: Request, fork: Request) -> Request:
        fork.block_table, copy = source.block_table.fork(source.num_computed_tokens)
        fork.num_computed_tokens = source.num_computed_tokens
        fork.published, fork.num_published = source.published, source.num_published
        fork.num_draft_published = source.num_draft_published
        full = source.num_computed_tokens // self._memory.pool.block_size * self._memory.pool.block_size
        fork.num_draft_computed_tokens = min(source.num_draft_computed_tokens, full)  # not of the copy
        if copy:
            self._runner.copy_blocks([copy[0]], [copy[1]])
            self._events.emit("copy_on_write", fork.group_id, blocks=1)
        self._scheduler.fork(source, fork)
        return fork

    def _fail_broken(self, requests: list[Request], finite: Tensor) -> list[int]:
        """End the requests whose logits are NaN or infinite with an error; the places of the others."""
        alive = []
        for i, ok in enumerate(finite.tolist()):
            if ok:
                alive.append(i)
            else:
                self._fail(requests[i])
        return alive

    def _sampling(self, requests: list[Request]) -> SamplingBatch:
        return SamplingBatch(
            params=[r.params for r in requests],
            keys=[r.noise_key for r in requests],
            seen=[r.seen_token_ids for r in requests],
            num_token_ids=self._model.num_token_ids,
        )

    def _draw(self, requests: list[Request], logits: Tensor) -> None:
        """Give each request its next token."""
        if requests:
            own = self.parts.sampler is sample
            draw = self._model.decoder.ops.sample if own else self.parts.sampler
            self._take(requests, draw(logits, self._sampling(requests)), logits)

    def _take(self, requests: list[Request], tokens: Tensor, logits: Tensor) -> None:
        """Append what was drawn."""
        wanted = [i for i, r in enumerate(requests) if r.params.logprobs is not None]
        if wanted:
            tops = [requests[i].params.logprobs or 0 for i in wanted]
            found = self._model.decoder.ops.token_logprobs(logits[wanted], tokens[wanted], tops)
            for i, logprobs in zip(wanted, found, strict=True):
                requests[i].logprobs.append(logprobs)
        drawn, now = tokens.tolist(), time.perf_counter()
        for request, token_id in zip(requests, drawn, strict=True):
            request.append(token_id, self._model.eos_token_ids, now)
        if self._events.listeners:
            self._events.emit("sample", at=now, requests=[(r.group_id, r.index) for r in requests])

    def _fail(self, request: Request) -> None:
        group = self._groups[request.group_id]
        for failed in group.requests if request.num_forks else [request]:  # samples not yet begun cannot be
            failed.finish("error")
        group.error = MinillmError(
            f"the model's logits are NaN or infinite after {request.num_computed_tokens} tokens",
            "the weights may be damaged, or overflow in this dtype: try float32",
        )
