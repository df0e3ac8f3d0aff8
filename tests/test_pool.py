from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.breaker import BreakerPolicy, BreakerState
from gleitzeit_core.effects import Changed, Emptied, Recycle, Suspect
from gleitzeit_core.errors import FailureKind
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Ownership
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from gleitzeit_core.records import Slot, Snapshot

STILL = BreakerPolicy(jitter=0.0)


@pytest.fixture
def machine() -> Machine:
    """Without jitter."""
    return Machine(policy=STILL)


def snapshot(machine: Machine) -> Snapshot:
    """Of all instances."""
    return machine.admission.pool.snapshot(None, machine.ticket().request.requirements)


def serving(machine: Machine) -> list[str]:
    """Endpoints of those that are given work."""
    return [record.instance.endpoint for record in snapshot(machine).candidates]


def use(machine: Machine, name: str, kind: FailureKind | None = None, retry_after_s: float | None = None) -> None:
    """One try on an instance, whatever the strategy would say."""
    pool = machine.admission.pool
    slot = pool.take(machine.record(name))
    outcome = Outcome(result=Result.FAILED if kind else Result.OK, kind=kind, retry_after_s=retry_after_s)
    machine.admission.release(machine.ticket(), slot, outcome)


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


# -- how failures count -----------------------------------------------------------------------------------------------------


def test_five_failures_in_a_row_eject(machine: Machine) -> None:
    """It gets nothing for five seconds, then one request, and after that more and more."""
    machine.add("other")
    record = machine.add("a", max_concurrent=16)
    for _ in range(5):
        assert record.condition == "ready"
        use(machine, "a", FailureKind.SERVER_ERROR)
    assert record.condition == "ejected"
    assert serving(machine) == ["other"]
    machine.clock.advance(5.0)
    assert (record.condition, record.room) == ("ready", 1)
    use(machine, "a")
    assert record.room == 2
    for room in (4, 8, 16, 16):
        use(machine, "a")
        assert record.room == room


def test_what_is_ejected_says_why_and_for_how_long(machine: Machine) -> None:
    """For people; nothing of it is left when it is over."""
    machine.add("other")
    record = machine.add("a")
    for kind in (*(FailureKind.TIMEOUT,) * 4, FailureKind.SERVER_ERROR):
        use(machine, "a", kind)
    assert record.why == "5 failures in a row, the last: server error; tried again in 5 s"
    machine.clock.advance(3)
    assert record.why == "5 failures in a row, the last: server error; tried again in 2 s"
    machine.clock.advance(2)
    assert record.why == ""
    use(machine, "a", FailureKind.TIMEOUT)
    assert record.why == "5 failures in a row, the last: server error; tried again in 10 s"


def test_observers_hear_of_an_ejection_and_of_its_end(machine: Machine) -> None:
    """Otherwise a listing would show it as ejected for ever."""
    machine.add("other")
    machine.add("a")
    machine.taken(Changed)
    for _ in range(5):
        use(machine, "a", FailureKind.SERVER_ERROR)
    machine.clock.advance(5.0)
    assert [effect.change.state for effect in machine.taken(Changed)] == ["ejected", "ready"]
    assert len(machine.taken(Suspect)) == 1


def test_success_is_the_first_output(machine: Machine) -> None:
    """A stream that has begun has proved its instance well, long before it ends."""
    machine.add("other")
    record = machine.add("a")
    for _ in range(5):
        use(machine, "a", FailureKind.SERVER_ERROR)
    machine.clock.advance(5.0)
    slot = machine.admission.pool.take(record)
    assert record.room == 0
    machine.admission.progress(slot)
    assert record.breaker.state is BreakerState.CLOSED
    assert record.room == 1
    machine.admission.progress(slot)
    assert record.room == 1, "only the first output counts"
    machine.admission.release(machine.ticket(), slot, Outcome(result=Result.FAILED, kind=FailureKind.LOST))
    assert repr(record.breaker) == "<CircuitBreaker closed, 0 failures, opened 0 times>"


@pytest.mark.parametrize("kind", [FailureKind.REJECTED, FailureKind.BUSY, None])
def test_what_says_nothing_of_the_instance_is_not_counted(machine: Machine, kind: FailureKind | None) -> None:
    """Neither the caller's own mistakes, nor busy answers, nor callers that leave."""
    record = machine.add("a")
    for _ in range(20):
        slot = machine.admission.pool.take(record)
        result = Result.FAILED if kind else Result.CANCELLED
        machine.admission.release(machine.ticket(), slot, Outcome(result=result, kind=kind, retry_after_s=0.0))
        machine.clock.advance(0.0)
    assert (record.condition, record.room) == ("ready", 1 if kind is FailureKind.BUSY else 4)


@pytest.mark.parametrize(
    "kind", [FailureKind.REJECTED, FailureKind.BUSY, FailureKind.REFUSED, FailureKind.UNAUTHORIZED, None]
)
def test_however_a_try_on_trial_ends_its_permit_is_given_back(machine: Machine, kind: FailureKind | None) -> None:
    """A half-open instance is not kept out by a try that ended long ago."""
    machine.add("other")
    record = machine.add("a", probe=True)
    for _ in range(5):
        use(machine, "a", FailureKind.SERVER_ERROR)
    machine.clock.advance(5.0)
    slot = machine.admission.pool.take(record)
    result = Result.FAILED if kind else Result.CANCELLED
    machine.admission.release(machine.ticket(), slot, Outcome(result=result, kind=kind, retry_after_s=0.0))
    machine.admission.set_state(record.instance.id, State.READY)
    machine.clock.advance(20.0)
    assert record.room == 1


def test_a_busy_instance_is_left_alone_as_long_as_it_asks(machine: Machine) -> None:
    """It keeps what it has, and comes back by itself: with what it has shown it can take."""
    record = machine.add("a")
    use(machine, "a", FailureKind.BUSY, retry_after_s=3.0)
    assert (record.condition, record.room) == ("ready", 0)
    machine.clock.advance(2.999)
    assert record.room == 0
    machine.clock.advance(0.001)
    assert record.room == 1


@pytest.mark.parametrize(("asked", "given"), [(None, 1.0), (1e9, 60.0), (-5.0, 0.0), (float("nan"), 0.0)])
def test_what_a_busy_instance_asks_for_is_bounded(machine: Machine, asked: float | None, given: float) -> None:
    """A second when it does not say, a minute at most, and nothing that is no time keeps it out."""
    record = machine.add("a")
    use(machine, "a", FailureKind.BUSY, retry_after_s=asked)
    machine.clock.advance(given)
    assert record.room == 1


def test_a_shorter_wish_does_not_end_a_longer_one(machine: Machine) -> None:
    """Of two busy answers the later moment counts."""
    record, pool = machine.add("a"), machine.admission.pool
    slots = [pool.take(record), pool.take(record)]
    for slot, seconds in zip(slots, (10.0, 1.0), strict=True):
        outcome = Outcome(result=Result.FAILED, kind=FailureKind.BUSY, retry_after_s=seconds)
        machine.admission.release(machine.ticket(), slot, outcome)
    machine.clock.advance(9.0)
    assert record.room == 0
    machine.clock.advance(1.0)
    assert record.room == 1


def test_refused_is_down_at_once(machine: Machine) -> None:
    """One refused connection is enough, it gets no panic traffic, and a probe is asked for."""
    record = machine.add("a", probe=True)
    use(machine, "a", FailureKind.REFUSED)
    assert (record.condition, record.reason) == ("down", "refused the connection")
    assert serving(machine) == []
    assert len(machine.taken(Suspect)) == 1
    machine.clock.advance(1e6)
    assert record.condition == "down", "only a probe brings it back"
    machine.admission.set_state(record.instance.id, State.READY)
    assert record.room == 1, "slowly"


def test_refused_while_it_is_known_to_be_down_says_nothing_new(machine: Machine) -> None:
    """Ten requests on their way to a server that dies count as one failure, not as ten."""
    record, pool = machine.add("a", probe=True, max_concurrent=10), machine.admission.pool
    for slot in [pool.take(record) for _ in range(10)]:
        machine.admission.release(machine.ticket(), slot, Outcome(result=Result.FAILED, kind=FailureKind.REFUSED))
    machine.admission.set_state(record.instance.id, State.READY)
    assert record.condition == "ready"


def test_a_probe_that_is_too_easy_does_not_make_a_sinkhole(machine: Machine) -> None:
    """What passes every probe and refuses every request is ejected all the same: probes do not reset counts."""
    machine.add("other")
    record = machine.add("a", probe=True)
    for _ in range(5):
        use(machine, "a", FailureKind.REFUSED)
        machine.admission.set_state(record.instance.id, State.READY)
    assert record.condition == "ejected"


def test_what_nobody_may_probe_comes_back_by_itself(machine: Machine) -> None:
    """After five seconds one request is let through to see."""
    record = machine.add("a", probe=False)
    use(machine, "a", FailureKind.REFUSED)
    assert serving(machine) == []
    machine.clock.advance(5.0)
    assert (record.condition, record.room) == ("ready", 1)
    use(machine, "a")
    assert record.room == 2


def test_refused_credentials_are_a_configuration_error(machine: Machine) -> None:
    """Shown as such, until a probe passes."""
    record = machine.add("a", probe=True)
    use(machine, "a", FailureKind.UNAUTHORIZED)
    assert (record.condition, record.reason) == ("misconfigured", "refuses our credentials")
    machine.admission.set_state(record.instance.id, State.READY)
    assert (record.condition, record.reason) == ("ready", "")


def test_what_was_never_up_does_not_start_slowly(machine: Machine) -> None:
    """A first check is not a recovery: eight requests on two new instances need not wait for each other."""
    record = machine.add("a", State.DOWN, probe=True)
    machine.admission.set_state(record.instance.id, State.READY)
    assert record.room == 4


def test_a_recovery_counts_what_still_runs(machine: Machine) -> None:
    """With two requests in flight it may have one more."""
    record, pool = machine.add("a", probe=True), machine.admission.pool
    pool.take(record)
    pool.take(record)
    machine.admission.set_state(record.instance.id, State.DOWN)
    machine.admission.set_state(record.instance.id, State.READY)
    assert record.room == 1


# -- limits learned from busy answers ----------------------------------------------------------------------------------------


def busy(machine: Machine, *slots: Slot) -> None:
    """The tries on these slots are refused as too many; there is no need to wait."""
    for slot in slots:
        outcome = Outcome(result=Result.FAILED, kind=FailureKind.BUSY, retry_after_s=0.0)
        machine.admission.release(machine.ticket(), slot, outcome)
    machine.clock.advance(0.0)


def good(machine: Machine, *slots: Slot) -> None:
    """The tries on these slots end well."""
    for slot in slots:
        machine.admission.release(machine.ticket(), slot, Outcome(result=Result.OK))


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


# -- degraded -----------------------------------------------------------------------------------------------------------------


def mixed(machine: Machine, name: str, pattern: str) -> None:
    """Tries that end well (``+``) or badly (``-``)."""
    for end in pattern:
        use(machine, name, FailureKind.SERVER_ERROR if end == "-" else None)


def test_one_failure_in_ten_is_degraded(machine: Machine) -> None:
    """Among twenty at least; it serves on, and counts half."""
    record = machine.add("a", weight=2.0)
    mixed(machine, "a", "+++++++++-+++++++++")
    assert (record.condition, record.why) == ("ready", "")
    mixed(machine, "a", "-")
    assert (record.condition, record.serving, record.why) == ("degraded", True, "2 of the last 20 tries failed")
    assert serving(machine) == ["a"]
    machine.admission.pool.take(record)
    assert record.load == 1.0


def test_it_is_degraded_until_less_than_one_in_twenty_fails(machine: Machine) -> None:
    """So that it does not go to and fro; observers hear of both, once."""
    record = machine.add("a")
    machine.taken(Changed)
    mixed(machine, "a", "+" * 18 + "--" + "+" * 20)
    assert record.condition == "degraded"
    mixed(machine, "a", "+" * 20)
    changes = [(effect.change.state, effect.change.reason) for effect in machine.taken(Changed)]
    assert changes == [("degraded", "2 of the last 20 tries failed"), ("ready", "")]
    assert not record.degraded


def test_time_ends_it_too(machine: Machine) -> None:
    """What gets no work any more is not called degraded for ever; its timer goes with it."""
    record = machine.add("a")
    mixed(machine, "a", "+" * 18 + "--")
    assert machine.clock.pending == 1
    machine.clock.advance(30.0)
    assert (record.condition, machine.clock.pending) == ("ready", 0)


def test_what_is_ejected_is_that_and_no_more(machine: Machine) -> None:
    """And when it comes back it begins anew."""
    machine.add("other")
    record = machine.add("a")
    mixed(machine, "a", "+" * 18 + "--")
    mixed(machine, "a", "-----")
    assert (record.condition, record.serving, record.degraded) == ("ejected", False, {})
    machine.clock.advance(5.0)
    mixed(machine, "a", "+")
    assert record.condition == "ready"


def test_several_may_call_it_degraded(machine: Machine) -> None:
    """Each for its own reason, and each takes back its own; unknown instances are left alone."""
    record = machine.add("a")
    name = record.instance.id
    machine.admission.set_degraded(name, "latency", "slow")
    machine.admission.set_degraded(name, "disk", "full")
    assert (record.condition, record.why) == ("degraded", "slow; full")
    machine.admission.set_degraded(name, "latency", "")
    assert (record.condition, record.why) == ("degraded", "full")
    machine.admission.set_degraded(name, "disk", "")
    machine.admission.set_degraded(name, "disk", "")
    machine.admission.set_degraded("nobody", "disk", "full")
    assert (record.condition, record.why) == ("ready", "")


def test_a_degraded_one_gets_half_as_much(machine: Machine) -> None:
    """Of three requests to two alike it has one."""
    first, second = machine.add("a", max_concurrent=99), machine.add("b", max_concurrent=99)
    machine.admission.set_degraded(first.instance.id, "latency", "slow")
    for _ in range(30):
        machine.submit()
    assert (first.in_flight, second.in_flight) == (10, 20)


def test_what_is_down_is_not_called_degraded(machine: Machine) -> None:
    """Its reason is that of its state."""
    record = machine.add("a", probe=True)
    machine.admission.set_degraded(record.instance.id, "latency", "slow")
    machine.admission.set_state(record.instance.id, State.DOWN, "dead")
    assert (record.condition, record.serving, record.why) == ("down", False, "dead")


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


# -- panic --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (3, 2), (4, 2), (9, 5)])
def test_at_most_half_are_ejected(machine: Machine, count: int, kept: int) -> None:
    """With all failing, those that failed first stay in service."""
    for number in range(count):
        machine.add(f"i{number}")
    for number in range(count):
        for _ in range(5):
            use(machine, f"i{number}", FailureKind.SERVER_ERROR)
        machine.clock.advance(0.1)
    assert serving(machine) == [f"i{number}" for number in range(kept)]


def test_what_is_down_does_not_count_as_up(machine: Machine) -> None:
    """Half of those that are up: two of four when two are down leaves one, not two, to be ejected."""
    for number in range(4):
        machine.add(f"i{number}", probe=True)
    for number in (0, 1):
        machine.admission.set_state(machine.record(f"i{number}").instance.id, State.DOWN)
    for number in (2, 3):
        for _ in range(5):
            use(machine, f"i{number}", FailureKind.SERVER_ERROR)
    assert len(serving(machine)) == 1


def test_in_panic_an_open_breaker_limits_nothing(machine: Machine) -> None:
    """The last one gets everything, and a success there closes its breaker."""
    record = machine.add("a")
    for _ in range(5):
        use(machine, "a", FailureKind.SERVER_ERROR)
    assert (record.breaker.state, record.room) == (BreakerState.OPEN, 4)
    use(machine, "a")
    assert record.breaker.state is BreakerState.CLOSED


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
