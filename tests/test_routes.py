"""Routes that change while requests wait and run, and slots that are taken out of plenty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict

from gleitzeit_core.errors import FailureKind, NoCapableInstance, QueueFull, ShuttingDown
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Result
from gleitzeit_core.routing import Route, Share
from gleitzeit_core.strategies.base import NoOptions, Strategy, Wait
from gleitzeit_core.strategies.chain import Chain
from gleitzeit_core.strategies.simple import RoundRobin
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome, Request
    from gleitzeit_core.strategies.base import Candidate, View

X = frozenset({"x"})
Y = frozenset({"y"})


class Limit(BaseModel):
    """How much."""

    model_config = ConfigDict(frozen=True)

    at_most: int = 0
    again_s: float | None = None


class Careful(Strategy[Limit]):
    """Lets each instance have only so many at once; counts what it hears."""

    name = "careful"

    def __init__(self, options: Limit, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self.asked = 0
        self.heard: list[str] = []

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """The least loaded, unless it has enough."""
        del request
        self.asked += 1
        found = view.least_loaded(self.random)
        return found if found.in_flight < self.options.at_most else Wait(self.options.again_s)

    def started(self, request: Request, candidate: Candidate) -> None:
        """Remembered."""
        self.heard.append(f"+{request.id} {candidate.instance.endpoint}")

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:
        """Remembered."""
        self.heard.append(f"-{request.id} {candidate.instance.endpoint} {outcome.result}")


def careful(at_most: int, again_s: float | None = None) -> Callable[[Random, Clock], Strategy[Any]]:
    """Makes one."""
    return lambda random, clock: Careful(Limit(at_most=at_most, again_s=again_s), random=random, clock=clock)


def strategies(machine: Machine) -> list[Strategy[Any]]:
    """Those in use."""
    return [balancer.strategy for balancer in machine.admission.balancers]


def change(machine: Machine, *more: Route, **fields: Any) -> None:  # noqa: ANN401 - any field
    """Change the machine's route."""
    old = machine.route
    kept = {"name": old.name, "methods": old.methods, "strategy": old.strategy, "max_queue": old.max_queue}
    machine.route = Route(**{**kept, **fields})
    machine.admission.set_routes([machine.route, *more])


# -- set_routes ---------------------------------------------------------------------------------------------------------


def test_a_strategy_of_the_same_kind_gets_its_new_options_and_stays() -> None:
    """What it has learned is kept, and those who wait are asked about at once."""
    machine = Machine(careful(1))
    machine.add("a")
    machine.submit()
    waiting = machine.submit()
    (before,) = strategies(machine)
    change(machine, strategy=careful(2))
    (after,) = strategies(machine)
    assert after is before
    assert after.options == Limit(at_most=2)
    assert machine.where(waiting) == "a"


def test_another_strategy_takes_over() -> None:
    """Each hears of the ends of what it saw begin, and of nothing else."""
    machine = Machine(careful(9))
    machine.add("a")
    old_one = machine.submit(id="1")
    (old,) = strategies(machine)
    change(machine, strategy=lambda random, clock: RoundRobin(NoOptions(), random=random, clock=clock))
    (picker,) = strategies(machine)
    assert isinstance(picker, RoundRobin)
    change(machine, strategy=careful(9))
    (new,) = strategies(machine)
    new_one = machine.submit(id="2")
    machine.release(old_one)
    machine.release(new_one)
    assert isinstance(old, Careful)
    assert isinstance(new, Careful)
    assert (old.heard, new.heard) == (["+1 a", "-1 a ok"], ["+2 a", "-2 a ok"])


def test_a_chain_is_reconfigured_when_its_members_are_the_same() -> None:
    """And replaced when they are not."""

    def pair(at_most: int) -> Callable[[Random, Clock], Strategy[Any]]:
        return lambda random, clock: Chain([], careful(at_most)(random, clock))

    machine = Machine(pair(1))
    machine.add("a")
    machine.submit()
    (before,) = strategies(machine)
    change(machine, strategy=pair(2))
    assert strategies(machine) == [before]
    assert machine.submit() in machine.granted
    change(machine, strategy=careful(2))
    assert isinstance(strategies(machine)[0], Careful)


def test_a_strategy_that_cannot_be_reconfigured_begins_anew() -> None:
    """It is a plugin: its mistake is logged, and the new options hold."""

    class Stubborn(Careful):
        def reconfigure(self, options: Limit) -> None:
            raise LookupError(f"never {options}")

    def make(at_most: int) -> Callable[[Random, Clock], Strategy[Any]]:
        return lambda random, clock: Stubborn(Limit(at_most=at_most), random=random, clock=clock)

    machine = Machine(make(1))
    machine.add("a")
    machine.submit()
    (before,) = strategies(machine)
    change(machine, strategy=make(5))
    (after,) = strategies(machine)
    assert after is not before
    assert after.options == Limit(at_most=5)


def test_a_strategy_that_cannot_be_made_changes_nothing() -> None:
    """Not even half of it."""

    def broken(*_: object) -> Strategy[Any]:
        raise LookupError("no")

    machine = Machine(careful(1), max_queue=1)
    machine.add("a")
    machine.submit()
    (before,) = strategies(machine)
    old = machine.route
    with pytest.raises(LookupError):
        change(machine, strategy=broken, max_queue=9)
    machine.route = old
    machine.submit()
    with pytest.raises(QueueFull):
        machine.submit()
    assert strategies(machine) == [before]


def test_nobody_who_waits_loses_its_place() -> None:
    """Also when the queue may be shorter now; and who has waited is served by the new rules."""
    machine = Machine(max_queue=5)
    machine.add("a", max_concurrent=1)
    holder = machine.submit()
    waiting = [machine.submit() for _ in range(5)]
    change(machine, max_queue=2)
    assert machine.admission.waiting == 5
    with pytest.raises(QueueFull) as caught:
        machine.submit()
    assert caught.value.limit == 2
    for ticket in waiting:
        machine.release(holder)
        assert machine.where(ticket) == "a"
        holder = ticket


def test_other_hubs_serve_those_who_wait() -> None:
    """Or nobody can, and they learn that at once."""
    machine = Machine(hubs=frozenset({"one"}))
    machine.add("a", hub="one", max_concurrent=1)
    machine.add("b", hub="two", max_concurrent=1)
    machine.submit()
    waiting = [machine.submit(), machine.submit()]
    change(machine, hubs=frozenset({"two"}))
    assert machine.where(waiting[0]) == "b"
    change(machine, hubs=frozenset({"three"}))
    assert isinstance(machine.rejected[waiting[1]], NoCapableInstance)


def test_a_request_from_before_the_change_is_served_by_the_new_rules() -> None:
    """It may have been made, and not submitted."""
    machine = Machine(max_queue=0)
    machine.add("a", max_concurrent=1)
    machine.submit()
    made_before = machine.ticket(capabilities=frozenset())
    machine.admission._table.balancers.clear()
    change(machine, max_queue=1)
    assert machine.submit(made_before).waits


def test_a_route_that_is_gone_serves_those_who_wait_and_disappears() -> None:
    """Its queue is shown until it is empty; a last straggler is served as well."""
    machine = Machine()
    machine.add("a", max_concurrent=1)
    holder, waiting, straggler = machine.submit(), machine.submit(), machine.ticket()
    other = Route(name="other", methods=("*",), strategy=machine.route.strategy)
    machine.admission.set_routes([other])
    assert [report.route for report in machine.admission.queues()] == ["all"]
    machine.release(holder)
    assert machine.where(waiting) == "a"
    assert machine.admission.balancers == ()
    machine.submit(straggler)
    assert len(machine.admission.balancers) == 1
    machine.release(waiting)
    assert machine.where(straggler) == "a"
    machine.release(straggler)
    assert machine.admission.balancers == ()


def test_a_retry_of_a_route_that_is_gone_is_served() -> None:
    """It goes on where it began."""
    machine = Machine()
    machine.add("a")
    machine.add("b")
    ticket = machine.submit()
    machine.admission.set_routes([Route(name="other", methods=("*",), strategy=machine.route.strategy)])
    slot = machine.release(ticket, FailureKind.SERVER_ERROR)
    ticket.excluded = frozenset({(slot.instance.id, 0)})
    assert machine.where(machine.submit(ticket)) not in ("", slot.instance.endpoint)


def test_of_two_routes_with_one_name_the_first_counts() -> None:
    """As where methods are matched."""
    machine = Machine()
    machine.add("a", max_concurrent=1)
    again = Route(name="all", methods=("*",), strategy=machine.route.strategy, max_queue=0)
    change(machine, again)
    machine.submit()
    assert machine.submit().waits


# -- a strategy that waits for a while ----------------------------------------------------------------------------------------


def test_a_strategy_is_asked_again_when_it_wants_to_be() -> None:
    """Without any event, at that moment; one timer serves all who wait."""
    machine = Machine(careful(0, again_s=2.0))
    machine.add("a")
    waiting = [machine.submit() for _ in range(5)]
    (picker,) = strategies(machine)
    assert isinstance(picker, Careful)
    assert machine.clock.pending == 1
    asked = picker.asked
    machine.clock.advance(1.9)
    assert picker.asked == asked
    picker.reconfigure(Limit(at_most=9))
    machine.clock.advance(0.1)
    assert [machine.where(ticket) for ticket in waiting] == ["a", "a", "a", "a", ""]
    machine.release(waiting[0])
    assert machine.clock.pending == 0


def test_the_earliest_moment_counts() -> None:
    """Whichever request it was said for."""
    machine = Machine(careful(0, again_s=5.0))
    machine.add("a")
    waiting = machine.submit()
    (picker,) = strategies(machine)
    picker.reconfigure(Limit(again_s=1.0))
    machine.submit()
    assert machine.clock.pending == 1
    assert machine.clock.next_at == machine.clock.monotonic() + 1.0
    picker.reconfigure(Limit(again_s=50.0))
    machine.submit()
    assert machine.clock.next_at == machine.clock.monotonic() + 1.0
    picker.reconfigure(Limit(at_most=1))
    machine.clock.advance(1.0)
    assert machine.where(waiting) == "a"


def test_nothing_is_left_of_a_wait_that_ends() -> None:
    """With the last who waits, its timer goes."""
    machine = Machine(careful(0, again_s=5.0))
    machine.add("a")
    waiting = [machine.submit(), machine.submit()]
    machine.admission.cancel(waiting[0])
    assert machine.clock.pending == 1
    machine.admission.cancel(waiting[1])
    assert machine.clock.pending == 0


@pytest.mark.parametrize("again_s", [0.0, -1.0, float("nan")])
def test_one_that_wants_to_be_asked_at_once_is_asked_a_little_later(again_s: float) -> None:
    """Or nothing else would ever happen."""
    machine = Machine(careful(0, again_s=again_s))
    machine.add("a")
    machine.submit()
    (picker,) = strategies(machine)
    assert isinstance(picker, Careful)
    machine.clock.advance(1.0)
    assert 900 <= picker.asked <= 1_100


def test_a_strategy_that_waits_is_not_asked_for_everybody() -> None:
    """An event costs at most sixteen questions, however many wait."""
    machine = Machine(careful(0), max_queue=500, shed_from=1.0)
    machine.add("a")
    for _ in range(200):
        machine.submit()
    (picker,) = strategies(machine)
    assert isinstance(picker, Careful)
    before = picker.asked
    machine.admission.supply_changed()
    assert picker.asked == before + 16


@pytest.mark.parametrize("chained", [False, True])
def test_a_strategy_knows_how_many_wait(chained: bool) -> None:  # noqa: FBT001 - a table
    """The one it is asked for included, when that waits; in a chain as well."""
    seen: list[int] = []

    class Looking(Careful):
        def pick(self, request: Request, view: View) -> Candidate | Wait:
            seen.append(self.waiting)
            return super().pick(request, view)

    def make(random: Random, clock: Clock) -> Strategy[Any]:
        looking = Looking(Limit(at_most=1), random=random, clock=clock)
        return Chain([], looking) if chained else looking

    machine = Machine(make)
    machine.add("a")
    holder = machine.submit()
    for _ in range(3):
        machine.submit()
    seen.clear()
    machine.release(holder)
    assert seen[:2] == [3, 2]


def test_a_refused_request_sets_no_timer() -> None:
    """There is nobody to ask for."""
    machine = Machine(careful(0, again_s=5.0), max_queue=0)
    machine.add("a")
    with pytest.raises(QueueFull):
        machine.submit()
    assert machine.clock.pending == 0


# -- slots out of plenty -----------------------------------------------------------------------------------------------------------


def take(machine: Machine, *, warm: bool = False, **fields: Any) -> str:  # noqa: ANN401 - any field
    """Where a second try gets a slot; empty for nowhere."""
    ticket = machine.ticket(**fields)
    slot = machine.admission.take_now(ticket, warm=warm)
    if slot is None:
        assert not ticket.waits
        return ""
    machine.granted[ticket] = slot
    return slot.instance.endpoint


def test_a_second_try_gets_a_slot_where_there_is_plenty() -> None:
    """It counts like any other, and is released like any other."""
    machine = Machine()
    machine.add("a", max_concurrent=4)
    assert take(machine) == "a"
    assert machine.record("a").in_flight == 1
    machine.release(next(iter(machine.granted)), result=Result.CANCELLED)
    assert machine.admission.pool.in_flight == 0


def test_it_gets_none_in_a_saturated_pool() -> None:
    """Less than a fifth of the slots is free."""
    machine = Machine()
    machine.add("a", max_concurrent=10)
    for _ in range(8):
        machine.submit()
    assert take(machine) == "a"
    assert take(machine) == ""


def test_it_never_passes_those_who_wait() -> None:
    """Nor waits itself."""
    machine = Machine(careful(1))
    machine.add("a")
    machine.submit()
    assert machine.submit().waits
    assert take(machine) == ""
    assert machine.admission.waiting == 1


def test_it_gets_another_instance() -> None:
    """The one it excludes is where the first try is."""
    machine = Machine()
    machine.add("a")
    ticket = machine.ticket()
    ticket.excluded = frozenset({(machine.record("a").instance.id, 0)})
    assert machine.admission.take_now(ticket, warm=False) is None
    machine.add("b")
    slot = machine.admission.take_now(ticket, warm=False)
    assert slot is not None
    assert slot.instance.endpoint == "b"


@pytest.mark.parametrize(
    ("warm_a", "warm_b", "expected"),
    [
        (frozenset[str](), X, "b"),
        (Y, X | Y, "b"),
        (Y, Y, ""),
        (frozenset[str](), Y, ""),
        (X, frozenset[str](), "a"),
    ],
)
def test_it_never_warms_anything_up(warm_a: frozenset[str], warm_b: frozenset[str], expected: str) -> None:
    """Where instances say what they have ready, only one that has it."""
    machine = Machine()
    machine.add("a", capabilities=X | Y, warm=warm_a)
    machine.add("b", capabilities=X | Y, warm=warm_b)
    assert {take(machine, warm=True, capabilities=X) for _ in range(2)} == {expected}
    assert take(machine, warm=False, capabilities=X)


def test_where_nobody_says_what_is_ready_anything_will_do() -> None:
    """Not every kind of resource has such a thing."""
    machine = Machine()
    machine.add("a", capabilities=X)
    assert take(machine, warm=True, capabilities=X) == "a"


def test_it_respects_the_strategy_and_the_shares() -> None:
    """Who picks says Wait, or what is free is kept for somebody else."""
    machine = Machine(careful(1))
    machine.add("a")
    assert [take(machine), take(machine)] == ["a", ""]
    kept = Machine(shares=(Share(share=0.75, tenant="gold"),))
    kept.add("a")
    assert [take(kept), take(kept), take(kept, tenant="gold")] == ["a", "", "a"]


def test_it_gets_nothing_where_nothing_is_up_or_taken_any_more() -> None:
    """No error: it was not asked for by anybody."""
    machine = Machine()
    assert take(machine) == ""
    record = machine.add("a")
    machine.admission.set_state(record.instance.id, State.DOWN)
    assert take(machine) == ""
    machine.admission.set_state(record.instance.id, State.READY)
    machine.admission.close()
    assert take(machine) == ""
    with pytest.raises(ShuttingDown):
        machine.submit()
