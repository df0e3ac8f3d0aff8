from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.requests import Request
from gleitzeit_core.strategies.base import NoOptions, View
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_strategies.testing import Bench, LookedAt, PoolView, records
from gleitzeit_strategies.weighted import Weighted


def bench(**weights: float) -> Bench:
    """With these instances."""
    machine = Bench(Weighted, NoOptions())
    for name, weight in weights.items():
        machine.add(name, weight=weight, max_concurrent=1000)
    return machine


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 3))
def test_each_cycle_gives_each_its_weight(weights: list[int], cycles: int) -> None:
    """Within as many requests as all weights together every instance gets exactly its number, cycle by cycle."""
    machine = bench(**{f"i{number}": weight for number, weight in enumerate(weights)})
    for _ in range(cycles):
        served = Counter(machine.one() for _ in range(sum(weights)))
        assert served == {f"i{number}": weight for number, weight in enumerate(weights)}


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
def test_it_is_smooth(weights: list[int]) -> None:
    """After any number of requests no instance is more than one request ahead of its share by its own line of turns."""
    machine = bench(**{f"i{number}": weight for number, weight in enumerate(weights)})
    counts = Counter[str]()
    turns = sorted((turn + 0.5) / weight for weight in weights for turn in range(weight))
    for turn in turns:
        counts[machine.one()] += 1
        for number, weight in enumerate(weights):
            assert abs(counts[f"i{number}"] - turn * weight) <= 1


def test_the_textbook_example_is_spread() -> None:
    """Weights of 5, 1 and 1: the heavy one is not used five times in a row."""
    machine = bench(a=5, b=1, c=1)
    assert "".join(machine.one() for _ in range(14)) in {"aaabcaa" * 2, "aabacaa" * 2}


def test_weights_need_not_be_whole() -> None:
    """A quarter of the weight is a quarter of the requests."""
    machine = bench(a=0.25, b=1)
    assert Counter(machine.one() for _ in range(500)) == {"a": 100, "b": 400}


def test_a_busy_one_loses_its_turn() -> None:
    """When it is free again it gets its share, and is not flooded with what it missed."""
    machine = bench(a=1, b=1)
    machine.admission.set_state(machine.record("a").instance.id, machine.record("a").state)
    held = machine.record("a")
    held.room = 0
    assert {machine.one() for _ in range(50)} == {"b"}
    held.recount()
    served = Counter(machine.one() for _ in range(20))
    assert abs(served["a"] - served["b"]) <= 1


def test_one_that_comes_gets_its_share_and_no_more() -> None:
    """Neither a flood for what it missed nor a wait until the others are where it begins."""
    machine = bench(a=1, b=1)
    for _ in range(1001):
        machine.one()
    machine.add("new", weight=2, max_concurrent=1000)
    served = Counter(machine.one() for _ in range(40))
    assert abs(served["new"] - 20) <= 1
    assert abs(served["a"] - served["b"]) <= 1


def test_one_that_goes_leaves_the_others_in_step() -> None:
    """What is left is shared as before."""
    machine = bench(a=3, b=1, c=4)
    for _ in range(13):
        machine.one()
    machine.admission.remove(machine.record("c").instance.id)
    served = Counter(machine.one() for _ in range(40))
    assert abs(served["a"] - 30) <= 1


def test_a_retry_that_excludes_one_does_not_disturb_the_rest() -> None:
    """The excluded one keeps its place on the line."""
    machine = bench(a=1, b=1, c=1)
    strategy = Weighted(NoOptions(), random=Random(0), clock=ManualClock())
    everybody = View(tuple(machine.admission.pool.records.values()))
    served = Counter[str]()
    for _ in range(30):
        for view in (everybody, View([c for c in everybody.candidates if c.instance.endpoint != "a"])):
            served[strategy.pick(Request(method="m"), view).instance.endpoint] += 1
    assert served["a"] >= 15
    assert abs(served["b"] - served["c"]) <= 1


def test_a_new_weight_counts_from_now_on() -> None:
    """As an instance is published anew with another weight."""
    machine = bench(a=1, b=1)
    for _ in range(10):
        machine.one()
    machine.add("a", weight=4, max_concurrent=1000)
    served = Counter(machine.one() for _ in range(50))
    assert abs(served["a"] - 40) <= 2


def test_thousands_are_not_all_looked_at() -> None:
    """Once the instances are known, a pick looks at few of them, also when nearly all are busy."""
    them = records(4096)
    looked = LookedAt(them)
    strategy = Weighted(NoOptions(), random=Random(0), clock=ManualClock())
    view = PoolView(looked, them[7])
    for record in (*them[:7], *them[8:]):
        record.room = 0
    for _ in range(2000):
        assert strategy.pick(Request(method="m"), view) is them[7]
    assert looked.whole <= 2
    assert looked.single == 0
