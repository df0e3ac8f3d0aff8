"""A hub that cannot create what it should keep ready."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.errors import Unavailable
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.routing import OfferKind
from gleitzeit_core.testing.todo import turns
from gleitzeit_core.testing.workshop import Running, Workshop, WorkshopOptions

from .running import ANY, leased, running

if TYPE_CHECKING:
    from gleitzeit_core.resources import ResourceInstance


class Broken(Workshop):
    """Creates nothing while there is no wood."""

    wood = False

    async def create(self, coming: ResourceInstance) -> ResourceInstance:
        """If there is wood."""
        if not self.wood:
            raise LookupError("no wood")
        return await super().create(coming)


async def test_a_hub_that_cannot_create_is_degraded_until_it_can() -> None:
    """With the reason, for people and for those who wait."""
    async with ResourceManager.from_config(overrides={"hubs": {}}) as manager:
        hub = Broken(WorkshopOptions(min_idle=1))
        await manager.add_hub(hub)
        await turns()
        shown = manager.status()["hubs"][-1]
        assert (shown["state"], shown["problem"]) == ("degraded", "LookupError: no wood")
        with pytest.raises(Unavailable, match="creating failed: LookupError: no wood"):
            await manager.allocate_resource("workshop")
        hub.wood = True
        hub.retry_now()
        await turns()
        shown = manager.status()["hubs"][-1]
        assert (shown["state"], shown["problem"]) == ("ready", "")
        await (await manager.allocate_resource("workshop")).release()


async def test_a_pause_can_be_ended() -> None:
    """It is tried again at once; a failure then begins the next pause, which the end of the first does not shorten."""
    on = Running(Broken, min_idle=1, max_total=1)
    await on.dispatcher.shell.add_hub(on.hub)
    await turns()
    on.clock.advance(0.5)
    on.hub.retry_now()
    await turns()
    assert on.hub.problem == "LookupError: no wood"
    on.hub.wood = True
    on.clock.advance(1.9)
    await turns()
    assert on.hub.created == [], "the second pause is of 2 s"
    on.clock.advance(0.1)
    await turns()
    assert on.endpoints == ["bench-3"]
    on.hub.retry_now()
    await turns()
    assert on.endpoints == ["bench-3"], "without a pause it creates no more than is missing"
    await on.dispatcher.aclose()


async def test_one_that_succeeds_beside_one_that_fails_does_not_end_the_pause() -> None:
    """The hub is not degraded any more; who must wait for another is still told why."""
    async with running(max_total=2) as on:
        on.hub.quick = False
        asking = [asyncio.ensure_future(leased(on)) for _ in range(2)]
        first, second = await on.hub.creations.take(2)
        first.fail(LookupError("no wood"))
        await turns()
        assert on.hub.problem == "LookupError: no wood"
        second.finish()
        await turns()
        assert on.hub.problem == ""
        offer = on.hub.offer(ANY)
        assert (offer.kind, offer.reason) == (OfferKind.NEVER, "creating failed: LookupError: no wood")
        on.hub.quick = True
        for one in asking:
            await (await one).release()


async def test_who_waits_for_what_cannot_be_created_is_told_why() -> None:
    """At once, not at their deadline."""
    on = Running(Broken, max_total=2)
    await on.dispatcher.shell.add_hub(on.hub)
    with pytest.raises(Unavailable, match="creating failed: LookupError: no wood"):
        await on.lease()
    assert on.hub.offer(ANY).kind is OfferKind.NEVER
    await on.dispatcher.aclose()
