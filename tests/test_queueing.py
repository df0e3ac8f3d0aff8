"""Fairness by work and the measured rate: what a queue knows of itself."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind, QueueFull
from gleitzeit_core.queueing import FairShares, ServiceRate
from gleitzeit_core.requests import Result
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from gleitzeit_core.routing import Ticket


def serve(machine: Machine, took: dict[str, float], requests: int, *, refill: bool = True) -> Counter[str]:
    """End so many requests, each after what its tenant's take; the slot time each tenant got.

    Args:
        machine: With some that run and some that wait.
        took: Seconds, for each tenant.
        requests: How many.
        refill: Whether each that ends is followed by another of its tenant.
    """
    ends: dict[Ticket, float] = {}
    used: Counter[str] = Counter()
    for _ in range(requests):
        now = machine.clock.monotonic()
        for ticket in machine.granted:
            ends.setdefault(ticket, now + took[ticket.request.tenant])
        ticket = min(machine.granted, key=lambda ticket: ends[ticket])
        tenant = ticket.request.tenant
        machine.clock.advance(max(0.0, ends.pop(ticket) - now))
        machine.release(ticket, total_s=took[tenant])
        used[tenant] += took[tenant]  # type: ignore[assignment] - seconds
        if refill:
            machine.submit(tenant=tenant)
    return used


def crowd(tenants: dict[str, int], *, slots: int = 1, cost: float = 1.0) -> Machine:
    """So many requests of each tenant, for so many slots."""
    machine = Machine(max_queue=2_000, shed_from=1.0)
    machine.add("a", max_concurrent=slots)
    for number in range(max(tenants.values())):
        for tenant, count in tenants.items():
            if number < count:
                machine.submit(tenant=tenant, cost=cost)
    return machine


# -- fairness by work -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("waiting", [6, 200])
def test_who_sends_longer_work_gets_fewer_turns(slots: int, waiting: int) -> None:
    """Two tenants that say the same of their requests, one of which takes eight times as long: each gets half the time."""
    machine = crowd({"long": waiting, "short": waiting}, slots=slots)
    serve(machine, {"long": 8.0, "short": 1.0}, 300)
    used = serve(machine, {"long": 8.0, "short": 1.0}, 900)
    assert used["long"] / used["short"] == pytest.approx(1.0, abs=0.15)


def test_those_who_wait_already_are_put_in_another_order() -> None:
    """A long queue does not go on by what was expected of it: nobody comes after the first, and it is fair all the same."""
    machine = crowd({"long": 100, "short": 400})
    used = serve(machine, {"long": 8.0, "short": 1.0}, 180, refill=False)
    assert used["long"] / used["short"] == pytest.approx(1.0, abs=0.3)


def test_what_was_said_of_the_work_is_right_from_the_first() -> None:
    """With costs that fit what the work takes there is nothing to set right."""
    machine = Machine(max_queue=100)
    machine.add("a", max_concurrent=1)
    machine.submit()
    for number in range(40):
        machine.submit(tenant="big", cost=4.0, id=f"big/{number}")
        machine.submit(tenant="small", cost=1.0, id=f"small/{number}")
    served: list[str] = []
    while len(served) < 40:
        (holder,) = machine.granted
        machine.release(holder, total_s=holder.request.cost)
        served.append(holder.request.tenant)
    assert Counter(served[1:]) == {"big": 8, "small": 31}


def test_work_too_short_to_be_measured_counts_as_was_said() -> None:
    """Differences of microseconds say more about this process than about the work: the turns stay strict."""
    machine = crowd({"a": 20, "b": 20})
    served = []
    for number in range(30):
        (holder,) = machine.granted
        machine.release(holder, total_s=1e-6 * (number % 7))
        served.append(holder.request.tenant)
    assert served == ["a", "b"] * 15


@pytest.mark.parametrize("result", [Result.OK, Result.FAILED, Result.CANCELLED])
def test_work_counts_however_it_ends(result: Result) -> None:
    """A tenant that cancels late has used the slot as well."""
    machine = crowd({"late": 30, "other": 30})
    used: Counter[str] = Counter()
    for number in range(200):
        (holder,) = machine.granted
        tenant = holder.request.tenant
        seconds = 4 if tenant == "late" else 1
        ended = result if tenant == "late" else Result.OK
        machine.release(
            holder, FailureKind.REJECTED if ended is Result.FAILED else None, result=ended, total_s=float(seconds)
        )
        if number > 60:
            used[tenant] += seconds
        machine.submit(tenant=tenant)
    assert used["late"] / used["other"] == pytest.approx(1.0, abs=0.25)


def test_one_who_waits_alone_owes_nothing_to_who_comes_later() -> None:
    """Long work while nobody else wanted the slot is not held against it."""
    machine = crowd({"early": 20})
    serve(machine, {"early": 50.0}, 30)
    for _ in range(20):
        machine.submit(tenant="new")
    used = serve(machine, {"early": 1.0, "new": 1.0}, 20)
    assert abs(used["early"] - used["new"]) <= 4


def test_an_empty_queue_forgets_what_is_owed() -> None:
    """What began before it was empty is not charged in the next crowd."""
    machine = Machine(max_queue=100)
    machine.add("a", max_concurrent=2)
    first = [machine.submit(tenant="x") for _ in range(3)]
    machine.release(first[0])
    assert machine.granted.keys() == set(first[1:])
    for _ in range(4):
        machine.submit(tenant="x")
        machine.submit(tenant="y")
    machine.release(first[2], total_s=1_000.0)
    machine.release(first[1], total_s=1.0)
    assert Counter(ticket.request.tenant for ticket in machine.granted) == {"x": 1, "y": 1}


@settings(max_examples=40, deadline=None)
@given(
    took=st.lists(st.floats(0.1, 5.0), min_size=2, max_size=4),
    slots=st.integers(1, 5),
)
def test_each_tenant_gets_an_equal_part_of_the_time(took: list[float], slots: int) -> None:
    """However long the work of each takes, and on however many slots."""
    times = {str(number): seconds for number, seconds in enumerate(took)}
    machine = crowd(dict.fromkeys(times, 12), slots=slots)
    serve(machine, times, 300)
    used = serve(machine, times, 600)
    total, largest = sum(used.values()), max(took)
    for tenant in times:
        assert used[tenant] == pytest.approx(total / len(times), abs=0.1 * total / len(times) + 3 * slots * largest)


@given(events=st.lists(st.tuples(st.integers(0, 5000), st.integers(-3, 3), st.floats(0.1, 10.0)), max_size=60))
def test_moving_those_who_wait_keeps_the_queue_in_order(events: list[tuple[int, int, float]]) -> None:
    """The bands stay apart, each request can be found, and a tenant's own requests stay in their order."""
    machine = Machine(max_queue=2_000, shed_from=1.0)
    machine.add("a", max_concurrent=2)
    running: deque[Ticket] = deque()
    for number, (tenant, priority, seconds) in enumerate(events):
        machine.submit(tenant=str(tenant % 3), priority=priority, id=str(number))
        running = deque(machine.granted)
        if number % 3 == 2 and running:
            machine.release(running.popleft(), total_s=seconds)
        for balancer in machine.admission.balancers:
            keys = [ticket.key for ticket in balancer.waiting]
            assert keys == sorted(keys)
            assert [key[0] for key in keys] == sorted(-ticket.request.priority for ticket in balancer.waiting)
            for who in {(ticket.request.tenant, ticket.request.priority) for ticket in balancer.waiting}:
                own = [t.key[2] for t in balancer.waiting if (t.request.tenant, t.request.priority) == who]
                assert own == sorted(own)
    for balancer in machine.admission.balancers:
        for ticket in tuple(balancer.waiting):
            assert machine.admission.cancel(ticket)
    assert machine.admission.waiting == 0


def test_the_table_of_tenants_is_bounded() -> None:
    """Whatever names callers make up, and whatever priorities, while somebody waits all the time."""
    machine = Machine(max_queue=10, shed_from=1.0)
    machine.add("a", max_concurrent=1)
    machine.submit()
    for number in range(6_000):
        machine.submit(tenant=f"t{number}", priority=number // 7)
        if number >= 5:
            (holder,) = machine.granted
            machine.release(holder)
    (balancer,) = machine.admission.balancers
    assert len(balancer._fair._ends) < 1_100
    assert len(balancer._fair._now) < 1_100
    assert len(balancer._fair._debts) < 1_100


def test_those_who_wait_stay_in_the_bounded_table() -> None:
    """Who has much in the queue does not get ahead because others came with many names."""
    fair = FairShares()
    for _ in range(10):
        fair.begin(0, "greedy", 5.0)
    for number in range(1_200):
        fair.begin(0, str(number), 1.0)
        fair.prune(lambda: {(0, "greedy")}, 1)
    assert len(fair._ends) < 1_100
    assert fair.begin(0, "greedy", 1.0)[0] == 50.0


def test_a_tenants_next_request_comes_after_those_that_wait() -> None:
    """Also when much less, then much more, was charged than what was expected of it."""
    fair = FairShares()
    fair.begin(0, "other", 1.0)
    _, charge = fair.begin(0, "a", 1.0)
    waits, _ = fair.begin(0, "a", 1.0)
    fair.granted(0, 5.0)
    for work_s in (0.0, 9.0, 0.0, 4.0):
        waits = fair.moved(0, waits, fair.settle(0, "a", charge, work_s, 0.0))
        assert waits >= 5.0
    assert fair.begin(0, "a", 1.0)[0] >= waits


def test_it_shows_its_counts() -> None:
    """For people who look for a leak."""
    fair = FairShares()
    fair.begin(0, "a", 1.0)
    assert repr(fair) == "<FairShares 1 tenants>"


# -- the measured rate ------------------------------------------------------------------------------------------------------


def test_without_measurements_the_rate_is_what_is_expected() -> None:
    """From the first moment there is an answer."""
    assert ServiceRate().per_s(1_000.0, 4.0) == 4.0


@given(every=st.floats(0.05, 5.0), expected=st.floats(0.01, 100.0))
def test_the_rate_is_that_of_the_ends(every: float, expected: float) -> None:
    """After a minute of them, whatever was expected before."""
    rate, now = ServiceRate(), 1_000.0
    rate.busy(now, busy=True)
    for _ in range(int(120 / every) + 1):
        now += every
        rate.end(now)
    # What was expected counts as one end.
    weight = 30 / every
    low, high = sorted([(weight + 1) / (30 + 1 / expected), 1 / every])
    assert low * 0.9 - 0.1 / every <= rate.per_s(now, expected) <= high * 1.1 + 0.1 / every


def test_only_the_time_in_which_somebody_waits_counts() -> None:
    """Ends of an idle hour say nothing about how fast a queue moves."""
    rate = ServiceRate()
    rate.busy(0.0, busy=True)
    for second in range(1, 11):
        rate.end(float(second))
    before = rate.per_s(10.0, 1.0)
    rate.busy(10.0, busy=False)
    for second in range(11, 15):
        rate.end(float(second))
    assert rate.per_s(15.0, 1.0) == pytest.approx(before, rel=0.01)


def test_what_was_measured_long_ago_is_forgotten() -> None:
    """After minutes without a queue the expectation counts again."""
    rate = ServiceRate()
    rate.busy(0.0, busy=True)
    for number in range(1, 101):
        rate.end(number / 10)
    rate.busy(10.0, busy=False)
    assert rate.per_s(10.0, 1.0) == pytest.approx(10.0, rel=0.1)
    assert rate.per_s(310.0, 1.0) == pytest.approx(1.0, rel=0.05)


def test_a_queue_that_stands_still_gets_a_low_rate() -> None:
    """Nothing ends, so what is expected is worth less and less."""
    rate = ServiceRate()
    rate.busy(0.0, busy=True)
    assert rate.per_s(59.0, 1.0) < 0.05


def test_when_to_come_back_is_measured() -> None:
    """An instance with four slots that serves one request a second in all is as fast as that, not four times as fast."""
    machine = Machine(max_queue=8, shed_from=1.0)
    machine.add("a", max_concurrent=4)
    for _ in range(12):
        machine.submit()
    for _ in range(100):
        machine.clock.advance(1.0)
        machine.release(next(iter(machine.granted)), total_s=1.0)
        ticket = machine.submit()
    with pytest.raises(QueueFull) as caught:
        machine.submit()
    assert caught.value.retry_after_s == pytest.approx(9.0, rel=0.1)
    assert (ticket.position, ticket.expected_wait_s) == (8, pytest.approx(8.0, rel=0.1))


# -- what those who wait are told -----------------------------------------------------------------------------------------------


def test_the_place_in_the_queue_is_told() -> None:
    """From 1, by band and share; 0 for who does not wait."""
    machine = crowd({"a": 4})
    (holder,) = machine.granted
    assert (holder.position, holder.expected_wait_s) == (0, 0.0)
    last, early, first = machine.submit(tenant="a"), machine.submit(tenant="b"), machine.submit(priority=1)
    assert [ticket.position for ticket in (last, early, first)] == [4, 2, 1]
    assert [ticket.expected_wait_s for ticket in (last, early, first)] == [4.0, 2.0, 1.0]


def test_queues_are_reported_while_somebody_waits() -> None:
    """With their numbers; others are not."""
    machine = Machine(max_queue=7)
    machine.add("a", capabilities=frozenset({"model:m", "x"}), max_concurrent=1)
    assert machine.admission.queues() == ()
    holder = machine.submit(capabilities=frozenset({"model:m"}))
    assert machine.admission.queues() == ()
    machine.submit(capabilities=frozenset({"model:m"}), tenant="t")
    machine.clock.advance(3.0)
    machine.submit(capabilities=frozenset({"model:m"}), tenant="t", priority=2)
    machine.submit(capabilities=frozenset({"x"}))
    first, second = machine.admission.queues()
    assert (first.route, first.needs, first.model) == ("all", "model:m (echo over call)", "m")
    assert (first.waiting, first.limit, first.oldest_s) == (2, 7, 3.0)
    assert (dict(first.tenants), dict(first.bands)) == ({"t": 2}, {0: 1, 2: 1})
    assert first.rate_per_s == pytest.approx(1 / 4.0, rel=0.1)
    assert first.expected_wait_s == pytest.approx(3 / first.rate_per_s)
    assert (second.model, second.waiting, second.oldest_s) == ("", 1, 0.0)
    machine.release(holder)
    while machine.granted:
        machine.release(next(iter(machine.granted)))
    assert machine.admission.queues() == ()
