"""The histogram against the exact values: percentiles within the stated error, everything else exact."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recount import same_values

from minillm.observe.histogram import RELATIVE_ERROR, Histogram
from minillm.observe.metrics import percentile

BOUNDS = (0.0, 0.001, 0.5, 1.0, 300.0)
numbers = st.one_of(
    st.floats(0, 1e300, allow_subnormal=True),
    st.floats(1e-6, 1e3),
    st.integers(0, 600).map(float),
    st.sampled_from([0.0, 5e-324, 2.2250738585072014e-308, 0.5, math.nextafter(0.5, 0), 1.0, *BOUNDS]),
)


def of(values: list[float]) -> Histogram:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.record(value)
    return histogram


@settings(max_examples=300)
@given(st.lists(numbers, min_size=1, max_size=60), st.floats(0, 1))
def test_a_percentile_is_the_exact_one_or_a_little_below(values: list[float], share: float) -> None:
    exact, found = percentile(values, share), of(values).percentile(share)
    assert exact * (1 - RELATIVE_ERROR) <= found <= exact


@settings(max_examples=200)
@given(st.lists(numbers, min_size=1, max_size=60))
def test_count_sum_ends_and_bounds_are_exact(values: list[float]) -> None:
    assert same_values(of(values), values)


@settings(max_examples=150)
@given(st.lists(numbers, max_size=30), st.lists(numbers, max_size=30))
def test_merged_is_as_if_recorded_together(left: list[float], right: list[float]) -> None:
    merged, together = of(left), of([*left, *right])
    merged.merge(of(right))
    assert vars(merged) == vars(together)


@given(st.integers(0, 512), st.integers(1, 9))
def test_small_whole_numbers_are_exact(value: int, times: int) -> None:
    histogram = Histogram()
    histogram.record(0)
    histogram.record(value, times)
    histogram.record(1000)
    assert histogram.percentile(0.5) == (value if times > 1 else sorted([0, value, 1000])[1])


def test_several_at_once_are_as_many_alone() -> None:
    at_once, alone = Histogram(BOUNDS), of([0.1] * 1000)
    at_once.record(0.1, 1000)
    assert vars(at_once) == vars(alone) and at_once.mean == pytest.approx(0.1)


def test_memory_grows_with_the_range_and_not_with_the_count() -> None:
    histogram = Histogram()
    for i in range(20_000):
        histogram.record(1e-6 * 1.001**i if i < 20_000 / 2 else 0.25)
    octaves = math.log2(histogram.max / histogram.min)
    assert histogram.num_buckets <= 256 * (octaves + 2) and histogram.count == 20_000


@pytest.mark.parametrize("value", [-1.0, -0.1, math.inf, math.nan])
def test_what_is_no_time_is_refused(value: float) -> None:
    histogram = Histogram()
    with pytest.raises(ValueError, match="finite"):
        histogram.record(value)
    assert histogram.count == 0 and histogram.mean == 0


def test_without_values_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        Histogram().percentile(0.5)
    with pytest.raises(ValueError, match="bounds"):
        Histogram((1.0,)).merge(Histogram())


def test_control_one_wrong_value_is_noticed() -> None:
    values = [0.1, 0.2, 0.3, 0.4]
    for other in ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.5], [0.1, 0.2, 0.3000001, 0.4]):
        assert not same_values(of(values), other)
