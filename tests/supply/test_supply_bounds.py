"""Bounds of a supply that change, and those that make no sense."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gleitzeit_core.resources import Requirements
from gleitzeit_core.routing import OfferKind
from gleitzeit_core.supply import NO_SUPPLY, SupplyOptions
from gleitzeit_core.testing.todo import turns
from gleitzeit_core.testing.workshop import Running, Workshop, WorkshopOptions

from .running import running


async def test_higher_bounds_create_and_lower_bounds_let_go() -> None:
    """At once, also what works, which ends first; the longest idle go first."""
    async with running(Workshop, max_total=3) as on:
        first, second, third = await on.created(3)
        slots = [on.use(one) for one in (first, second)]
        assert await on.hub.reconfigure(WorkshopOptions(max_total=1))
        await turns()
        assert on.hub.destroyed == [third.endpoint]
        assert sorted(str(report.state) for report in on.dispatcher.reports()) == ["draining", "ready"]
        for slot in slots:
            on.dispatcher.shell.admission._free(slot)
        on.dispatcher.shell.admission._flush()
        await turns()
        assert len(on.endpoints) == 1
        assert await on.hub.reconfigure(WorkshopOptions(min_total=2, check_interval_s=3))
        await turns()
        assert len(on.endpoints) == 2


async def test_what_comes_after_the_bound_was_lowered_is_let_go() -> None:
    """It was being created when fewer became wanted."""
    async with running(Workshop, max_total=3) as on:
        on.hub.quick = False
        await on.created(3)
        assert await on.hub.reconfigure(WorkshopOptions(max_total=1))
        on.hub.quick = True
        for creation in await on.hub.creations.take(3):
            creation.finish()
        await turns()
        assert len(on.endpoints) == 1
        assert len(on.hub.destroyed) == 2


async def test_a_new_idle_time_counts_from_now_on() -> None:
    """It is looked for those without work although there was nothing to look for before."""
    async with running(Workshop, max_total=1) as on:
        await on.created(1)
        on.clock.advance(100)
        assert on.hub._looking is None
        assert await on.hub.reconfigure(WorkshopOptions(max_total=1, idle_ttl_s=50))
        await turns()
        assert on.endpoints == []
        await on.created(1)
        assert on.hub._looking is not None
        on.clock.advance(50)
        await turns()
        assert on.endpoints == []


async def test_options_of_its_own_are_for_the_hub_to_decide_on() -> None:
    """What they mean for instances that are there nobody else can know."""
    async with running(Workshop, max_total=1) as on:
        assert not await on.hub.reconfigure(WorkshopOptions(max_total=2, max_concurrent=2))
        assert on.hub.options.max_total == 1


async def test_a_hub_that_is_to_create_nothing_creates_nothing() -> None:
    """And lets go what it has."""

    class Closed(Workshop):
        shut = False

        @property
        def supply(self) -> SupplyOptions:
            return NO_SUPPLY if self.shut else self.options

    on = Running(Workshop, max_total=1)
    on.hub = Closed(on.hub.options)
    await on.dispatcher.shell.add_hub(on.hub)
    await on.created(1)
    on.hub.shut = True
    assert on.hub.offer(Requirements(accepts=())).kind is OfferKind.READY
    on.hub.resupply()
    await turns()
    await on.hub.scale(Requirements(accepts=()), 1)
    assert on.endpoints == []
    await on.dispatcher.aclose()


@pytest.mark.parametrize(
    "wrong", [{"idle_ttl_s": 0}, {"idle_ttl_s": -1}, {"min_total": -1}, {"min_total": 5}, {"create_timeout_s": 0}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    """Before anything is created."""
    with pytest.raises(ValidationError):
        SupplyOptions(**wrong)
