from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.metrics import Histogram, Series
from gleitzeit_core.requests import Outcome, Result, Usage

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
    (counted,) = histogram(values).at_most(bound)
    assert sum(1 for value in values if value <= bound / 1.0201) <= counted
    assert counted <= sum(1 for value in values if value <= bound * 1.0001)


def test_nothing_has_no_percentile() -> None:
    """An empty histogram says 0, and says so."""
    assert Histogram().percentiles(0, 99, 100) == (0.0, 0.0, 0.0)
    assert Histogram().at_most(1.0, 2.0) == (0, 0)
    assert repr(Histogram()) == "<Histogram 0 values, p50 0>"


@pytest.mark.parametrize("value", [0.0, -1e-12])
def test_what_a_clock_rounds_to_nothing_is_counted(value: float) -> None:
    """No wait at all, or one a little below, is as good as a nanosecond."""
    made = histogram([value])
    assert made.count == 1
    assert made.percentile(50) == pytest.approx(1e-9, rel=0.02)
    assert made.at_most(1e-10, 0.001, 1000.0) == (0, 1, 1)


def test_an_idle_histogram_takes_no_buckets() -> None:
    """4,096 instances that do nothing cost next to nothing."""
    assert not Series().total_s.buckets


def test_the_success_rate_counts_what_says_something_about_the_instance() -> None:
    """Neither a caller that leaves, nor one that asks nonsense, nor an instance that is busy or declines is a failure."""
    series = Series()
    assert series.success_rate == 1.0
    for kind in (FailureKind.REJECTED, FailureKind.BUSY, FailureKind.DECLINED, FailureKind.SERVER_ERROR):
        series.record(Outcome(result=Result.FAILED, kind=kind))
    series.record(Outcome(result=Result.CANCELLED))
    for _ in range(3):
        series.record(Outcome(result=Result.OK, total_s=1.0, first_output_s=0.5, wait_s=0.1))
    assert series.success_rate == 0.75
    failed = dict.fromkeys(("rejected", "busy", "declined", "server_error"), 1)
    assert series.results == {"ok": 3, "cancelled": 1, **failed}
    assert (series.first_output_s.count, series.total_s.count, series.wait_s.count) == (3, 8, 8)


def test_a_series_adds_up_tokens_and_bytes() -> None:
    """What an answer says it took is in the sums; an answer that says nothing adds nothing."""
    series = Series()
    usage = Usage(input_tokens=7, output_tokens=3)
    series.record(Outcome(result=Result.OK, total_s=1.4, first_output_s=1.0, usage=usage, bytes_in=10, bytes_out=20))
    series.record(Outcome(result=Result.OK, total_s=2.0, bytes_out=5))
    assert (series.input_tokens, series.output_tokens, series.bytes_in, series.bytes_out) == (7, 3, 10, 25)
    assert series.per_token_s.count == 1
    assert series.per_token_s.percentile(50) == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(Outcome(result=Result.OK, total_s=3.0, first_output_s=1.0), None, id="nothing known"),
        pytest.param(Outcome(result=Result.OK, total_s=3.0, usage=Usage(input_tokens=5)), None, id="nothing written"),
        pytest.param(Outcome(result=Result.FAILED, total_s=3.0, usage=Usage(output_tokens=5)), None, id="failed"),
        pytest.param(Outcome(result=Result.CANCELLED, total_s=3.0, usage=Usage(output_tokens=5)), None, id="cut off"),
        pytest.param(Outcome(result=Result.OK, total_s=3.0, usage=Usage(output_tokens=6)), 0.5, id="no first output"),
        pytest.param(
            Outcome(result=Result.OK, total_s=3.0, first_output_s=3.0, usage=Usage(output_tokens=6)), 0.5, id="whole"
        ),
        pytest.param(
            Outcome(result=Result.OK, total_s=3.0, first_output_s=1.0, usage=Usage(output_tokens=1)), 3.0, id="one"
        ),
        pytest.param(
            Outcome(result=Result.OK, total_s=3.0, first_output_s=1.0, usage=Usage(output_tokens=5)), 0.5, id="in parts"
        ),
    ],
)
def test_time_for_each_token(outcome: Outcome, expected: float | None) -> None:
    """After the first one where the answer came in parts; over all of them where it came whole."""
    assert outcome.per_token_s == expected
    series = Series()
    series.record(outcome)
    assert series.per_token_s.count == (expected is not None)


def test_a_merged_series_is_that_of_all_tries() -> None:
    """Every number adds up."""
    outcomes = [
        Outcome(result=Result.OK, wait_s=0.1, first_output_s=0.2, total_s=0.9, usage=Usage(output_tokens=8)),
        Outcome(result=Result.FAILED, kind=FailureKind.LOST, total_s=0.5, bytes_in=3, bytes_out=4),
        Outcome(result=Result.OK, total_s=2.0, usage=Usage(input_tokens=9, output_tokens=2)),
    ]
    union, left, right = Series(), Series(), Series()
    for number, outcome in enumerate(outcomes):
        union.record(outcome)
        (left if number == 1 else right).record(outcome)
    left.merge(right)
    assert left.as_dict() == union.as_dict()


def test_a_series_as_plain_data() -> None:
    """All of it can be written as JSON; without any try the percentiles are 0.0."""
    series = Series()
    nothing = {"count": 0, "p50": 0.0, "p95": 0.0, "p99": 0.0}
    names = ("wait_s", "first_output_s", "per_token_s", "total_s")
    assert series.as_dict() == {
        "count": 0,
        "success_rate": 1.0,
        "results": {},
        **dict.fromkeys(names, nothing),
        **dict.fromkeys(("input_tokens", "output_tokens", "bytes_in", "bytes_out"), 0),
    }
    series.record(Outcome(result=Result.OK, total_s=1.0))
    written = json.loads(json.dumps(series.as_dict()))
    assert written == series.as_dict()
    assert written["results"] == {"ok": 1}
    assert written["wait_s"]["p99"] == 0.0
    assert written["total_s"] == {"count": 1, **dict.fromkeys(("p50", "p95", "p99"), pytest.approx(1.0, rel=0.01))}
