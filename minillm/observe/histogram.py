"""A histogram of times or counts, small however many values it gets, with percentiles of a known error.

A server records millions of latencies and cannot keep them. So values are counted in buckets: 256 of equal
width between each power of two and the next. A bucket is then never wider than 1/256 of its values.

    0.5        1                   2                                       4
     |||||||||||| | | | | | | | | | |   |   |   |   |   |   |   |   |   |   |      bucket edges
     256 buckets  256 buckets        256 buckets

`percentile` has the definition of `observe/metrics.py`. It returns the lower edge of the bucket in which the
exact percentile lies: at most the exact value, and less than 1/256 (0.4 %) below it. Whole numbers up to 512
are edges, so their percentiles are exact. So are the smallest and the largest value, the count and the sum
(rounded once, like `math.fsum`). Times from 1 µs to 1,000 s lie in 30 powers of two: at most 7,680 buckets.

Source: Tene, HdrHistogram (hdrhistogram.org). Left out: its arrays; only buckets that are used are kept.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import accumulate
from math import frexp

RELATIVE_ERROR = 1 / 256
_PARTS = 512  # a mantissa is in [0.5, 1), so 256 of them are used
_ZERO = -(1 << 40)  # the bucket of the value 0; before all others
_INFINITE = math.inf
_BITS = 1 << 53  # a float is a whole number of 53 bits, shifted
_UNIT = 1126  # and a multiple of 2 ** -_UNIT
_SHIFT = _UNIT - 53


class Histogram:
    """Counts of values that are 0 or larger.

    `bounds`: ascending; how many values are at most each bound is counted exactly (`cumulative`).
    """

    def __init__(self, bounds: Sequence[float] = ()) -> None:
        self.bounds = tuple(bounds)
        self.min, self.max = _INFINITE, 0.0
        self._buckets = defaultdict[int, int](int)
        self._between = [0] * (len(self.bounds) + 1)
        self._sum = 0  # in units of 2 ** -_UNIT: integers add up without rounding

    def record(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times.

        Raises:
            ValueError: the value is negative, infinite or NaN.
        """
        if not 0 <= value < _INFINITE:
            raise ValueError("a histogram counts finite values that are not negative")
        mantissa, exponent = frexp(value)
        self._buckets[exponent * _PARTS + int(mantissa * _PARTS) if value else _ZERO] += times
        self._between[bisect_left(self.bounds, value)] += times
        self._sum += int(mantissa * _BITS) * times << exponent + _SHIFT
        if value < self.min:
            self.min = value
        if value > self.max:
            self.max = value

    def merge(self, other: Histogram) -> None:
        """Count all values of `other` too.

        Raises:
            ValueError: the bounds differ.
        """
        if other.bounds != self.bounds:
            raise ValueError("histograms with different bounds cannot be merged")
        for bucket, count in other._buckets.items():
            self._buckets[bucket] += count
        self._between = [a + b for a, b in zip(self._between, other._between, strict=True)]
        self._sum += other._sum
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self._between)

    @property
    def sum(self) -> float:
        """The sum of all values, rounded once."""
        return float(Fraction(self._sum, 1 << _UNIT))

    @property
    def mean(self) -> float:
        """The mean; 0 without values."""
        count = self.count
        return self.sum / count if count else 0.0

    @property
    def num_buckets(self) -> int:
        """The number of buckets that are kept: what the histogram's memory grows with."""
        return len(self._buckets)

    def percentile(self, share: float) -> float:
        """The smallest value such that at least `share` (0 to 1) of all are not larger, with the error above.

        Raises:
            ValueError: there are no values.
        """
        return self.percentiles([share])[0]

    def percentiles(self, shares: Iterable[float]) -> list[float]:
        """The percentile of each share, in one pass over the buckets.

        Raises:
            ValueError: there are no values.
        """
        buckets = sorted(self._buckets.copy().items())  # one copy: another thread may record meanwhile
        if not buckets:
            raise ValueError("percentile of no values")
        passed = list(accumulate(count for _, count in buckets))
        return [self._at(share, buckets, passed) for share in shares]

    def cumulative(self) -> list[int]:
        """For each bound, the number of values that are at most that; last the number of all values."""
        return list(accumulate(self._between.copy()))

    def _at(self, share: float, buckets: list[tuple[int, int]], passed: list[int]) -> float:
        rank = max(1, math.ceil(share * passed[-1]))
        if rank >= passed[-1]:
            return self.max
        place = bisect_left(passed, rank)
        return self.min if rank == 1 else max(self.min, _edge(buckets[place][0]))


def _edge(bucket: int) -> float:
    """The smallest value of a bucket."""
    exponent, part = divmod(bucket, _PARTS)
    return 0.0 if bucket == _ZERO else math.ldexp(part / _PARTS, exponent)
