"""The engine: takes requests, runs steps, returns outputs.

    add_request --> incoming --> scheduler --> StepPlan --> StepInput --> worker --> StepOutput --> commit
    (any thread)    (a lock)     (one step at a time)       plain data               plain data
    abort_request ---^

`add_request` checks a request completely before it is queued, so every queued request can be served. `step`
is the whole engine: end aborted and overdue requests, then schedule, reserve, run, commit (`stepping.py`).

Foreign code (parts, listeners) never runs while the lock is held. Events are delivered at the end of a step.
If a step fails, by an exception or by Ctrl-C, the engine recovers before it does anything else
(`recovery.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from functools import partial
from typing import Any, NoReturn

from torch import Tensor

from minillm.config import EngineConfig, SamplingParams
from minillm.config.tenants import check_tenant
from minillm.engine import report
from minillm.engine.admission import check_request, make_request
from minillm.engine.assembly import assemble, make_memory, make_pool, make_scheduler
from minillm.engine.commit import Commit
from minillm.engine.live_change import FixedAttributes, LiveChange
from minillm.engine.logits import check_logits, compute_logits
from minillm.engine.outputs import RequestOutput, snapshot
from minillm.engine.parts import Parts
from minillm.engine.prompt import EncodedPrompt, Prompt
from minillm.engine.public import PublicFiller, read_prefixes
from minillm.engine.record import kv_envelope, make_envelope
from minillm.engine.recordings import start_recordings
from minillm.engine.recovery import give_up, put_back, start_again
from minillm.engine.registry import Registry
from minillm.engine.report import ANYONE, Anyone
from minillm.engine.request import Request
from minillm.engine.sequence import FinishReason, Sequence
from minillm.engine.stepping import Stepper
from minillm.engine.turn import Turn
from minillm.errors import MinillmError, UsageError, as_exception, failures_suppressed, panics_as_errors
from minillm.memory.block_pool import BlockPool
from minillm.model.loader import LoadedModel
from minillm.observe.events import Events


class Engine(FixedAttributes):
    """Serves one model from one pool of KV blocks."""

    _fixed = frozenset("model worker speculation config parts guarantee envelope memory".split())

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig,
        parts: Mapping[str, Callable[..., Any]] | None = None,
        draft: LoadedModel | None = None,
    ) -> None:
        self.config, self.parts = config, Parts.of(parts)
        machinery = assemble(model, draft, config, self.parts)
        self.model, self.worker, self.speculation = machinery.model, machinery.worker, machinery.speculation
        self.guarantee = machinery.guarantee
        self.envelope = make_envelope(self.model, config, self.parts, draft).to_dict()
        self.events = Events()
        envelopes = self.envelope["kv"], kv_envelope(draft, config, self.parts).digest if draft else None
        pool = make_pool(self.parts, machinery.num_blocks, config.block_size)
        public = read_prefixes(self.model, config, machinery.num_blocks)
        self.memory = make_memory(pool, self.parts, config, self.events, envelopes, public)
        self._filler = PublicFiller(public, self.worker, config.prefill_chunk, machinery.draft(envelopes[1]))
        self._filler.fill(pool)
        self.scheduler = make_scheduler(self.parts, config, self.memory, self.events)
        commit = Commit(self.memory, self.events, self.model.eos_token_ids)
        self._live_change = LiveChange(self.model, draft)
        self._stepper = Stepper(machinery, self.memory, commit, self._live_change)
        self._turn, self._registry = Turn(), Registry(config, self.events)
        self.tenants_at_failure = set[str | None]()  # of the requests that lived when a step last failed
        self._outbox: dict[str, RequestOutput] = {}  # outputs that `step` has not returned yet
        self.watch = self._stepper.use_watch  # gives a `StepWatch` the logits of every step
        start_recordings(self.watch, config, self.model, self.envelope, self.memory, self.events)  # last

    @property
    def pool(self) -> BlockPool:
        """The blocks of the KV cache."""
        return self.memory.pool

    # Any thread -----------------------------------------------------------------------------

    def add_request(
        self, prompt: Prompt, params: SamplingParams | None = None, tenant: str | None = None
    ) -> str:
        """Queue a request and return its id. Outputs carry the id, and `abort_request` takes it.

        Args:
            prompt: text; or token ids, which are used unchanged.
            params: None means the values of the model's generation_config.json.
            tenant: cached blocks are shared only with requests of the same tenant; None is a tenant too.

        Raises:
            UsageError, PromptTooLong, LongRopeLimit, KVCapacityError: the request could never be served;
                nothing is queued.
            QueueFull: the queue is full; try again after requests have finished.
            ForkedEngine: this process was forked from the process that made the engine.
            ModelChanged: the weights or the tokenizer are not those the engine was made with.
        """
        self._turn.require_own_process()
        params = self.model.default_params if params is None else params
        request: Request | None = None
        try:
            self._live_change.check()
            encoded, most = self.check_request(prompt, params, tenant), self.memory.most_blocks(tenant)
            with panics_as_errors():
                request = make_request(encoded, params, tenant, self.model, self.parts, self.pool, most)
            self._registry.submit(request)
            self.events.deliver()
            return request.request_id
        except MinillmError as error:
            report.refusal(self.events, error, tenant)
            self.events.deliver()
            raise
        except BaseException:
            if request is not None:  # the caller never gets its id
                self.abort_request(request.request_id)
            raise

    def abort_request(self, request_id: str, tenant: str | Anyone | None = ANYONE) -> None:
        """End a request at the next step and keep its text.

        Without `tenant` unknown and finished ids are ignored. Takes no lock: a destructor may call it, and
        may interrupt any thread at any line.

        Raises:
            UnknownRequest: `tenant` is given and has no live request with this id.
        """
        if tenant is not ANYONE:
            self._registry.find(request_id, tenant)
        self._registry.abort(request_id)

    def require_own_process(self) -> None:
        """Raise ForkedEngine if this process was forked from the process that made the engine."""
        self._turn.require_own_process()

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        self._turn.require_own_process()
        return bool(self._registry.live or self._outbox)

    def stats(self, tenant: str | Anyone | None = ANYONE) -> dict[str, int]:
        """Count requests and blocks; with `tenant` only its own. Errors as `report.stats`."""
        self._turn.require_own_process()
        return report.stats(self.memory, self._registry, tenant)

    def check_request(
        self, prompt: Prompt, params: SamplingParams, tenant: str | None = None
    ) -> EncodedPrompt:
        """Return the prompt as token ids. Raises the errors of `add_request`, except `QueueFull`."""
        check_tenant(tenant)
        most = self.memory.most_blocks(tenant)
        return check_request(self.model, self.config, most, prompt, params, tenant)

    # One thread at a time -------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Run one step; return an output for every request that got a token or ended in this step.

        If a part raises, the affected requests end with that error, and the exception is raised again here.
        If a detokenizer raises, only its own request ends with the error; nothing is raised here. After an
        interrupt (Ctrl-C) every request continues as before. Outputs that were ready are returned by the next
        step.

        Raises:
            EngineBusy: a part or a listener called it in the middle of a step.
            ForkedEngine: this process was forked from the process that made the engine.
        """
        mailbox: dict[str, RequestOutput] = {}
        try:
            self.step_into(mailbox)
            ready = list(mailbox.values())
        except BaseException:
            for request_id, output in mailbox.items():
                self._outbox.setdefault(request_id, output)  # an output already there is newer
            raise
        return ready

    def step_into(self, mailbox: dict[str, RequestOutput]) -> None:
        """Run one step and put the outputs into `mailbox`, by request id, so that an interrupt loses none."""

        def step_and_return() -> None:
            self._step()
            mailbox.update(self._outbox)
            self._outbox.clear()

        with panics_as_errors():
            self._turn.run(step_and_return)

    def logits(self, token_ids: List[int]) -> Tensor:
        """Compute the raw logits after each token, with the paged prefill path, no cached prefix and no BOS.

        Returns:
            float32 [len(token_ids), vocab_size] on the CPU; row i scores the token that follows token i.

        Raises:
            UsageError: an id is out of range, or the result would be larger than 1 GiB.
            PromptTooLong: more tokens than the context holds.
            OutOfBlocks: more tokens than the free blocks hold.
        """
        ids = check_logits(self.model, token_ids)
        self._live_change.check()
        try:
            logits = self._turn.run(lambda: self._compute_logits(ids))
            self._live_change.check_content()
            return logits
        finally:
            self.events.deliver()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError("an engine cannot be copied or pickled", "make one in each process")

    def _step(self) -> None:
        try:
            if not self._registry.live and (self._outbox or self.events.is_holding):
                with failures_suppressed():  # an earlier step has raised; a part may raise again every time
                    self._recover_unfinished()
                return
            self._recover_unfinished()
            self._begin()
            self._advance()
            self.events.release()
        except BaseException as error:
            self.tenants_at_failure = {request.tenant for request in self._registry.requests()}
            self._recover(as_exception(error))
            raise
        finally:
            self.events.deliver()

    def _begin(self) -> None:
        """Begin a step. It counts as unfinished until `events.release` is called."""
        self._stepper.begin()
        requests = self._registry.started() if self.events.listeners else []
        self.events.hold({r.request_id: r.num_block_references for r in requests})

    def _advance(self) -> None:
        self.events.step += 1
        started = time.perf_counter()
        self._filler.refill(self.pool)
        if ended := self._take_incoming():
            self._collect(ended)
        # Read after the new requests were taken, so that no request starts before it was submitted.
        changed = self._stepper.run(self.scheduler, time.perf_counter())
        running = self.scheduler.running
        self._registry.note_started(running)
        self._collect({sequence.request_id for sequence in changed})
        done, size = self._stepper.step, self.config.block_size
        report.step(self.events, done, running, self.stats, size, started)

    def _take_incoming(self) -> set[str]:
        """Give new requests to the scheduler. End aborted and overdue requests and return their ids."""
        for request in self._registry.incoming():
            self.memory.open(request.sequences)
            self.scheduler.add(request)
            request.is_scheduled = True
        ended = set[str]()
        for request in self._registry.aborted():
            ended.add(self._end(request, "cancelled"))
        for request in self._registry.overdue(time.perf_counter()):
            ended.add(self._end(request, "deadline"))
        return ended

    def _end(self, request: Request, reason: FinishReason) -> str:
        if not request.is_finished:
            self.events.emit("cancel", request.request_id, reason=reason)
            request.finish(reason)
        return request.request_id

    def _collect(self, request_ids: set[str]) -> None:
        """Make outputs of the changed requests. Free the blocks of finished ones and remove them."""
        now = time.perf_counter()
        for request in self._registry.select(request_ids):
            self._live_change.check_end(request)
            for sequence in request.sequences:
                if sequence.finish_reason and not sequence.is_released:
                    self.scheduler.remove(sequence)
                    report.end(self.events, sequence, now)
            output = self._outbox[request.request_id] = snapshot(request, self.envelope)
            if output.finished:
                self._registry.remove(request.request_id)

    def _compute_logits(self, ids: list[int]) -> Tensor:
        self._recover_unfinished()
        self._begin()
        available = self.memory.available
        try:
            offset = self.model.rope_offset(len(ids))
            return compute_logits(
                self.worker, self.memory, self.events, ids, self.config.prefill_chunk, offset
            )
        finally:
            if self.memory.available == available:  # all blocks are back; otherwise the next step recovers
                self.events.release()

    # A failed step --------------------------------------------------------------------------

    def _recover_unfinished(self) -> None:
        """Recover, if an interrupt came during an earlier recovery or during `logits`."""
        if self.events.is_holding:
            self._start_again([], None)
            self.events.release()

    def _recover(self, error: BaseException) -> None:
        """Bring the engine back to a consistent state after a step has failed with `error`."""
        if not self.events.is_holding:
            return
        self._registry.distrust_counts()
        live = self._registry.requests()
        affected = self._stepper.affected(error, self.scheduler, live)
        if self._stepper.phase != "run":
            self._start_again(affected, error)
        elif isinstance(error, Exception):
            give_up(live, affected, error)
            self._collect({s.request_id for s in affected})
        else:
            put_back(self._stepper.step, self.scheduler, self.memory, self.events)
        self.events.release()

    def _start_again(self, affected: List[Sequence], error: BaseException | None) -> None:
        live = self._registry.requests()
        try:
            pool = make_pool(self.parts, self.pool.num_blocks, self.config.block_size)
            scheduler = partial(make_scheduler, self.parts, self.config, self.memory, self.events)
            self.scheduler = start_again(live, affected, error, self.memory, pool, scheduler)
            self._collect({r.request_id for r in live if any(s.finish_reason for s in r.sequences)})
        except BaseException as failure:  # raised by a part: without it no request can be served
            if isinstance(reported := as_exception(failure), Exception):
                self._end_all(live, reported)
            raise

    def _end_all(self, live: List[Request], error: Exception) -> None:
        """End all requests with `error`. Their blocks are not freed: the pool is no longer used."""
        give_up(live, [sequence for request in live for sequence in request.sequences], error)
        now = time.perf_counter()
        for request in live:
            for sequence in request.sequences:
                if not sequence.is_released:
                    report.end(self.events, sequence, now)
            self._outbox[request.request_id] = snapshot(request, self.envelope)
            self._registry.remove(request.request_id)
