"""Limits that are learned from busy answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.pool import State

from .use import busy, good

if TYPE_CHECKING:
    from gleitzeit_core.testing.machine import Machine


def test_a_busy_answer_teaches_how_much_is_too_much(machine: Machine) -> None:
    """Ten at once, four of which it takes: then it gets four."""
    record, pool = machine.add("a", max_concurrent=16), machine.admission.pool
    slots = [pool.take(record) for _ in range(10)]
    busy(machine, *slots[4:])
    assert (record.limit, record.capacity, record.room) == (4, 4, 0)
    assert "4/4 in flight" in repr(record)


def test_a_limit_is_never_below_one(machine: Machine) -> None:
    """Busy with somebody else's work, it is asked again all the same."""
    record, pool = machine.add("a"), machine.admission.pool
    for _ in range(3):
        busy(machine, pool.take(record))
    assert (record.limit, record.room) == (1, 1)


def test_a_limit_grows_with_as_many_successes_at_it(machine: Machine) -> None:
    """By one each time, until it is what the instance says of itself."""
    record, pool = machine.add("a", max_concurrent=4), machine.admission.pool
    slots = [pool.take(record) for _ in range(3)]
    busy(machine, slots.pop(), slots.pop())
    assert record.limit == 1
    seen = []
    while record.limit is not None:
        slots += [pool.take(record) for _ in range(record.room)]
        good(machine, slots.pop())
        seen.append(record.limit)
    assert seen == [2, 2, 3, 3, 3, None]
    assert record.room == 2


def test_successes_below_the_limit_teach_nothing(machine: Machine) -> None:
    """One request at a time does not show that five would do."""
    record, pool = machine.add("a", max_concurrent=9), machine.admission.pool
    slots = [pool.take(record) for _ in range(5)]
    busy(machine, slots.pop())
    good(machine, *slots[:-1])
    assert record.limit == 4
    for _ in range(20):
        good(machine, pool.take(record))
    assert record.limit == 4


def test_a_busy_answer_begins_the_growth_anew(machine: Machine) -> None:
    """As many successes in a row, not in sum."""
    record, pool = machine.add("a", max_concurrent=9), machine.admission.pool
    slots = [pool.take(record) for _ in range(4)]
    busy(machine, slots.pop())
    good(machine, slots.pop())
    slots += [pool.take(record), pool.take(record)]
    busy(machine, slots.pop())
    good(machine, slots.pop())
    slots.append(pool.take(record))
    good(machine, slots.pop())
    assert record.limit == 3
    slots.append(pool.take(record))
    good(machine, slots.pop())
    assert record.limit == 4


@pytest.mark.parametrize("changes", [{"max_concurrent": 2}, {"generation": 1}])
def test_a_limit_ends_with_what_it_was_learned_of(machine: Machine, changes: dict[str, object]) -> None:
    """An instance that offers less itself, or was started anew, has no limit beside its own."""
    record, pool = machine.add("a", max_concurrent=8), machine.admission.pool
    busy(machine, [pool.take(record) for _ in range(4)][-1])
    assert record.limit == 3
    assert machine.add("a", **{"max_concurrent": 8, **changes}).limit is None


def test_a_slow_start_ends_at_the_learned_limit(machine: Machine) -> None:
    """Not at a number that it cannot take."""
    record, pool = machine.add("a", max_concurrent=16, probe=True), machine.admission.pool
    busy(machine, *[pool.take(record) for _ in range(5)][1:])
    machine.admission.set_state(record.instance.id, State.DOWN)
    machine.admission.set_state(record.instance.id, State.READY)
    record.limit = 3
    good(machine, pool.take(record))
    assert record.allowance is None
    assert record.room == 3 - record.in_flight
