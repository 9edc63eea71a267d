"""Task 12.4, the percentile of several workers: cases and known mistakes of `merged_percentile`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from random import Random
from statistics import mean, quantiles
from typing import Any

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake, Words
from minillm.labs.lab12_operating.runs import example, hidden
from minillm.observe.metrics import merged_percentile, request_times

Merge = Callable[[Iterable[Sequence[float]], float], float]
Workers = Sequence[Sequence[float]]


def merged_case(name: str, workers: Workers, *shares: float) -> Case:
    """Several percentiles of the same workers; a ValueError is an answer."""

    def found(merge: Merge, share: float) -> Any:
        try:
            return merge([list(values) for values in workers], share)
        except ValueError:
            return Words("raises ValueError")

    def run(merge: Merge) -> list[Any]:
        return [found(merge, share) for share in shares]

    return Case(name, run)


def two_workers(kinds: tuple[str, str], seed: int | None = None) -> list[list[float]]:
    """The first-token times of two recorded workers."""
    runs = [example(kind) if seed is None else hidden(kind, seed) for kind in kinds]
    times = [request_times(run.events).values() for run in runs]
    return [[t.tokens[0][0] - t.submitted for t in found if t.tokens[0]] for found in times]


def recorded_case(kinds: tuple[str, str], seed: int | None = None) -> Case:
    """p50, p90 and p99 of the first-token times of two workers."""
    name = " and ".join(kinds) + ("" if seed is None else f", seed {seed}")

    def run(merge: Merge) -> list[float]:
        return [merge(two_workers(kinds, seed), share) for share in (0.5, 0.9, 0.99)]

    return Case(f"times to the first token of two workers: {name}", run)


def twice(merge: Merge) -> list[Any]:
    """The lists of the workers stay as they are; the second call gives the same."""
    workers = [[5.0, 1.0, 3.0], [4.0, 2.0]]
    found = [merge(workers, 0.5), merge(workers, 0.5), merge([[9.0]], 0.5)]
    return [found, workers, merge(iter(workers), 0.75)]


def merge_cost(merge: Merge) -> Counted:
    """The lines for 3 x 200 values."""
    random = Random(1)
    workers = [[random.random() for _ in range(200)] for _ in range(3)]
    merge([[1.0]], 0.5)
    return within(30 * 600, counted_lines(partial(merge, workers, 0.99)), LINES)


def more_workers(random: Random) -> Iterable[Case]:
    """Other workers; shares that are exact in binary."""
    yield recorded_case(("healthy", "burst"), random.randrange(1 << 30))
    for _ in range(4):
        workers = [[random.randrange(64) / 8 for _ in range(random.randrange(9))] for _ in range(3)]
        shares = [random.randrange(33) / 32 for _ in range(4)]
        yield merged_case("random workers", [*workers, [1.0]], *shares)


HUNDRED = [float(i) for i in range(100, 0, -1)]
PERCENTILE_CASES = (
    merged_case("one worker with the values 100 to 1", [HUNDRED], 0.5, 0.9, 0.99, 1.0),
    merged_case("the smallest share", [HUNDRED], 0.0, 0.01),
    merged_case("one value", [[7.0]], 0.0, 0.5, 0.99, 1.0),
    merged_case("four values, a share that falls between two", [[1.0, 2.0, 4.0, 8.0]], 0.25, 0.3, 0.5, 0.625),
    merged_case("equal values", [[2.0, 2.0, 2.0, 9.0]], 0.5, 0.75, 0.8),
    merged_case("98 quick values on one worker, two slow on another", [[1.0] * 98, [9.0, 8.0]], 0.5, 0.99),
    merged_case("many quick on one worker, a few slow on another", [[1.0] * 30, [9.0] * 10], 0.5, 0.75, 0.8),
    merged_case("a worker without values", [[], [3.0, 1.0], []], 0.5, 1.0),
    merged_case("no values", [[], []], 0.5),
    merged_case("no workers", [], 0.5),
    recorded_case(("healthy", "memory")),
    recorded_case(("burst", "healthy")),
    Case("the lists afterwards, and an iterator of workers", twice, "aliasing"),
    Case("the work for 3 x 200 values", merge_cost, "cost"),
)


# --- known mistakes ----------------------------------------------------------------------------------------


def pooled(pick: Callable[[list[float], float], float]) -> Merge:
    """Another choice among the sorted values of all workers; no values are an error."""

    def merge(workers: Iterable[Sequence[float]], share: float) -> float:
        values = sorted(chain.from_iterable(workers))
        if not values:
            raise ValueError("no values")
        return pick(values, share)

    return merge


def each(join: Callable[[list[float]], float]) -> Merge:
    """Joins the percentiles of the workers that have values."""

    def merge(workers: Iterable[Sequence[float]], share: float) -> float:
        found = [merged_percentile([values], share) for values in workers if values]
        if not found:
            raise ValueError("no values")
        return join(found)

    return merge


def weighted(workers: Iterable[Sequence[float]], share: float) -> float:
    """The mean of the percentiles, weighted by the number of values."""
    found = [(merged_percentile([values], share), len(values)) for values in workers if values]
    if not found:
        raise ValueError("no values")
    return sum(value * count for value, count in found) / sum(count for _, count in found)


def between(values: list[float], share: float) -> float:
    """On the line between two values."""
    place = share * (len(values) - 1)
    low = int(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def between_of_statistics(values: list[float], share: float) -> float:
    """`statistics.quantiles` with 100 parts."""
    if len(values) < 2 or not 0.01 <= share <= 0.99:
        return values[0] if share < 0.5 else values[-1]
    return quantiles(values, n=100)[round(share * 100) - 1]


def sorts_in_place(workers: Iterable[Sequence[float]], share: float) -> float:
    """Sorts the first worker's list and puts the others into it."""
    lists = [values for values in workers if values]
    for values in lists:
        if isinstance(values, list):
            values.sort()
    return merged_percentile(lists, share)


def skips_errors(workers: Iterable[Sequence[float]], share: float) -> float | None:
    """None without values."""
    values = list(workers)
    return merged_percentile(values, share) if any(values) else None


def unsorted(workers: Iterable[Sequence[float]], share: float) -> float:
    """Picks without sorting."""
    values = [value for found in workers for value in found]
    if not values:
        raise ValueError("no values")
    return values[max(0, math.ceil(share * len(values)) - 1)]


def inserts(workers: Iterable[Sequence[float]], share: float) -> float:
    """Puts every value in its place among the earlier ones."""
    ordered = list[float]()
    for value in chain.from_iterable(workers):
        place = 0
        while place < len(ordered) and ordered[place] < value:
            place += 1
        ordered.insert(place, value)
    return merged_percentile([ordered], share)


PERCENTILE_MISTAKES = (
    Mistake(
        "the mean of the workers' percentiles: percentiles cannot be averaged, put the values together first",
        each(mean),
    ),
    Mistake(
        "the weighted mean of the workers' percentiles: no weights make it right, put the values together",
        weighted,
    ),
    Mistake(
        "the largest of the workers' percentiles: one slow worker with few values decides it",
        each(max),
    ),
    Mistake("the value is interpolated between two: a percentile here is one of the values", pooled(between)),
    Mistake(
        "the value is interpolated between two: a percentile here is one of the values",
        pooled(between_of_statistics),
    ),
    Mistake(
        "the place is one too high: with 100 values p99 is the 99th, at index 98",
        pooled(lambda values, share: values[min(len(values) - 1, int(share * len(values)))]),
    ),
    Mistake(
        "the place is rounded down: at least `share` of the values must not be larger, round up",
        pooled(lambda values, share: values[max(0, int(share * len(values)) - 1)]),
    ),
    Mistake(
        "the place is rounded to the nearest: at least `share` of the values must not be larger, round up",
        pooled(lambda values, share: values[max(0, round(share * len(values)) - 1)]),
    ),
    Mistake(
        "a share of 0 gives the largest value: index -1 is the last; take the smallest",
        pooled(lambda values, share: values[math.ceil(share * len(values)) - 1]),
    ),
    Mistake("the values are not sorted", unsorted),
    Mistake("the lists of the workers are sorted in place: they must stay as they are", sorts_in_place),
    Mistake("without values there is no percentile: raise a ValueError", skips_errors),
    Mistake("every value walks over the earlier ones: sort once", inserts),
)
