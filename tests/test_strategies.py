from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.records import Crowd
from gleitzeit_core.strategies.base import WAIT, NoOptions, Strategy, View
from gleitzeit_core.strategies.simple import LeastLoaded, RandomChoice, RoundRobin
from gleitzeit_core.testing.conformance import StrategyConformance
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.clock import Clock

ALL = (LeastLoaded, RandomChoice, RoundRobin)


def machine(kind: type[Strategy[Any]], seed: int = 0, **route: Any) -> Machine:  # noqa: ANN401 - any field
    """One with that strategy."""
    return Machine(lambda random, clock: kind(NoOptions(), random=random, clock=clock), seed=seed, **route)


def one_at_a_time(machine: Machine, times: int) -> list[str]:
    """Where requests go that never overlap."""
    served = []
    for _ in range(times):
        ticket = machine.submit()
        served.append(machine.where(ticket))
        machine.release(ticket)
    return served


class TestLeastLoaded(StrategyConformance):
    """The core's own strategies pass what everybody's must."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """Least loaded."""
        return LeastLoaded(NoOptions(), random=random, clock=clock)


class TestRandom(StrategyConformance):
    """As above."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """Random."""
        return RandomChoice(NoOptions(), random=random, clock=clock)


class TestRoundRobin(StrategyConformance):
    """As above."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """Round robin."""
        return RoundRobin(NoOptions(), random=random, clock=clock)


@given(rooms=st.lists(st.integers(0, 2), min_size=1, max_size=12).filter(any), seed=st.integers(0, 9))
@pytest.mark.parametrize("kind", ALL)
def test_only_what_has_room_is_picked(kind: type[Strategy[Any]], rooms: list[int], seed: int) -> None:
    """Whatever is busy, the pick is free, be it through the pool's index or through a plain view."""
    bench = machine(kind, seed)
    records = [bench.add(f"i{number:02}", max_concurrent=2) for number in range(len(rooms))]
    for record, room in zip(records, rooms, strict=True):
        for _ in range(2 - room):
            bench.admission.pool.take(record)
    ticket = bench.ticket()
    strategy = kind(NoOptions(), random=bench.random, clock=bench.clock)
    pool = bench.admission.pool
    for view in (View(tuple(records)), pool.snapshot(None, ticket.request.requirements), Crowd(records, pool)):
        picked = strategy.pick(ticket.request, view)
        assert picked is not WAIT
        assert picked in [record for record, room in zip(records, rooms, strict=True) if room]


def test_round_robin_takes_each_in_turn() -> None:
    """Among equals it is exactly fair, in order of id."""
    bench = machine(RoundRobin)
    for name in ("a", "b", "c"):
        bench.add(name)
    served = one_at_a_time(bench, 9)
    assert sorted(served[:3]) == ["a", "b", "c"]
    assert served == served[:3] * 3


@given(st.lists(st.sampled_from(["add", "remove", "ask", "ask", "ask"]), max_size=60))
def test_round_robin_stays_fair_while_instances_come_and_go(events: list[str]) -> None:
    """Between two picks of one instance, every other that was there all the time is picked exactly once."""
    bench, names, served = machine(RoundRobin), ["i0"], []
    bench.add("i0")
    for number, event in enumerate(events, 1):
        if event == "add":
            names.append(f"i{number}")
            bench.add(names[-1])
        elif event == "remove" and len(names) > 1:
            gone = names.pop(number % len(names))
            bench.admission.remove(bench.record(gone).instance.id)
        else:
            (name,) = one_at_a_time(bench, 1)
            served.append((name, set(names)))
    for name in {name for name, _ in served}:
        turns = [turn for turn, (other, _) in enumerate(served) if other == name]
        for begin, end in pairwise(turns):
            always = set.intersection(*(there for _, there in served[begin : end + 1])) - {name}
            between = Counter(other for other, _ in served[begin + 1 : end])
            assert all(between[other] == 1 for other in always)


def test_random_gives_equal_chances() -> None:
    """Ten thousand picks over four instances differ by chance alone, whatever their weights."""
    bench = machine(RandomChoice, seed=1)
    for number in range(4):
        bench.add(f"i{number}", weight=number + 1.0)
    counts = Counter(one_at_a_time(bench, 10_000))
    # Five standard deviations of a binomial with p = 1/4: 217.
    assert all(abs(count - 2500) < 217 for count in counts.values())


@pytest.mark.parametrize("instances", [4, 40])
def test_least_loaded_breaks_ties_at_random(instances: int) -> None:
    """Light traffic is spread over all that are idle, not sent to the first, be they few or many."""
    bench = machine(LeastLoaded, seed=1)
    for number in range(instances):
        bench.add(f"i{number:02}")
    counts = Counter(one_at_a_time(bench, 2_500 * instances))
    assert len(counts) == instances
    # Five standard deviations, as above.
    assert all(abs(count - 2500) < 5 * sqrt(2500 * (1 - 1 / instances)) for count in counts.values())


def test_least_loaded_fills_by_weight() -> None:
    """Work in flight is kept in proportion to the weights."""
    bench = machine(LeastLoaded)
    bench.add("small", weight=1.0, max_concurrent=100)
    bench.add("large", weight=3.0, max_concurrent=100)
    counts = Counter(bench.where(bench.submit()) for _ in range(80))
    assert counts == {"small": 20, "large": 60}


def test_least_loaded_sees_the_load_of_other_routes() -> None:
    """Load is the instance's, whoever sent it."""
    bench = machine(LeastLoaded)
    bench.add("a", capabilities=frozenset({"x"}))
    bench.add("b")
    for _ in range(2):
        assert bench.where(bench.submit(capabilities=frozenset({"x"}))) == "a"
    assert [bench.where(bench.submit()) for _ in range(2)] == ["b", "b"]


@pytest.mark.parametrize("kind", ALL)
def test_an_instance_that_was_tried_is_not_tried_again(kind: type[Strategy[Any]]) -> None:
    """A retry sees only the others, through the same strategy."""
    bench = machine(kind)
    for name in ("a", "b", "c"):
        bench.add(name)
    tried: list[str] = []
    ticket = bench.ticket()
    for _ in range(3):
        bench.submit(ticket)
        tried.append(bench.where(ticket))
        slot = bench.release(ticket, FailureKind.SERVER_ERROR)
        ticket.excluded |= {(slot.instance.id, slot.instance.generation)}
    assert sorted(tried) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ALL)
def test_the_same_seed_gives_the_same_picks(kind: type[Strategy[Any]]) -> None:
    """No other source of randomness or time is used."""
    runs = []
    for _ in range(2):
        bench = machine(kind, seed=5)
        for number in range(5):
            bench.add(f"i{number}")
        runs.append(one_at_a_time(bench, 50))
    assert runs[0] == runs[1]
