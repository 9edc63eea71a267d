"""Events: a record of every decision of the engine.

    engine, scheduler, KV manager --emit--> queue --deliver--> each listener (a trace, the metrics, a plot)

The engine writes events and never reads them, so listeners cannot change what it does. Without listeners an
event costs one test of an empty list. An event holds numbers and request ids: no text, token id or tenant.
Two events hold digests, of the prompt and of the answer. They are keyed with a secret of the process, so
nobody can test a guessed prompt with them (`engine/keyed.py`).

    queue          prompt_tokens, n, prompt,         a request entered the queue; `prompt` and `tenant` are
                   tenant                            keyed
    refuse         reason, tenant                    a request was refused; it has no id
    admit          cached_tokens, waited             a request left the queue; a second `admit` replaces the
                                                     first, whose step was interrupted
    share          blocks                            a sequence starts with blocks from the prefix cache
    prefill_chunk  start, end, tokens                tokens start to end of one sequence were computed
    decode_step    rows                              one token of each of `rows` sequences was computed
    sample         requests                          each of these sequences got a token at this time
    speculate      requests, outcomes, rows,         drafts were verified in `rows` rows; an outcome: (tokens
                   draft_seconds, verify_seconds     drafted, depth of the longest branch, accepted)
    alloc, free    blocks                            a sequence gained or lost block references; when all have
                                                     ended, `alloc` and `share` add up to `free`
    copy_on_write  blocks                            a fork got a copy of a partly full block
    publish        blocks                            full blocks were put into the prefix cache
    evict          blocks, cause                     blocks were removed from the prefix cache to make `room`,
                                                     because a `guarantee` keeps no more, or by a `reset`
    preempt        tokens                            a running sequence with `tokens` computed lost its blocks
    resume         cached_tokens                     a preempted sequence is running again
    cancel         reason                            a request was aborted or reached its deadline
    finish         index, reason, answer             the sequence with this sample index ended; `answer` is
                                                     the keyed digest of its token ids
    warmup         phase                             `begin`, with the seconds of `load`, `compile` and
                                                     `allocation`; `end`, with those of the `first` request,
                                                     of the same `again`, and the number of `requests`
    step           seconds, prefill_tokens, decode_rows, context, phases, waiting, held, running, used,
                   cached, free, slots, waste
    blocks         tables, cached, uncached          after a step, only in a recorded run: whose each
                                                     block is (`engine/block_map.py`)

Of a step: `context` is the number of tokens that its decoding sequences have computed. `phases` has the
seconds of each phase (`engine/stepping.py`). `held` counts the waiting sequences by what the first of them
lacks (`engine/step_plan.py`). `slots` are the allocated ones of all running sequences, and `waste` those of
them without a token. It is exact, because only full blocks are shared.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)
_BLOCK_EVENTS = {"alloc": 1, "share": 1, "free": -1}


@dataclass(frozen=True)
class Event:
    """One event. `step`: the number of the engine step. `time`: the value of `time.perf_counter()`."""

    kind: str
    step: int
    time: float
    request_id: str
    data: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.data[name]


Listener = Callable[[Event], None]
Detail = Callable[[Sequence[Any]], None]  # takes the running sequences


class Events:
    """The event queue of an engine and its listeners.

    `emit` puts an event into the queue. `deliver` passes the queued events to the listeners; the engine calls
    it when no lock is held and no change of state is in progress. So a listener may call any method of the
    engine except `step`. If a listener raises, the error is logged once and the engine continues.

    During a change of state (a step, from `hold` to `release`) events stay in the queue. If the change is
    interrupted and every block is freed, `free_all` adds the missing `free` events to the trace.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.step = 0
        self.detail: Detail | None = None  # called after each step while a record wants `blocks`
        self._queue: deque[tuple[Listener, Event]] = deque()
        self._held: Mapping[str, int] | None = None
        self._lock = threading.Lock()  # never held while a listener runs
        self._deliverer: FrameType | None = None
        self._reported: list[Listener] = []

    @property
    def is_holding(self) -> bool:
        """Whether a change of state is in progress or was interrupted."""
        return self._held is not None

    def hold(self, blocks: Mapping[str, int]) -> None:
        """Keep events in the queue until `release`. `blocks`: the block references each request has now."""
        self._held = blocks

    def release(self) -> None:
        """End the change of state; `deliver` works again."""
        self._held = None

    def free_all(self) -> None:
        """Emit `free` for every block reference that is allocated or shared in the trace and not freed."""
        held, last = Counter(self._held or {}), None
        for _, event in list(self._queue):
            sign = _BLOCK_EVENTS.get(event.kind, 0)
            if sign and event is not last:  # several listeners get the same event
                held[event.request_id] += sign * event["blocks"]
            last = event
        for request_id, blocks in held.items():
            if blocks:
                self.emit("free", request_id, blocks=blocks)

    def emit(self, kind: str, request_id: str = "", at: float | None = None, **data: Any) -> None:
        """Queue an event for the listeners. `at`: the time of the event, if it is not now."""
        if self.listeners:
            event = Event(kind, self.step, time.perf_counter() if at is None else at, request_id, data)
            self._queue.extend([(listener, event) for listener in self.listeners])

    def deliver(self) -> None:
        """Pass the queued events to the listeners, in order. Return at once if another thread is doing so."""
        while self._queue and self._held is None:
            with self._lock:
                if self._deliverer is not None and _is_running(self._deliverer):
                    return
                self._deliverer = sys._getframe()  # an old value is left only if its call was interrupted
            try:
                self._deliver_all()
            finally:
                self._deliverer = None

    def _deliver_all(self) -> None:
        while self._queue and self._held is None:
            listener, event = self._queue[0]
            try:
                # Python handles Ctrl-C only at calls and loop ends: never between these two lines.
                del self._queue[0]
                listener(event)
            except Exception as error:
                self._report(listener, error, event)

    def _report(self, listener: Listener, error: Exception, event: Event) -> None:
        if not any(listener is known for known in self._reported):
            self._reported.append(listener)
            _log.error("a listener raised %s at an event of kind %s", type(error).__name__, event.kind)

    @contextmanager
    def record(self) -> Iterator[list[Event]]:
        """Collect all events during the `with` block."""
        trace: list[Event] = []
        self.deliver()  # earlier events do not belong to this trace
        self.listeners.append(trace.append)
        try:
            yield trace
        finally:
            self.deliver()
            # Compare by identity: two empty traces are equal.
            self.listeners = [x for x in self.listeners if getattr(x, "__self__", None) is not trace]


def _is_running(frame: FrameType) -> bool:
    """Whether a function call is still on some thread's stack."""
    for top in sys._current_frames().values():
        at: FrameType | None = top
        while at is not None and at is not frame:
            at = at.f_back
        if at is frame:
            return True
    return False
