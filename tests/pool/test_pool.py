"""Instances in the pool: their slots, how they come, change, drain and go, and their timers."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.breaker import BreakerState
from gleitzeit_core.effects import Changed, Emptied, Recycle
from gleitzeit_core.errors import FailureKind
from gleitzeit_core.pool import Slot, State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Ownership

from .use import good, serving, snapshot, use

if TYPE_CHECKING:
    from gleitzeit_core.testing.machine import Machine


# -- slots -----------------------------------------------------------------------------------------------------------


def test_a_slot_is_freed_once(machine: Machine) -> None:
    """Giving it back again changes nothing."""
    record, pool = machine.add("a", max_concurrent=2), machine.admission.pool
    slot = pool.take(record)
    assert repr(slot).startswith("<Slot on echo-a-")
    assert (record.in_flight, record.room, record.load) == (1, 1, 1.0)
    assert pool.free(slot)
    assert not pool.free(slot)
    assert (record.in_flight, record.room, record.load) == (0, 2, 0.0)
    assert repr(slot).endswith(", freed>")


def test_load_is_work_divided_by_weight(machine: Machine) -> None:
    """A machine of twice the weight is half as loaded."""
    record = machine.add("a", weight=2.0)
    machine.admission.pool.take(record)
    assert record.load == 0.5


def test_counts_are_shown(machine: Machine) -> None:
    """A person sees what is going on."""
    record = machine.add("a")
    machine.admission.pool.take(record)
    assert repr(machine.admission.pool) == "<Pool 1 instances, 1 in flight>"
    assert " ready, 1/4 in flight, <CircuitBreaker closed" in repr(record)
    assert repr(snapshot(machine)) == "<Snapshot 1 instances, 1 serving, 0 ejected>"
    assert repr(machine.admission) == "<Admission 0 waiting, <Pool 1 instances, 1 in flight>>"


# -- instances come, change and go ---------------------------------------------------------------------------------------


def test_a_newer_record_replaces_the_instance_and_keeps_the_counts(machine: Machine) -> None:
    """A hub that publishes again changes what is known, not what is going on."""
    record = machine.add("a")
    machine.admission.pool.take(record)
    again = machine.add("a", capabilities=frozenset({"x"}), max_concurrent=9)
    assert again is record
    assert (again.in_flight, again.room, again.instance.max_concurrent) == (1, 8, 9)


def test_a_limit_below_what_runs_leaves_no_room(machine: Machine) -> None:
    """What runs goes on; new work waits until there is room again."""
    record, pool = machine.add("a", max_concurrent=3), machine.admission.pool
    slots = [pool.take(record) for _ in range(3)]
    machine.add("a", max_concurrent=1)
    assert record.room == -2
    for slot in slots:
        pool.free(slot)
    assert record.room == 1


def test_a_higher_generation_begins_anew(machine: Machine) -> None:
    """Breaker, state and counts are those of a new instance; what ran on the old one is no longer counted."""
    old = machine.add("a")
    slot = machine.admission.pool.take(old)
    for _ in range(5):
        use(machine, "a", FailureKind.SERVER_ERROR)
    new = machine.add("a", generation=1)
    assert new is not old
    assert (new.in_flight, new.breaker.state, new.state) == (0, BreakerState.CLOSED, State.READY)
    assert machine.clock.pending == 0, "the old one's timer"
    assert machine.admission.pool.free(slot)
    assert (old.in_flight, new.in_flight) == (0, 0)


def test_what_is_said_of_an_old_generation_does_not_touch_the_new_one(machine: Machine) -> None:
    """A try that outlives its instance neither takes the new one down, nor tells observers of the old one again."""
    old = machine.add("a", max_concurrent=9)
    slots = [machine.admission.pool.take(old) for _ in range(9)]
    machine.add("a", generation=1)
    machine.effects.clear()
    kinds = [FailureKind.REFUSED, FailureKind.UNAUTHORIZED, FailureKind.BUSY, *[FailureKind.LOST] * 6]
    for slot, kind in zip(slots, kinds, strict=True):
        machine.admission.release(machine.ticket(), slot, Outcome(result=Result.FAILED, kind=kind))
    assert machine.record("a").condition == "ready"
    assert not machine.effects
    assert machine.clock.pending == 0


def test_a_lower_generation_is_ignored(machine: Machine) -> None:
    """A message that comes late does not bring back what is gone."""
    new = machine.add("a", generation=2)
    machine.effects.clear()
    assert machine.add("a", State.DOWN, generation=1, max_concurrent=1) is new
    assert (new.instance.generation, new.instance.max_concurrent, new.state) == (2, 4, State.READY)
    assert not machine.effects


def test_the_state_counts_only_while_it_is_created(machine: Machine) -> None:
    """Publishing an instance again does not overrule what its checks have found."""
    record = machine.add("a", State.STARTING)
    assert machine.add("a", State.READY).state is State.READY
    machine.admission.set_state(record.instance.id, State.DOWN, "dead")
    assert machine.add("a", State.READY, tags=frozenset({"t"})).state is State.DOWN


def test_what_is_removed_is_gone(machine: Machine) -> None:
    """Its timers as well; a slot on it can still be given back."""
    record = machine.add("a")
    slot = machine.admission.pool.take(record)
    for _ in range(5):
        use(machine, "a", FailureKind.LOST)
    assert machine.clock.pending == 1
    machine.admission.remove(record.instance.id, "gone")
    assert machine.clock.pending == 0
    assert not list(machine.admission.pool)
    assert machine.admission.pool.free(slot)
    machine.admission.remove(record.instance.id, "again")


def test_a_draining_instance_stays_so(machine: Machine) -> None:
    """No probe makes it ready again."""
    record = machine.add("a")
    machine.admission.drain(record.instance.id, "enough")
    machine.admission.set_state(record.instance.id, State.READY)
    assert record.state is State.DRAINING
    assert serving(machine) == []


@pytest.mark.parametrize("changes", [{"weight": 0}, {"weight": float("inf")}, {"max_concurrent": 0}, {"offers": ()}])
def test_an_instance_that_would_break_scheduling_is_refused(machine: Machine, changes: dict[str, object]) -> None:
    """At once, where the hub makes it."""
    with pytest.raises(ValueError, match="echo-a-"):
        machine.add("a", **changes)


# -- draining and coming back --------------------------------------------------------------------------------------------------


def test_an_external_instance_is_drained_when_its_last_work_ends(machine: Machine) -> None:
    """Until then it drains; it stays known, and is not up."""
    record = machine.add("a")
    slot = machine.admission.pool.take(record)
    machine.taken(Changed)
    machine.admission.drain(record.instance.id, "by hand")
    assert (record.condition, record.why) == ("draining", "by hand")
    good(machine, slot)
    assert (record.condition, serving(machine)) == ("drained", [])
    assert [effect.change.state for effect in machine.taken(Changed)] == ["draining", "drained"]
    assert len(machine.taken(Emptied)) == 1


def test_one_of_our_own_is_never_drained(machine: Machine) -> None:
    """It drains until it is retired."""
    record = machine.add("a", ownership=Ownership.MANAGED)
    machine.admission.drain(record.instance.id)
    assert record.condition == "draining"


@pytest.mark.parametrize(("probe", "state", "room"), [(True, "down", 0), (False, "ready", 1)])
def test_what_is_resumed_comes_back(machine: Machine, probe: bool, state: str, room: int) -> None:  # noqa: FBT001 - a table
    """After its next check, or at once when nobody may check it; and slowly."""
    record = machine.add("a", probe=probe)
    machine.admission.drain(record.instance.id)
    machine.admission.resume(record.instance.id)
    assert (record.condition, record.room) == (state, room)
    machine.admission.set_state(record.instance.id, State.READY)
    assert (record.condition, record.room, record.why) == ("ready", 1, "")


def test_resuming_what_does_not_drain_changes_nothing(machine: Machine) -> None:
    """Neither what is down nor what is gone."""
    record = machine.add("a", State.DOWN, probe=True)
    machine.effects.clear()
    machine.admission.resume(record.instance.id)
    machine.admission.resume("nobody")
    assert (record.state, machine.effects) == (State.DOWN, [])


def test_those_who_wait_get_what_is_resumed(machine: Machine) -> None:
    """As if it were new."""
    record = machine.add("a", max_concurrent=1, probe=False)
    machine.add("b", max_concurrent=1)
    machine.admission.drain(record.instance.id)
    machine.submit()
    waiting = machine.submit()
    assert not machine.where(waiting)
    machine.admission.resume(record.instance.id)
    assert machine.where(waiting) == "a"


# -- idle, and used ------------------------------------------------------------------------------------------------------------


def test_it_is_known_since_when_an_instance_has_nothing_to_do(machine: Machine) -> None:
    """From its arrival, then from the end of its last work on."""
    machine.clock.advance(1.0)
    record = machine.add("a")
    assert record.idle_since == machine.clock.monotonic()
    for total_s in (3.0, 2.0):
        ticket = machine.submit()
        machine.clock.advance(total_s)
        machine.release(ticket, total_s=total_s)
        assert record.idle_since == machine.clock.monotonic()
        machine.clock.advance(1.0)


def test_what_was_not_used_is_not_made_ready_again(machine: Machine) -> None:
    """A slot whose caller left before the work began is free at once; one that was used is cleaned up after."""
    machine.shelf.recycles = True
    record, pool = machine.add("a"), machine.admission.pool
    unused, used = pool.take(record), pool.take(record)
    used.used = True
    for slot in (unused, used):
        machine.admission.release(machine.ticket(), slot, Outcome(result=Result.CANCELLED))
    assert (unused.freed, used.freed) == (True, False)
    assert [effect.slot for effect in machine.taken(Recycle)] == [used]
    machine.admission.recycled(used, keep=True)
    assert used.freed


# -- many ----------------------------------------------------------------------------------------------------------------


def test_many_are_found_by_their_load(machine: Machine) -> None:
    """However much has happened since somebody last looked: what has changed since then is not kept for ever."""
    records = [machine.add(f"i{number:02}", max_concurrent=2) for number in range(20)]
    pool, looked_at, left_alone = machine.admission.pool, snapshot(machine), snapshot(machine)
    assert repr(looked_at) == "<Crowd 20 instances, 20 serving, 0 ejected>"
    assert left_alone.has_room()
    began, random, slots = pool.journal, Random(1), list[Slot]()
    while pool.journal is began:
        if len(slots) < 40 and random.random() < 0.5:
            slots.append(pool.take(random.choice([record for record in records if record.room])))
        elif slots:
            assert pool.free(slots.pop(int(random.random() * len(slots))))
        assert looked_at.has_room() is any(record.room for record in records)
        if looked_at.has_room():
            assert looked_at.least_loaded(random).load == min(record.load for record in records if record.room)
    assert len(pool.journal) == 1
    pool.free(slots.pop())
    for view in (looked_at, left_alone):
        assert view.least_loaded(random).load == min(record.load for record in records if record.room)


# -- timers -------------------------------------------------------------------------------------------------------------------


def test_there_is_one_timer_for_an_instance(machine: Machine) -> None:
    """However often it is used in panic or asks to be left alone, timers do not pile up."""
    machine.add("a")
    for _ in range(50):
        use(machine, "a", FailureKind.SERVER_ERROR)
        use(machine, "a", FailureKind.BUSY, retry_after_s=30.0)
    assert machine.clock.pending == 1


def test_a_timer_that_comes_early_is_set_again(machine: Machine) -> None:
    """Loops count time in their own way: a moment too early must not leave an instance out for ever."""
    record = machine.add("a")
    machine.add("other")
    for _ in range(5):
        use(machine, "a", FailureKind.SERVER_ERROR)
    assert record.timer is not None
    machine.clock.advance(4.9999)
    timer = record.timer[1]
    timer.callback()  # type: ignore[attr-defined]
    timer.cancel()
    assert record.condition == "ejected"
    machine.clock.advance(0.0001)
    assert record.condition == "ready"
