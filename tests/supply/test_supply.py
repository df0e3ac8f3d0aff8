"""A supply that fills up to what is wanted, and lets go of those without work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.resources import Requirements, ResourceInstance
from gleitzeit_core.routing import OfferKind
from gleitzeit_core.testing.conformance import SupplyConformance
from gleitzeit_core.testing.todo import turns
from gleitzeit_core.testing.workshop import Workshop, WorkshopOptions

from .running import running

if TYPE_CHECKING:
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.supply import SupplyOptions


class TestWorkshop(SupplyConformance):
    """It passes what every hub that creates must."""

    limit = 3
    requirements = Requirements(accepts=())

    async def make_hub(self) -> Workshop:
        """Between one and three, for a short time."""
        return Workshop(WorkshopOptions(min_total=1, max_total=3, idle_ttl_s=0.02))


class Deaf(Workshop):
    """Does not replace what is not well."""

    def replace(self, instance: ResourceInstance, reason: str) -> None:
        """Nothing."""


class Greedy(Workshop):
    """Creates more than it may."""

    @property
    def supply(self) -> SupplyOptions:
        """More."""
        return self.options.model_copy(update={"max_total": 9})


class Thrifty(Workshop):
    """Counts no uses."""

    async def recycle(self, instance: ResourceInstance, outcome: Outcome) -> bool:
        """All goes on."""
        del instance, outcome
        return True


@pytest.mark.parametrize(
    ("kind", "idle_ttl_s", "test"),
    [
        (Deaf, 10, "test_what_is_not_well_is_replaced"),
        (Greedy, 10, "test_it_creates_no_more_than_its_limit"),
        (Thrifty, 10, "test_the_used_up_are_replaced"),
        (Workshop, None, "test_what_is_idle_goes_down_to_the_least_number"),
    ],
)
async def test_a_bad_hub_does_not_pass(kind: type[Workshop], idle_ttl_s: float | None, test: str) -> None:
    """The suite finds it out."""

    class Suite(TestWorkshop):
        async def make_hub(self) -> Workshop:
            return kind(WorkshopOptions(min_total=1, max_total=3, idle_ttl_s=idle_ttl_s))

    with pytest.raises(AssertionError):
        await getattr(Suite(), test)()


async def test_without_an_idle_time_none_ever_goes() -> None:
    """However long it has nothing to do."""
    async with running(Workshop, max_total=2) as on:
        await on.created(2)
        on.clock.advance(1e9)
        on.hub.shrink()
        assert on.endpoints == ["bench-1", "bench-2"]


async def test_those_without_work_for_long_enough_go_down_to_the_least() -> None:
    """Those that have been idle the longest go first; none goes before its time."""
    async with running(Workshop, min_total=1, max_total=3, idle_ttl_s=10) as on:
        first, second, third = await on.created(3)
        on.clock.advance(5)
        on.free(on.use(first))
        on.clock.advance(4)
        on.free(on.use(third))
        on.clock.advance(0.5)
        on.hub.shrink()
        await turns()
        assert on.endpoints == ["bench-1", "bench-2", "bench-3"], "none has been idle for 10 s"
        on.clock.advance(0.5)
        on.hub.shrink()
        await turns()
        assert on.hub.destroyed == [second.endpoint]
        on.clock.advance(100)
        on.hub.shrink()
        await turns()
        assert on.endpoints == [third.endpoint], "the one that was used last is kept"


async def test_one_that_works_does_not_go() -> None:
    """Its time begins with the end of its last work."""
    async with running(Workshop, max_total=1, idle_ttl_s=10) as on:
        (only,) = await on.created(1)
        slot = on.use(only)
        on.clock.advance(1000)
        on.hub.shrink()
        on.free(slot)
        on.hub.shrink()
        await turns()
        assert on.endpoints == ["bench-1"]
        on.clock.advance(10)
        on.hub.shrink()
        await turns()
        assert on.endpoints == []


async def test_one_that_drains_already_counts_neither_as_there_nor_as_spare() -> None:
    """The least number is of those that take work."""
    async with running(Workshop, min_total=2, max_total=3, idle_ttl_s=10) as on:
        first, *_ = await on.created(3)
        on.use(first)
        on.hub.drain(first.id, "by hand")
        on.clock.advance(100)
        on.hub.shrink()
        await turns()
        assert on.hub.destroyed == []
        assert len(on.endpoints) == 3


async def test_while_the_hub_is_removed_nothing_is_let_go_or_created() -> None:
    """It is being emptied as it is."""
    async with running(Workshop, min_total=1, max_total=2, idle_ttl_s=10) as on:
        await on.created(2)
        await on.hub.stop_searching()
        on.clock.advance(100)
        on.hub.shrink()
        on.hub.resupply()
        await turns()
        assert on.endpoints == ["bench-1", "bench-2"]


async def test_other_bounds_create_nothing_while_the_hub_is_removed() -> None:
    """Nor does a pause after a failure that is over: it would have to go again at once."""
    async with running(Workshop, max_total=2) as on:
        await on.created(1)
        await on.hub.stop_searching()
        assert await on.hub.reconfigure(WorkshopOptions(min_total=2))
        await turns()
        assert on.endpoints == on.hub.created == ["bench-1"]


async def test_it_is_looked_for_them_by_itself() -> None:
    """From the start, again and again."""
    async with running(Workshop, max_total=2, idle_ttl_s=0.01) as on:
        for count in (2, 1):
            assert len(await on.created(count)) == count
            on.clock.advance(1)
            await turns()
            assert on.endpoints == []


async def test_one_more_can_be_created_again_when_one_has_gone() -> None:
    """From nothing to something and back."""
    async with running(Workshop, max_total=1, idle_ttl_s=10) as on:
        await on.created(1)
        on.clock.advance(10)
        on.hub.shrink()
        await turns()
        assert on.hub.offer(Requirements(accepts=())).kind is OfferKind.CREATABLE
        await on.created(1)
        assert on.endpoints == ["bench-2"]
