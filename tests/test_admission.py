from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.effects import Changed, Effect, Emptied, Granted, Recycle, Scale
from gleitzeit_core.errors import (
    FailureKind,
    InstanceFailure,
    NoCapableInstance,
    QueueFull,
    ShuttingDown,
    Unavailable,
)
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Ownership
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from gleitzeit_core.requests import Request
    from gleitzeit_core.routing import Ticket

X = frozenset({"x"})
Y = frozenset({"y"})
CREATABLE = Offer(OfferKind.CREATABLE)


@pytest.fixture
def machine() -> Machine:
    """With at most three that wait for one capability."""
    return Machine(max_queue=3)


def busy(machine: Machine, name: str = "a", **changes: Any) -> Ticket:  # noqa: ANN401 - any field
    """An instance with one slot, which is taken."""
    machine.add(name, max_concurrent=1, **changes)
    return machine.submit()


def order(machine: Machine, holder: Ticket) -> list[str]:
    """The ids of those that wait, in the order in which they get the one slot. Each takes as long as it costs."""
    served = []
    while holder in machine.granted:
        machine.release(holder, total_s=holder.request.cost)
        if not machine.granted:
            break
        (holder,) = machine.granted
        served.append(holder.request.id)
    return served


# -- who gets a slot ----------------------------------------------------------------------------------------------------


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


# -- in which order -----------------------------------------------------------------------------------------------------------


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


# -- bounds, and hopeless waits -----------------------------------------------------------------------------------------------


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


# -- leaving and closing ------------------------------------------------------------------------------------------------------


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


# -- hubs that create, recycle and retire ---------------------------------------------------------------------------------------


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


# -- effects ------------------------------------------------------------------------------------------------------------------


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


def test_a_strategy_that_raises_does_not_cost_a_slot() -> None:
    """Strategies are plugins: their mistakes are logged, and the slot is right all the same."""
    from gleitzeit_core.strategies.base import NoOptions  # noqa: PLC0415 - beside the class that needs it
    from gleitzeit_core.strategies.simple import RoundRobin  # noqa: PLC0415

    class Broken(RoundRobin):
        def pick(self, *_: object) -> Any:  # noqa: ANN401 - it picks nothing
            raise LookupError("pick")

        def started(self, *_: object) -> None:
            raise LookupError("started")

        def finished(self, *_: object) -> None:
            raise LookupError("finished")

    machine = Machine(lambda random, clock: Broken(NoOptions(), random=random, clock=clock))
    machine.add("a")
    ticket = machine.submit()
    assert machine.where(ticket) == "a"
    machine.release(ticket)
    assert machine.admission.pool.in_flight == 0


@pytest.mark.parametrize("hears", ["started", "finished"])
def test_a_strategy_may_hear_of_beginnings_or_ends_alone(hears: str) -> None:
    """Who wants to know of one of them is told of it, for each try once."""
    from gleitzeit_core.strategies.base import NoOptions  # noqa: PLC0415 - beside the class that needs it
    from gleitzeit_core.strategies.simple import RoundRobin  # noqa: PLC0415

    heard: list[str] = []

    def hear(_: object, request: Request, *__: object) -> None:
        heard.append(request.id)

    curious = type("Curious", (RoundRobin,), {hears: hear})
    machine = Machine(lambda random, clock: curious(NoOptions(), random=random, clock=clock))
    machine.add("a")
    tickets = [machine.submit() for _ in range(3)]
    for ticket in tickets:
        machine.release(ticket)
    assert heard == [ticket.request.id for ticket in tickets]


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
