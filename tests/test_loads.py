"""A model that is being loaded somewhere: who needs it joins, and no other instance loads it for the queue's sake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Result
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.strategies.simple import RoundRobin
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.routing import Ticket

M = frozenset({"model:m"})
N = frozenset({"model:n"})
BOTH = M | N


@pytest.fixture
def machine() -> Machine:
    """Two instances with two slots each, which have two models and none in memory."""
    made = Machine()
    for name in "ab":
        made.add(name, capabilities=BOTH, max_concurrent=2)
    return made


def ask(machine: Machine, model: frozenset[str] = M) -> Ticket:
    """A request for a model."""
    return machine.submit(capabilities=model)


def loading(machine: Machine) -> tuple[Ticket, str, str]:
    """A request that has been without output for a second; where it is, and where it is not."""
    first = ask(machine)
    machine.clock.advance(1.0)
    where = machine.where(first)
    return first, where, "b" if where == "a" else "a"


def test_who_needs_it_too_joins(machine: Machine) -> None:
    """The other instance is idle, and would have to load it as well."""
    _, where, _ = loading(machine)
    assert machine.where(ask(machine)) == where


def test_where_there_is_no_room_it_is_waited_for(machine: Machine) -> None:
    """Never a second load on queue length alone."""
    first, where, _ = loading(machine)
    ask(machine)
    third = ask(machine)
    assert machine.where(third) == ""
    machine.release(first, result=Result.CANCELLED)
    assert machine.where(third) == where


def test_when_it_is_loaded_all_instances_serve_again(machine: Machine) -> None:
    """The first output ends the load: those who wait are spread at once."""
    first, _, other = loading(machine)
    ask(machine)
    third = ask(machine)
    machine.admission.progress(machine.granted[first])
    assert machine.where(third) == other
    assert repr(machine.admission.pool.loads) == "<Loads of 1>"
    assert machine.where(ask(machine)) == other


def test_a_load_that_fails_ends(machine: Machine) -> None:
    """Nobody waits for what does not come."""
    first, _, other = loading(machine)
    second, third = ask(machine), ask(machine)
    machine.release(second, FailureKind.SERVER_ERROR)
    assert machine.where(third) != other
    machine.release(first, FailureKind.SERVER_ERROR)
    machine.release(third, FailureKind.SERVER_ERROR)
    assert not machine.admission.pool.loads.began


def test_what_is_remembered_is_bounded() -> None:
    """An instance that takes any name for a model does not fill the memory: what was proved first is forgotten."""
    names = [frozenset({f"model:{number}"}) for number in range(1030)]
    machine = Machine()
    machine.add("a", capabilities=frozenset[str]().union(*names))
    for needs in names:
        machine.release(ask(machine, needs))
    proved = machine.record("a").proved
    assert list(proved) == names[-1024:]


def test_an_instance_that_goes_down_loads_nothing(machine: Machine) -> None:
    """Who waited for it gets the other."""
    _, where, other = loading(machine)
    ask(machine)
    third = ask(machine)
    machine.admission.set_state(machine.record(where).instance.id, State.DOWN, "gone")
    assert machine.where(third) == other


def test_patience_ends(machine: Machine) -> None:
    """What hangs and loads nothing holds up nobody for longer than half a minute."""
    _, _, other = loading(machine)
    ask(machine)
    third = ask(machine)
    machine.clock.advance(28.0)
    assert machine.where(third) == ""
    machine.clock.advance(1.5)
    assert machine.where(third) == other


def test_a_crowd_is_spread(machine: Machine) -> None:
    """What begins within a second is spread: nobody can tell a load from a moment's thought."""
    assert sorted(machine.where(ask(machine)) for _ in range(4)) == ["a", "a", "b", "b"]


def test_other_models_are_no_concern(machine: Machine) -> None:
    """Only the same model is joined."""
    _, _, other = loading(machine)
    assert machine.where(ask(machine, N)) == other


def test_what_is_ready_anywhere_is_not_joined(machine: Machine) -> None:
    """Where it is in memory, or has answered, it is no load; then the strategy weighs as always."""
    _, where, other = loading(machine)
    machine.add(other, capabilities=BOTH, warm=M, max_concurrent=2)
    assert machine.where(ask(machine)) == other
    machine.add(other, capabilities=BOTH, max_concurrent=2)
    assert machine.where(ask(machine)) == where


def test_what_is_listed_is_not_ready_yet(machine: Machine) -> None:
    """A hub may find the model in the list of those in memory while it is being loaded; only an output proves it."""
    first, where, other = loading(machine)
    machine.add(where, capabilities=BOTH, warm=M, max_concurrent=2)
    assert machine.where(ask(machine)) == where
    third = ask(machine)
    assert machine.where(third) == ""
    machine.admission.progress(machine.granted[first])
    assert machine.where(third) == other


def test_what_has_answered_is_ready_until_its_hub_says_something_else(machine: Machine) -> None:
    """A slow answer of a model that has just answered is no load."""
    first, where, other = loading(machine)
    machine.release(first)
    tickets = [ask(machine), ask(machine)]
    machine.clock.advance(5.0)
    assert {machine.where(ticket) for ticket in tickets} == {where, other}
    assert len(machine.admission.pool.loads.began[M]) == 1
    for name in "ab":
        machine.add(name, capabilities=BOTH, warm=N, max_concurrent=2)
    assert machine.record(where).proved[M] is not machine.record(where).instance.warm


def test_only_strategies_that_say_so_join() -> None:
    """Others have reasons of their own."""

    def make(random: Random, clock: Clock) -> Any:  # noqa: ANN401 - a strategy
        return RoundRobin(NoOptions(), random=random, clock=clock)

    machine = Machine(make)
    for name in "ab":
        machine.add(name, capabilities=BOTH)
    _, _, other = loading(machine)
    assert machine.where(ask(machine)) == other


def test_what_is_no_model_is_not_loaded() -> None:
    """Of other capabilities nobody says that it takes long to have them."""
    machine = Machine()
    for name in "ab":
        machine.add(name, capabilities=frozenset({"x"}))
    machine.submit(capabilities=frozenset({"x"}))
    assert not machine.admission.pool.loads.began
