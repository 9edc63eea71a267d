"""One step at a time: the guard around everything that changes the engine.

    another thread is in a step           it is waited for: steps of several threads come one after the other
    a part or a listener asks for a step  EngineBusy: the step around it is not over
    this process was forked from another  ForkedEngine: its threads and locks did not come along

The kernels' threads do not survive a fork, so a child that went on would wait for them for ever.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from minillm.errors import EngineBusy, ForkedEngine

T = TypeVar("T")


class Turn:
    """Held for the time of a step, by one thread, once."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: FrameType | None = None
        self._pid = os.getpid()

    def require_own_process(self) -> None:
        """Refuse to work in a child process.

        Raises:
            ForkedEngine: this process was forked from the engine's.
        """
        if os.getpid() != self._pid:
            raise ForkedEngine(
                "this engine belongs to the process that this one was forked from",
                "make an LLM in each process, or start processes with spawn",
            )

    def run(self, work: Callable[[], T]) -> T:
        """Wait for other threads, then do `work` alone.

        Raises:
            EngineBusy: the caller is itself inside a step.
        """
        self.require_own_process()
        with self._lock:
            if self._is_inside():
                raise EngineBusy(
                    "a step was asked for in the middle of a step",
                    "do not step it from a part or a listener",
                )
            try:
                self._holder = sys._getframe()
                return work()
            finally:
                self._holder = None

    def _is_inside(self) -> bool:
        """Whether the holder is still on this thread's stack: an interrupt may keep it from letting go."""
        frame = sys._getframe() if self._holder else None
        while frame is not None and frame is not self._holder:
            frame = frame.f_back
        return frame is not None
