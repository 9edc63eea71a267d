"""The clock of a run, which also calls actions at their times: requests are submitted by it.

    stepping thread    step ------- step ------------ step -- step
    clock's thread          ^ submit      ^ submit                      while the steps run

A generator that submits between its own steps waits for each step to end: a slow step then delays the load
that should show how slow it is (coordinated omission). `Engine.add_request` may be called by any thread. So a
second thread sleeps until the next action is due and submits in the middle of a step.

Both threads are Python and share the interpreter lock. The native kernels release it. A step that is in
Python is asked for it after the switch interval: 5 ms by default, 0.1 ms during a run. How late an action
begins is measured, by the generator, and a run with a late one does not count (`validity.py`).
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

Action = Callable[[], None]
SWITCH_SECONDS = 1e-4


class Clock(Protocol):
    """Tells the time, in seconds, and calls actions at their times. It is used in a `with` block."""

    def now(self) -> float:
        """The time; only differences mean anything. Events have the times of the same clock."""

    def at(self, moment: float, action: Action) -> None:
        """Call `action` at `moment`, or as soon as possible after it. Actions may call this."""

    def wait(self) -> bool:
        """Wait until an action has been called since the last `wait`. False: there is none to wait for."""

    def __enter__(self) -> Clock: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class RealClock:
    """`time.perf_counter`, which the engine's events use too, and a thread that calls the actions."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Action]] = []
        self._order = itertools.count()  # actions of one moment are called in the order they came
        self._has_acted = self._is_acting = self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="minillm-load", daemon=True)

    def now(self) -> float:
        """`time.perf_counter()`."""
        return time.perf_counter()

    def at(self, moment: float, action: Action) -> None:
        """As `Clock.at`."""
        with self._changed:
            entry = (moment, next(self._order), action)
            heapq.heappush(self._due, entry)
            if self._due[0] is entry:  # otherwise the thread already wakes up early enough
                self._changed.notify_all()

    def wait(self) -> bool:
        """As `Clock.wait`. Raises what an action has raised."""
        with self._changed:
            while not self._has_acted and self._error is None and (self._due or self._is_acting):
                self._changed.wait()
            if self._error is not None:
                raise self._error
            had_acted, self._has_acted = self._has_acted, False
            return had_acted

    def __enter__(self) -> Clock:
        self._switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        sys.setswitchinterval(self._switch_seconds)
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (action := self._next()) is not None:
            error: BaseException | None = None
            try:
                action()
            except BaseException as raised:  # raised again in the thread that waits
                error = raised
            with self._changed:
                self._has_acted, self._is_acting, self._error = True, False, self._error or error
                self._changed.notify_all()

    def _next(self) -> Action | None:
        """The next action, once it is due; None when the clock is closed or an action has raised."""
        with self._changed:
            while not (self._is_closed or self._error):
                left = self._due[0][0] - self.now() if self._due else None
                if left is not None and left <= 0:
                    self._is_acting = True
                    return heapq.heappop(self._due)[2]
                self._changed.wait(left)
            return None
