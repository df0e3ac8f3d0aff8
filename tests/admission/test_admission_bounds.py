"""How many may wait, and who waits for nothing."""

from __future__ import annotations

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure, NoCapableInstance, QueueFull, Unavailable
from gleitzeit_core.pool import State
from gleitzeit_core.resources import Ownership
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.testing.machine import Machine

from .stage import X, Y, busy

# -- bounds ----------------------------------------------------------------------------------------------------------


def test_a_full_queue_says_so_in_numbers(machine: Machine) -> None:
    """With the size, the limit, and when to come back."""
    busy(machine)
    for _ in range(3):
        machine.submit()
    with pytest.raises(QueueFull) as caught:
        machine.submit()
    assert (caught.value.size, caught.value.limit) == (3, 3)
    assert caught.value.retry_after_s == 4.0
    assert machine.admission.waiting == 3


def test_when_to_come_back_follows_the_measured_rate(machine: Machine) -> None:
    """Long work makes it longer; it is between a second and a minute."""
    holder = busy(machine)
    for seconds, expected in ((1.0, 1.0), (100.0, 10.9), (1e6, 60.0)):
        machine.release(holder, total_s=seconds)
        holder = machine.submit()
        (balancer,) = machine.admission.balancers
        assert balancer.retry_after_s() == pytest.approx(expected, rel=0.01)


def test_without_a_queue_nobody_waits() -> None:
    """0 means none."""
    machine = Machine(max_queue=0)
    busy(machine)
    with pytest.raises(QueueFull):
        machine.submit()


def test_the_bound_is_for_each_capability(machine: Machine) -> None:
    """A model that everybody wants does not keep out those who want another."""
    machine.add("a", capabilities=X | Y, max_concurrent=1)
    machine.submit(capabilities=X)
    for _ in range(3):
        machine.submit(capabilities=X)
    assert machine.submit(capabilities=Y).waits


def test_one_that_had_a_place_is_let_into_a_full_queue(machine: Machine) -> None:
    """No request fails because others came while it was being lost."""
    busy(machine)
    for _ in range(3):
        machine.submit()
    again = machine.ticket()
    again.excluded = frozenset({("elsewhere", 0)})
    assert machine.submit(again).waits


# -- hopeless waits --------------------------------------------------------------------------------------------------


def test_what_nothing_can_do_is_refused_with_what_there_is(machine: Machine) -> None:
    """404 in the outside world: it names what was needed and what exists."""
    machine.add("a", capabilities=frozenset({"model:llama3"}))
    with pytest.raises(NoCapableInstance, match=r"no instance has model:gpt.*there is: model:llama3") as caught:
        machine.submit(capabilities=frozenset({"model:gpt"}))
    assert caught.value.needed == ("model:gpt",)
    assert not caught.value.retryable


def test_what_is_down_is_named(machine: Machine) -> None:
    """503 in the outside world: which, in what state, and why."""
    record = machine.add("a", State.READY, probe=True)
    machine.admission.set_state(record.instance.id, State.DOWN, "no route to host")
    with pytest.raises(Unavailable, match=r"a is down \(no route to host\)") as caught:
        machine.submit()
    assert caught.value.instances == (record.instance.id,)
    assert caught.value.retryable


def test_what_has_drained_is_not_up(machine: Machine) -> None:
    """An external instance stays known and is named; nothing waits for it, and what it was asked to do before counts."""
    record = machine.add("a")
    holder = machine.submit()
    machine.admission.drain(record.instance.id, "enough")
    with pytest.raises(Unavailable, match=r"a is draining \(enough\)"):
        machine.submit()
    machine.release(holder)
    with pytest.raises(Unavailable, match=r"a is drained \(enough\)") as caught:
        machine.submit()
    assert caught.value.instances == (record.instance.id,)


def test_a_degraded_instance_serves(machine: Machine) -> None:
    """It is worth less than another, and more than waiting."""
    record = machine.add("a")
    machine.admission.set_degraded(record.instance.id, "test", "slow")
    assert machine.where(machine.submit()) == "a"
    with pytest.raises(NoCapableInstance) as caught:
        machine.submit(capabilities=Y)
    assert "degraded" not in caught.value.message


def test_what_has_never_been_well_may_be_just_the_one(machine: Machine) -> None:
    """It has not said yet what it can do: it is named with its state."""
    machine.add("a", capabilities=X)
    record = machine.add("b", State.DOWN, probe=True)
    machine.admission.set_state(record.instance.id, State.DOWN, "no route to host")
    with pytest.raises(NoCapableInstance, match=r"no instance has y .*there is: x; b is down \(no route to host\)"):
        machine.submit(capabilities=Y)


def test_nothing_at_all_says_nothing(machine: Machine) -> None:
    """An empty pool has no list to show."""
    with pytest.raises(NoCapableInstance, match="there is: nothing"):
        machine.submit()


def test_what_is_being_created_is_worth_waiting_for(machine: Machine) -> None:
    """And when its creation fails, those who wait are told why."""
    record = machine.add("a", State.STARTING)
    waiting = machine.submit()
    machine.shelf.answer = Offer(OfferKind.NEVER, reason="no disk left")
    machine.admission.remove(record.instance.id, "failed")
    assert "no disk left" in machine.rejected[waiting].message
    assert isinstance(machine.rejected[waiting], Unavailable)


@pytest.mark.parametrize(
    ("ownership", "running", "waits"),
    [(Ownership.MANAGED, True, True), (Ownership.MANAGED, False, False), (Ownership.EXTERNAL, True, False)],
)
def test_what_is_being_retired_may_make_room(
    machine: Machine,
    ownership: Ownership,
    running: bool,  # noqa: FBT001 - a table
    waits: bool,  # noqa: FBT001 - a table
) -> None:
    """A hub at its limit replaces what it retires; what is not its own, or is removed with it, comes never again."""
    record = machine.add("a", ownership=ownership)
    machine.shelf.running = running
    machine.admission.drain(record.instance.id)
    if not waits:
        with pytest.raises(Unavailable):
            machine.submit()
        return
    waiting = machine.submit()
    assert waiting.waits
    machine.admission.remove(record.instance.id)
    assert isinstance(machine.rejected[waiting], NoCapableInstance)


def test_those_who_wait_are_sent_away_when_the_last_one_goes_down(machine: Machine) -> None:
    """They learn at once what they would learn at their deadline."""
    busy(machine)
    waiting = machine.submit()
    machine.admission.set_state(machine.record("a").instance.id, State.DOWN, "dead")
    assert isinstance(machine.rejected[waiting], Unavailable)
    assert machine.admission.waiting == 0


def test_who_was_tried_everywhere_gets_the_last_answer(machine: Machine) -> None:
    """Not that nothing is there: what the last one said."""
    machine.add("a")
    ticket = machine.submit()
    slot = machine.release(ticket, FailureKind.SERVER_ERROR)
    ticket.excluded = frozenset({(slot.instance.id, slot.instance.generation)})
    ticket.last_failure = InstanceFailure(FailureKind.SERVER_ERROR, "boom")
    with pytest.raises(InstanceFailure, match="boom"):
        machine.submit(ticket)


def test_a_new_generation_may_be_tried_again(machine: Machine) -> None:
    """It is another instance under the same name."""
    machine.add("a")
    ticket = machine.ticket()
    ticket.excluded = frozenset({(machine.record("a").instance.id, 0)})
    machine.add("a", generation=1)
    assert machine.where(machine.submit(ticket)) == "a"
