"""Every decision of the engine, as it is made.

    engine, scheduler, KV manager --emit--> queue --deliver--> each listener (a trace, the metrics, a plot)

Listeners read; the engine never does, so what is observed cannot change what happens. Nobody listening
costs one test of an empty list. An event holds numbers and request ids: no text, no token id, no tenant.

    queue          prompt_tokens, n                  a request entered the queue
    refuse         reason                            a request was refused; it has no id
    admit          cached_tokens, waited             it left the queue for the first time
    share          blocks                            blocks of the prefix cache found for it
    prefill_chunk  start, end, tokens                tokens start to end of one sequence computed
    decode_step    rows                              one token each of `rows` sequences computed
    sample         requests                          each of these requests got a token, at this time
    speculate      requests, outcomes, rows,         drafts verified: of each sequence (drafted, depth of the
                   draft_seconds, verify_seconds     longest branch, accepted) tokens, over `rows` in all
    alloc, free    blocks                            block references taken and given back by one sequence;
                                                     in the end `alloc` and `share` add up to `free`
    copy_on_write  blocks                            blocks copied when a prompt's samples part ways
    publish        blocks                            full blocks made findable
    evict          blocks                            blocks the prefix cache gave up
    preempt        tokens                            a running sequence with `tokens` computed lost its blocks
    resume         cached_tokens                     a preempted sequence is running again
    cancel         reason                            a request was ended from outside
    finish         reason                            a sequence ended
    step           seconds, prefill_tokens, decode_rows, waiting, running, used, cached, free, waste

`waste` is slots allocated and not filled, exact, of all running sequences: shared blocks are full.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)
_BLOCK_EVENTS = {"alloc": 1, "share": 1, "free": -1}


@dataclass(frozen=True)
class Event:
    """One thing that happened: `step` counts engine steps, `time` is `time.perf_counter()`."""

    kind: str
    step: int
    time: float
    request_id: str
    data: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.data[name]


Listener = Callable[[Event], None]


class Events:
    """Where an engine's events go.

    An event is queued where it happens and handed to the listeners by `deliver`, which the engine calls when
    no lock is held and no change of state is under way. So a listener may ask the engine for anything but
    another step, and one that raises harms nobody: what it raised is logged, once.

    While a change of state is under way (a step, from `hold` to `release`) events only queue up. If the
    change is interrupted and every block is freed, `free_all` makes the trace say so, wherever the interrupt
    came.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.step = 0
        self._queue: deque[tuple[Listener, Event]] = deque()
        self._held: Mapping[str, int] | None = None
        self._lock = threading.Lock()  # never held while a listener runs
        self._deliverer: FrameType | None = None
        self._reported: list[Listener] = []

    @property
    def is_holding(self) -> bool:
        """Whether a change of state is under way, or was cut off."""
        return self._held is not None

    def hold(self, blocks: Mapping[str, int]) -> None:
        """Queue events until `release`; `blocks` are block references held by each request now."""
        self._held = blocks

    def release(self) -> None:
        """The change is over, and `deliver` works again."""
        self._held = None

    def free_all(self) -> None:
        """Emit `free` for every block reference that the trace has as taken and not yet given back."""
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
        """Queue an event for the listeners; `at` is for what has a time of its own."""
        if self.listeners:
            event = Event(kind, self.step, time.perf_counter() if at is None else at, request_id, data)
            self._queue.extend([(listener, event) for listener in self.listeners])

    def deliver(self) -> None:
        """Hand what is queued to the listeners, in order. While one thread does so, others return at once."""
        while self._queue and self._held is None:
            with self._lock:
                if self._deliverer is not None and _is_running(self._deliverer):
                    return
                self._deliverer = sys._getframe()  # one whose call is over was interrupted
            try:
                self._deliver_all()
            finally:
                self._deliverer = None

    def _deliver_all(self) -> None:
        while self._queue and self._held is None:
            listener, event = self._queue[0]
            try:
                del self._queue[0]  # no call until the listener's: an interrupt comes before both or behind
                listener(event)
            except Exception as error:
                self._report(listener, error, event)

    def _report(self, listener: Listener, error: Exception, event: Event) -> None:
        if not any(listener is known for known in self._reported):
            self._reported.append(listener)
            _log.error("a listener raised %s at an event of kind %s", type(error).__name__, event.kind)

    @contextmanager
    def record(self) -> Iterator[list[Event]]:
        """Collect all events for as long as the `with` block lasts."""
        trace: list[Event] = []
        self.deliver()  # what happened before belongs to others
        self.listeners.append(trace.append)
        try:
            yield trace
        finally:
            self.deliver()
            # By identity: two traces that are both empty are equal.
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
