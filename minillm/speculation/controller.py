"""How far to draft: as far as it pays, by what has been measured in this very run.

A step that drafts k tokens for each of n sequences, of which a share a stands, takes and gives

    seconds   target(n * (1 + k)) + draft(n, k)             tokens   n * (1 - a^(k+1)) / (1 - a)

Decode of a few sequences is bound by memory: target(n * (1 + k)) is hardly more than target(n), and drafts
are nearly free. With many sequences it is bound by arithmetic, every drafted row costs like any other, and
no draft is the best draft. So the controller learns both times by the number of rows, and each sequence's a,
takes the k of the most tokens per second, and 0 is one of the choices. A sequence whose drafts stand less
often than the others' gets fewer: token j of a draft stands with probability a^j, and must be worth its time.

While drafting does not pay it is tried again now and then, after pauses that double, so that being off costs
next to nothing. Decisions depend on clocks; answers do not (contract C7), except that with rejection sampling
which tokens are drawn, not how they are distributed, depends on what was drafted.

Formula: Leviathan et al. (arXiv 2211.17192), section 3. Left out: how sure the draft model is.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from itertools import accumulate

from minillm.speculation.proposal import DraftSequence
from minillm.speculation.state import Acceptance

PLAIN_SAMPLES = 2  # steps without drafts that must have been timed before one with drafts is judged
PLAIN_EVERY = 128  # drafting steps after which one without is timed again
FIRST_PAUSE, LONGEST_PAUSE = 4, 2048  # steps without a draft before one is tried again
PROBE = 2  # tokens drafted then
REVIEW_EVERY = 4  # drafting steps between two searches for the best length
WORTHWHILE = 1.02  # times as fast as without drafts; less is within what can be measured
PRIOR = 0.7  # acceptance assumed of a sequence that has not been seen


class PassTimes:
    """Seconds by number of rows: moving averages in four classes to the octave, and lines between them."""

    def __init__(self) -> None:
        self._points: dict[int, tuple[float, float]] = {}  # class -> (rows, seconds)
        self._samples: dict[int, int] = {}
        self._rows, self._seconds = [0.0], [0.0]  # of all points, by rows
        self._is_stale = False  # points have come since

    def add(self, rows: int, seconds: float) -> None:
        """One measurement. One that is far off (a machine that did something else) counts little."""
        size = _size_class(rows)
        known_rows, known = self._points.get(size, (rows, seconds))
        seconds = known + 0.2 * (min(seconds, 2 * known) - known)
        self._points[size] = known_rows + 0.2 * (rows - known_rows), seconds
        self._samples[size] = self._samples.get(size, 0) + 1
        self._is_stale = True

    def _refresh(self) -> None:
        points, self._is_stale = sorted(self._points.values()), False
        # More rows never take less: where they seem to, the fewer were measured in a bad moment.
        self._rows = [x for x, _ in points]
        self._seconds = [*accumulate((y for _, y in reversed(points)), min)][::-1]

    def samples(self, rows: int) -> int:
        """How often about this many rows were measured."""
        return self._samples.get(_size_class(rows), 0)

    def of(self, rows: float) -> float:
        """Seconds for `rows` rows; beyond what was measured those of the nearest that was, 0 without any."""
        if self._is_stale:
            self._refresh()
        place = bisect.bisect_left(self._rows, rows)
        if place == 0 or place == len(self._rows):
            return self._seconds[min(place, len(self._rows) - 1)]
        x0, x1 = self._rows[place - 1 : place + 1]
        y0, y1 = self._seconds[place - 1 : place + 1]
        return y0 + (y1 - y0) * (rows - x0) / (x1 - x0)

    def in_proportion(self, rows: int) -> float:
        """As `of`; but beyond what was measured in proportion to the nearest that was."""
        if self._is_stale:
            self._refresh()
        nearest = min(max(rows, self._rows[0]), self._rows[-1])
        return self.of(nearest) * rows / nearest if nearest else 0.0


def _size_class(rows: int) -> int:
    return round(4 * math.log2(rows))


class Controller:
    """Draft lengths for the sequences of a step: at most `depth`, on `branches` branches."""

    def __init__(self, depth: int, branches: int = 1, adaptive: bool = True) -> None:
        self._depth, self._branches, self._adaptive = depth, branches, adaptive
        self._target = PassTimes()
        self._draft: dict[int, PassTimes] = {}  # size class of branches -> by levels
        self._all = Acceptance()
        self._pause, self._next_pause, self._is_probe_due = 0, FIRST_PAUSE, False
        self._crowd = 0  # how many sequences drafting did not pay for
        self._since_plain = 0
        self._settled, self._best, self._worth = 0, 0, 0.0  # for so many sequences, until the next review

    # What is measured -----------------------------------------------------------------------

    def saw_target(self, rows: int, seconds: float) -> None:
        """A decode pass of the target took so long, drafted rows included."""
        self._target.add(rows, seconds)

    def saw_draft(self, rows: int, levels: int, seconds: float) -> None:
        """Drafting `levels` tokens for `rows` branches took so long."""
        self._draft.setdefault(_size_class(rows), PassTimes()).add(levels, seconds)

    def saw_result(self, sequence: DraftSequence, drafted: int, stood: int) -> None:
        """Of a branch of `drafted` tokens the first `stood` were right, and the next, if any, was wrong."""
        seen = min(drafted, stood + 1)
        sequence.draft.acceptance.add(stood, seen)
        self._all.add(stood, seen)

    # What follows from it -------------------------------------------------------------------

    def choose(self, sequences: Sequence[DraftSequence]) -> list[int]:
        """How many tokens to draft for each sequence."""
        count = len(sequences)
        if not self._adaptive:
            return [self._depth] * count
        if 2 * count <= self._crowd:  # few are another question
            self._pause = self._crowd = 0
            self._next_pause, self._is_probe_due = FIRST_PAUSE, False
        if self._pause:
            self._pause -= 1
            return [0] * count
        if self._target.samples(count) < PLAIN_SAMPLES or self._since_plain >= PLAIN_EVERY:
            self._since_plain = 0
            return [0] * count
        prior = self._all.rate(PRIOR)
        rates = [s.draft.acceptance.rate(prior) for s in sequences]
        if self._settled == count and self._since_plain % REVIEW_EVERY:
            self._since_plain += 1
            return [min(self._best, self._own_depth(a, self._worth)) for a in rates]
        self._settled = 0
        best = max(range(self._depth + 1), key=lambda k: self._speed(rates, k))
        if self._speed(rates, best) < WORTHWHILE * self._speed(rates, 0):
            return self._rest(count)
        self._next_pause, self._is_probe_due = FIRST_PAUSE, False
        self._since_plain += 1
        self._settled, self._best = count, best
        self._worth = self._speed(rates, best) * self._row_seconds(count, best)
        return [min(best, self._own_depth(a, self._worth)) for a in rates]

    def _rest(self, count: int) -> list[int]:
        """No draft pays: pause, then probe with one sequence, then pause twice as long."""
        if self._is_probe_due:
            self._is_probe_due = False
            return [min(PROBE, self._depth)] + [0] * (count - 1)
        self._pause, self._is_probe_due, self._crowd = self._next_pause, True, count
        self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)
        return [0] * count

    def _speed(self, rates: Sequence[float], k: int) -> float:
        """Expected tokens per second when `k` are drafted for everybody."""
        tokens = sum((1 - a ** (k + 1)) / (1 - a) for a in rates)
        return tokens / max(self._seconds(len(rates), k), 1e-9)

    def _seconds(self, count: int, k: int) -> float:
        if k == 0:
            return self._target.of(count)
        branches = count * self._branches
        return self._target.of(branches * (1 + k)) + self._draft_seconds(branches, k)

    def _draft_seconds(self, branches: int, levels: int) -> float:
        """By levels: the first costs more than the others. Uses the nearest number of branches seen."""
        if not self._draft:
            return 0.0
        size = _size_class(branches)
        return self._draft[min(self._draft, key=lambda known: abs(known - size))].in_proportion(levels)

    def _row_seconds(self, count: int, k: int) -> float:
        """What one drafted row of one sequence adds to the target's pass. (The others pay for the levels.)"""
        drafted = count * (self._branches * (1 + k) - 1)
        return (self._target.of(count + drafted) - self._target.of(count)) / drafted

    def _own_depth(self, rate: float, worth: float) -> int:
        """The most tokens of which the last still stands with probability `worth` or more."""
        if worth <= 0:
            return self._depth
        if worth >= rate:
            return 0
        return min(self._depth, int(math.log(worth) / math.log(rate)))
