"""The metrics of a running engine, computed from its events as they come, in bounded memory.

    engine --events--> EngineMetrics --+-- live      one small entry for each request that has not ended
                                       +-- steady    histograms and counters (figures.py)
                                       +-- warmup    the same, of what `LLM.warmup` ran
                                       +-- tenants   counts by label (tenant_use.py)
                                       +-- newest    the newest `step` event: the memory now (memory_now.py)

Nothing else is read (contract C8): the same events from a recorded trace give the same figures, and tests
compute every one again by other code. A request's entry is dropped when all its samples have ended, so memory
does not grow with the number of requests. `observe/metrics.py` keeps every time and gives exact percentiles.

The listener must be cheap: all tokens that follow tokens of the step before share one latency, so it is
recorded once, with its count. The engine delivers events to one thread at a time; other threads may read.

Left out: requests that were queued before the metrics were attached. Their tokens and blocks are counted, but
they have no latencies and no tenant. The same holds for a token whose event comes after its request's end,
because Ctrl-C came between the token and the event.
"""

from __future__ import annotations

from collections.abc import Iterable

from minillm.observe.events import Event, Events
from minillm.observe.figures import Figures
from minillm.observe.live_request import LiveRequest
from minillm.observe.memory_now import MemoryNow
from minillm.observe.sizes import Costs, Engine, block_bytes
from minillm.observe.tenant_use import TenantTable, TenantUse


class EngineMetrics:
    """Listens to an engine: `metrics = EngineMetrics(llm.engine)`.

    Without an engine it computes the figures of recorded events: `EngineMetrics().replay(trace)`. Then
    `num_blocks` and `block_bytes` are those of the trace's steps and 0, and nothing is estimated.

    Attributes:
        steady, warmup: the figures outside and inside of warm-ups.
        tenants: the use of each tenant, warm-ups left out.
        waiting, running: requests that have not started, and that have, preempted ones included.
        newest: the newest `step` event, or None.
        startup: seconds by name, as the newest warm-up announced them.
        lost: requests whose end was not seen, because the metrics were attached elsewhere.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self.steady, self.warmup, self.tenants = Figures(), Figures(), TenantTable()
        self.waiting = self.running = self.lost = 0
        self.newest: Event | None = None
        self.startup: dict[str, float] = {}
        self._now = self.steady
        self._live: dict[str, LiveRequest] = {}
        self._step, self._chunks, self._rows = -1, 0, 0  # the current step, its chunks, its rows of drafts
        self._warm_ups = 0  # that run at this moment
        self._sampled = -1.0  # when the newest tokens came: nearly all tokens follow those
        self._events: Events | None = None
        self._costs: Costs | None = None
        self.num_blocks = self.block_bytes = 0
        self._handlers = {
            "queue": self._queue,
            "refuse": self._refuse,
            "admit": self._admit,
            "prefill_chunk": self._prefill_chunk,
            "sample": self._sample,
            "speculate": self._speculate,
            "evict": self._evict,
            "preempt": self._preempt,
            "finish": self._finish,
            "step": self._end_step,
            "warmup": self._warm_up,
        }
        if engine is not None:
            self.attach(engine)

    # Listening ------------------------------------------------------------------------------

    def attach(self, engine: Engine) -> None:
        """Listen to this engine, and no longer to another one. Counts go on; unfinished requests are lost."""
        self.detach()
        self.num_blocks = engine.pool.num_blocks
        self.block_bytes = block_bytes(engine)
        self._costs = engine.model.step_costs()
        self._events = engine.events
        engine.events.listeners.append(self)

    def detach(self) -> None:
        """Stop listening."""
        if self._events is not None:
            self._events.deliver()
            self._events.listeners = [x for x in self._events.listeners if x is not self]
            self._events = None
        self._now.pause()
        self._now, self._warm_ups = self.steady, 0
        self.lost += len(self._live)
        self._live.clear()
        self.waiting = self.running = 0

    def replay(self, events: Iterable[Event]) -> EngineMetrics:
        """Count recorded events too; return the metrics."""
        for event in events:
            self(event)
        return self

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(event.kind)
        if handler is not None:
            handler(event)

    @property
    def memory(self) -> MemoryNow:
        """The KV memory at the end of the newest step."""
        return MemoryNow.at(self.newest, self.num_blocks, self.block_bytes)

    @property
    def num_live(self) -> int:
        """The number of requests whose end is awaited: what memory grows with."""
        return len(self._live)

    # Requests -------------------------------------------------------------------------------

    def _queue(self, event: Event) -> None:
        figures = self._now
        use = self.tenants.row(event["tenant"]) if figures is self.steady else TenantUse()
        self._live[event.request_id] = LiveRequest(event, figures, use)
        figures.requests += 1
        use.requests += 1
        figures.span(event.time)
        self.waiting += 1

    def _refuse(self, event: Event) -> None:
        self._now.refused[event["reason"]] += 1
        if self._now is self.steady:
            self.tenants.row(event["tenant"]).refused += 1

    def _admit(self, event: Event) -> None:
        live = self._live.get(event.request_id)
        if live is None:
            return
        if live.admitted is None:
            self.waiting -= 1
            self.running += 1
        live.admitted, live.cached = event.time, event["cached_tokens"]  # a second one replaces the first

    def _sample(self, event: Event) -> None:
        now, get, before, same = event.time, self._live.get, self._sampled, 0
        requests, apart = event.data["requests"], 0
        for request_id, index in requests:  # this loop runs for every token: it must be short
            request = get(request_id)
            if request is None or request.figures is self.warmup:
                self._sample_apart(request, index, now)
                apart += 1
                continue
            request.use.output_tokens += 1
            if index:
                request.forked += 1
                continue
            request.tokens += 1
            if request.last == before:
                same += 1
                request.last = now
            else:
                self._token(request, now)
        if same:
            self.steady.itl.record(now - before, same)
        self.steady.output_tokens += len(requests) - apart
        self._sampled = now

    def _sample_apart(self, request: LiveRequest | None, index: int, now: float) -> None:
        """A token of a warm-up, or of a request that was queued before the metrics listened."""
        if request is None:
            self._now.output_tokens += 1
            return
        figures = request.figures
        figures.output_tokens += 1
        if index:
            request.forked += 1
            return
        request.tokens += 1
        self._token(request, now)

    def _token(self, request: LiveRequest, now: float) -> None:
        """A token of the first sample, counted already."""
        if request.tokens == 1:
            request.first = now
            request.figures.ttft.record(now - request.submitted)
            self._count_prompt(request)
        else:
            request.figures.itl.record(now - request.last)
        request.last = now

    def _count_prompt(self, request: LiveRequest) -> None:
        """Count the prompt of an admitted request: once, when no second `admit` can come any more."""
        if request.admitted is not None:
            for counts in (request.figures, request.use):
                counts.prompt_tokens += request.prompt
                counts.cached_tokens += request.cached

    def _finish(self, event: Event) -> None:
        request = self._live.get(event.request_id)
        if request is None:
            return
        if request.end(event["index"], event["reason"], event.time):
            del self._live[event.request_id]
            self._close(request)

    def _close(self, request: LiveRequest) -> None:
        figures, ended = request.figures, request.ended
        if request.admitted is None:
            self.waiting -= 1
        else:
            self.running -= 1
        if not request.tokens:
            self._count_prompt(request)
        started = ended if request.admitted is None else request.admitted
        figures.queue.record(started - request.submitted)
        figures.e2e.record(ended - request.submitted)
        if request.tokens > 1:
            figures.tpot.record((request.last - request.first) / (request.tokens - 1))
        figures.prompt_sizes.record(request.prompt)
        figures.output_sizes.record(request.tokens + request.forked)
        figures.finished[request.reason] += 1

    # Steps ----------------------------------------------------------------------------------

    def _prefill_chunk(self, event: Event) -> None:
        figures, start, end = self._now, event["start"], event["end"]
        figures.prefill_tokens += end - start
        self._begin_step(event.step)
        self._chunks += 1
        if self._costs is not None:
            _add(figures, self._costs.prefill(start, end))

    def _speculate(self, event: Event) -> None:
        figures = self._now
        self._begin_step(event.step)
        self._rows = event["rows"]
        for drafted, depth, accepted in event["outcomes"]:
            figures.drafted += drafted
            figures.depths[depth] += 1
            figures.accepted_lengths[accepted] += 1

    def _begin_step(self, step: int) -> None:
        """Forget the chunks and rows of an earlier step that was interrupted or was no step (`logits`)."""
        if step != self._step:
            self._step, self._chunks, self._rows = step, 0, 0

    def _evict(self, event: Event) -> None:
        self._now.evicted[event["cause"]] += event["blocks"]

    def _preempt(self, event: Event) -> None:
        self._now.preemptions += 1

    def _end_step(self, event: Event) -> None:
        figures, data = self._now, event.data
        self._begin_step(event.step)
        sequences, prefill = data["decode_rows"], data["prefill_tokens"]
        rows = self._rows or sequences
        figures.span(event.time - data["seconds"], event.time)
        figures.step_seconds.record(data["seconds"])
        figures.step_tokens.record(prefill + rows)
        figures.batch.record(sequences + self._chunks)
        if data["slots"]:
            figures.fragmentation.record(data["waste"] / data["slots"])
        if data["used"] > figures.peak_used_blocks:
            figures.peak_used_blocks = data["used"]
        for reason, count in data["held"].items():
            figures.held[reason] += count
        if self._costs is not None:
            self._add_passes(self._costs, rows, sequences, data["context"], prefill)
        self._step = -1
        self.newest = event

    def _add_passes(self, costs: Costs, rows: int, sequences: int, context: int, prefill: int) -> None:
        """Add the decode rows of a step, and the weights that its passes read."""
        passes = (prefill > 0) + (sequences > 0)
        self._now.read_bytes += passes * costs.weight_bytes
        if sequences:
            _add(self._now, costs.decode(rows, sequences, context))

    def _warm_up(self, event: Event) -> None:
        # A new dictionary: another thread may be reading the old one for a scrape.
        self.startup = {**self.startup, **{k: v for k, v in event.data.items() if k != "phase"}}
        if event["phase"] == "begin":
            self._warm_ups += 1
        else:
            self._warm_ups = max(0, self._warm_ups - 1)  # its begin may have come before the metrics
        self._now.pause()
        self._now = self.warmup if self._warm_ups else self.steady


def _add(figures: Figures, cost: tuple[int, int, int]) -> None:
    flops, read, written = cost
    figures.flops += flops
    figures.read_bytes += read
    figures.written_bytes += written
