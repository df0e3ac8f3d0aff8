from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.resources import Ownership, Requirements, ResourceInstance
from gleitzeit_core.routing import OfferKind
from gleitzeit_core.supply import NO_SUPPLY, SupplyOptions
from gleitzeit_core.testing.conformance import SupplyConformance
from gleitzeit_core.testing.todo import Todo
from gleitzeit_core.testing.workshop import Running, Workshop, WorkshopOptions, turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.requests import Outcome


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Running[Workshop]]:  # noqa: ANN401 - any option
    """At the end nothing is left, and what was created was destroyed, once."""
    before = asyncio.all_tasks()
    on = Running(Workshop, **options)
    await on.dispatcher.shell.add_hub(on.hub)
    try:
        yield on
    finally:
        on.hub.quick = True
        await on.dispatcher.aclose()
    assert sorted(on.hub.destroyed) == sorted(on.hub.created)
    assert not on.hub._owned
    assert on.hub._retry is on.hub._looking is None
    await turns()
    assert not asyncio.all_tasks() - before


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


# -- letting go --------------------------------------------------------------------------------------------------------------


async def test_without_an_idle_time_none_ever_goes() -> None:
    """However long it has nothing to do."""
    async with running(max_total=2) as on:
        await on.created(2)
        on.clock.advance(1e9)
        on.hub.shrink()
        assert on.endpoints == ["bench-1", "bench-2"]


async def test_those_without_work_for_long_enough_go_down_to_the_least() -> None:
    """Those that have been idle the longest go first; none goes before its time."""
    async with running(min_total=1, max_total=3, idle_ttl_s=10) as on:
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
    async with running(max_total=1, idle_ttl_s=10) as on:
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
    async with running(min_total=2, max_total=3, idle_ttl_s=10) as on:
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
    async with running(min_total=1, max_total=2, idle_ttl_s=10) as on:
        await on.created(2)
        await on.hub.stop_searching()
        on.clock.advance(100)
        on.hub.shrink()
        on.hub.resupply()
        await turns()
        assert on.endpoints == ["bench-1", "bench-2"]


async def test_other_bounds_create_nothing_while_the_hub_is_removed() -> None:
    """Nor does a pause after a failure that is over: it would have to go again at once."""
    async with running(max_total=2) as on:
        await on.created(1)
        await on.hub.stop_searching()
        assert await on.hub.reconfigure(WorkshopOptions(min_total=2))
        await turns()
        assert on.endpoints == on.hub.created == ["bench-1"]


async def test_it_is_looked_for_them_by_itself() -> None:
    """From the start, again and again."""
    async with running(max_total=2, idle_ttl_s=0.01) as on:
        for count in (2, 1):
            assert len(await on.created(count)) == count
            on.clock.advance(1)
            await turns()
            assert on.endpoints == []


async def test_one_more_can_be_created_again_when_one_has_gone() -> None:
    """From nothing to something and back."""
    async with running(max_total=1, idle_ttl_s=10) as on:
        await on.created(1)
        on.clock.advance(10)
        on.hub.shrink()
        await turns()
        assert on.hub.offer(Requirements(accepts=())).kind is OfferKind.CREATABLE
        await on.created(1)
        assert on.endpoints == ["bench-2"]


# -- other bounds ---------------------------------------------------------------------------------------------------------------


async def test_higher_bounds_create_and_lower_bounds_let_go() -> None:
    """At once, also what works, which ends first; the longest idle go first."""
    async with running(max_total=3) as on:
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
    async with running(max_total=3) as on:
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
    async with running(max_total=1) as on:
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
    async with running(max_total=1) as on:
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


# -- what goes wrong ---------------------------------------------------------------------------------------------------------------


async def test_what_lives_only_briefly_is_replaced_less_and_less_often() -> None:
    """The first time at once; then after 1, 2, ... seconds, with the reason for those who ask."""
    async with running(min_total=1, max_total=1) as on:
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
    async with running(min_total=1, max_total=1) as on:
        on.hub.steady_s = 0.0  # type: ignore[misc]
        for number in range(1, 5):
            (instance,) = on.hub.instances
            assert instance.endpoint == f"bench-{number}"
            on.hub.replace(instance, "worn out")
            await turns()


async def test_replacing_twice_is_replacing_once() -> None:
    """Whoever comes second finds that it is being done; what is not ours is left alone."""
    async with running(min_total=1, max_total=2) as on:
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
    async with running(min_total=1, max_total=3, idle_ttl_s=10) as on:
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
                        hub._retry.cancel()
                        hub._may_retry()
            await turns(random.randrange(4))
            assert len(hub._owned) + len(hub._creations) <= 3
            assert len(hub.destroyed) == len(set(hub.destroyed))
        for todo in (*hub.creations.all, *hub.destructions.all):
            todo.finish()
        hub.quick = True
        await turns()
        if hub._retry is not None:
            hub._retry.cancel()
            hub._may_retry()
        await turns()
        serving = [report for report in on.dispatcher.reports() if report.state == "ready"]
        assert len(serving) >= hub.options.min_total


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


@pytest.mark.parametrize(
    "wrong", [{"idle_ttl_s": 0}, {"idle_ttl_s": -1}, {"min_total": -1}, {"min_total": 5}, {"create_timeout_s": 0}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    """Before anything is created."""
    with pytest.raises(ValidationError):
        SupplyOptions(**wrong)


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
    async with running(max_total=1) as on:
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
    async with running(max_total=1) as on:
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
    async with running(max_total=1) as on:
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
