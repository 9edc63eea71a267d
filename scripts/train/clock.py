"""The time of a run, and the part of it that each stage has.

    share of the run   0 ........ 0.15 ........ 0.31 .................... 0.72 ...... 1
    budgets              teacher-1  | teacher-2   | target                  | draft ...

A schedule by time always ends in time, however fast the machine is: a stage that starts late gets
what is left until its end. A stopped clock counts as run out, so every loop ends at its next step.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds that a whole run may take, from now on."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._now, self._start = seconds, now, now()
        self._stopped = False

    def stop(self) -> None:
        """Count as run out from now on."""
        self._stopped = True

    def share(self) -> float:
        """The share of the run that is over, from 0; at least 1 once stopped."""
        return max(float(self._stopped), self.elapsed() / self.seconds)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def until(self, end: float) -> Budget:
        """The time from now to share `end` of the run."""
        return Budget(self, self.share(), end)


class Budget:
    """A part of a clock's time."""

    def __init__(self, clock: Clock, start: float, end: float) -> None:
        self._clock, self._start, self._end = clock, start, end

    def done(self) -> float:
        """The share of this budget that is over, 0 to 1."""
        share = self._clock.share()
        return 1.0 if share >= self._end else (share - self._start) / (self._end - self._start)
