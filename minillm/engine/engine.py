"""The engine: takes requests, runs steps, hands out answers.

    add_request --> incoming --> scheduler --> StepPlan --+--> prefill_loop --+--> sampler --> append
    (any thread)    (a lock)     (one thread calls step)  +--> decode_loop ---+
    abort_request ---^

`add_request` checks everything that can be known about a request, so that what enters the queue
will be served. `step` is the whole engine: apply cancellations, plan, run the two loops, sample, and
publish what was written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.admission import capped_max_tokens, check_request, derived_seed
from minillm.engine.drafting import make_speculation
from minillm.engine.envelope import make_envelope
from minillm.engine.executor import Executor
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.outputs import RequestOutput, snapshot
from minillm.engine.parts import Parts
from minillm.engine.request import FinishReason, Request, RequestGroup, TextStream
from minillm.engine.scheduler import StepPlan
from minillm.errors import MinillmError, QueueFull, UsageError
from minillm.memory.block_table import BlockTable
from minillm.memory.budget import num_blocks_for
from minillm.memory.kv_cache import KVCache
from minillm.model.loader import LoadedModel
from minillm.model.runner import ModelRunner
from minillm.observe.events import Events
from minillm.text.detokenizer import NullDetokenizer


class Engine:
    """Serves one model from one pool of KV blocks."""

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig,
        parts: Mapping[str, Any] | None = None,
        draft: LoadedModel | None = None,
    ) -> None:
        self.model, self.config, self.parts = model, config, Parts.of(parts)
        dtype, device, block_size = model.dtype, model.device, config.block_size
        token_bytes = sum(m.config.kv_bytes_per_token(m.dtype.itemsize) for m in (model, draft) if m)
        num_blocks = num_blocks_for(token_bytes, config, device, model.max_model_len)
        cache = KVCache.allocate(model.config, num_blocks, block_size, dtype, device)
        self.runner = ModelRunner(model.decoder, cache, block_size, self.parts.slot_mapping)
        self.pool = self.parts.block_pool(num_blocks, block_size)
        self.envelope = make_envelope(model, config, draft)
        self.events = Events()
        self.memory = KVCacheManager(
            self.pool,
            self.envelope["kv"],
            self.events,
            config.prefix_caching,
            self.parts.prefix_cache,
            make_envelope(draft, config)["kv"] if draft else None,
        )
        self.scheduler = self.parts.scheduler(config, self.memory, self.events)
        self._live: dict[str, RequestGroup] = {}
        speculation = make_speculation(model, draft, config, self.parts, self.runner, self.memory)
        self.executor = Executor(
            model, self.parts, self.runner, self.memory, self.scheduler, self.events, self._live, speculation
        )
        self._lock = threading.Lock()
        self._incoming: list[RequestGroup] = []
        self._aborted: set[str] = set()
        self._late: list[RequestOutput] = []  # not yet handed out: a step failed after making them
        self._submitted = 0

    # Any thread -----------------------------------------------------------------------------

    def add_request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        tenant: str | None = None,
    ) -> str:
        """Queue a request; its id is what `step`'s outputs and `abort_request` name it by.

        Args:
            prompt: text, or token ids taken as they are.
            params: None takes the model's generation_config.json.
            tenant: shares cached blocks with requests of the same tenant only; None is a tenant too.

        Raises:
            UsageError, PromptTooLong, KVCapacityError: it could never be served; nothing is queued.
            QueueFull: try again once requests have finished.
        """
        params = self.model.default_params if params is None else params
        try:
            ids = self.check_request(prompt, params, tenant)
            with self._lock:
                self._require_queue_room(len(ids))
                group = self._make_group(ids, params, tenant)
                self._live[group.request_id] = group
                self._incoming.append(group)
        except MinillmError as error:
            self.events.emit("refuse", reason=type(error).__name__)
            raise
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
        """Requests waiting to start, and started (preempted ones too); blocks in all, used, and free.

        `cached_blocks` of the free ones hold content that the prefix cache can find.
        """
        with self._lock:
            waiting = len(self._waiting())
            return {
                "waiting": waiting,
                "running": len(self._live) - waiting,
                "num_blocks": self.pool.num_blocks,
                "used_blocks": self.pool.num_blocks - self.memory.available,
                "free_blocks": self.memory.available,
                "cached_blocks": self.memory.num_unused,
            }

    def check_request(
        self, prompt: str | Sequence[int], params: SamplingParams, tenant: str | None = None
    ) -> list[int]:
        """The prompt's token ids; raises what `add_request` would, except `QueueFull`."""
        if tenant is not None and not isinstance(tenant, str):
            raise UsageError(f"tenant must be text or None, not {tenant!r}")
        return check_request(self.model, self.config, self.pool.num_blocks, prompt, params)

    # One thread -----------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Run one step; return the state of every request that got a token or ended in it.

        An exception out of a part ends the requests of this step, whose state is then unknown, with
        an error and goes on to the caller; their outputs come with the next step.
        """
        self.events.step += 1
        started = time.perf_counter()
        if ended := self._take_incoming():
            self._late += self._collect({request.group_id for request in ended})
        plan = self.scheduler.schedule(started)
        try:
            changed = self.executor.execute(plan)
        except Exception as error:
            self._late += self._give_up(plan, error)
            raise
        outputs, self._late = self._late + self._collect({request.group_id for request in changed}), []
        self._report(plan, started)
        return outputs

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
                    reason: FinishReason = "cancelled" if request_id in self._aborted else "deadline"
                    self.events.emit("cancel", request_id, reason=reason)
                    group.finish(reason)
                    ended += group.requests
            self._aborted = set()
        return ended

    def _collect(self, changed: set[str]) -> list[RequestOutput]:
        """Snapshots of the changed requests; finished ones give their blocks back and are forgotten."""
        now, outputs = time.perf_counter(), []
        with self._lock:  # add_request may be adding to the dict we walk
            groups = [group for request_id, group in self._live.items() if request_id in changed]
        for group in groups:
            for request in group.requests:
                if request.finish_reason and not request.is_released:
                    request.is_released = True
                    self.scheduler.remove(request)
                    self.events.emit("finish", group.request_id, reason=request.finish_reason)
            if group.is_finished:
                with self._lock:
                    del self._live[group.request_id]
            outputs.append(snapshot(group, self.envelope, now))
        return outputs

    def _report(self, plan: StepPlan, started: float) -> None:
        """The event that ends a step."""
        if self.events.listeners:
            stats, running = self.stats(), self.scheduler.running
            slots = sum(len(r.block_table.block_ids) * self.config.block_size for r in running)
            self.events.emit(
                "step",
                seconds=time.perf_counter() - started,
                prefill_tokens=sum(chunk.end - chunk.start for chunk in plan.prefill),
                decode_rows=len(plan.decode),
                waiting=stats["waiting"],
                running=len(running),
                used=stats["used_blocks"],
                cached=stats["cached_blocks"],
                free=stats["free_blocks"] - stats["cached_blocks"],
                waste=slots - sum(r.num_computed_tokens for r in running),
            )

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

    def _make_group(self, ids: list[int], params: SamplingParams, tenant: str | None) -> RequestGroup:
        number, self._submitted = self._submitted, self._submitted + 1
        request_id = f"req-{number}"
        seed = derived_seed(self.config.seed, number) if params.seed is None else params.seed
        max_tokens = capped_max_tokens(
            len(ids), params, self.model.max_model_len, self.pool.num_blocks, self.config.block_size
        )
        arrival = time.perf_counter()
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
                arrival=arrival,
                tenant=tenant,
                order=number,
            )
            for i in range(params.n)
        ]
        requests[0].num_forks = params.n - 1
        self.events.emit("queue", request_id, at=arrival, prompt_tokens=len(ids), n=params.n)
        return RequestGroup(request_id, requests)

    def _text_stream(self, ids: list[int], params: SamplingParams) -> TextStream:
        if self.model.tokenizer is None:
            return NullDetokenizer()
        stream: TextStream = self.parts.detokenizer(self.model.tokenizer.rust, params.stop, ids)
        return stream
