"""Instances that are ready before anybody asks, for so long or so many uses, and made ready again between two."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from gleitzeit_core.dispatch import DEFAULT_ROUTE
from gleitzeit_core.hub_provider import PoolOptions
from gleitzeit_core.leases import LEASE
from gleitzeit_core.requests import Outcome, Request, Result
from gleitzeit_core.resources import Ownership, ResourceInstance
from gleitzeit_core.routing import Ticket
from gleitzeit_core.supply import SupplyOptions
from gleitzeit_core.testing.todo import turns
from gleitzeit_core.testing.workshop import Cleaning, Running, Workshop, WorkshopOptions

from .running import ANY, leased, running, used

# -- ready before anybody asks --------------------------------------------------------------------------------------------


async def test_some_are_ready_before_anybody_asks() -> None:
    """In the background: the start does not wait for them, but for those that are kept in any case."""
    on = Running(Workshop, min_total=1, min_idle=3, max_total=5)
    on.hub.quick = False
    adding = asyncio.create_task(on.dispatcher.shell.add_hub(on.hub))
    (await on.hub.creations.next()).finish()
    await adding
    await turns()
    assert on.states == {"bench-1": "ready", "bench-2": "starting", "bench-3": "starting"}
    on.hub.quick = True
    await on.dispatcher.aclose()
    assert on.hub.destroyed == ["bench-1"]


async def test_one_that_is_taken_is_made_up_for_at_once() -> None:
    """Whoever takes one waits for nothing; those that are coming count, and there are never more than there may be."""
    async with running(min_idle=2, max_total=4) as on:
        assert on.endpoints == ["bench-1", "bench-2"]
        on.hub.quick = False
        lease = await leased(on)
        await turns()
        assert list(on.states.values()).count("starting") == 1
        others = [await leased(on)]
        await turns()
        assert list(on.states.values()).count("starting") == 2
        for creation in await on.hub.creations.take(2):
            creation.finish()
        others += [await leased(on), await leased(on)]
        await turns()
        assert set(on.states) == {"bench-1", "bench-2", "bench-3", "bench-4"}
        on.hub.quick = True
        for one in (lease, *others):
            await one.release()


async def test_several_that_are_taken_at_once_are_counted_once() -> None:
    """In one go, after the last of them."""
    async with running(min_idle=3, max_total=9) as on:
        slots = [on.use(instance) for instance in on.hub.instances]
        assert len(on.hub.instances) == 3
        await turns()
        assert on.hub.created == [f"bench-{number}" for number in range(1, 7)]
        for slot in slots:
            on.free(slot)


async def test_one_that_takes_several_requests_is_at_work_with_the_first() -> None:
    """The second changes nothing."""
    async with running(min_idle=1, max_total=5, max_concurrent=2) as on:
        (first,) = on.hub.instances
        slots = [on.use(first), on.use(first)]
        await turns()
        assert on.endpoints == ["bench-1", "bench-2"]
        for slot in slots:
            on.free(slot)


async def test_one_that_goes_down_is_made_up_for() -> None:
    """It is not ready, whatever its hub thinks of it."""
    async with running(min_idle=2, max_total=3) as on:
        first, _ = on.hub.instances
        on.hub.report_down(first.id, "fell over")
        await turns()
        assert on.states == {"bench-1": "down", "bench-2": "ready", "bench-3": "ready"}


async def test_what_cannot_be_created_is_tried_less_and_less_often() -> None:
    """After 1, 2, 4 s, by itself; those that are there serve meanwhile."""
    async with running(min_idle=1, max_total=3) as on:
        on.hub.quick = False
        lease = await leased(on)
        for pause_s in (1, 2, 4):
            (await on.hub.creations.next()).fail(LookupError("no wood"))
            await turns()
            assert on.states == {"bench-1": "ready"}
            on.clock.advance(pause_s - 0.01)
            await turns()
            assert on.states == {"bench-1": "ready"}
            on.clock.advance(0.01)
            await turns()
        (await on.hub.creations.next()).finish()
        await turns()
        assert list(on.states.values()) == ["ready", "ready"]
        on.hub.quick = True
        await lease.release()


async def test_what_is_above_goes_when_it_has_no_work_for_long_enough() -> None:
    """Down to those that are to be ready, and not below."""
    async with running(min_idle=1, max_total=4, idle_ttl_s=10) as on:
        leases = [await leased(on) for _ in range(3)]
        await turns()
        assert len(on.hub.instances) == 4
        for lease in leases:
            await lease.release()
        on.clock.advance(9)
        await turns()
        assert len(on.hub.instances) == 4
        on.clock.advance(1.5)
        await turns()
        assert len(on.hub.instances) == 1
        on.clock.advance(100)
        await turns()
        assert list(on.states.values()) == ["ready"]


async def test_those_that_are_to_be_ready_do_not_come_and_go() -> None:
    """They have no work for as long as nobody has any."""
    async with running(min_idle=2, max_total=4, idle_ttl_s=10) as on:
        for _ in range(5):
            on.clock.advance(11)
            await turns()
        assert (on.hub.created, on.hub.destroyed) == (["bench-1", "bench-2"], [])


async def test_one_at_work_is_not_one_that_is_ready() -> None:
    """An idle one stays for those that may come, however long, while another works."""
    async with running(min_idle=1, max_total=4, idle_ttl_s=10) as on:
        lease = await leased(on)
        await turns()
        on.clock.advance(1000)
        await turns()
        assert len(on.hub.instances) == 2
        await lease.release()
        await turns()
        on.clock.advance(20)
        await turns()
        assert len(on.hub.instances) == 1


async def test_how_many_are_ready_can_change_while_it_runs() -> None:
    """More are created at once, fewer go in their time."""
    async with running(max_total=4, idle_ttl_s=10) as on:
        assert on.endpoints == []
        assert await on.hub.reconfigure(WorkshopOptions(min_idle=3, max_total=4, idle_ttl_s=10))
        await turns()
        assert len(on.endpoints) == 3
        assert await on.hub.reconfigure(WorkshopOptions(min_idle=1, max_total=4, idle_ttl_s=10))
        on.clock.advance(10.5)
        await turns()
        assert len(on.endpoints) == 1


async def test_nothing_is_made_up_for_while_the_hub_is_removed() -> None:
    """Nor does one that is asked for in that moment keep it."""
    async with running(min_idle=1, max_total=4) as on:
        slot = on.use(on.hub.instances[0])
        await on.hub.stop_searching()
        await turns()
        assert on.endpoints == ["bench-1"]
        on.free(slot)


# -- how long, how often --------------------------------------------------------------------------------------------------


async def test_the_old_are_renewed_one_after_another() -> None:
    """The others serve meanwhile, also when the new one cannot be created."""
    async with running(min_total=3, max_total=3, max_age_s=100) as on:
        on.hub.quick = False
        on.clock.advance(100)
        await turns()
        assert sorted(on.states.values()) == ["draining", "ready", "ready"]
        (await on.hub.destructions.next()).finish()
        await turns()
        assert sorted(on.states.values()) == ["ready", "ready", "starting"]
        (await on.hub.creations.next()).fail(LookupError("no wood"))
        await turns()
        assert sorted(on.states.values()) == ["ready", "ready"]
        on.clock.advance(1)
        (await on.hub.creations.next()).finish()
        await turns()
        assert sorted(on.states.values()) == ["draining", "ready", "ready"]
        on.hub.quick = True
        (await on.hub.destructions.next()).finish()
        await turns(60)
        assert on.endpoints == ["bench-5", "bench-6", "bench-7"]
        on.clock.advance(99)
        await turns()
        assert on.endpoints == ["bench-5", "bench-6", "bench-7"]


async def test_an_old_one_at_work_ends_its_work() -> None:
    """It takes nothing new; one without work goes first."""
    async with running(min_total=2, max_total=2, max_age_s=100) as on:
        lease = await leased(on)
        on.clock.advance(100)
        await turns(60)
        assert len(on.hub.destroyed) == 1
        assert lease.instance.endpoint not in on.hub.destroyed
        assert on.states[lease.instance.endpoint] == "draining"
        await lease.release()
        await turns(60)
        assert on.endpoints == ["bench-3", "bench-4"]


async def test_who_comes_while_the_only_one_ends_its_work_gets_its_successor() -> None:
    """Nobody is sent away because one is too old."""
    async with running(max_total=1, max_age_s=100) as on:
        lease = await leased(on)
        on.clock.advance(100)
        await turns()
        assert on.states == {"bench-1": "draining"}
        waiting = asyncio.ensure_future(leased(on))
        await turns()
        assert not waiting.done()
        await lease.release()
        successor = await waiting
        assert successor.instance.endpoint == "bench-2"
        await successor.release()


async def test_what_was_taken_over_is_as_old_as_that() -> None:
    """Nobody knows more."""

    class Heir(Workshop):
        async def open(self) -> None:
            self.adopt(self.at("left-behind").changed(ownership=Ownership.ADOPTED))
            await super().open()

    on = Running(Heir, max_total=1, max_age_s=100)
    await on.dispatcher.shell.add_hub(on.hub)
    on.clock.advance(80)
    await turns()
    assert on.endpoints == ["left-behind"]
    on.clock.advance(20)
    await turns()
    assert on.endpoints == []
    assert on.hub.destroyed == ["left-behind"]
    await on.dispatcher.aclose()


async def test_one_goes_after_so_many_uses() -> None:
    """And another comes, where one is to be there."""
    async with running(min_total=1, max_total=1, max_uses=3) as on:
        assert [await used(on) for _ in range(5)] == ["bench-1"] * 3 + ["bench-2"] * 2
        assert on.hub.destroyed == ["bench-1"]
        assert len(on.hub.wiped) == 4, "one that goes is not made ready again"


async def test_each_use_gets_a_new_one() -> None:
    """Nobody waits for it while some are kept ready."""
    async with running(min_idle=2, max_total=4, max_uses=1) as on:
        first, second = await leased(on), await leased(on)
        assert {first.instance.endpoint, second.instance.endpoint} == {"bench-1", "bench-2"}
        await turns()
        assert sorted(on.states) == ["bench-1", "bench-2", "bench-3", "bench-4"]
        await first.release()
        await second.release()
        await turns()
        assert on.states == {"bench-3": "ready", "bench-4": "ready"}
        assert on.hub.wiped == []


async def test_one_that_was_given_but_not_used_is_as_good_as_new() -> None:
    """Who leaves before the work begins costs nothing."""
    async with running(min_total=1, max_total=1, max_uses=1) as on:
        taken = on.use(on.hub.instances[0])
        ticket = Ticket(Request(method=LEASE.name, requirements=ANY), DEFAULT_ROUTE)
        on.dispatcher.shell.admission.release(ticket, taken, Outcome(result=Result.CANCELLED))
        await turns()
        assert on.states == {"bench-1": "ready"}
        assert await used(on) == "bench-1"


async def test_what_waits_gets_the_next_one_when_one_is_used_up() -> None:
    """With nothing kept ready as well."""
    async with running(max_total=1, max_uses=1) as on:
        first = await leased(on)
        waiting = asyncio.ensure_future(leased(on))
        await turns()
        await first.release()
        second = await waiting
        assert (first.instance.endpoint, second.instance.endpoint) == ("bench-1", "bench-2")
        await second.release()


# -- made ready again -------------------------------------------------------------------------------------------------------


async def test_one_that_is_wiped_is_used_again() -> None:
    """Nobody gets it before that."""
    async with running(max_total=1) as on:
        lease = await leased(on)
        on.hub.quick = False
        await lease.release()
        waiting = asyncio.ensure_future(leased(on))
        wiping = await on.hub.resets_begun.next()
        await turns()
        assert not waiting.done()
        wiping.finish(result=True)
        again = await waiting
        assert again.instance.endpoint == "bench-1"
        on.hub.quick = True
        await again.release()


@pytest.mark.parametrize("how", ["says no", "raises"])
async def test_one_that_cannot_be_wiped_is_destroyed(how: str) -> None:
    """And another comes by itself."""
    async with running(min_total=1, max_total=1) as on:
        lease = await leased(on)
        on.hub.quick = False
        await lease.release()
        wiping = await on.hub.resets_begun.next()
        if how == "says no":
            wiping.finish(result=False)
        else:
            wiping.fail(LookupError("a stain"))
        (await on.hub.destructions.next()).finish()
        (await on.hub.creations.next()).finish()
        await turns()
        assert on.states == {"bench-2": "ready"}


async def test_one_whose_wiping_hangs_is_destroyed() -> None:
    """After the time that a creation may take."""
    async with running(min_total=1, max_total=1, create_timeout_s=0.01) as on:
        lease = await leased(on)
        on.hub.quick = False
        await lease.release()
        wiping = await on.hub.resets_begun.next()
        on.hub.quick = True
        async with asyncio.timeout(30):
            while on.states != {"bench-2": "ready"}:
                await asyncio.sleep(0)
        assert wiping.cancelled


async def test_one_that_is_being_wiped_when_all_ends_is_destroyed() -> None:
    """Once."""
    async with running(max_total=1) as on:
        lease = await leased(on)
        on.hub.quick = False
        await lease.release()
        wiping = await on.hub.resets_begun.next()
        closing = asyncio.create_task(on.dispatcher.shell._background.cancel())
        await turns()
        on.hub.quick = True
        for destruction in on.hub.destructions.all:
            destruction.finish()
        await closing
        assert wiping.cancelled
    assert on.hub.destroyed == ["bench-1"]


async def test_a_lease_that_runs_out_is_wiped_as_well() -> None:
    """Nobody knows what its holder did."""
    async with running(max_total=1) as on:
        await on.lease("a", ttl_s=10)
        on.clock.advance(10)
        await turns()
        assert on.hub.wiped == [("bench-1", "a")]
        assert on.states == {"bench-1": "ready"}


async def test_what_was_not_created_here_is_not_wiped() -> None:
    """It is somebody else's."""

    class Mixed(Cleaning):
        async def discover(self) -> list[ResourceInstance]:
            return [self.at("external").changed(probe=False)]

    on = Running(Mixed, max_total=1, max_uses=1)
    await on.dispatcher.shell.add_hub(on.hub)
    assert [await used(on), await used(on)] == ["external", "external"]
    assert on.hub.wiped == []
    await on.dispatcher.aclose()


async def test_without_anything_to_do_between_two_uses_nothing_is_done() -> None:
    """A slot is free the moment its work ends."""
    assert not Workshop(WorkshopOptions()).recycles
    assert Workshop(WorkshopOptions(max_uses=9)).recycles
    assert Cleaning(WorkshopOptions()).recycles


# -- options ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_idle": 5}, "min_idle must not be above max_total"),
        ({"min_idle": -1}, "greater than or equal to 0"),
        ({"max_uses": 0}, "greater than or equal to 1"),
        ({"max_age_s": 0}, "greater than 0"),
        ({"min_instances": 1}, "Extra inputs"),
        ({"max_instances": 1}, "Extra inputs"),
        ({"idle_s": 1}, "Extra inputs"),
    ],
)
@pytest.mark.parametrize("kind", [SupplyOptions, PoolOptions, WorkshopOptions])
def test_options_that_make_no_sense_are_refused(kind: type[SupplyOptions], wrong: dict[str, int], message: str) -> None:
    """Before anything is created; so are names that there are no more."""
    with pytest.raises(ValidationError, match=message):
        kind(**wrong)
