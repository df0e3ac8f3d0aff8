"""A supply whose instances die, whose creations fail, and all of it in any order."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.resources import Requirements, ResourceInstance
from gleitzeit_core.routing import OfferKind
from gleitzeit_core.testing.todo import Todo, turns
from gleitzeit_core.testing.workshop import Running, Workshop, WorkshopOptions

from .running import running


async def test_what_lives_only_briefly_is_replaced_less_and_less_often() -> None:
    """The first time at once; then after 1, 2, ... seconds, with the reason for those who ask."""
    async with running(Workshop, min_total=1, max_total=1) as on:
        for pause_s in (None, 1, 2, 4):
            (instance,) = on.hub.instances
            on.hub.replace(instance, "it fell over")
            await turns()
            if pause_s is None:
                assert on.hub._retry is None
                continue
            assert on.hub._retry is not None
            on.clock.advance(pause_s - 0.1)
            await turns()
            assert on.endpoints == []
            offer = on.hub.offer(Requirements(accepts=()))
            assert (offer.kind, offer.reason) == (OfferKind.NEVER, "creating failed: it fell over")
            assert on.hub.problem == "it fell over"
            on.clock.advance(0.1)
            await turns()
            assert on.hub.problem == ""
        assert len(on.hub.created) == 5


async def test_what_has_lived_for_long_is_replaced_at_once() -> None:
    """However often: that is no sign that the next will not live."""
    async with running(Workshop, min_total=1, max_total=1) as on:
        on.hub.steady_s = 0.0  # type: ignore[misc]
        for number in range(1, 5):
            (instance,) = on.hub.instances
            assert instance.endpoint == f"bench-{number}"
            on.hub.replace(instance, "worn out")
            await turns()


async def test_replacing_twice_is_replacing_once() -> None:
    """Whoever comes second finds that it is being done; what is not ours is left alone."""
    async with running(Workshop, min_total=1, max_total=2) as on:
        (instance,) = on.hub.instances
        on.hub.quick = False
        on.hub.replace(instance, "a")
        on.hub.replace(instance, "b")
        on.hub.replace(on.hub.at("another"), "c")
        await turns()
        assert len(on.hub.destructions.all) == 1
        assert on.hub._retry is None, "one was unwell once"
        (await on.hub.destructions.next()).finish()
        (await on.hub.creations.next()).finish()
        await turns()
        assert on.hub.destroyed == [instance.endpoint]


async def test_the_problem_is_in_the_status() -> None:
    """Of each hub, for people; it goes with the first success."""

    class Broken(Workshop):
        async def create(self, coming: ResourceInstance) -> ResourceInstance:
            raise LookupError(f"no wood for {coming.endpoint}")

    async with ResourceManager.from_config(overrides={"hubs": {}}) as manager:
        await manager.add_hub(Broken(WorkshopOptions(min_total=1)))
        hubs = {hub["name"]: hub["problem"] for hub in manager.status()["hubs"]}
        assert hubs["workshop"] == "LookupError: no wood for bench-1"


async def test_one_that_is_being_created_and_no_longer_wanted_leaves_nothing() -> None:
    """Removed before it was there: its creation is cancelled, and has ended when it is gone, however long that takes."""

    class Careful(Workshop):
        async def create(self, coming: ResourceInstance) -> ResourceInstance:
            try:
                return await super().create(coming)
            finally:
                await self.destructions.add(Todo("tidy up")).wait()

    on = Running(Workshop, max_total=1)
    on.hub = Careful(on.hub.options, quick=False)
    await on.dispatcher.shell.add_hub(on.hub)
    await on.created(1)
    creation = await on.hub.creations.next()
    (coming,) = on.hub.instances
    removing = asyncio.create_task(on.dispatcher.shell.remove_instance(coming.id))
    tidying = await on.hub.destructions.next()
    await turns()
    assert creation.cancelled
    assert not removing.done()
    tidying.finish()
    await removing
    assert on.endpoints == on.hub.created == on.hub.destroyed == []
    await on.dispatcher.aclose()


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_the_bounds_hold_and_nothing_is_left(  # noqa: PLR0912 - a branch for each event
    seed: int,
) -> None:
    """Wanted, failed, idle, drained, unwell and reconfigured in any order: each is destroyed once, none is forgotten."""
    random = Random(seed)
    async with running(Workshop, min_total=1, max_total=3, idle_ttl_s=10) as on:
        hub = on.hub
        hub.quick = False
        for creation in hub.creations.all:
            creation.finish()
        for _ in range(150):
            known = [one for one in hub.instances if one.generation]
            match random.randrange(8):
                case 0:
                    await hub.scale(Requirements(accepts=()), random.randrange(1, 5))
                case 1 if hub.creations.all:
                    random.choice(hub.creations.all).finish()
                case 2 if hub.creations.all:
                    random.choice(hub.creations.all).fail(LookupError("no"))
                case 3 if hub.destructions.all:
                    random.choice(hub.destructions.all).finish()
                case 4 if known:
                    hub.replace(random.choice(known), "unwell")
                case 5 if known:
                    hub.drain(random.choice(known).id, "by hand")
                case 6:
                    on.clock.advance(random.choice([1, 20]))
                    hub.shrink()
                case 7:
                    least = random.randrange(3)
                    await hub.reconfigure(WorkshopOptions(min_total=least, max_total=3, idle_ttl_s=10))
                    if hub._retry is not None:
                        hub.retry_now()
            await turns(random.randrange(4))
            assert len(hub._owned) + len(hub._creations) <= 3
            assert len(hub.destroyed) == len(set(hub.destroyed))
        for todo in (*hub.creations.all, *hub.destructions.all):
            todo.finish()
        hub.quick = True
        await turns()
        if hub._retry is not None:
            hub.retry_now()
        await turns()
        serving = [report for report in on.dispatcher.reports() if report.state == "ready"]
        assert len(serving) >= hub.options.min_total
