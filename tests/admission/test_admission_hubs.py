"""What hubs are asked and told: to create, to recycle and to retire."""

from __future__ import annotations

from typing import Any

import pytest

from gleitzeit_core.effects import Changed, Effect, Emptied, Recycle, Scale
from gleitzeit_core.errors import NoCapableInstance
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.testing.machine import Machine

from .stage import X, busy

CREATABLE = Offer(OfferKind.CREATABLE)


# -- hubs that create, recycle and retire ----------------------------------------------------------------------------


def test_a_hub_is_asked_for_as_many_as_wait(machine: Machine) -> None:
    """Each time one more waits; only when it can."""
    busy(machine)
    machine.submit()
    assert not machine.taken(Scale)
    machine.shelf.answer = CREATABLE
    machine.submit()
    machine.submit()
    assert [effect.wanted for effect in machine.taken(Scale)] == [2, 3]


def test_a_hub_that_can_create_again_is_asked_at_once(machine: Machine) -> None:
    """When it says that its supply has changed."""
    busy(machine)
    machine.submit()
    machine.shelf.answer = CREATABLE
    machine.admission.supply_changed()
    (scale,) = machine.taken(Scale)
    assert (scale.hub, scale.wanted) == ("echo", 1)


def test_a_creation_that_failed_is_asked_for_again(machine: Machine) -> None:
    """Those who wait for what was withdrawn are not forgotten."""
    machine.shelf.answer = CREATABLE
    waiting = machine.submit()
    record = machine.add("a", State.STARTING)
    machine.taken(Scale)
    machine.admission.remove(record.instance.id, "failed")
    assert [effect.wanted for effect in machine.taken(Scale)] == [1]
    assert waiting.waits


def test_a_hub_that_is_not_running_is_not_asked(machine: Machine) -> None:
    """Neither before it is started nor while it is being removed."""
    machine.shelf.answer, machine.shelf.running = CREATABLE, False
    with pytest.raises(NoCapableInstance):
        machine.submit()


def test_a_used_instance_keeps_its_slot_until_it_is_recycled(machine: Machine) -> None:
    """The next one gets it clean."""
    machine.shelf.recycles = True
    holder = busy(machine)
    waiting = machine.submit()
    machine.release(holder)
    assert machine.record("a").in_flight == 1
    assert waiting.waits
    machine.recycle(keep=True)
    assert machine.where(waiting) == "a"


def test_a_slot_that_was_never_used_is_free_at_once(machine: Machine) -> None:
    """Its caller left before the work began: there is nothing to clean up after."""
    machine.shelf.recycles = True
    holder = busy(machine)
    waiting = machine.submit()
    slot = machine.granted.pop(holder)
    machine.admission.release(holder, slot, Outcome(result=Result.CANCELLED))
    assert machine.where(waiting) == "a"
    assert not machine.taken(Recycle)


def test_a_spent_instance_is_emptied_once_and_given_to_nobody(machine: Machine) -> None:
    """Its hub is told when it may be retired."""
    machine.shelf.recycles = True
    holder = busy(machine)
    machine.shelf.answer = CREATABLE
    waiting = machine.submit()
    machine.release(holder)
    machine.recycle(keep=False)
    assert [effect.instance.endpoint for effect in machine.taken(Emptied)] == ["a"]
    assert waiting.waits
    machine.admission.drain(machine.record("a").instance.id)
    assert not machine.taken(Emptied)


def test_a_draining_instance_is_emptied_when_its_last_work_ends(machine: Machine) -> None:
    """Not before, and once."""
    machine.add("a", max_concurrent=2)
    first, second = machine.submit(), machine.submit()
    machine.admission.drain(machine.record("a").instance.id)
    machine.release(first)
    assert not machine.taken(Emptied)
    machine.release(second)
    assert len(machine.taken(Emptied)) == 1


def test_what_is_removed_is_not_emptied(machine: Machine) -> None:
    """Its hub knows that it is gone."""
    holder = busy(machine)
    machine.admission.drain(machine.record("a").instance.id)
    machine.admission.remove(machine.record("a").instance.id)
    machine.release(holder)
    assert not machine.taken(Emptied)


def test_unknown_ids_are_ignored(machine: Machine) -> None:
    """A probe may speak of what has just gone."""
    machine.admission.set_state("nobody", State.DOWN)
    machine.admission.drain("nobody")
    machine.admission.remove("nobody")
    assert not machine.effects


# -- effects ---------------------------------------------------------------------------------------------------------


def test_every_change_of_an_instance_is_told_once(machine: Machine) -> None:
    """With what it was, what it is, its state, and why."""
    record = machine.add("a")
    machine.add("a")
    machine.add("a", capabilities=X)
    machine.admission.set_state(record.instance.id, State.DOWN, "dead")
    machine.admission.set_state(record.instance.id, State.DOWN, "still dead")
    machine.admission.remove(record.instance.id, "gone for good")
    changes = [effect.change for effect in machine.taken(Changed)]
    assert [(c.before is not None, c.after is not None, str(c.state), c.reason) for c in changes] == [
        (False, True, "ready", ""),
        (True, True, "ready", ""),
        (True, True, "down", "dead"),
        (True, False, "gone", "gone for good"),
    ]
    assert changes[1].before is not None
    assert changes[1].after is not None
    assert (changes[1].before.capabilities, changes[1].after.capabilities) == (frozenset(), X)


def test_effects_come_when_the_state_is_right(machine: Machine) -> None:
    """Whoever is told may look, and may call back: what that brings comes after."""
    seen: list[str] = []

    def deliver(effect: Effect) -> None:
        seen.append(type(effect).__name__)
        for record in machine.admission.pool:
            outstanding = sum(1 for ticket in machine.granted if machine.granted[ticket].record is record)
            assert record.in_flight >= outstanding
        if isinstance(effect, Changed) and effect.change.state == "ready":
            machine.admission.drain(effect.change.after.id)  # type: ignore[union-attr]
            seen.append("drained")

    machine.admission._deliver = deliver
    machine.admission.put(machine.ticket() and _instance(), State.READY)
    assert seen == ["Changed", "drained", "Emptied", "Changed"]


def _instance() -> Any:  # noqa: ANN401 - a record
    return Machine().add("a").instance
