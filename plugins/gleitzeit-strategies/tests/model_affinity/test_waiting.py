"""Waiting for an instance that has the model, or loading it on another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.strategies.base import Wait

from .benches import ask, bench, board, once, put, trained


def test_a_short_wait_is_better_than_a_load() -> None:
    """4 GB take 4 s, the request before takes 2: it waits, although another one is free."""
    machine = trained("warm", "cold")
    first, second = ask(machine, "a"), ask(machine, "a")
    assert (machine.where(first), machine.where(second)) == ("warm", "")
    machine.clock.advance(2)
    machine.end(first, 2.0)
    assert machine.where(second) == "warm"


def test_a_long_wait_is_worse_than_a_load() -> None:
    """Of five at once the first waits its turn; those that would wait longer than a load takes go elsewhere."""
    machine = trained("warm", "cold")
    tickets = [ask(machine, "a") for _ in range(6)]
    wheres = [machine.where(ticket) for ticket in tickets]
    assert wheres[:2] == ["warm", ""]
    assert "cold" in wheres


def test_the_length_of_the_queue_alone_loads_nothing() -> None:
    """Many quick requests wait shorter than one load."""
    machine = bench()
    put(machine, "warm", "a")
    put(machine, "cold", "b")
    for _ in range(30):
        once(machine, "a", 0.1)
    tickets = [ask(machine, "a") for _ in range(15)]
    assert [machine.where(ticket) for ticket in tickets] == ["warm"] + [""] * 14
    while machine.granted:
        ticket = next(iter(machine.granted))
        machine.clock.advance(0.1)
        assert machine.end(ticket, 0.1) == "warm"


def test_a_queue_that_takes_longer_than_a_load_gets_another_instance() -> None:
    """Counted as a whole: those who wait further back than anybody looks would wait too long. The head stays."""
    for count, loads in ((12, False), (100, True)):
        machine = bench()
        put(machine, "warm", "a", max_concurrent=4)
        put(machine, "cold", "b", max_concurrent=4)
        for _ in range(30):
            once(machine, "a", 1.0)
        tickets = [ask(machine, "a") for _ in range(4 + count)]
        assert machine.strategies[0].waiting == sum(ticket.waits for ticket in tickets) > 0
        wheres = [machine.where(ticket) for ticket in tickets]
        assert ("cold" in wheres) is loads
        assert wheres[4] == ""


def test_those_who_join_the_queue_wait_for_the_quick_one_not_for_the_load() -> None:
    """A free slot beside a load under way is no reason to wait for its end, when another has the model and is quick."""
    machine = bench()
    put(machine, "warm", "a")
    put(machine, "cold", sizes={"a": 60e9}, max_concurrent=4)
    for _ in range(30):
        once(machine, "a", 0.1)
    machine.record("warm").room = 0
    slow = ask(machine, "a")
    machine.clock.advance(100)
    assert machine.where(slow) == "cold"
    machine.record("warm").recount()
    first, second = ask(machine, "a"), ask(machine, "a")
    assert (machine.where(first), machine.where(second)) == ("warm", "")


def test_a_model_that_others_wait_for_has_its_turn() -> None:
    """An older request for another model does not put it out at once; it has its turn next."""
    machine = bench()
    put(machine, "x")
    first, other, second = ask(machine, "a"), ask(machine, "b"), ask(machine, "a")
    machine.clock.advance(5)
    machine.end(first, 5.0)
    assert [machine.where(ticket) for ticket in (other, second)] == ["", "x"]
    machine.clock.advance(1)
    machine.end(second, 1.0)
    assert machine.where(other) == "x"


def test_a_turn_ends() -> None:
    """However many wait for the model that is there."""
    machine = bench()
    put(machine, "x")
    first, other = ask(machine, "a"), ask(machine, "b")
    for _ in range(50):
        ask(machine, "a")
    machine.end(first, 0.0)
    began = machine.clock.monotonic()
    while not machine.where(other):
        machine.clock.advance(1)
        for ticket in tuple(machine.granted):
            if ticket is not other:
                machine.end(ticket, 1.0)
    # Its load was expected to take 4 s, and its turn is twice as long as that.
    assert 12 <= machine.clock.monotonic() - began <= 14


def test_room_is_dearer_where_others_wait() -> None:
    """Of two instances that could load a model the one is chosen whose own model nobody waits for."""
    machine = bench(horizon_s=0)
    put(machine, "x", "b")
    put(machine, "y", "c")
    board(machine).holders("b").queues[machine] = 50
    assert once(machine, "a", 1.0) == "y"


def test_one_that_hangs_holds_up_nobody_for_good() -> None:
    """The wait is estimated anew, without any event: then the cold one is loaded."""
    machine = trained("warm", "cold")
    ask(machine, "a")
    second = ask(machine, "a")
    assert machine.where(second) == ""
    machine.clock.advance(30)
    assert machine.where(second) == "cold"


@given(st.lists(st.floats(0.05, 30), min_size=1, max_size=20), st.integers(0, 50))
def test_no_request_starves(lengths: list[float], seed: int) -> None:
    """Whatever the answers take, and though later requests take slots: each has one within a bounded time."""
    machine = bench()
    machine.random.seed(seed)
    put(machine, "warm", "a")
    put(machine, "cold", "b")
    tickets = []
    for length in lengths:
        tickets.append(ask(machine, "a"))
        machine.clock.advance(length)
        for ticket in tuple(machine.granted):
            machine.end(ticket, length)
    for _ in range(len(lengths)):
        machine.clock.advance(200)
        for ticket in tuple(machine.granted):
            machine.end(ticket, 200.0)
    assert not any(ticket.waits for ticket in tickets)
    assert machine.admission.pool.in_flight == 0


def test_a_wait_says_when_to_ask_again() -> None:
    """Never at once, never much too late."""
    machine = trained("warm", "cold")
    ticket = ask(machine, "a")
    assert machine.where(ticket) == "warm"
    view = machine.admission.balancers[0].snapshot
    answer = machine.admission.balancers[0].strategy.pick(
        machine.ticket().request.changed(requirements=ticket.request.requirements), view
    )
    assert isinstance(answer, Wait)
    assert answer.again_s is not None
    assert 0.1 <= answer.again_s <= 30


def test_nothing_loaded_anywhere_is_loaded_side_by_side() -> None:
    """A burst for a cold model does not pile up behind one load."""
    machine = bench()
    for name in "xyz":
        put(machine, name)
    tickets = [ask(machine, "a") for _ in range(3)]
    assert {machine.where(ticket) for ticket in tickets} == {"x", "y", "z"}


def test_a_load_has_ended_when_the_model_is_seen_or_used() -> None:
    """However long the answer goes on for which it was loaded."""
    machine = bench()
    record = put(machine, "x", max_concurrent=3)
    place = board(machine).see(record.instance)
    first = ask(machine, "a")
    (running,) = place.running.values()
    assert running.load_left_s(machine.clock.monotonic()) == pytest.approx(4.0)
    board(machine).see(put(machine, "x", "a", max_concurrent=3).instance)
    assert running.load_left_s(machine.clock.monotonic()) == 0.0
    machine.end(first)
    ask(machine, "b")
    second = ask(machine, "b")
    (running, _) = place.running.values()
    assert running.load_left_s(machine.clock.monotonic()) == pytest.approx(8.0, rel=0.2)
    machine.end(second)
    assert running.load_left_s(machine.clock.monotonic()) == 0.0


def test_with_room_beside_a_load_the_second_joins_it() -> None:
    """It waits for that load instead of beginning another."""
    machine = bench()
    for name in "xy":
        put(machine, name, max_concurrent=4)
    first, second = ask(machine, "a"), None
    machine.clock.advance(2)
    second = ask(machine, "a")
    assert machine.where(first) == machine.where(second)
