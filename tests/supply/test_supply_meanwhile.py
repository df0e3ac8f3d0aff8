"""Instances that were taken over, and what comes in between while others are created and destroyed."""

from __future__ import annotations

import asyncio

from gleitzeit_core.resources import Ownership, ResourceInstance
from gleitzeit_core.testing.todo import turns
from gleitzeit_core.testing.workshop import Running, Workshop

from .running import running

# -- taken over ------------------------------------------------------------------------------------------------------------------


class Heir(Workshop):
    """Finds one that an earlier process has left behind."""

    async def open(self) -> None:
        """Take it over."""
        self.adopt(self.at("left-behind").changed(ownership=Ownership.ADOPTED))
        self.created.append("left-behind")
        await super().open()


async def test_what_is_taken_over_counts_and_ends_like_the_others() -> None:
    """It fills the least number, goes when idle, and is destroyed in the end."""
    on = Running(Workshop, min_total=1, max_total=2, idle_ttl_s=10)
    on.hub = Heir(on.hub.options)
    await on.dispatcher.shell.add_hub(on.hub)
    assert on.endpoints == ["left-behind"]
    (_, newer) = sorted(await on.created(2), key=lambda instance: instance.endpoint == "bench-1")
    on.clock.advance(10)
    on.free(on.use(newer))
    on.hub.shrink()
    await turns()
    assert on.hub.destroyed == ["left-behind"]
    await on.dispatcher.aclose()
    assert sorted(on.hub.destroyed) == ["bench-1", "left-behind"]


async def test_instances_of_others_do_not_count() -> None:
    """A hub may also have some that it did not create: they neither fill the least number nor take a place."""

    class Mixed(Workshop):
        async def discover(self) -> list[ResourceInstance]:
            return [self.at("external").changed(probe=False)]

    on = Running(Workshop, min_total=1, max_total=1, idle_ttl_s=10)
    on.hub = Mixed(on.hub.options)
    await on.dispatcher.shell.add_hub(on.hub)
    assert on.endpoints == ["bench-1", "external"]
    on.clock.advance(100)
    on.hub.shrink()
    await turns()
    assert on.endpoints == ["bench-1", "external"]
    await on.dispatcher.aclose()
    assert on.hub.destroyed == ["bench-1"]


# -- what comes in between --------------------------------------------------------------------------------------------


async def test_a_start_goes_on_when_one_that_it_waits_for_is_drained() -> None:
    """Whoever drains it does not want it; the others are wanted all the same."""
    on = Running(Workshop, min_total=2, max_total=2)
    on.hub.quick = False
    adding = asyncio.create_task(on.dispatcher.shell.add_hub(on.hub))
    first, second = await on.hub.creations.take(2)
    on.dispatcher.shell.drain_instance(on.hub.instances[0].id)
    await turns()
    assert (first.cancelled, adding.done()) == (True, False)
    second.finish()
    await adding
    assert on.endpoints == ["bench-2", "bench-3"], "what was drained is replaced"
    on.hub.quick = True
    await on.dispatcher.aclose()
    assert on.hub.destroyed == ["bench-2"]


async def test_one_that_is_there_in_the_moment_in_which_it_is_retired_is_gone_all_the_same() -> None:
    """It is destroyed, and nobody takes it for one that is there."""
    async with running(Workshop, max_total=1) as on:
        on.hub.quick = False
        await on.created(1)
        (await on.hub.creations.next()).finish()
        on.dispatcher.shell.drain_instance(on.hub.instances[0].id)
        on.hub.quick = True
        await turns()
        assert on.hub.destroyed == on.hub.created == ["bench-1"]
        assert on.endpoints == []
        assert not on.dispatcher.reports()


async def test_the_next_may_have_the_name_of_the_last() -> None:
    """It is coming for those who wait as soon as the other is gone."""

    class OneName(Workshop):
        def next(self, number: int) -> ResourceInstance:
            return super().next(min(number, 1))

    on = Running(Workshop, min_total=1, max_total=1)
    on.hub = OneName(on.hub.options)
    await on.dispatcher.shell.add_hub(on.hub)
    on.hub.quick = False
    on.dispatcher.shell.drain_instance(on.hub.instances[0].id)
    (await on.hub.destructions.next()).finish()
    creation = await on.hub.creations.next()
    await turns()
    assert [report.state for report in on.dispatcher.reports()] == ["starting"]
    creation.finish()
    await turns()
    assert [report.state for report in on.dispatcher.reports()] == ["ready"]
    assert on.hub.created == ["bench-1", "bench-1"]
    on.hub.quick = True
    await on.dispatcher.aclose()


async def test_a_hub_that_is_removed_waits_for_what_is_being_destroyed() -> None:
    """At the end of its grace as well: nobody else would finish that."""
    async with running(Workshop, max_total=1) as on:
        await on.created(1)
        on.hub.quick = False
        removing = asyncio.create_task(on.dispatcher.shell.remove_hub(on.hub.name, grace_s=0))
        destruction = await on.hub.destructions.next()
        await asyncio.sleep(0.01)
        assert not removing.done()
        destruction.finish()
        await removing
        assert on.hub.destroyed == ["bench-1"]
        assert len(on.hub.destructions.all) == 1


async def test_a_destruction_that_is_cancelled_is_done_again_at_the_end() -> None:
    """By whoever closes the hub, who has waited for the first."""
    async with running(Workshop, max_total=1) as on:
        (only,) = await on.created(1)
        on.hub.quick = False
        retiring = asyncio.create_task(on.hub.retire(only))
        first = await on.hub.destructions.next()
        stopping = asyncio.create_task(on.hub.stop())
        await turns()
        retiring.cancel()
        second = await on.hub.destructions.next()
        assert first.cancelled
        assert not stopping.done()
        second.finish()
        await stopping
        assert on.hub.destroyed == ["bench-1"]
