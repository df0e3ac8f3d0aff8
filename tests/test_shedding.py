from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import QueueFull
from gleitzeit_core.queueing import Shedding
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from gleitzeit_core.routing import Ticket

LIMIT = 100


def crowded(waiting: int, *, priority: int = 0, seed: int = 0, shed_from: float = 0.5) -> Machine:
    """A machine whose one slot is taken, with so many waiting of at most 100."""
    machine = Machine(seed=seed, max_queue=LIMIT, shed_from=shed_from)
    machine.add("a", max_concurrent=1)
    machine.submit(priority=priority)
    for _ in range(waiting):
        machine.submit(priority=priority)
    return machine


def refused(machine: Machine, priority: int, times: int) -> int:
    """How many of so many are turned away, each on its own: those let in leave again."""
    count = 0
    for _ in range(times):
        ticket = machine.ticket(priority=priority)
        try:
            machine.submit(ticket)
        except QueueFull:
            count += 1
        else:
            assert machine.admission.cancel(ticket)
    return count


def refused_once(machine: Machine) -> None:
    """Try again until one is turned away."""
    for _ in range(200):
        machine.admission.cancel(machine.submit())


def remaining(machine: Machine) -> list[Ticket]:
    """Those who wait."""
    (balancer,) = machine.admission.balancers
    return list(balancer.waiting)


@pytest.mark.parametrize(("waiting", "expected"), [(50, 0.0), (60, 0.2), (75, 0.5), (90, 0.8), (99, 0.98)])
def test_the_chance_grows_to_certainty_when_the_queue_is_full(waiting: int, expected: float) -> None:
    """From nothing where shedding begins, in a straight line."""
    machine = crowded(waiting - 1)
    machine.submit(priority=1)
    # Four standard deviations of a binomial with 2,000 tries: at most 90.
    assert refused(machine, 0, 2_000) == pytest.approx(2_000 * expected, abs=90 * (0 < expected < 1))


def test_alone_a_band_is_not_turned_away() -> None:
    """With nobody to make room for, the queue fills to its end."""
    machine = crowded(99)
    assert refused(machine, 0, 200) == 0


def test_the_higher_bands_are_not_turned_away() -> None:
    """Neither the highest nor one between, while a lower one waits."""
    machine = crowded(80)
    machine.submit(priority=2)
    assert refused(machine, 1, 200) == 0
    assert refused(machine, 2, 200) == 0


def test_a_band_below_all_that_wait_is_the_lowest() -> None:
    """Whatever its number is."""
    assert refused(crowded(99), -5, 200) > 150


def test_room_is_kept_for_who_came_a_moment_ago() -> None:
    """For ten seconds after the last of a higher band came, be it served, gone or still there."""
    machine = crowded(95)
    vip = machine.submit(priority=3)
    assert machine.admission.cancel(vip)
    machine.clock.advance(10.0)
    assert refused(machine, 0, 200) > 100
    machine.clock.advance(0.1)
    assert refused(machine, 0, 200) == 0


def test_who_came_after_a_still_higher_one_is_remembered_too() -> None:
    """When the memory of the highest fades, that of the next does not."""
    machine = crowded(95)
    for priority, after_s in ((5, 6.0), (3, 6.0)):
        machine.admission.cancel(machine.submit(priority=priority))
        machine.clock.advance(after_s)
    assert refused(machine, 2, 200) == 0
    assert refused(machine, 0, 200) > 100


def test_it_can_be_turned_off() -> None:
    """1 is never, before the queue is full."""
    machine = crowded(98, shed_from=1.0)
    machine.submit(priority=1)
    assert refused(machine, 0, 200) == 0
    machine.submit()
    assert refused(machine, 1, 10) == 10


def test_one_that_had_its_turn_is_not_turned_away() -> None:
    """A retry comes in whatever its band, and whatever waits."""
    machine = crowded(99)
    machine.submit(priority=1)
    for _ in range(200):
        again = machine.ticket()
        again.excluded = frozenset({("elsewhere", 0)})
        machine.submit(again)
        machine.admission.cancel(again)


def test_the_error_says_that_it_was_not_full() -> None:
    """With the numbers, and when to come back."""
    machine = crowded(98)
    machine.submit(priority=1)
    with pytest.raises(QueueFull, match="turned away: 99 waiting, limit 100; retry after 60 s") as caught:
        refused_once(machine)
    assert caught.value.shed
    assert (caught.value.size, caught.value.limit, caught.value.retry_after_s) == (99, 100, 60.0)


def test_the_same_seed_turns_away_the_same() -> None:
    """Randomness comes from outside only."""
    runs = []
    for _ in range(2):
        machine = crowded(75, seed=3)
        machine.submit(priority=1)
        runs.append([refused(machine, 0, 1) for _ in range(50)])
    assert runs[0] == runs[1]
    assert {0, 1} == set(runs[0])


def test_nobody_who_waits_is_sent_away() -> None:
    """Only who comes is."""
    machine = crowded(80)
    before = remaining(machine)
    machine.submit(priority=1)
    refused(machine, 0, 100)
    assert [ticket for ticket in remaining(machine) if not ticket.request.priority] == before


@given(st.lists(st.tuples(st.integers(-50, 50), st.floats(0.0, 4.0)), max_size=80))
def test_its_memory_is_bounded_and_right(arrivals: list[tuple[int, float]]) -> None:
    """However many bands callers make up, it keeps eight of them, and of the last ten seconds the highest."""
    shedding, now, came = Shedding(Random(0)), 0.0, []
    for band, after_s in arrivals:
        now += after_s
        shedding.came(band, now)
        came.append((band, now))
        assert len(shedding._came) <= 8
        recent = [other for other, at in came if at >= now - 10.0]
        assert shedding._came[0][0] == max(recent)
