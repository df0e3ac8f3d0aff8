"""Instances that are removed by hand: when their work has ended, and for good."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.resources import Ownership
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import turns

from .handy import LONG_S, Handy, end, named, work
from .shells import shell, states


async def test_a_removed_instance_is_gone_when_its_work_has_ended() -> None:
    """Not before; and no search brings it back."""
    hub = Handy(("a", "b"))
    async with shell(hub) as on:
        first = work(on)
        endpoint = first[1].instance.endpoint
        removing = asyncio.create_task(on.remove_instance(named(on, endpoint), LONG_S))
        await turns()
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
        await turns()
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
        await turns()
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
        await turns()
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
        await turns()
        await on.aclose()
        await removing
        end(on, taken)
