"""Instances by hand: add, drain, resume, remove, through the shell; and options that change while a hub runs."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest, Unavailable, UnknownName
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Ownership
from gleitzeit_core.shell import Shell
from gleitzeit_core.testing.machine import Machine
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import PATIENCE_S, Todo, Todos

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from gleitzeit_core.pool import Slot
    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.routing import Ticket

# No test ends because this has passed.
LONG_S = 1e6


class Handy(ScriptedHub):
    """Takes instances by hand, retires when a test says so, and counts its checks."""

    def __init__(self, instances: dict[str, dict[str, Any]] | Iterable[str] = (), *, name: str = "") -> None:
        super().__init__(instances, name=name)
        self.retirements: Todos[Todo] = Todos()
        self.examined: list[str] = []

    async def add_instance(self, settings: Mapping[str, Any]) -> ResourceInstance:
        """Its endpoint and any field."""
        fields = dict(settings)
        if "endpoint" not in fields:
            raise InvalidRequest("an instance needs an endpoint", param="endpoint")
        instance = self.make(fields.pop("endpoint"), **{"probe": True, **fields})
        self.publish(instance, State.DOWN if instance.probe else State.READY)
        return instance

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Counted; it finds something."""
        self.examined.append(instance.endpoint)
        return (await super().check(instance)).changed(capabilities=frozenset({"found"}))

    async def retire(self, instance: ResourceInstance) -> None:
        """As told."""
        await self.retirements.add(Todo(f"retire {instance.endpoint}")).wait()


@contextlib.asynccontextmanager
async def shell(*hubs: ScriptedHub) -> AsyncIterator[Shell]:
    """With hubs; closed at the end, with no task left."""
    before = asyncio.all_tasks()
    made = Shell(clock=SystemClock(), random=Random(0))
    for hub in hubs:
        await made.add_hub(hub)
    yield made
    async with asyncio.timeout(PATIENCE_S):
        await made.aclose()
    assert not asyncio.all_tasks() - before


def states(on: Shell) -> dict[str, str]:
    """Of all instances."""
    return {record.instance.endpoint: record.condition for record in on.admission.pool}


def named(on: Shell, endpoint: str) -> str:
    """The id of an instance."""
    return next(record.instance.id for record in on.admission.pool if record.instance.endpoint == endpoint)


def work(on: Shell) -> tuple[Ticket, Slot]:
    """A slot on any instance."""
    ticket = Machine().ticket()
    slot = on.admission.submit(ticket)
    assert slot is not None
    return ticket, slot


def end(on: Shell, taken: tuple[Ticket, Slot]) -> None:
    """The work on it ends."""
    on.admission.release(*taken, Outcome(result=Result.OK))


async def settle() -> None:
    """Let everything happen that does not wait for anything."""
    for _ in range(20):
        await asyncio.sleep(0)


# -- adding -----------------------------------------------------------------------------------------------------------------


async def test_what_is_added_can_be_used_at_once() -> None:
    """It has been checked, and what the check found is in the answer."""
    async with shell(Handy()) as on:
        added = await on.add_instance("echo", {"endpoint": "a", "weight": 2.0})
        assert (added.capabilities, added.weight, states(on)) == ({"found"}, 2.0, {"a": "ready"})
        end(on, work(on))


async def test_what_is_added_may_be_down() -> None:
    """It is known all the same, with its reason, and comes back when it is well."""
    hub = Handy()
    hub.checks["a"] = InstanceFailure(FailureKind.REFUSED, "nobody there")
    async with shell(hub) as on:
        added = await on.add_instance("echo", {"endpoint": "a"})
        assert states(on) == {"a": "down"}
        with pytest.raises(Unavailable, match="nobody there"):
            work(on)
        hub.checks.clear()
        assert await on.health.check(added.id)
        assert states(on) == {"a": "ready"}


async def test_what_nobody_may_check_is_ready() -> None:
    """Nothing but users' requests is sent to it."""
    hub = Handy()
    async with shell(hub) as on:
        await on.add_instance("echo", {"endpoint": "a", "probe": False})
        assert (states(on), hub.examined) == ({"a": "ready"}, [])


async def test_wrong_settings_are_the_callers_fault() -> None:
    """Nothing is added."""
    async with shell(Handy()) as on:
        with pytest.raises(InvalidRequest, match="needs an endpoint") as raised:
            await on.add_instance("echo", {"weight": 2})
        assert (raised.value.param, states(on)) == ("endpoint", {})


async def test_an_unknown_hub_is_named_with_those_there_are() -> None:
    """And the nearest."""
    async with shell(Handy(name="lan")) as on:
        with pytest.raises(UnknownName, match=r"unknown hub 'lam'.*'lan'"):
            await on.add_instance("lam", {"endpoint": "a"})


async def test_a_hub_may_take_none_by_hand() -> None:
    """Those that create theirs, for one; what was asked for is in the message."""
    async with shell(ScriptedHub()) as on:
        with pytest.raises(InvalidRequest, match="hubs of kind 'echo' take no instances by hand"):
            await on.add_instance("echo", {"endpoint": "b"})


async def test_what_another_hub_has_is_not_added_again() -> None:
    """Its slots would be counted twice; which hub has it is said."""
    other = Handy(name="two")
    async with shell(Handy(("a",), name="one"), other) as on:
        with pytest.raises(InvalidRequest, match="a is in the hub 'one' already"):
            await on.add_instance("two", {"endpoint": "a"})
        assert (states(on), other.instances) == ({"a": "ready"}, ())


async def test_adding_what_was_drained_takes_it_back() -> None:
    """Whoever adds an instance wants it used."""
    async with shell(Handy()) as on:
        added = await on.add_instance("echo", {"endpoint": "a"})
        on.drain_instance(added.id)
        assert states(on) == {"a": "drained"}
        await on.add_instance("echo", {"endpoint": "a"})
        assert states(on) == {"a": "ready"}


# -- draining and resuming --------------------------------------------------------------------------------------------------


async def test_a_drained_instance_stays_known_and_is_left_alone() -> None:
    """What it had goes on; then it gets no work and no checks, and no search finds it anew."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        name = named(on, "a")
        taken = work(on)
        on.drain_instance(name)
        assert states(on) == {"a": "draining"}
        end(on, taken)
        assert states(on) == {"a": "drained"}
        hub.examined.clear()
        on.health.suspect(name)
        await hub.search()
        await settle()
        assert (states(on), hub.examined, on.health.history(name)) == ({"a": "drained"}, [], ())
        with pytest.raises(Unavailable, match=r"a is drained \(drained by hand\)"):
            work(on)


async def test_a_resumed_instance_is_checked_and_used() -> None:
    """When this returns; and it is watched again."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        on.drain_instance(named(on, "a"))
        await on.resume_instance(named(on, "a"))
        assert states(on) == {"a": "ready"}
        assert len(on.health.history(named(on, "a"))) == 1
        end(on, work(on))


async def test_a_resumed_instance_may_be_down() -> None:
    """As its check says."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        on.drain_instance(named(on, "a"))
        hub.checks["a"] = InstanceFailure(FailureKind.SERVER_ERROR, "still broken")
        await on.resume_instance(named(on, "a"))
        assert states(on) == {"a": "down"}
        with pytest.raises(Unavailable, match="still broken"):
            work(on)


async def test_draining_can_be_taken_back_before_it_has_ended() -> None:
    """What runs never notices."""
    async with shell(Handy(("a",))) as on:
        taken = work(on)
        on.drain_instance(named(on, "a"))
        await on.resume_instance(named(on, "a"))
        assert states(on) == {"a": "ready"}
        end(on, taken)
        await settle()
        assert states(on) == {"a": "ready"}


async def test_resuming_what_does_not_drain_changes_nothing() -> None:
    """It is checked, that is all."""
    async with shell(Handy({"a": {"probe": True}})) as on:
        await on.resume_instance(named(on, "a"))
        assert states(on) == {"a": "ready"}


async def test_what_is_being_retired_cannot_be_resumed() -> None:
    """It is too late; until then it is not."""
    hub = Handy({"a": {"ownership": Ownership.MANAGED}})
    async with shell(hub) as on:
        taken, name = work(on), named(on, "a")
        on.drain_instance(name)
        await on.resume_instance(name)
        assert states(on) == {"a": "ready"}
        on.drain_instance(name)
        end(on, taken)
        step = await hub.retirements.next()
        with pytest.raises(InvalidRequest, match=f"{name} is being retired"):
            await on.resume_instance(name)
        step.finish()
        while states(on):
            await asyncio.sleep(0)


@pytest.mark.parametrize("what", ["drain", "resume", "remove"])
async def test_an_unknown_instance_is_said_to_be_so(what: str) -> None:
    """With the nearest there is."""
    async with shell(Handy(("a",))) as on:
        name = named(on, "a")
        does = {"drain": on.drain_instance, "resume": on.resume_instance, "remove": on.remove_instance}
        with pytest.raises(UnknownName, match=f"unknown instance.*there is: {name}; did you mean '{name}'"):
            await does[what](name[:-1])  # type: ignore[misc]  # draining is not waited for


# -- removing ---------------------------------------------------------------------------------------------------------------


async def test_a_removed_instance_is_gone_when_its_work_has_ended() -> None:
    """Not before; and no search brings it back."""
    hub = Handy(("a", "b"))
    async with shell(hub) as on:
        first = work(on)
        endpoint = first[1].instance.endpoint
        removing = asyncio.create_task(on.remove_instance(named(on, endpoint), LONG_S))
        await settle()
        assert states(on)[endpoint] == "draining"
        end(on, first)
        await removing
        await hub.search()
        assert endpoint not in states(on)
        assert len(hub.instances) == 1


async def test_work_that_takes_longer_than_the_grace_ends_on_its_own() -> None:
    """Its slot is freed then, once."""
    async with shell(Handy(("a",))) as on:
        taken = work(on)
        await on.remove_instance(named(on, "a"), 0)
        assert states(on) == {}
        end(on, taken)
        assert taken[1].freed
        assert on.admission.pool.in_flight == 0


async def test_one_of_our_own_is_retired() -> None:
    """Once, and this returns when it has been; however many ask for it."""
    hub = Handy({"a": {"ownership": Ownership.MANAGED}})
    async with shell(hub) as on:
        removing = [asyncio.create_task(on.remove_instance(named(on, "a"), 0)) for _ in range(3)]
        step = await hub.retirements.next()
        await settle()
        assert not any(task.done() for task in removing)
        step.finish()
        await asyncio.gather(*removing)
        assert (states(on), len(hub.retirements.all)) == ({}, 1)


async def test_one_of_our_own_is_retired_at_the_end_of_the_grace_whatever_it_does() -> None:
    """Its work ends with it."""
    hub = Handy({"a": {"ownership": Ownership.MANAGED}})
    async with shell(hub) as on:
        taken = work(on)
        removing = asyncio.create_task(on.remove_instance(named(on, "a"), 0))
        (await hub.retirements.next()).finish()
        await removing
        assert states(on) == {}
        end(on, taken)


async def test_whoever_is_cancelled_while_it_drains_leaves_it_drained() -> None:
    """A person who interrupts the command can go on from there."""
    async with shell(Handy(("a",))) as on:
        taken, name = work(on), named(on, "a")
        removing = asyncio.create_task(on.remove_instance(name, LONG_S))
        await settle()
        removing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removing
        end(on, taken)
        assert states(on) == {"a": "drained"}
        await on.remove_instance(name, 0)
        assert states(on) == {}


async def test_a_retirement_goes_on_when_whoever_asked_for_it_is_cancelled() -> None:
    """Half retired would be neither there nor gone."""
    hub = Handy({"a": {"ownership": Ownership.MANAGED}})
    async with shell(hub) as on:
        removing = asyncio.create_task(on.remove_instance(named(on, "a"), 0))
        step = await hub.retirements.next()
        removing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removing
        assert not step.cancelled
        step.finish()
        while states(on):
            await asyncio.sleep(0)


async def test_what_is_resumed_while_it_is_removed_stays() -> None:
    """The later word counts."""
    async with shell(Handy(("a",))) as on:
        taken, name = work(on), named(on, "a")
        removing = asyncio.create_task(on.remove_instance(name, 0.01))
        await settle()
        await on.resume_instance(name)
        await removing
        assert states(on) == {"a": "ready"}
        end(on, taken)


async def test_what_was_drained_is_removed_at_once() -> None:
    """There is nothing to wait for."""
    async with shell(Handy(("a",))) as on:
        on.drain_instance(named(on, "a"))
        await on.remove_instance(named(on, "a"), LONG_S)
        assert states(on) == {}


async def test_another_hub_does_not_bring_it_back_either() -> None:
    """Until it is added by hand: then any may have it."""
    one, two = Handy(("a",), name="one"), Handy(("a",), name="two")
    async with shell(one, two) as on:
        name = named(on, "a")
        await on.remove_instance(name)
        await two.search()
        assert states(on) == {}
        await on.add_instance("one", {"endpoint": "a"})
        assert on.admission.pool.records[name].instance.hub == "one"
        one.withdraw(name, "gone")
        await two.search()
        assert on.admission.pool.records[name].instance.hub == "two"


async def test_so_many_that_were_removed_are_remembered() -> None:
    """Not more: whoever removes for years does not fill the memory."""
    hub = ScriptedHub(("a", "b"))
    hub.exclude(hub.make("a").id)
    for number in range(1023):
        hub.exclude(f"x{number}")
    async with shell(hub) as on:
        assert states(on) == {"b": "ready"}
        hub.exclude("one more")
        await hub.search()
        assert set(states(on)) == {"a", "b"}


async def test_a_hub_with_a_drained_instance_is_removed_at_once() -> None:
    """Drained ones are not waited for."""
    async with shell(Handy(("a", "b"))) as on:
        on.drain_instance(named(on, "a"))
        await on.remove_hub("echo", grace_s=LONG_S)
        assert (states(on), on.hubs) == ({}, {})


async def test_closing_ends_a_removal() -> None:
    """Nobody waits for its grace then."""
    async with shell(Handy(("a",))) as on:
        taken = work(on)
        removing = asyncio.create_task(on.remove_instance(named(on, "a"), LONG_S))
        await settle()
        await on.aclose()
        await removing
        end(on, taken)


# -- what a hub may ask and say ---------------------------------------------------------------------------------------------


async def test_a_hub_learns_how_long_an_instance_was_idle() -> None:
    """Nothing of what drains or is not there, nor before it is started; no time at all of what works."""
    hub = Handy(("a", "b"))
    assert hub.idle_s("a") is None
    async with shell(hub) as on:
        taken = work(on)
        idle = {record.instance.id: hub.idle_s(record.instance.id) for record in on.admission.pool}
        assert idle.pop(taken[1].instance.id) == 0.0
        assert all(seconds is not None and seconds > 0 for seconds in idle.values())
        assert hub.idle_s("nobody") is None
        end(on, taken)
        hub.drain(taken[1].instance.id, "not wanted")
        assert hub.idle_s(taken[1].instance.id) is None
        assert on.admission.pool.records[taken[1].instance.id].why == "not wanted"


async def test_an_instance_in_two_hubs_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each search finds it again; the log is for people."""
    two = ScriptedHub(("a",), name="two")
    async with shell(ScriptedHub(("a",), name="one"), two) as on:
        for _ in range(3):
            await two.search()
        assert caplog.text.count("is in the hubs one and two") == 1
        await on.remove_hub("two")
        await on.add_hub(ScriptedHub(("a",), name="two"))
        assert caplog.text.count("is in the hubs one and two") == 2


# -- options that change ----------------------------------------------------------------------------------------------------


async def test_what_every_hub_has_can_change_while_it_runs() -> None:
    """Checks go by the new options from then on."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        hub.checks["a"] = InstanceFailure(FailureKind.SERVER_ERROR, "broken")
        assert await hub.reconfigure(HubOptions(check_failures=1, discover_interval_s=7.0))
        assert hub.options.discover_interval_s == 7.0
        assert not await on.health.check(named(on, "a"))
        assert states(on) == {"a": "down"}


async def test_what_only_this_hub_has_needs_a_restart() -> None:
    """Unless its author says otherwise; nothing has changed then."""

    class Options(HubOptions):
        rooms: int = 1

    hub = Handy()
    hub.options = Options()
    assert not await hub.reconfigure(Options(rooms=2, check_failures=5))
    assert hub.options == Options()
    assert hub.differing(Options(rooms=2, check_failures=5)) == {"rooms", "check_failures"}
    assert await hub.reconfigure(Options(check_failures=5))
    assert hub.options == Options(check_failures=5)


async def test_three_slow_checks_make_an_instance_count_half() -> None:
    """From the monitor through the shell to the pool, and back."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        await hub.reconfigure(HubOptions(check_slow_s=1e-12))
        for _ in range(3):
            assert states(on) == {"a": "ready"}
            await on.health.check(named(on, "a"))
        record = on.admission.pool.records[named(on, "a")]
        assert (record.condition, record.serving) == ("degraded", True)
        await hub.reconfigure(HubOptions())
        await on.health.check(named(on, "a"))
        assert states(on) == {"a": "ready"}


async def test_what_was_slow_before_it_was_drained_counts_in_full_again() -> None:
    """Until it has been found slow anew."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        name = named(on, "a")
        await hub.reconfigure(HubOptions(check_slow_s=1e-12))
        for _ in range(3):
            await on.health.check(name)
        assert states(on) == {"a": "degraded"}
        on.drain_instance(name)
        await on.resume_instance(name)
        assert states(on) == {"a": "ready"}
        for _ in range(2):
            await on.health.check(name)
        assert states(on) == {"a": "degraded"}
