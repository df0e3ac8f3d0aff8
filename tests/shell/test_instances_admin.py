"""Instances by hand, through the shell: add, drain and resume."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest, Unavailable, UnknownName
from gleitzeit_core.resources import Ownership
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import turns

from .handy import Handy, end, named, work
from .shells import shell, states

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
        await turns()
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
        await turns()
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
