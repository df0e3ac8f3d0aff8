"""In which order those who wait get a slot."""

from __future__ import annotations

from gleitzeit_core.testing.machine import Machine

from .stage import X, Y, busy, order


def test_higher_priority_goes_first() -> None:
    """Whenever it came."""
    machine = Machine()
    holder = busy(machine)
    for number, priority in enumerate([0, 0, 5, -1, 5]):
        machine.submit(id=f"{priority}/{number}", priority=priority)
    assert order(machine, holder) == ["5/2", "5/4", "0/0", "0/1", "-1/3"]


def test_tenants_share_by_turns() -> None:
    """Who sends one request does not wait for the hundred that somebody else sent before."""
    machine = Machine()
    holder = busy(machine)
    for number in range(6):
        machine.submit(id=f"greedy/{number}", tenant="greedy")
    machine.submit(id="modest/0", tenant="modest")
    machine.submit(id="modest/1", tenant="modest")
    assert order(machine, holder)[:4] == ["greedy/0", "modest/0", "greedy/1", "modest/1"]


def test_tenants_share_by_work_not_by_requests() -> None:
    """One whose requests cost three times as much gets a third as many."""
    machine = Machine()
    holder = busy(machine)
    for number in range(4):
        machine.submit(id=f"big/{number}", tenant="big", cost=3.0)
    for number in range(12):
        machine.submit(id=f"small/{number}", tenant="small", cost=1.0)
    first_eight = [name.partition("/")[0] for name in order(machine, holder)[:8]]
    assert (first_eight.count("big"), first_eight.count("small")) == (2, 6)


def test_one_who_comes_late_has_no_credit() -> None:
    """Having asked for nothing so far is no claim to all that comes."""
    machine = Machine()
    holder = busy(machine)
    for number in range(20):
        machine.submit(id=f"a/{number}", tenant="a")
    for _ in range(10):
        machine.release(holder)
        (holder,) = machine.granted
    for number in range(10):
        machine.submit(id=f"b/{number}", tenant="b")
    first_eight = [name[0] for name in order(machine, holder)[:8]]
    assert abs(first_eight.count("a") - first_eight.count("b")) <= 2


def test_fairness_in_one_band_does_not_depend_on_another() -> None:
    """However much was served with high priority, two tenants of the low band still take turns."""
    machine = Machine()
    holder = busy(machine)
    machine.submit(id="low/x0", tenant="x", priority=-1)
    for number in range(50):
        machine.submit(id=f"high/{number}", tenant="x")
    for number in range(1, 5):
        machine.submit(id=f"low/x{number}", tenant="x", priority=-1)
    for _ in range(50):
        machine.release(holder)
        (holder,) = machine.granted
    machine.submit(id="low/y0", tenant="y", priority=-1)
    assert order(machine, holder).index("low/y0") <= 1


def test_of_two_queues_for_one_instance_the_older_goes_first() -> None:
    """Different capabilities, one slot: arrival decides between the heads."""
    machine = Machine()
    machine.add("a", capabilities=X | Y, max_concurrent=1)
    holder = machine.submit(capabilities=X)
    for number, capability in enumerate([Y, X, Y, X]):
        machine.submit(id=str(number), capabilities=capability)
    assert order(machine, holder) == ["0", "1", "2", "3"]


def test_one_that_is_tried_again_goes_first_and_in_turn() -> None:
    """It lost its place through no fault of its own: before those of its band, the first failed first."""
    machine = Machine()
    holder = busy(machine)
    machine.submit(id="new")
    machine.submit(id="vip", priority=1)
    for number in range(3):
        again = machine.ticket(id=f"lost/{number}")
        again.excluded = frozenset({("it died", 0)})
        machine.submit(again)
    machine.submit(id="newer")
    assert order(machine, holder) == ["vip", "lost/0", "lost/1", "lost/2", "new", "newer"]
