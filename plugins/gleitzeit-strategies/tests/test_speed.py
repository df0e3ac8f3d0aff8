from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from gleitzeit_core.breaker import BreakerPolicy
from gleitzeit_core.errors import FailureKind
from gleitzeit_core.requests import Outcome, Request, Result, Usage
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_strategies.learned import Lately, Ratio, Speeds
from gleitzeit_strategies.options import AdaptiveOptions, EwmaOptions, PowerOfTwoOptions
from gleitzeit_strategies.power_of_two import PowerOfTwo
from gleitzeit_strategies.speed import Adaptive, Ewma
from gleitzeit_strategies.testing import Bench, LookedAt, PoolView, records

BOTH = [(Ewma, EwmaOptions()), (Adaptive, AdaptiveOptions())]
ALL = [*BOTH, (PowerOfTwo, PowerOfTwoOptions())]
NEVER = BreakerPolicy(failures=10**9, failure_rate=2.0)


def bench(kind: Any, options: Any, *names: str, **fields: Any) -> Bench:  # noqa: ANN401 - any of them
    """With these instances."""
    machine = Bench(kind, options, seed=1, policy=NEVER)
    for name in names:
        machine.add(name, max_concurrent=1000, **fields)
    return machine


def train(machine: Bench, paces: dict[str, float], rounds: int = 30) -> None:
    """Let each instance answer with its own time per token."""
    strategy = machine.admission.balancers[0].strategy
    for _ in range(rounds):
        for name, each_s in paces.items():
            request, record = Request(method="m"), machine.record(name)
            outcome = Outcome(
                result=Result.OK, total_s=each_s * 101, first_output_s=each_s, usage=Usage(output_tokens=101)
            )
            strategy.started(request, record)
            strategy.finished(request, record, outcome)


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_the_faster_one_gets_more(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """Four times the speed: about four times the requests in flight, without any weights."""
    machine = bench(kind, options, "fast", "slow")
    machine.one()
    train(machine, {"fast": 0.01, "slow": 0.04})
    served = Counter(machine.where(machine.submit()) for _ in range(100))
    assert 76 <= served["fast"] <= 84


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_length_is_not_mistaken_for_slowness(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """One that happens to get the long answers, at the same speed, is used as much."""
    machine = bench(kind, options, "long", "short")
    machine.one()
    strategy = machine.admission.balancers[0].strategy
    for _ in range(30):
        for name, tokens in (("long", 1000), ("short", 10)):
            request, record = Request(method="m"), machine.record(name)
            usage = Usage(output_tokens=tokens)
            strategy.started(request, record)
            strategy.finished(request, record, Outcome(result=Result.OK, total_s=tokens * 0.01, usage=usage))
    served = Counter(machine.where(machine.submit()) for _ in range(100))
    assert 45 <= served["long"] <= 55


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_failing_fast_does_not_attract(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """An instance that fails within a millisecond gets fewer requests than the others, without any breaker."""
    machine = bench(kind, options, "good", "better", "broken")
    served = Counter[str]()
    for _ in range(300):
        ticket = machine.submit()
        served[machine.where(ticket)] += 1
        broken = machine.where(ticket) == "broken"
        machine.clock.advance(0.001 if broken else 1)
        machine.release(ticket, FailureKind.SERVER_ERROR if broken else None, total_s=0.001 if broken else 1.0)
    assert served["broken"] < 50


@pytest.mark.parametrize("kind", [FailureKind.BUSY, FailureKind.DECLINED, FailureKind.REJECTED])
def test_what_is_not_its_fault_does_not_count(kind: FailureKind) -> None:
    """Neither a busy answer, nor the caller's mistake, nor a caller that left."""
    speeds, request = Speeds(60, 0.0), Request(method="m")
    for outcome in (
        Outcome(result=Result.FAILED, kind=kind, total_s=0.001),
        Outcome(result=Result.CANCELLED, total_s=100.0),
    ):
        speeds.started(request, "a", 0.0)
        speeds.finished(request, "a", outcome, 1.0)
    assert speeds.pace_s("a", 1.0) == speeds.pace_s("never seen", 1.0)
    assert speeds.oldest_s("a", 50.0) == 0.0


def test_one_that_hangs_is_avoided_before_anything_ends() -> None:
    """The age of its oldest request is the least that it is taken to need."""
    machine = bench(Ewma, EwmaOptions(), "hangs", "works")
    machine.one()
    train(machine, {"hangs": 0.01, "works": 0.02})
    stuck = [machine.submit() for _ in range(20)]
    hanging = {machine.where(ticket) for ticket in stuck}
    assert hanging == {"hangs", "works"}
    for ticket in stuck:
        if machine.where(ticket) == "works":
            machine.end(ticket, 2.0, tokens=100)
    machine.clock.advance(60)
    assert {machine.one() for _ in range(20)} == {"works"}


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_a_bad_past_is_forgotten(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """After many time constants an instance that was slow counts as the mean again."""
    machine = bench(kind, options, "was slow", "fast")
    machine.one()
    train(machine, {"was slow": 1.0, "fast": 0.01})
    machine.clock.advance(100 * options.time_constant_s)
    train(machine, {"fast": 0.01})
    strategy = machine.strategies[0]
    assert isinstance(strategy, Ewma | Adaptive)
    now = machine.clock.monotonic()
    slow, fast = (strategy.speeds.pace_s(machine.record(name).instance.id, now) for name in ("was slow", "fast"))
    assert slow == pytest.approx(fast, rel=0.01)


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_a_new_instance_counts_as_the_mean(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """It is neither flooded nor left out."""
    machine = bench(kind, options, "fast", "slow")
    machine.one()
    train(machine, {"fast": 0.01, "slow": 0.03})
    machine.add("new", max_concurrent=1000)
    served = Counter(machine.where(machine.submit()) for _ in range(200))
    assert served["slow"] < served["new"] < served["fast"]


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_new_options_keep_what_was_learned(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """A reload while running does not begin anew."""
    machine = bench(kind, options, "fast", "slow")
    machine.one()
    train(machine, {"fast": 0.01, "slow": 0.04})
    strategy = machine.strategies[0]
    assert isinstance(strategy, Ewma | Adaptive)
    strategy.reconfigure(type(options)(time_constant_s=1000, choices=3))
    assert strategy.speeds.time_constant_s == 1000
    served = Counter(machine.where(machine.submit()) for _ in range(100))
    assert 76 <= served["fast"] <= 84


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_instances_that_come_and_go_leave_nothing(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """A thousand containers, one after the other: the table stays small, work in flight is kept."""
    machine = bench(kind, options, "stays")
    held = machine.submit()
    for number in range(1000):
        machine.add(f"i{number}")
        machine.one()
        machine.admission.remove(machine.record(f"i{number}").instance.id)
    strategy = machine.strategies[0]
    assert isinstance(strategy, Ewma | Adaptive)
    assert len(strategy.speeds) < 80
    assert machine.end(held) == "stays"


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_thousands_are_not_all_looked_at(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """A pick draws a few, and asks the pool when nearly all are busy."""
    them = records(4096)
    looked = LookedAt(them)
    strategy = kind(options, random=Random(0), clock=ManualClock())
    for _ in range(100):
        assert strategy.pick(Request(method="m"), PoolView(looked, them[7])).room > 0
    for record in (*them[:7], *them[8:]):
        record.room = 0
    for _ in range(100):
        assert strategy.pick(Request(method="m"), PoolView(looked, them[7])) is them[7]
    assert looked.whole == 0
    assert looked.single <= 200 * 4 * options.choices


def test_two_choices_take_the_less_loaded() -> None:
    """With two instances both are always drawn: the more loaded never gets the next."""
    machine = bench(PowerOfTwo, PowerOfTwoOptions(), "a", "b")
    for _ in range(100):
        machine.submit()
        assert abs(machine.record("a").in_flight - machine.record("b").in_flight) <= 1


def test_two_choices_keep_the_fullest_near_the_mean() -> None:
    """A thousand requests on a hundred instances: the fullest has a few more than ten, where one choice gives twenty."""
    machine = bench(PowerOfTwo, PowerOfTwoOptions(), *(f"i{number}" for number in range(100)))
    for _ in range(1000):
        machine.submit()
    assert max(record.in_flight for record in machine.admission.pool) <= 14


def test_two_choices_weigh_by_weight() -> None:
    """Load is work in flight divided by weight."""
    machine = bench(PowerOfTwo, PowerOfTwoOptions(), "a")
    machine.add("b", weight=3, max_concurrent=1000)
    for _ in range(80):
        machine.submit()
    assert machine.record("b").in_flight == 60


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_a_degraded_one_gets_less(kind: Any, options: Any) -> None:  # noqa: ANN401 - any of them
    """It counts for twice the work it has."""
    machine = bench(kind, options, "well", "ill")
    record = machine.record("ill")
    record.degraded["errors"] = "fails now and then"
    record.recount()
    served = Counter(machine.where(machine.submit()) for _ in range(90))
    assert served["ill"] <= 35


def test_a_ratio_weighs_by_size_and_forgets_by_time() -> None:
    """Ten seconds for one unit outweigh a second for ten; after a time constant a third is left."""
    ratio = Ratio(0.0)
    ratio.add(10.0, 1.0, 0.0, 60.0)
    ratio.add(1.0, 9.0, 0.0, 60.0)
    assert ratio.shrunk(0.0, 1e-9, 0.0, 60.0) == pytest.approx(1.1)
    assert ratio.count(60.0, 60.0) == pytest.approx(11 / 2.718281828)
    assert ratio.shrunk(5.0, 1.0, 6000.0, 60.0) == pytest.approx(5.0)


def test_a_table_forgets_what_was_not_asked_for_the_longest() -> None:
    """It never holds more than it may."""
    table: Lately[str, list[int]] = Lately(list, 2)
    table["a"].append(1)
    table["b"].append(2)
    assert table["a"] == [1]
    table["c"].append(3)
    assert (table["a"], table["b"], len(table)) == ([1], [], 2)
