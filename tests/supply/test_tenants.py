"""Instances that belong to the tenant who used them first."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE
from gleitzeit_core.errors import DeadlineExceeded, ShuttingDown, Unavailable
from gleitzeit_core.leases import LEASE
from gleitzeit_core.requests import Outcome, Request, Result
from gleitzeit_core.resources import Ownership, Requirements
from gleitzeit_core.routing import OfferKind, Ticket
from gleitzeit_core.testing.todo import turns
from gleitzeit_core.testing.workshop import Cleaning, Running

from .running import ANY, leased, running, used


class Bound(Cleaning):
    """Each bench belongs to the tenant who used it first."""

    tenant_bound = True


shared = partial(running, Bound)


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


async def test_one_at_work_serves_its_tenant_until_somebody_else_is_next() -> None:
    """Who waits behind that tenant does not have it drained, and the tenant's own are no room for that tenant."""
    async with shared(max_total=1) as on:
        lease = await leased(on, "a")
        assert on.hub.offer(Requirements(accepts=(), tenant="a")).kind is OfferKind.READY
        assert on.hub.offer(Requirements(accepts=(), tenant="b")).kind is OfferKind.READY
        await lease.release()
        lease = await leased(on, "a")
        again = asyncio.ensure_future(leased(on, "a"))
        await turns()
        other = asyncio.ensure_future(leased(on, "b"))
        await turns()
        assert on.hub.offer(Requirements(accepts=(), tenant="a")).kind is OfferKind.READY
        assert on.hub.offer(Requirements(accepts=(), tenant="b")).kind is OfferKind.CREATABLE
        assert on.states == {"bench-1": "ready"}
        await lease.release()
        await (await again).release()
        await (await other).release()


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
