from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import Unavailable
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Request
from gleitzeit_core.strategies.base import WAIT, View
from gleitzeit_core.strategies.chain import Chain
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_strategies.options import LocalityOptions, PowerOfTwoOptions, PriorityOptions, TaggedOptions
from gleitzeit_strategies.power_of_two import PowerOfTwo
from gleitzeit_strategies.testing import Bench
from gleitzeit_strategies.tiers import Locality, Priority, Tagged


def bench(kind: Any, options: Any, **tags: str) -> Bench:  # noqa: ANN401 - any of them
    """Instances by name, each with these tags and room for two."""
    machine = Bench(kind, options, seed=1)
    for name, its in tags.items():
        machine.add(name, tags=frozenset(its.split()), max_concurrent=2)
    return machine


def wheres(machine: Bench, count: int) -> list[str]:
    """Where so many requests go that do not end."""
    return [machine.where(machine.submit()) for _ in range(count)]


# -- priority


def test_the_next_tier_is_used_when_the_first_is_full() -> None:
    """And the rest when all tiers are."""
    machine = bench(Priority, PriorityOptions(tiers=["own", ["cloud", "cheap"]]), a="own", b="cloud cheap", c="cloud")
    assert wheres(machine, 6) == ["a", "a", "b", "b", "c", "c"]


def test_the_first_tier_is_used_again_as_soon_as_it_has_room() -> None:
    """What is further down is for an emergency."""
    machine = bench(Priority, PriorityOptions(tiers=["own"]), a="own", b="")
    tickets = [machine.submit() for _ in range(3)]
    machine.end(tickets[0])
    assert machine.where(machine.submit()) == "a"


def test_a_tier_that_is_down_is_passed_over() -> None:
    """And used again when it is up."""
    machine = bench(Priority, PriorityOptions(tiers=["own"], spill="down"), a="own", b="")
    down = machine.record("a").instance.id
    machine.admission.set_state(down, State.DOWN, "gone")
    assert machine.one() == "b"
    machine.admission.set_state(down, State.READY)
    assert machine.one() == "a"


def test_requests_wait_for_a_tier_that_spills_only_when_down() -> None:
    """However busy it is; and get it when it has room."""
    machine = bench(Priority, PriorityOptions(tiers=["own"], spill="down"), a="own", b="")
    tickets = [machine.submit() for _ in range(3)]
    assert [machine.where(ticket) for ticket in tickets] == ["a", "a", ""]
    machine.end(tickets[0])
    assert machine.where(tickets[2]) == "a"


def test_those_of_no_tier_can_be_left_out() -> None:
    """Then requests wait."""
    machine = bench(Priority, PriorityOptions(tiers=["own"], rest=False), a="own", b="")
    assert wheres(machine, 3) == ["a", "a", ""]


def test_within_a_tier_the_least_loaded_serves() -> None:
    """By weight."""
    machine = bench(Priority, PriorityOptions(tiers=["own"]), a="own", b="own", c="")
    assert sorted(wheres(machine, 5)) == ["a", "a", "b", "b", "c"]


def test_other_tiers_count_from_now_on() -> None:
    """After a reload, at the next pick."""
    machine = bench(Priority, PriorityOptions(tiers=["x"]), a="x", b="y")
    assert machine.one() == "a"
    machine.strategies[0].reconfigure(PriorityOptions(tiers=["y"]))
    assert machine.one() == "b"


# -- locality


def test_near_ones_first_then_further_ones() -> None:
    """Rack, zone, the rest, each when what is nearer has no room."""
    machine = bench(Locality, LocalityOptions(tags=["rack", "zone"]), c="", b="zone", a="rack zone")
    assert wheres(machine, 7) == ["a", "a", "b", "b", "c", "c", ""]


def test_too_few_near_ones_are_not_left_alone() -> None:
    """With one of two in the zone down, the other shares its load with those further away."""
    machine = bench(Locality, LocalityOptions(tags=["zone"], enough=2, spill="down"), a="zone", b="zone", c="")
    assert {machine.one() for _ in range(20)} == {"a", "b"}
    machine.admission.set_state(machine.record("b").instance.id, State.DOWN, "gone")
    assert {machine.one() for _ in range(40)} == {"a", "c"}


def test_strict_locality_never_leaves() -> None:
    """It waits; and too few near ones are better than none."""
    machine = bench(Locality, LocalityOptions(tags=["zone"], enough=2, strict=True), a="zone", b="")
    assert wheres(machine, 3) == ["a", "a", ""]


def test_with_nothing_near_at_all_a_strict_one_refuses() -> None:
    """At once, by name; one that is coming is waited for."""
    machine = bench(Locality, LocalityOptions(tags=["zone"], strict=True), b="")
    with pytest.raises(Unavailable, match="left out by the route's strategy locality"):
        machine.submit()
    machine.add("a", State.STARTING, tags=frozenset({"zone"}))
    ticket = machine.submit()
    assert machine.where(ticket) == ""
    machine.add("a", tags=frozenset({"zone"}))
    assert machine.where(ticket) == "a"


def test_a_pool_that_is_near_as_a_whole_is_not_copied() -> None:
    """A chain keeps the pool's own view then, which is quicker to choose from."""
    machine = bench(Locality, LocalityOptions(tags=["zone"]), a="zone", b="zone")
    view = View(tuple(machine.admission.pool))
    strategy = Locality(LocalityOptions(tags=["zone"]), random=Random(0), clock=ManualClock())
    assert strategy.keep(Request(method="m"), view) is view.candidates


def test_what_is_kept_is_found_anew_only_on_change() -> None:
    """The same list for the same instances, so that what stands behind knows that nothing has changed."""
    machine = bench(Locality, LocalityOptions(tags=["zone"]), a="zone", b="")
    view = View(tuple(machine.admission.pool))
    strategy = Locality(LocalityOptions(tags=["zone"]), random=Random(0), clock=ManualClock())
    kept = strategy.keep(Request(method="m"), view)
    assert strategy.keep(Request(method="m"), view) is kept
    machine.add("c", tags=frozenset({"zone"}))
    assert len(strategy.keep(Request(method="m"), View(tuple(machine.admission.pool)))) == 2


# -- tagged


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"all": ["gpu"]}, "ab"),
        ({"all": ["gpu", "big"]}, "b"),
        ({"any": ["big", "cpu"]}, "bc"),
        ({"none": "gpu"}, "c"),
        ({"all": ["gpu"], "none": ["big"]}, "a"),
        ({"any": ["gpu", "cpu"], "none": ["big"]}, "ac"),
        ({"all": ["tpu"], "strict": False}, "abc"),
    ],
)
def test_only_the_right_tags(options: dict[str, Any], kept: str) -> None:
    """All of some, one of some, none of some."""
    machine = bench(Tagged, TaggedOptions(**options), a="gpu", b="gpu big", c="cpu")
    assert {machine.one() for _ in range(60)} == set(kept)


def test_no_right_tag_is_a_wait() -> None:
    """As long as it is strict."""
    machine = bench(Tagged, TaggedOptions(all=["tpu"]), a="gpu")
    view = View(tuple(machine.admission.pool))
    strategy = Tagged(TaggedOptions(all=["tpu"]), random=Random(0), clock=ManualClock())
    assert strategy.pick(Request(method="m"), view) == WAIT
    assert list(strategy.keep(Request(method="m"), view)) == []


# -- chains


def test_the_picker_of_a_chain_knows_how_many_wait() -> None:
    """As if it stood alone."""
    random, clock = Random(0), ManualClock()
    filters = [Tagged(TaggedOptions(all=["gpu"]), random=random, clock=clock)]
    chain = Chain(filters, PowerOfTwo(PowerOfTwoOptions(), random=random, clock=clock))
    chain.queued(7)
    assert [member.waiting for member in (chain, *chain.members)] == [7, 7, 7]


def test_of_many_that_are_kept_some_are_looked_at() -> None:
    """The least loaded of those drawn, always with the tag, also when only one has room."""
    machine = bench(
        Tagged, TaggedOptions(all=["gpu"]), **{f"i{number}": "gpu" if number % 2 else "" for number in range(400)}
    )
    random, clock = Random(0), ManualClock()
    strategy = Tagged(TaggedOptions(all=["gpu"]), random=random, clock=clock)
    records = tuple(machine.admission.pool)
    for record in records:
        record.in_flight = record.load = record.instance.tags and 1
    machine.record("i7").load = machine.record("i8").load = 0.5
    picked = [strategy.pick(Request(method="m"), View(records)) for _ in range(300)]
    assert all(one.instance.tags == {"gpu"} for one in picked if one != WAIT)
    assert machine.record("i7") in picked
    for record in records:
        record.room = int(record is machine.record("i9"))
    assert strategy.pick(Request(method="m"), View(records)) is machine.record("i9")


@given(st.lists(st.sampled_from(["", "zone", "gpu", "zone gpu"]), min_size=1, max_size=12), st.integers(0, 99))
def test_a_chain_picks_only_what_its_filters_keep(tags: list[str], seed: int) -> None:
    """Whatever is there: with the tag if one with it is free, else a wait."""
    machine = Bench(Tagged, TaggedOptions(all=["gpu"]), seed=seed)
    for number, its in enumerate(tags):
        record = machine.add(f"i{number}", tags=frozenset(its.split()), max_concurrent=1)
        if number % 3 == seed % 3:
            machine.admission.pool.take(record)
    random, clock = Random(seed), ManualClock()
    filters = [
        Tagged(TaggedOptions(all=["gpu"]), random=random, clock=clock),
        Locality(LocalityOptions(tags=["zone"]), random=random, clock=clock),
    ]
    chain = Chain(filters, PowerOfTwo(PowerOfTwoOptions(), random=random, clock=clock))
    records = tuple(machine.admission.pool)
    right = [record for record in records if record.room > 0 and "gpu" in record.instance.tags]
    near = [record for record in right if "zone" in record.instance.tags]
    if any(record.room > 0 for record in records):
        picked = chain.pick(Request(method="m"), View(records))
        assert picked in (near or right) if right else picked == WAIT
