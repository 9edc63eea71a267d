"""The controller: it chooses the draft lengths that give the most tokens per second, from measured times.

A step drafts k tokens for each of n sequences. If each is accepted with probability a, a step has

    seconds   target(n * (1 + k)) + draft(n, k)             tokens   n * (1 - a^(k+1)) / (1 - a)

With few sequences decode is bound by memory: target(n * (1 + k)) is hardly more than target(n), and drafts
are nearly free. With many sequences decode is bound by arithmetic: a draft row costs as much as any other
row, and it is best not to draft. So the controller measures both times by the number of rows, and the
acceptance a of each sequence. It chooses the k with the most tokens per second; k = 0 is one of the choices.
A sequence with a low acceptance gets a shorter draft: token j of a draft is accepted with probability a^j
and must be worth its time.

While drafting does not pay, the controller pauses it and then tries it again. Each pause is twice as long as
the one before, so these trials cost almost nothing. The decisions depend on clocks, but the answers do not
(contract C7). Rejection sampling is an exception: the sampled tokens depend on the drafts, their distribution
does not.

Formula: Leviathan et al. (arXiv 2211.17192), section 3. Left out: the confidence of the draft model.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from itertools import accumulate

from minillm.speculation.proposal import DraftSequence
from minillm.speculation.state import Acceptance

PLAIN_SAMPLES = 2  # steps without drafts to time before the first step with drafts
PLAIN_EVERY = 128  # drafting steps before one step without drafts is timed again
FIRST_PAUSE, LONGEST_PAUSE = 4, 2048  # steps without drafts before drafting is tried again
PROBE = 2  # tokens drafted in such a trial
REVIEW_EVERY = 4  # drafting steps between two searches for the best length
WORTHWHILE = 1.02  # speed-up that drafting must give; a smaller one is within measurement error
PRIOR = 0.7  # acceptance assumed before anything has been measured


class PassTimes:
    """Seconds by number of rows: moving averages in size classes, with linear interpolation between them.

    Four size classes cover each doubling of the number of rows.
    """

    def __init__(self) -> None:
        self._points: dict[int, tuple[float, float]] = {}  # class -> (rows, seconds)
        self._samples: dict[int, int] = {}
        self._rows, self._seconds = [0.0], [0.0]  # all points, sorted by rows
        self._is_stale = False  # points have been added since they were sorted

    def add(self, rows: int, seconds: float) -> None:
        """Add a measurement. An outlier (the machine was busy) counts at most as twice the average."""
        size = _size_class(rows)
        known_rows, known = self._points.get(size, (rows, seconds))
        seconds = known + 0.2 * (min(seconds, 2 * known) - known)
        self._points[size] = known_rows + 0.2 * (rows - known_rows), seconds
        self._samples[size] = self._samples.get(size, 0) + 1
        self._is_stale = True

    def _refresh(self) -> None:
        points, self._is_stale = sorted(self._points.values()), False
        # More rows never take less time. If they seem to, the machine was busy at the smaller measurement.
        self._rows = [x for x, _ in points]
        self._seconds = [*accumulate((y for _, y in reversed(points)), min)][::-1]

    def samples(self, rows: int) -> int:
        """The number of measurements in the size class of `rows`."""
        return self._samples.get(_size_class(rows), 0)

    def of(self, rows: float) -> float:
        """Seconds for `rows` rows. Outside the measured range: the nearest point; 0 without measurements."""
        if self._is_stale:
            self._refresh()
        place = bisect.bisect_left(self._rows, rows)
        if place == 0 or place == len(self._rows):
            return self._seconds[min(place, len(self._rows) - 1)]
        x0, x1 = self._rows[place - 1 : place + 1]
        y0, y1 = self._seconds[place - 1 : place + 1]
        return y0 + (y1 - y0) * (rows - x0) / (x1 - x0)

    def in_proportion(self, rows: int) -> float:
        """As `of`, but outside the measured range the nearest point is scaled in proportion to `rows`."""
        if self._is_stale:
            self._refresh()
        nearest = min(max(rows, self._rows[0]), self._rows[-1])
        return self.of(nearest) * rows / nearest if nearest else 0.0


def _size_class(rows: int) -> int:
    return round(4 * math.log2(rows))


class Controller:
    """Chooses the draft length of each sequence of a step: at most `depth` tokens, on `branches` branches."""

    def __init__(self, depth: int, branches: int = 1, adaptive: bool = True) -> None:
        self.depth, self._branches, self._adaptive = depth, branches, adaptive
        self._target = PassTimes()
        self._draft: dict[int, PassTimes] = {}  # size class of the number of branches -> seconds by levels
        self._all = Acceptance()
        self._pause, self._next_pause, self._is_probe_due = 0, FIRST_PAUSE, False
        self._paused_count = 0  # sequences in the step that started the pause
        self._since_plain = 0
        # Result of the last search: number of sequences, best length, least acceptance that is worth a row.
        self._reviewed, self._best, self._worth = 0, 0, 0.0

    # Measurements ---------------------------------------------------------------------------

    def record_target(self, rows: int, seconds: float) -> None:
        """Record the time of a target pass over `rows` rows, draft rows included."""
        self._target.add(rows, seconds)

    def record_draft(self, branches: int, levels: int, seconds: float) -> None:
        """Record the time of drafting `levels` tokens for each of `branches` branches."""
        self._draft.setdefault(_size_class(branches), PassTimes()).add(levels, seconds)

    def record_result(self, sequence: DraftSequence, drafted: int, accepted: int) -> None:
        """Record a branch of `drafted` tokens: the first `accepted` were right, the next (if any) wrong."""
        compared = min(drafted, accepted + 1)
        sequence.draft.acceptance.add(accepted, compared)
        self._all.add(accepted, compared)

    # Decisions ------------------------------------------------------------------------------

    def choose(self, sequences: Sequence[DraftSequence]) -> list[int]:
        """The number of tokens to draft for each sequence."""
        count = len(sequences)
        if not self._adaptive:
            return [self.depth] * count
        if 2 * count <= self._paused_count:  # with far fewer sequences drafting may pay: end the pause
            self._pause = self._paused_count = 0
            self._next_pause, self._is_probe_due = FIRST_PAUSE, False
        if self._pause:
            self._pause -= 1
            return [0] * count
        if self._target.samples(count) < PLAIN_SAMPLES or self._since_plain >= PLAIN_EVERY:
            self._since_plain = 0
            return [0] * count
        prior = self._all.rate(PRIOR)
        rates = [s.draft.acceptance.rate(prior) for s in sequences]
        if self._reviewed == count and self._since_plain % REVIEW_EVERY:
            self._since_plain += 1
            return [min(self._best, self._own_depth(a, self._worth)) for a in rates]
        self._reviewed = 0
        best = max(range(self.depth + 1), key=lambda k: self._speed(rates, k))
        if self._speed(rates, best) < WORTHWHILE * self._speed(rates, 0):
            return self._pause_drafting(count)
        self._next_pause, self._is_probe_due = FIRST_PAUSE, False
        self._since_plain += 1
        self._reviewed, self._best = count, best
        self._worth = self._speed(rates, best) * self._row_seconds(count, best)
        return [min(best, self._own_depth(a, self._worth)) for a in rates]

    def _pause_drafting(self, count: int) -> list[int]:
        """Drafting does not pay: pause, then try it with one sequence, then pause twice as long."""
        if self._is_probe_due:
            self._is_probe_due = False
            return [min(PROBE, self.depth)] + [0] * (count - 1)
        self._pause, self._is_probe_due, self._paused_count = self._next_pause, True, count
        self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)
        return [0] * count

    def _speed(self, rates: Sequence[float], k: int) -> float:
        """Expected tokens per second if `k` tokens are drafted for every sequence."""
        tokens = sum((1 - a ** (k + 1)) / (1 - a) for a in rates)
        return tokens / max(self._seconds(len(rates), k), 1e-9)

    def _seconds(self, count: int, k: int) -> float:
        if k == 0:
            return self._target.of(count)
        branches = count * self._branches
        return self._target.of(branches * (1 + k)) + self._draft_seconds(branches, k)

    def _draft_seconds(self, branches: int, levels: int) -> float:
        """Drafting time of `levels` tokens, from measurements with the nearest number of branches.

        Times are kept by number of levels, because the first level takes longer than the others.
        """
        if not self._draft:
            return 0.0
        size = _size_class(branches)
        return self._draft[min(self._draft, key=lambda known: abs(known - size))].in_proportion(levels)

    def _row_seconds(self, count: int, k: int) -> float:
        """The time that one draft row adds to the target's pass.

        Drafting time is left out: a shorter draft of one sequence saves no level that others still need.
        """
        drafted = count * (self._branches * (1 + k) - 1)
        return (self._target.of(count + drafted) - self._target.of(count)) / drafted

    def _own_depth(self, rate: float, worth: float) -> int:
        """The longest draft whose last token is accepted with probability `worth` or more."""
        if worth <= 0:
            return self.depth
        if worth >= rate:
            return 0
        return min(self.depth, int(math.log(worth) / math.log(rate)))
