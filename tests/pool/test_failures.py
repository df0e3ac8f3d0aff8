"""How failures of an instance count: ejected, down, degraded, or served all the same when too few are left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.breaker import BreakerState
from gleitzeit_core.effects import Changed, Suspect
from gleitzeit_core.errors import FailureKind
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result

from .use import serving, use

if TYPE_CHECKING:
    from gleitzeit_core.testing.machine import Machine


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


@pytest.mark.parametrize("kind", [FailureKind.REJECTED, FailureKind.DECLINED, FailureKind.BUSY, None])
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
    "kind",
    [FailureKind.REJECTED, FailureKind.DECLINED, FailureKind.BUSY, FailureKind.REFUSED, FailureKind.UNAUTHORIZED, None],
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
