"""The engine: takes requests, runs steps, hands out answers.

    add_request --> incoming --> scheduler --> StepPlan --+--> prefill_loop --+--> sampler --> append
    (any thread)    (a lock)     (one thread calls step)  +--> decode_loop ---+
    abort_request ---^

`add_request` checks everything that can be known about a request, so that what enters the queue
will be served. `step` is the whole engine: apply cancellations, plan, run the two loops, sample.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.config import EngineConfig, SamplingParams
from minillm.detokenizer import NullDetokenizer
from minillm.engine.admission import capped_max_tokens, check_request, derived_seed
from minillm.engine.envelope import make_envelope
from minillm.engine.outputs import RequestOutput, snapshot
from minillm.engine.parts import Parts
from minillm.engine.request import Request, RequestGroup, TextStream
from minillm.engine.scheduler import StepPlan
from minillm.errors import MinillmError, QueueFull
from minillm.memory.block_table import BlockTable
from minillm.memory.budget import num_blocks_for
from minillm.memory.kv_cache import KVCache
from minillm.model.loader import LoadedModel
from minillm.model.runner import ModelRunner
from minillm.ops.sampling import SamplingBatch, sample


class Engine:
    """Serves one model from one pool of KV blocks."""

    def __init__(
        self, model: LoadedModel, config: EngineConfig, parts: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.config, self.parts = model, config, Parts.of(parts)
        dtype, device, block_size = model.dtype, model.device, config.block_size
        num_blocks = num_blocks_for(model.config, config, dtype, device, model.max_model_len)
        cache = KVCache.allocate(model.config, num_blocks, block_size, dtype, device)
        self.runner = ModelRunner(model.decoder, cache, block_size, self.parts.slot_mapping)
        self.pool = self.parts.block_pool(num_blocks, block_size)
        self.scheduler = self.parts.scheduler(config, num_blocks)
        self.envelope = make_envelope(model, config)
        self._lock = threading.Lock()
        self._incoming: list[RequestGroup] = []
        self._aborted: set[str] = set()
        self._live: dict[str, RequestGroup] = {}
        self._late: list[RequestOutput] = []  # not yet handed out: a step failed after making them
        self._submitted = 0

    # Any thread -----------------------------------------------------------------------------

    def add_request(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> str:
        """Queue a request; its id is what `step`'s outputs and `abort_request` name it by.

        Args:
            prompt: text, or token ids taken as they are.
            params: None takes the model's generation_config.json.

        Raises:
            UsageError, PromptTooLong, KVCapacityError: it could never be served; nothing is queued.
            QueueFull: try again once requests have finished.
        """
        params = self.model.default_params if params is None else params
        ids = self.check_request(prompt, params)
        with self._lock:
            self._require_queue_room(len(ids))
            group = self._make_group(ids, params)
            self._live[group.request_id] = group
            self._incoming.append(group)
        return group.request_id

    def abort_request(self, request_id: str) -> None:
        """End a request at the next step, keeping its text. Unknown or finished ids are ignored."""
        with self._lock:
            if request_id in self._live:
                self._aborted.add(request_id)

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        with self._lock:
            return bool(self._live or self._late)

    def stats(self) -> dict[str, int]:
        """Requests waiting and running, blocks in all, used and free."""
        with self._lock:
            waiting = len(self._waiting())
            return {
                "waiting": waiting,
                "running": len(self._live) - waiting,
                "num_blocks": self.pool.num_blocks,
                "used_blocks": self.pool.num_used,
                "free_blocks": self.pool.num_free,
            }

    def check_request(self, prompt: str | Sequence[int], params: SamplingParams) -> list[int]:
        """The prompt's token ids; raises what `add_request` would, except `QueueFull`."""
        return check_request(self.model, self.config, self.pool.num_blocks, prompt, params)

    # One thread -----------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Run one step; return the state of every request that got a token or ended in it.

        An exception out of a part ends the requests of this step, whose state is then unknown, with
        an error and goes on to the caller; their outputs come with the next step.
        """
        ended = self._collect({request.group_id for request in self._take_incoming()})
        self._late += ended
        plan = self.scheduler.schedule(time.perf_counter())
        try:
            changed = self._run(plan)
        except Exception as error:
            self._late += self._give_up(plan, error)
            raise
        outputs, self._late = self._late + self._collect({request.group_id for request in changed}), []
        return outputs

    def _run(self, plan: StepPlan) -> list[Request]:
        """The two loops, each followed by its draws; returns the requests that changed."""
        changed = list[Request]()
        if plan.prefill:
            logits = self.parts.prefill_loop(self.runner, plan.prefill)
            done = [i for i, chunk in enumerate(plan.prefill) if not chunk.request.is_prefilling]
            if done:
                changed += self._start_decoding([plan.prefill[i].request for i in done], logits[done])
        if plan.decode:
            logits = self.parts.decode_loop(self.runner, plan.decode)
            changed += self._sample(plan.decode, logits)
        return changed

    def _give_up(self, plan: StepPlan, error: Exception) -> list[RequestOutput]:
        """End every request of a step that failed; the detokenizer, perhaps the culprit, is not asked."""
        planned = {r.group_id for r in (*plan.decode, *(chunk.request for chunk in plan.prefill))}
        for request_id in planned:
            group = self._live[request_id]
            group.error = error
            for request in group.requests:
                request.finish_reason = request.finish_reason or "error"
        return self._collect(planned)

    def _take_incoming(self) -> list[Request]:
        """Hand new requests to the scheduler; end aborted and overdue ones, and return those."""
        now, ended = time.perf_counter(), list[Request]()
        with self._lock:
            for group in self._incoming:
                self.scheduler.add(group)
            self._incoming = []
            for request_id, group in self._live.items():
                overdue = group.deadline is not None and now > group.deadline
                if request_id in self._aborted or overdue:
                    group.finish("cancelled" if request_id in self._aborted else "deadline")
                    ended += group.requests
            self._aborted = set()
        for request_id in {request.group_id for request in ended}:
            self.scheduler.remove(self._live[request_id])
        return ended

    def _start_decoding(self, prefilled: list[Request], logits: Tensor) -> list[Request]:
        """Fork the other samples of each prompt, then give every one its first token."""
        requests, rows = list[Request](), list[int]()
        for row, request in enumerate(prefilled):
            group = self._live[request.group_id]
            for fork in group.requests[1:]:
                self._fork(request, fork)
            requests += group.requests
            rows += [row] * len(group.requests)
        return self._sample(requests, logits[rows])

    def _fork(self, source: Request, fork: Request) -> None:
        fork.block_table, copy = source.block_table.fork(source.num_computed_tokens)
        fork.num_computed_tokens = source.num_computed_tokens
        if copy:
            self.runner.copy_block(*copy)

    def _sample(self, requests: list[Request], logits: Tensor) -> list[Request]:
        """Give each request its next token; one whose logits are NaN or infinite ends with an error."""
        # Of the largest magnitude only: eight times as fast as asking every logit, and NaN is largest.
        healthy = logits.abs().amax(dim=-1).isfinite().tolist()
        for request, ok in zip(requests, healthy, strict=True):
            if not ok:
                self._fail(request)
        if not all(healthy):
            logits = logits[[i for i, ok in enumerate(healthy) if ok]]
        alive = [request for request, ok in zip(requests, healthy, strict=True) if ok]
        if alive:
            self._draw(alive, logits)
        return requests

    @torch.inference_mode()
    def _draw(self, requests: list[Request], logits: Tensor) -> None:
        batch = SamplingBatch(
            params=[r.params for r in requests],
            keys=[r.noise_key for r in requests],
            seen=[r.seen_token_ids for r in requests],
            num_token_ids=self.model.num_token_ids,
        )
        ops = self.model.decoder.ops
        own = self.parts.sampler is sample
        tokens = ops.sample(logits, batch) if own else self.parts.sampler(logits, batch)
        wanted = [i for i, r in enumerate(requests) if r.params.logprobs is not None]
        if wanted:
            tops = [requests[i].params.logprobs or 0 for i in wanted]
            found = ops.token_logprobs(logits[wanted], tokens[wanted], tops)
            for i, logprobs in zip(wanted, found, strict=True):
                requests[i].logprobs.append(logprobs)
        for request, token_id in zip(requests, tokens.tolist(), strict=True):
            request.append(token_id, self.model.eos_token_ids)

    def _fail(self, request: Request) -> None:
        request.finish("error")
        self._live[request.group_id].error = MinillmError(
            f"the model's logits are NaN or infinite after {request.num_computed_tokens} tokens",
            "the weights may be damaged, or overflow in this dtype: try float32",
        )

    def _collect(self, changed: set[str]) -> list[RequestOutput]:
        """Snapshots of the changed requests; finished ones give their blocks back and are forgotten."""
        now, outputs = time.perf_counter(), []
        with self._lock:  # add_request may be adding to the dict we walk
            groups = [group for request_id, group in self._live.items() if request_id in changed]
        for group in groups:
            for request in group.requests:
                if request.finish_reason:
                    request.block_table.release()
            if group.is_finished:
                if group in self.scheduler.running:
                    self.scheduler.remove(group)
                with self._lock:
                    del self._live[group.request_id]
            outputs.append(snapshot(group, self.envelope, now))
        return outputs

    # Building requests; the lock is held ------------------------------------------------------

    def _waiting(self) -> list[RequestGroup]:
        return [group for group in self._live.values() if group.admitted is None]

    def _require_queue_room(self, num_tokens: int) -> None:
        waiting = self._waiting()
        queued = sum(len(group.requests[0].prompt_token_ids) for group in waiting)
        if len(waiting) >= self.config.max_queued_requests:
            raise QueueFull(f"{len(waiting)} requests are waiting, the limit", "try again later")
        if queued + num_tokens > self.config.max_queued_tokens and waiting:
            raise QueueFull(f"{queued} prompt tokens are waiting, near the limit", "try again later")

    def _make_group(self, ids: list[int], params: SamplingParams) -> RequestGroup:
        number, self._submitted = self._submitted, self._submitted + 1
        request_id = f"req-{number}"
        seed = derived_seed(self.config.seed, number) if params.seed is None else params.seed
        max_tokens = capped_max_tokens(
            len(ids), params, self.model.max_model_len, self.pool.num_blocks, self.config.block_size
        )
        requests = [
            Request(
                request_id,
                i,
                ids,
                params,
                seed,
                max_tokens,
                BlockTable(self.pool),
                self._text_stream(ids, params),
            )
            for i in range(params.n)
        ]
        return RequestGroup(request_id, requests, arrival=time.perf_counter())

    def _text_stream(self, ids: list[int], params: SamplingParams) -> TextStream:
        if self.model.tokenizer is None:
            return NullDetokenizer()
        stream: TextStream = self.parts.detokenizer(self.model.tokenizer.rust, params.stop, ids)
        return stream
