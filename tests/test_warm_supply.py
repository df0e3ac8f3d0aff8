"""What is kept ready, for how long and for how many uses, and what is wiped in between."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.dispatch import DEFAULT_ROUTE
from gleitzeit_core.errors import DeadlineExceeded, ShuttingDown, Unavailable
from gleitzeit_core.hub_provider import PoolOptions
from gleitzeit_core.leases import LEASE
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.requests import Outcome, Request, Result
from gleitzeit_core.resources import Ownership, Requirements, ResourceInstance
from gleitzeit_core.routing import OfferKind, Ticket
from gleitzeit_core.supply import SupplyOptions
from gleitzeit_core.testing.workshop import Cleaning, Running, Workshop, WorkshopOptions, turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.leases import Lease

ANY = Requirements(accepts=())


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Running[Cleaning]]:  # noqa: ANN401 - any option
    """At the end nothing is left, and what was created was destroyed, once."""
    before = asyncio.all_tasks()
    on = Running(Cleaning, **options)
    await on.dispatcher.shell.add_hub(on.hub)
    await turns()
    try:
        yield on
    finally:
        on.hub.quick = True
        await on.dispatcher.aclose()
    assert sorted(on.hub.destroyed) == sorted(on.hub.created)
    assert not on.hub._owned
    assert not on.hub._uses
    assert on.hub._retry is on.hub._looking is on.hub._refilling is None
    await turns()
    assert not asyncio.all_tasks() - before
    assert not on.dispatcher.shell.admission.pool.in_flight


async def leased(on: Running[Any], tenant: str = "") -> Lease:
    """A lease that is to be had without a wait for a test."""
    async with asyncio.timeout(30):
        return await on.lease(tenant)


async def used(on: Running[Any], tenant: str = "") -> str:
    """Use one once; which it was."""
    lease = await leased(on, tenant)
    await lease.release()
    await turns()
    return lease.instance.endpoint


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


# -- degraded -------------------------------------------------------------------------------------------------------------------


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
        hub._may_retry()
        await turns()
        shown = manager.status()["hubs"][-1]
        assert (shown["state"], shown["problem"]) == ("ready", "")
        await (await manager.allocate_resource("workshop")).release()


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


# -- tenants ------------------------------------------------------------------------------------------------------------------


class Bound(Cleaning):
    """Each bench belongs to the tenant who used it first."""

    tenant_bound = True


@contextlib.asynccontextmanager
async def shared(**options: Any) -> AsyncIterator[Running[Bound]]:  # noqa: ANN401 - any option
    """A workshop for tenants."""
    on = Running(Bound, **options)
    await on.dispatcher.shell.add_hub(on.hub)
    await turns()
    try:
        yield on
    finally:
        on.hub.quick = True
        await on.dispatcher.aclose()
    assert sorted(on.hub.destroyed) == sorted(on.hub.created)


def owner(on: Running[Bound], endpoint: str) -> str | None:
    """Whose it is."""
    found: str | None = next(one for one in on.hub.instances if one.endpoint == endpoint).details.get("tenant")
    return found


async def test_one_belongs_to_the_tenant_who_used_it_first() -> None:
    """That tenant gets it again; another gets another."""
    async with shared(max_total=2) as on:
        assert [await used(on, tenant) for tenant in "abab"] == ["bench-1", "bench-2"] * 2
        assert (owner(on, "bench-1"), owner(on, "bench-2")) == ("a", "b")


async def test_what_belongs_to_a_tenant_takes_one_request_at_a_time() -> None:
    """Or two tenants could be on it before it belongs to either."""
    on = Running(Bound, max_concurrent=2)
    with pytest.raises(ValueError, match="their max_concurrent must be 1"):
        await on.dispatcher.shell.add_hub(on.hub)
    await on.dispatcher.aclose()


async def test_whose_it_is_does_not_get_lost() -> None:
    """A hub may publish it again from a record that it made before."""
    async with shared(max_total=1) as on:
        before = on.hub.at("bench-1").changed(ownership=Ownership.MANAGED, generation=1)
        await used(on, "a")
        on.hub.publish(before.changed(weight=2))
        assert owner(on, "bench-1") == "a"
        assert on.hub.instances[0].weight == 2


async def test_one_that_was_withdrawn_while_it_worked_does_not_come_back() -> None:
    """Its use ends, and says nothing of it any more."""
    async with shared(max_total=1) as on:
        lease = await leased(on, "a")
        on.hub.quick = False
        on.hub.replace(lease.instance, "fell over")
        await lease.release()
        await turns()
        assert on.endpoints == []
        (await on.hub.destructions.next()).finish()
        assert on.hub.wiped == []


async def test_those_who_name_no_tenant_are_one() -> None:
    """They do not get what was another's."""
    async with shared(max_total=2) as on:
        assert [await used(on, tenant) for tenant in ("a", "", "a", "")] == ["bench-1", "bench-2"] * 2
        assert owner(on, "bench-2") == "anonymous"


async def test_what_belongs_to_a_tenant_is_not_ready_for_others() -> None:
    """So many as are to be ready are ready for anybody."""
    async with shared(min_idle=2, max_total=4) as on:
        await used(on, "a")
        assert len(on.endpoints) == 3
        assert sum(owner(on, endpoint) is None for endpoint in on.endpoints) == 2


async def test_the_longest_idle_of_another_tenant_makes_room() -> None:
    """Only when there may be no more, and only as many as are wanted."""
    async with shared(max_total=3) as on:
        for tenant in "abc":
            await used(on, tenant)
            on.clock.advance(1)
        await used(on, "a")
        on.clock.advance(1)
        assert await used(on, "d") == "bench-4"
        assert on.hub.destroyed == ["bench-2"]
        assert sorted(filter(None, (owner(on, endpoint) for endpoint in on.endpoints))) == ["a", "c", "d"]


async def test_one_at_work_makes_room_when_its_work_is_done() -> None:
    """Whoever came first is first, whosever it was."""
    async with shared(max_total=1) as on:
        first = await leased(on, "a")
        other = asyncio.ensure_future(leased(on, "b"))
        await turns()
        again = asyncio.ensure_future(leased(on, "a"))
        await turns()
        await first.release()
        second = await other
        assert (second.instance.endpoint, again.done()) == ("bench-2", False)
        await second.release()
        third = await again
        assert third.instance.endpoint == "bench-3"
        await third.release()


async def test_one_that_drains_for_long_does_not_keep_the_others_from_making_room() -> None:
    """It may be leased for hours."""
    async with shared(max_total=2) as on:
        drained, working = await leased(on, "a"), await leased(on, "a")
        on.hub.drain(drained.instance.id, "by hand")
        other = asyncio.ensure_future(leased(on, "b"))
        await turns()
        await working.release()
        lease = await other
        assert lease.instance.endpoint == "bench-3"
        assert on.hub.destroyed == [working.instance.endpoint]
        await lease.release()
        await drained.release()


async def test_as_many_make_room_as_are_wanted() -> None:
    """No more, although those who wait are looked at again and again."""
    async with shared(max_total=4) as on:
        held = [await leased(on, tenant) for tenant in "aabb"]
        for lease in held:
            await lease.release()
        await turns()
        assert len(on.endpoints) == 4
        on.hub.quick = False
        asking = [asyncio.ensure_future(leased(on, "c")) for _ in range(2)]
        await turns(60)
        assert len(on.hub.destructions.all) == 2
        on.hub.quick = True
        for destruction in on.hub.destructions.all:
            destruction.finish()
        for one in asking:
            await (await one).release()


async def test_one_stays_its_tenants_while_that_tenant_is_first() -> None:
    """Nothing is destroyed for somebody who is not next."""
    async with shared(max_total=1) as on:
        first = await leased(on, "a")
        again = asyncio.ensure_future(leased(on, "a"))
        await turns()
        other = asyncio.ensure_future(leased(on, "b"))
        await turns()
        await first.release()
        second = await again
        assert second.instance.endpoint == "bench-1"
        await second.release()
        third = await other
        assert third.instance.endpoint == "bench-2"
        await third.release()


async def test_one_that_its_tenant_gave_back_unused_makes_room_too() -> None:
    """Nobody wipes it, so nobody else would notice."""
    async with shared(max_total=1) as on:
        await used(on, "a")
        admission = on.dispatcher.shell.admission
        taken = on.use(on.hub.instances[0])
        other = asyncio.ensure_future(leased(on, "b"))
        await turns()
        assert not other.done()
        request = Request(method=LEASE.name, requirements=Requirements(accepts=(), tenant="a"))
        admission.release(Ticket(request, DEFAULT_ROUTE), taken, Outcome(result=Result.CANCELLED))
        lease = await other
        assert lease.instance.endpoint == "bench-2"
        await lease.release()


async def test_nothing_makes_room_while_nothing_can_be_created() -> None:
    """What is there serves its tenants; others are told why there is none for them."""
    async with shared(max_total=2) as on:
        await used(on, "a")
        await used(on, "b")
        on.hub._pause("no wood", 1)
        with pytest.raises(Unavailable, match="no wood"):
            await leased(on, "c")
        assert on.hub.destroyed == []
        assert await used(on, "a") == "bench-1"


async def test_who_waits_for_room_may_give_up() -> None:
    """At a deadline; what was at work stays its tenant's."""
    async with shared(max_total=1) as on:
        lease = await leased(on, "a")
        asking = asyncio.ensure_future(on.dispatcher.lease(ANY, timeout_s=5, tenant="b")._acquire())
        await turns()
        on.clock.advance(5)
        with pytest.raises(DeadlineExceeded):
            await asking
        await lease.release()
        await turns()
        assert owner(on, "bench-1") == "a"


async def test_who_waits_for_room_when_all_ends_is_told() -> None:
    """Nothing is created for them any more."""
    async with shared(max_total=1) as on:
        await leased(on, "a")
        asking = asyncio.ensure_future(leased(on, "b"))
        await turns()
        await on.dispatcher.aclose()
        with pytest.raises(ShuttingDown):
            await asking
        assert on.hub.created == on.hub.destroyed == ["bench-1"]


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
