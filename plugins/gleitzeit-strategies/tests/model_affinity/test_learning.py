"""What is learned of loads, of speeds and of what is where."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.requests import Outcome, Request, Result
from gleitzeit_core.resources import Requirements
from gleitzeit_core.strategies.base import Wait
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_strategies.board import Board
from gleitzeit_strategies.model_affinity import ModelAffinity
from gleitzeit_strategies.options import ModelAffinityOptions
from gleitzeit_strategies.places import Running, size_bytes
from gleitzeit_strategies.testing import Bench, LookedAt, PoolView, records

from .benches import ask, bench, board, once, put, trained


def stream(machine: Bench, model: str, first_s: float, total_s: float) -> str:
    """A streamed answer."""
    ticket = ask(machine, model, stream=True)
    machine.clock.advance(total_s)
    return machine.end(ticket, total_s, first_s=first_s)


def test_a_load_is_learned_from_its_first_output() -> None:
    """What the first output of a cold start took longer than that of a warm one."""
    machine = bench()
    put(machine, "x")
    options = ModelAffinityOptions()
    assert board(machine).load_s(machine.record("x").instance, "a", options) == pytest.approx(4.0)
    assert stream(machine, "a", 20.0, 21.0) == "x"
    for _ in range(5):
        stream(machine, "a", 0.5, 1.5)
    put(machine, "x", "b")
    put(machine, "x")
    assert stream(machine, "a", 20.5, 21.5) == "x"
    learned = board(machine).load_s(machine.record("x").instance, "a", options)
    assert learned == pytest.approx(20.0, rel=0.3)


def test_loads_of_others_tell_by_size() -> None:
    """A model never loaded is taken to load as fast, byte by byte, as those that were."""
    machine = bench()
    put(machine, "x")
    options = ModelAffinityOptions()
    stream(machine, "a", 40.0, 41.0)
    assert board(machine).load_s(machine.record("x").instance, "b", options) == pytest.approx(80.0, rel=0.05)


def test_a_whole_answer_tells_only_beside_another() -> None:
    """One cold answer says nothing of the load; with a warm one to compare it does."""
    machine = bench()
    put(machine, "x")
    options = ModelAffinityOptions()
    once(machine, "a", 50.0)
    instance = machine.record("x").instance
    assert board(machine).load_s(instance, "a", options) == pytest.approx(4.0)
    once(machine, "a", 10.0)
    put(machine, "x", "b")
    put(machine, "x")
    once(machine, "a", 40.0)
    assert board(machine).load_s(instance, "a", options) > 15


def test_speed_is_learned_for_each_model_and_instance() -> None:
    """By cost; one that was never used there counts as elsewhere, by weight."""
    machine = bench()
    put(machine, "x", "a", "b")
    put(machine, "y", "b", weight=2)
    for _ in range(30):
        once(machine, "a", 3.0, cost=1.0)
    options = ModelAffinityOptions()
    x, y = machine.record("x").instance, machine.record("y").instance
    assert board(machine).own_s(x, "a", 2.0, options) == pytest.approx(6.0, rel=0.1)
    assert board(machine).own_s(y, "a", 2.0, options) == pytest.approx(3.0, rel=0.1)


def test_a_failed_load_is_no_load() -> None:
    """The model is not taken to be there; what the instance says counts again."""
    machine = bench()
    put(machine, "x", "b")
    ticket = ask(machine, "a")
    assert "a" in board(machine).places[machine.record("x").instance.id].resident
    machine.release(ticket, FailureKind.SERVER_ERROR)
    place = board(machine).see(machine.record("x").instance)
    assert list(place.resident) == ["b"]
    assert board(machine).holders("b").ids == {machine.record("x").instance.id}
    assert not board(machine).holders("a").ids


def test_an_instance_that_goes_holds_nothing() -> None:
    """And what it has counts again when it is back."""
    machine = bench()
    put(machine, "x", "a")
    put(machine, "y", "a")
    once(machine, "a", 1.0)
    gone = machine.record("y").instance.id
    machine.admission.remove(gone)
    once(machine, "a", 1.0)
    assert gone not in board(machine).holders("a").ids
    put(machine, "y", "a")
    once(machine, "a", 1.0)
    assert gone in board(machine).holders("a").ids


def test_a_load_under_way_survives_a_check_that_does_not_show_it() -> None:
    """A server lists a model only when it is loaded."""
    machine = bench()
    put(machine, "x", "b", max_concurrent=2)
    ask(machine, "a")
    put(machine, "x", max_concurrent=2)
    assert "a" in board(machine).see(machine.record("x").instance).resident


def test_what_takes_longer_than_expected_is_expected_to_go_on() -> None:
    """First it becomes less, then more again."""
    running = Running("a", 0.0, 6.0, 3.0, warm=False)
    assert [running.left_s(now) for now in (0.0, 2.0, 4.0, 10.0)] == [6.0, 4.0, 2.0, 5.0]
    assert [running.load_left_s(now) for now in (0.0, 2.0, 5.0, 6.0)] == [3.0, 1.0, 0.75, 0.0]
    assert Running("a", 0.0, 6.0, 0.0, warm=True).load_left_s(2.0) == 0.0


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"models": None},
        {"models": ["a"]},
        {"models": {"a": None}},
        {"models": {"a": {"size": "big"}}},
        {"models": {"a": {"size": -1}}},
    ],
)
def test_odd_descriptions_have_no_size(details: dict[str, Any]) -> None:
    """Then the configured time counts, and nothing is raised."""
    machine = bench(load_s=7)
    instance = machine.add("x", details=details, capabilities=frozenset({"model:a"})).instance
    assert size_bytes(instance, "a") == 0.0
    assert board(machine).load_s(instance, "a", ModelAffinityOptions(load_s=7)) == pytest.approx(7.0)
    assert once(machine, "a", 1.0) == "x"


def test_new_options_keep_what_was_learned() -> None:
    """Speeds, loads, and what is where."""
    machine = trained("warm", "cold")
    strategy = machine.strategies[0]
    strategy.reconfigure(ModelAffinityOptions(load_bytes_per_s=1e6))
    first, second = ask(machine, "a"), ask(machine, "a")
    assert (machine.where(first), machine.where(second)) == ("warm", "")


class NoReferences:
    """A clock of somebody's that cannot be referred to weakly."""

    __slots__ = ("clock",)

    def __init__(self) -> None:
        self.clock = ManualClock()

    def monotonic(self) -> float:
        """Seconds."""
        return self.clock.monotonic()

    wall = monotonic
    call_at = None


def test_any_clock_will_do() -> None:
    """Each strategy learns for itself then."""
    clock: Any = NoReferences()
    assert Board.of(clock) is not Board.of(clock)
    other = ManualClock()
    assert Board.of(other) is Board.of(other)


def test_an_end_without_a_beginning_does_no_harm() -> None:
    """It is not learned from."""
    machine = bench()
    record = put(machine, "x", "a")
    strategy = ModelAffinity(ModelAffinityOptions(), random=Random(0), clock=machine.clock)
    strategy.finished(Request(method="m"), record, Outcome(result=Result.OK, total_s=99.0))
    assert board(machine).own_s(record.instance, "a", 1.0, ModelAffinityOptions()) == pytest.approx(1.0)


@pytest.mark.parametrize("warm", [0, 1, 4096])
def test_thousands_are_not_all_looked_at(warm: int) -> None:
    """Once they are known, a pick draws a few, of those with the model and of all."""
    them = records(4096, capabilities=frozenset({"model:a"}))
    for record in them[:warm]:
        record.instance = record.instance.changed(warm=frozenset({"model:a"}))
    looked = LookedAt(them)
    strategy = ModelAffinity(ModelAffinityOptions(), random=Random(0), clock=ManualClock())
    view = PoolView(looked, them[7])
    request = Request(method="m", requirements=Requirements(accepts=(), capabilities=frozenset({"model:a"})))
    for _ in range(50):
        picked = strategy.pick(request, view)
        assert not isinstance(picked, Wait)
        assert picked is them[0] or warm != 1
    assert looked.whole <= 2
    assert looked.single <= 50 * 4 * 16 * 2
