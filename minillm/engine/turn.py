"""The guard that lets only one step run at a time.

    another thread runs a step              wait: the steps of several threads run one after the other
    a part or a listener calls step         EngineBusy: the current step is not finished
    the engine was made before a fork       ForkedEngine: threads do not survive a fork

After a fork the kernels' threads do not exist in the child, so the child would wait for them forever.
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
    """A lock that one thread holds during a step. It cannot be taken twice, even by the same thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: FrameType | None = None
        self._pid = os.getpid()

    def require_own_process(self) -> None:
        """Check that this process made the engine.

        Raises:
            ForkedEngine: this process was forked from the process that made the engine.
        """
        if os.getpid() != self._pid:
            raise ForkedEngine(
                "the engine was made before this process was forked, and works only in its own process",
                "make an LLM in each process, or start processes with spawn",
            )

    def run(self, work: Callable[[], T]) -> T:
        """Wait for the steps of other threads, then call `work` and return its result.

        Raises:
            EngineBusy: the caller is already inside a step.
        """
        self.require_own_process()
        with self._lock:
            if self._is_inside():
                raise EngineBusy(
                    "a step was started in the middle of a step",
                    "do not step the engine from a part or a listener",
                )
            try:
                self._holder = sys._getframe()
                return work()
            finally:
                self._holder = None

    def _is_inside(self) -> bool:
        """Whether the holder is on this thread's stack. An interrupt may have prevented its reset to None."""
        frame = sys._getframe() if self._holder else None
        while frame is not None and frame is not self._holder:
            frame = frame.f_back
        return frame is not None
