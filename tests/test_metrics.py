from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.metrics import Histogram, ResourceMetrics, Series
from gleitzeit_core.requests import Outcome, Result

VALUES = st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=200)
PERCENTS = st.floats(0, 100)


def histogram(values: list[float]) -> Histogram:
    """One with these values."""
    made = Histogram()
    for value in values:
        made.record(value)
    return made


@given(values=VALUES, percent=PERCENTS)
def test_a_percentile_is_within_one_percent(values: list[float], percent: float) -> None:
    """It is that of the sorted list, give or take half a bucket."""
    exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
    assert histogram(values).percentile(percent) == pytest.approx(exact, rel=0.0101)


@given(left=VALUES, right=VALUES, percent=PERCENTS)
def test_a_merge_is_the_union(left: list[float], right: list[float], percent: float) -> None:
    """It does not matter where something was counted."""
    merged, union = histogram(left), histogram(left + right)
    merged.merge(histogram(right))
    assert merged.buckets == union.buckets
    assert merged.count == union.count
    assert merged.total == pytest.approx(union.total)
    assert merged.percentile(percent) == union.percentile(percent)


@given(values=VALUES, bound=st.floats(1e-8, 1e8))
def test_at_most_counts_up_to_a_bound(values: list[float], bound: float) -> None:
    """Within a bucket of the bound it may go either way, beyond that not."""
    counted = histogram(values).at_most(bound)
    assert sum(1 for value in values if value <= bound / 1.0201) <= counted
    assert counted <= sum(1 for value in values if value <= bound * 1.0001)


def test_nothing_has_no_percentile() -> None:
    """An empty histogram says 0, and says so."""
    assert Histogram().percentile(99) == 0.0
    assert repr(Histogram()) == "<Histogram 0 values, p50 0>"


@pytest.mark.parametrize("value", [0.0, -1e-12])
def test_what_a_clock_rounds_to_nothing_is_counted(value: float) -> None:
    """No wait at all, or one a little below, is as good as a nanosecond."""
    made = histogram([value])
    assert made.count == 1
    assert made.percentile(50) == pytest.approx(1e-9, rel=0.02)
    assert made.at_most(0.001) == 1


def test_an_idle_histogram_takes_no_buckets() -> None:
    """4,096 instances that do nothing cost next to nothing."""
    assert not Series().total_s.buckets


def test_the_success_rate_counts_what_says_something_about_the_instance() -> None:
    """Neither a caller that leaves, nor one that asks nonsense, nor a busy answer is a failure."""
    series = Series()
    assert series.success_rate == 1.0
    for kind in (FailureKind.REJECTED, FailureKind.BUSY, FailureKind.SERVER_ERROR):
        series.record(Outcome(result=Result.FAILED, kind=kind))
    series.record(Outcome(result=Result.CANCELLED))
    for _ in range(3):
        series.record(Outcome(result=Result.OK, total_s=1.0, first_output_s=0.5, wait_s=0.1))
    assert series.success_rate == 0.75
    assert series.results == {"ok": 3, "cancelled": 1, "rejected": 1, "busy": 1, "server_error": 1}
    assert (series.first_output_s.count, series.total_s.count, series.wait_s.count) == (3, 7, 7)


def test_sums_are_by_method_by_instance_and_over_all() -> None:
    """Each question adds up its own part."""
    metrics = ResourceMetrics()
    for method, instance in (("m", "a"), ("m", "b"), ("n", "a")):
        metrics.record(method, instance, Outcome(result=Result.OK, total_s=2.0))
    counts = [
        metrics.sum(**only).total_s.count
        for only in ({}, {"method": "m"}, {"instance_id": "a"}, {"method": "n", "instance_id": "b"})
    ]
    assert counts == [3, 2, 2, 0]
    assert [(method, name) for method, name, _ in metrics] == [("m", "a"), ("m", "b"), ("n", "a")]
    assert repr(metrics) == "<ResourceMetrics 3 series, 3 tries>"


def test_what_is_gone_stays_in_the_sums_under_one_name() -> None:
    """However many instances come and go, the number of labels is bounded."""
    metrics = ResourceMetrics()
    for number in range(50):
        metrics.record("m", f"i{number}", Outcome(result=Result.OK, total_s=1.0))
        metrics.forget(f"i{number}")
    assert [name for _, name, _ in metrics] == [metrics.GONE]
    assert metrics.sum(method="m").total_s.count == 50
    metrics.forget("never there")
