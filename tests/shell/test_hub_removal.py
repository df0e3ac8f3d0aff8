"""Hubs that are removed, and instances that are retired."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.errors import NoCapableInstance, Unavailable
from gleitzeit_core.resources import Ownership
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.testing.contract import ContractHub, ContractProvider
from gleitzeit_core.testing.machine import Machine, make_instance
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import turns

from .shells import OUTCOME, shell, states, ticket, until
from .slow import Slow, started


async def test_a_hub_is_removed_when_its_work_is_done() -> None:
    """It takes nothing new meanwhile, and its instances are gone afterwards."""
    async with shell() as on:
        hub = ScriptedHub(("a", "b"))
        await on.add_hub(hub)
        work = ticket()
        slot = on.admission.submit(work)
        assert slot is not None
        removing = asyncio.create_task(on.remove_hub("echo", grace_s=1e6))
        gone = await until(on, "gone")
        assert gone.before is not None
        assert gone.before.endpoint != slot.instance.endpoint
        with pytest.raises(Unavailable):
            on.admission.submit(ticket())
        assert not hub.running
        on.admission.release(work, slot, OUTCOME)
        await removing
        assert (states(on), on.hubs, hub.closed) == ({}, {}, 1)


async def test_a_hub_is_removed_at_the_end_of_its_grace() -> None:
    """Work that takes longer ends on its own."""
    async with shell() as on:
        await on.add_hub(ScriptedHub())
        work = ticket()
        slot = on.admission.submit(work)
        assert slot is not None
        await on.remove_hub("echo", grace_s=0)
        assert states(on) == {}
        on.admission.release(work, slot, OUTCOME)
        assert slot.freed
        with pytest.raises(KeyError):
            await on.remove_hub("echo")


async def test_an_empty_hub_is_removed_at_once() -> None:
    """There is nothing to wait for."""
    async with shell() as on:
        await on.add_hub(ScriptedHub(()))
        await on.remove_hub("echo", grace_s=1e6)
        assert not on.hubs


async def test_a_hub_that_is_removed_creates_no_more() -> None:
    """Those who wait for it are sent away; what was being created is given up."""
    async with shell() as on:
        hub = ContractHub()
        await on.add_hub(hub)
        provider = ContractProvider()
        waiting = Machine().ticket(requirements=provider.request("contract/run").requirements)
        assert on.admission.submit(waiting) is None
        creation = await hub.creations.next()
        await on.remove_hub("contract", grace_s=1e6)
        with pytest.raises((Unavailable, NoCapableInstance)):
            await on.wait(waiting)
        assert creation.cancelled
        assert hub.retired == ["box-1"]


async def test_those_who_wait_for_a_hub_that_is_removed_are_told() -> None:
    """Also if it had not begun to create anything."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub)
        hub.offers = Offer(OfferKind.CREATABLE)
        waiting = ticket()
        assert on.admission.submit(waiting) is None
        await hub.reached("scale 1")
        await on.remove_hub("echo")
        with pytest.raises(NoCapableInstance):
            await on.wait(waiting)


async def test_what_comes_while_its_hub_is_removed_goes_again() -> None:
    """A creation that cannot be stopped may end after all."""
    async with shell() as on:
        hub = ScriptedHub(("a",))
        await on.add_hub(hub)
        work = ticket()
        slot = on.admission.submit(work)
        assert slot is not None
        removing = asyncio.create_task(on.remove_hub("echo", grace_s=1e6))
        await until(on, "draining")
        hub.publish(hub.make("late"))
        on.admission.release(work, slot, OUTCOME)
        await removing
        assert states(on) == {}


async def test_external_instances_are_never_stopped() -> None:
    """Drained, they stay known as such; their hub is not even asked."""
    async with shell() as on:
        hub = Slow()
        ours = [make_instance(name, ownership=name) for name in (Ownership.MANAGED, Ownership.ADOPTED)]
        await started(on, hub, make_instance("external"), *ours)
        for instance in hub.instances:
            on.admission.drain(instance.id)
        for _ in range(2):
            step = await hub.steps.next()
            while not step.what.startswith("retire"):
                step = await hub.steps.next()
            step.finish()
        while len(hub.instances) > 1:
            await asyncio.sleep(0)
        assert [entry for entry in hub.log if entry.startswith("retire")] == ["retire managed", "retire adopted"]
        assert states(on) == {"external": "drained"}


async def test_an_instance_that_cannot_be_retired_is_gone_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged; nobody waits for it."""
    async with shell() as on:
        hub = Slow(fails="retire a")
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        on.admission.drain(hub.instances[0].id)
        await until(on, "gone")
        assert "retiring" in caplog.text


async def test_what_was_started_anew_while_it_was_retired_stays() -> None:
    """The retirement was the old one's."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        on.admission.drain(hub.instances[0].id)
        await hub.reached("retire a")
        hub.publish(hub.instances[0].changed(generation=1))
        for step in hub.steps.all:
            step.finish(())
        await turns(10)
        assert states(on) == {"a": "ready"}


async def test_what_was_started_anew_is_retired_on_its_own() -> None:
    """Also while the old one's retirement still goes on: that ends neither the new one's life nor its retirement."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        for generation in (0, 1):
            hub.publish(hub.instances[0].changed(generation=generation))
            on.admission.drain(hub.instances[0].id)
            await hub.reached("retire a", generation + 1)
        old, new = (step for step in hub.steps.all if step.what == "retire a")
        old.finish()
        await turns(10)
        assert states(on) == {"a": "draining"}
        new.finish()
        await until(on, "gone")
