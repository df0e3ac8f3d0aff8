"""What is recent and what is past, by method, instance, route and model."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.metrics import WINDOW_S, WINDOWS, Labels, ResourceMetrics, Series
from gleitzeit_core.requests import Outcome, Result, Usage
from gleitzeit_core.testing.clock import ManualClock

RECENT_S = WINDOW_S * WINDOWS
NAMES = st.sampled_from(["a", "b", "c"])
TRIES = st.lists(
    st.tuples(NAMES, NAMES, NAMES, NAMES, st.floats(0.01, 100), st.one_of(st.just(0.0), st.floats(0, 2 * RECENT_S))),
    max_size=40,
)


def done(total_s: float = 1.0, *, first_output_s: float | None = None, usage: Usage | None = None) -> Outcome:
    """A try that went well."""
    return Outcome(result=Result.OK, total_s=total_s, first_output_s=first_output_s, usage=usage)


@pytest.fixture
def clock() -> ManualClock:
    """Time."""
    return ManualClock()


@pytest.fixture
def metrics(clock: ManualClock) -> ResourceMetrics:
    """Nothing counted yet."""
    return ResourceMetrics(clock)


# -- by label ------------------------------------------------------------------------------------------------------


def test_sums_are_by_each_label_and_over_all(metrics: ResourceMetrics) -> None:
    """Each question adds up its own part."""
    for method, instance, route, model in (("m", "a", "r", "x"), ("m", "b", "r", "y"), ("n", "a", "s", "")):
        metrics.record(method, instance, done(), route=route, model=model)
    questions: tuple[dict[str, Any], ...] = (
        {},
        {"method": "m"},
        {"instance_id": "a"},
        {"method": "n", "instance_id": "b"},
        {"route": "r", "model": "y"},
        {"model": ""},
        {"route": "nope"},
    )
    assert [metrics.sum(**only).total_s.count for only in questions] == [3, 2, 2, 0, 1, 1, 0]
    assert [labels for labels, _ in metrics] == [
        Labels("m", "a", "r", "x", "", "ok"),
        Labels("m", "b", "r", "y", "", "ok"),
        Labels("n", "a", "s", "", "", "ok"),
    ]
    assert repr(metrics) == "<ResourceMetrics 3 series, 3 tries>"


def test_labels_that_are_not_given_are_empty(metrics: ResourceMetrics) -> None:
    """A method without a model, say."""
    metrics.record("m", "a", done())
    assert [labels for labels, _ in metrics] == [Labels("m", "a", "", "", "", "ok")]


def test_by_label(metrics: ResourceMetrics) -> None:
    """One series for each value, in order; what has no such label is under the empty text."""
    for instance, model in (("b", "y"), ("a", "x"), ("a", ""), ("b", "x")):
        metrics.record("m", instance, done(), model=model, route="r")
    assert {name: series.total_s.count for name, series in metrics.by("model").items()} == {"": 1, "x": 2, "y": 1}
    assert list(metrics.by("instance")) == ["a", "b"]
    assert list(metrics.by("route")) == ["r"]
    assert list(metrics.by("method")) == ["m"]


@pytest.mark.parametrize("label", ["", "instances", "count", "instance_id"])
def test_by_a_label_that_there_is_not(metrics: ResourceMetrics, label: str) -> None:
    """The error names those that there are."""
    with pytest.raises(ValueError, match="there are method, instance, route, model"):
        metrics.by(label)


def test_sums_leave_what_was_counted_as_it_was(metrics: ResourceMetrics) -> None:
    """However often somebody asks, nothing is added to the series of one instance."""
    for instance in ("a", "b", "b", "c"):
        metrics.record("m", instance, done(), route="r", model="x")
    metrics.record("n", "b", done(), route="s")
    first = metrics.report(recent=False)
    assert metrics.report(recent=False) == first
    assert {name: found["count"] for name, found in first["instances"].items()} == {"a": 1, "b": 3, "c": 1}
    assert [first[of][name]["count"] for of, name in (("models", "x"), ("routes", "s"), ("methods", "m"))] == [4, 1, 4]
    assert first["sum"]["count"] == metrics.sum().total_s.count == 5
    assert {name: series.total_s.count for name, series in metrics.by("instance").items()} == {"a": 1, "b": 3, "c": 1}


# -- what is recent ------------------------------------------------------------------------------------------------


def test_what_is_older_than_five_minutes_is_not_recent(metrics: ResourceMetrics, clock: ManualClock) -> None:
    """It stays in the totals."""
    metrics.record("m", "a", done())
    clock.advance(RECENT_S - WINDOW_S - 1)
    metrics.record("m", "a", done())
    assert metrics.sum(recent=True).total_s.count == 2
    clock.advance(WINDOW_S + 1)
    assert metrics.sum(recent=True).total_s.count == 1
    assert metrics.sum().total_s.count == 2
    clock.advance(10 * RECENT_S)
    assert metrics.by("instance", recent=True) == {}
    assert metrics.sum().total_s.count == 2


@pytest.mark.parametrize("later_s", [WINDOW_S, RECENT_S, 7 * RECENT_S + 13])
def test_windows_begin_on_the_minute(metrics: ResourceMetrics, clock: ManualClock, later_s: float) -> None:
    """However long nothing happened, what comes then is recent for at least four minutes and at most five."""
    clock.advance(later_s)
    metrics.record("m", "a", done())
    clock.advance(RECENT_S - WINDOW_S)
    assert metrics.sum(recent=True).total_s.count == 1
    clock.advance(WINDOW_S)
    assert metrics.sum(recent=True).total_s.count == 0


@given(tries=TRIES)
def test_nothing_is_lost_or_counted_twice(tries: list[tuple[str, str, str, str, float, float]]) -> None:
    """However time passes, the totals are those of all tries, and the recent ones those of the present windows."""
    clock = ManualClock()
    began, metrics = clock.monotonic(), ResourceMetrics(clock)
    counted: list[tuple[int, Labels]] = []
    for method, instance, route, model, total_s, later_s in tries:
        clock.advance(later_s)
        metrics.record(method, instance, done(total_s), route=route, model=model)
        window = int((clock.monotonic() - began) // WINDOW_S)
        counted.append((window, Labels(method, instance, route, model, "", "ok")))
    present = int((clock.monotonic() - began) // WINDOW_S)
    expected: defaultdict[Labels, int] = defaultdict(int)
    for _, labels in counted:
        expected[labels] += 1
    assert {labels: series.total_s.count for labels, series in metrics} == dict(expected)
    assert metrics.sum().total_s.total == pytest.approx(sum(total_s for *_, total_s, _ in tries))
    recent = sum(1 for window, _ in counted if window > present - WINDOWS)
    assert metrics.sum(recent=True).total_s.count == recent


def test_what_is_counted_in_bulk_is_what_each_try_would_have_been(metrics: ResourceMetrics) -> None:
    """Thousands that nobody reads wait a few at a time; then each has its place, by result and by value."""
    alone: dict[str, Series] = {"ok": Series(), "lost": Series()}
    for number in range(2500):
        failed, usage = number % 7 == 0, Usage(input_tokens=number % 5, output_tokens=3)
        kind, first_s = (FailureKind.LOST, None) if failed else (None, 0.001 * number)
        outcome = Outcome(
            result=Result.FAILED if failed else Result.OK,
            kind=kind,
            first_output_s=first_s,
            total_s=0.01 * number,
            usage=None if failed else usage,
            bytes_in=number,
        )
        metrics.record("m", "a", outcome, route="r")
        alone["lost" if failed else "ok"].record(outcome)
        assert len(metrics._waiting) < 300
    found = {labels.result: series.as_dict() for labels, series in metrics}
    assert found == {result: series.as_dict() for result, series in alone.items()}


# -- instances that are gone ---------------------------------------------------------------------------------------


def test_what_is_gone_stays_in_the_sums_under_one_name(metrics: ResourceMetrics, clock: ManualClock) -> None:
    """However many instances come and go, the number of labels is bounded; recent and past numbers stay."""
    for number in range(50):
        metrics.record("m", f"i{number}", done(), route="r", model="x")
        clock.advance(RECENT_S / 25)
        metrics.record("m", f"i{number}", done(), route="r", model="x")
        metrics.forget(f"i{number}")
    assert [labels for labels, _ in metrics] == [Labels("m", metrics.GONE, "r", "x", "", "ok")]
    assert metrics.sum(method="m", model="x").total_s.count == 100
    assert 30 < metrics.sum(recent=True, instance_id=metrics.GONE).total_s.count < 60
    metrics.forget("never there")


def test_an_instance_that_comes_back_begins_anew(metrics: ResourceMetrics) -> None:
    """What it did before it went away is that of those that are gone."""
    metrics.record("m", "a", done())
    metrics.forget("a")
    metrics.record("m", "a", done())
    assert {name: s.total_s.count for name, s in metrics.by("instance").items()} == {metrics.GONE: 1, "a": 1}


# -- reports -------------------------------------------------------------------------------------------------------


def test_a_report_is_plain_data(metrics: ResourceMetrics, clock: ManualClock) -> None:
    """In sum and for each instance, model, route and method; recent, or since the beginning."""
    metrics.record("m", "a", done(usage=Usage(output_tokens=4)), route="r", model="x")
    clock.advance(RECENT_S)
    metrics.record("n", "b", done(), route="r")
    recent, total = metrics.report(), metrics.report(recent=False)
    assert json.loads(json.dumps([recent, total])) == [recent, total]
    assert (recent["window_s"], total["window_s"]) == (300.0, None)
    assert (recent["sum"]["count"], total["sum"]["count"], total["sum"]["output_tokens"]) == (1, 2, 4)
    assert [list(recent[name]) for name in ("instances", "models", "routes", "methods")] == [["b"], [], ["r"], ["n"]]
    assert [list(total[name]) for name in ("instances", "models", "routes", "methods")] == [
        ["a", "b"],
        ["x"],
        ["r"],
        ["m", "n"],
    ]
    assert total["routes"]["r"]["count"] == 2


# -- for hedging ---------------------------------------------------------------------------------------------------


def test_percentile_of_first_output(metrics: ResourceMetrics) -> None:
    """Over all instances of a route and a model; those of others do not count, nor do tries without any output."""
    for number in range(100):
        metrics.record("m", f"i{number % 7}", done(first_output_s=(number + 1) / 100), route="r", model="x")
        metrics.record("m", "a", done(first_output_s=50.0), route="r", model="y")
        metrics.record("m", "a", done(first_output_s=50.0), route="s", model="x")
        metrics.record("m", "a", done(), route="r", model="x")
    assert metrics.percentile_of_first_output("r", "x", 95, 100) == pytest.approx(0.95, rel=0.01)
    assert metrics.percentile_of_first_output("r", "x", 50, 1) == pytest.approx(0.5, rel=0.01)
    assert metrics.percentile_of_first_output("r", "x", 95, 101) is None
    assert metrics.percentile_of_first_output("r", "z", 95, 0) is None


def test_the_percentile_is_about_a_second_old(metrics: ResourceMetrics, clock: ManualClock) -> None:
    """It is not worked out anew for every request, and does not stay as it was either."""
    metrics.record("m", "a", done(first_output_s=1.0), route="r")
    assert metrics.percentile_of_first_output("r", "", 99, 1) == pytest.approx(1.0, rel=0.01)
    metrics.record("m", "a", done(first_output_s=9.0), route="r")
    clock.advance(0.9)
    assert metrics.percentile_of_first_output("r", "", 99, 1) == pytest.approx(1.0, rel=0.01)
    clock.advance(0.1)
    assert metrics.percentile_of_first_output("r", "", 99, 1) == pytest.approx(9.0, rel=0.01)


def test_the_percentile_is_of_what_is_recent(metrics: ResourceMetrics, clock: ManualClock) -> None:
    """After five minutes without any it says nothing; an instance that is gone still counts."""
    metrics.record("m", "a", done(first_output_s=1.0), route="r")
    metrics.forget("a")
    assert metrics.percentile_of_first_output("r", "", 95, 1) is not None
    clock.advance(RECENT_S)
    assert metrics.percentile_of_first_output("r", "", 95, 1) is None


@given(
    steps=st.lists(
        st.tuples(st.floats(0, RECENT_S / 2), st.floats(0.01, 100), st.booleans(), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_the_percentile_does_not_depend_on_who_asked_before(steps: list[tuple[float, float, bool, bool]]) -> None:
    """Whoever asks first gets the same answer as one who has asked all the time."""
    clock = ManualClock()
    asked, unasked = ResourceMetrics(clock), ResourceMetrics(clock)
    for later_s, first_output_s, asks, leaves in steps:
        clock.advance(later_s)
        for metrics in (asked, unasked):
            metrics.record("m", "a", done(first_output_s=first_output_s), route="r", model="x")
            if leaves:
                metrics.forget("a")
        if asks:
            asked.percentile_of_first_output("r", "x", 95, 1)
    clock.advance(1.0)
    found = [metrics.percentile_of_first_output("r", "x", 95, 1) for metrics in (asked, unasked)]
    assert found[0] == found[1] == unasked.sum(recent=True).first_output_s.percentile(95)
