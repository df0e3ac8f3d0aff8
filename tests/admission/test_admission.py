"""Who gets a slot, and who leaves without one."""

from __future__ import annotations

import pytest

from gleitzeit_core.effects import Granted, Recycle
from gleitzeit_core.errors import FailureKind, NoCapableInstance, ShuttingDown
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.testing.machine import Machine

from .stage import X, Y, busy

# -- who gets a slot -------------------------------------------------------------------------------------------------


def test_a_free_instance_is_given_at_once(machine: Machine) -> None:
    """Without an effect: the caller has its slot in hand."""
    machine.add("a")
    machine.effects.clear()
    ticket = machine.submit()
    assert machine.where(ticket) == "a"
    assert not machine.effects


def test_who_finds_everything_busy_waits_for_the_first_slot(machine: Machine) -> None:
    """It is bound to an instance only when a slot frees, whichever that is."""
    first = busy(machine, "a")
    second = busy(machine, "b")
    waiting = machine.submit()
    assert (waiting.waits, machine.admission.waiting) == (True, 1)
    machine.clock.advance(2.0)
    machine.release(second)
    assert machine.where(waiting) == "b"
    assert not waiting.waits
    assert machine.granted[waiting].taken_at - waiting.queued_at == 2.0
    machine.release(first)
    machine.release(waiting)


def test_a_new_instance_serves_those_who_wait(machine: Machine) -> None:
    """As many as it can, the first first."""
    busy(machine, "a")
    waiting = [machine.submit() for _ in range(3)]
    machine.add("b", max_concurrent=2)
    assert [machine.where(ticket) for ticket in waiting] == ["b", "b", ""]


@pytest.mark.parametrize("change", [{"max_concurrent": 2}, {"generation": 1, "max_concurrent": 1}])
def test_room_that_comes_with_a_change_serves_those_who_wait(machine: Machine, change: dict[str, int]) -> None:
    """A higher limit, or a start anew."""
    busy(machine, "a")
    waiting = machine.submit()
    machine.add("a", **change)
    assert machine.where(waiting) == "a"


def test_time_alone_serves_those_who_wait(machine: Machine) -> None:
    """An instance that asked to be left alone takes them when its time is over."""
    holder = busy(machine, "a")
    waiting = machine.submit()
    machine.release(holder, FailureKind.BUSY, retry_after_s=5.0)
    assert waiting.waits
    machine.clock.advance(5.0)
    assert machine.where(waiting) == "a"


def test_first_output_serves_those_who_wait(machine: Machine) -> None:
    """An instance that has proved itself takes more, before the first is done."""
    record = machine.add("a", State.READY, probe=True)
    machine.admission.set_state(record.instance.id, State.DOWN)
    machine.admission.set_state(record.instance.id, State.READY)
    trial, waiting = machine.submit(), machine.submit()
    assert waiting.waits
    machine.admission.progress(machine.granted[trial])
    assert machine.where(waiting) == "a"


def test_capabilities_tags_and_ids_are_respected(machine: Machine) -> None:
    """A request goes only where all it needs is."""
    machine.add("a", capabilities=X)
    machine.add("b", capabilities=X | Y, tags=frozenset({"gpu"}))
    assert {machine.where(machine.submit(capabilities=Y)) for _ in range(3)} == {"b"}
    needs = machine.ticket(capabilities=X).request.requirements
    tagged = machine.submit(requirements=needs.narrowed(tags=frozenset({"gpu"})))
    assert machine.where(tagged) == "b"
    bound = machine.submit(requirements=needs.narrowed(instances=frozenset({machine.record("a").instance.id})))
    assert machine.where(bound) == "a"


def test_a_route_sees_only_its_hubs() -> None:
    """Instances of other hubs do not exist for it."""
    machine = Machine(hubs=frozenset({"mine"}))
    machine.add("a")
    with pytest.raises(NoCapableInstance):
        machine.submit()
    machine.add("b", hub="mine")
    assert machine.where(machine.submit()) == "b"


def test_a_newcomer_may_use_what_those_before_it_cannot(machine: Machine) -> None:
    """One that was tried on the free instance already does not hold up all behind it."""
    machine.add("a", max_concurrent=1)
    tried = machine.ticket()
    tried.excluded = frozenset({(machine.record("a").instance.id, 0)})
    busy_on_b = [machine.submit(), busy(machine, "b")]
    for _ in range(20):
        again = machine.ticket()
        again.excluded = tried.excluded
        machine.submit(again)
    machine.release(busy_on_b[0])
    assert machine.where(machine.submit()) == "a"


# -- leaving and closing ---------------------------------------------------------------------------------------------


def test_who_leaves_the_queue_is_forgotten(machine: Machine) -> None:
    """Its place is free, and it gets no slot later."""
    holder = busy(machine)
    leaving, staying = machine.submit(), machine.submit()
    assert machine.admission.cancel(leaving)
    assert not machine.admission.cancel(leaving)
    machine.release(holder)
    assert machine.where(staying) == "a"
    assert leaving not in machine.granted


def test_who_has_a_slot_cannot_leave_the_queue(machine: Machine) -> None:
    """The answer says that there is a slot to give back."""
    holder = busy(machine)
    assert not machine.admission.cancel(holder)


def test_closing_sends_away_who_waits_and_takes_nothing_new(machine: Machine) -> None:
    """What runs goes on."""
    holder = busy(machine)
    waiting = machine.submit()
    machine.admission.close()
    assert isinstance(machine.rejected[waiting], ShuttingDown)
    with pytest.raises(ShuttingDown):
        machine.submit()
    machine.release(holder)
    assert machine.admission.pool.in_flight == 0


def test_a_cancelled_grant_is_given_to_the_next(machine: Machine) -> None:
    """Who leaves in the moment of the grant gives its slot back."""
    holder = busy(machine)
    leaving, next_one = machine.submit(), machine.submit()
    machine.release(holder)
    assert [effect.ticket for effect in machine.taken(Granted)] == [leaving]
    machine.release(leaving, result=Result.CANCELLED)
    assert machine.where(next_one) == "a"


def test_a_slot_of_a_request_without_a_queue_can_be_released(machine: Machine) -> None:
    """Whoever took a slot directly gives it back the same way."""
    record = machine.add("a")
    slot = machine.admission.pool.take(record)
    machine.admission.release(machine.ticket(), slot, Outcome(result=Result.OK))
    assert record.in_flight == 0
    assert not machine.taken(Recycle)
