"""Leases that a store keeps for several processes: what others hold, what a store that fails or hangs does to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE
from gleitzeit_core.errors import (
    DeadlineExceeded,
    LeaseExpired,
    ShuttingDown,
    Unavailable,
)
from gleitzeit_core.persistence import MemoryStore, StoredLease
from gleitzeit_core.routing import Route
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.todo import turns
from tests.tasks import ended

from .stage import ANY, Stage, stage

if TYPE_CHECKING:
    from gleitzeit_core.persistence import Leases


def a_store(clock: ManualClock) -> Leases:
    """That of a process of its own."""
    store = MemoryStore(clock=clock).leases
    assert store is not None
    return store


async def test_a_store_numbers_the_fences() -> None:
    """Under the instance's id and the number of the place; given back, the place is free there."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = a_store(clock)
        for number in range(1, 4):
            async with on.dispatcher.lease(ANY, store=store) as lease:
                assert lease.fence == number
                assert await store.acquire(f"{lease.instance.id}:0", "somebody else", 1.0) is None
            assert lease.instance.id in repr(lease)


async def test_what_others_have_leased_is_passed_over() -> None:
    """Another instance serves; when there is none, that is said."""
    clock = ManualClock()
    async with stage({"a": {"max_concurrent": 1}, "b": {"max_concurrent": 2}}, clock=clock) as on:
        store = a_store(clock)
        for name in ("a:0", "b:0"):
            endpoint, _, number = name.partition(":")
            found = next(i.id for i in on.hub.instances if i.endpoint == endpoint)
            assert await store.acquire(f"{found}:{number}", "somebody else", 600.0) is not None
        lease = await on.lease(store=store)
        assert lease.instance.endpoint == "b"
        waiting = on.wait(store=store, timeout_s=5.0)
        await on.pass_time(5.0)
        with pytest.raises(Unavailable, match="is leased by others"):
            await waiting
        await lease.release()
        assert on.in_flight == 0


async def leased_by_others(on: Stage, store: Leases, endpoint: str, ttl_s: float = 600.0) -> StoredLease:
    """The first place of an instance."""
    name = next(i.id for i in on.hub.instances if i.endpoint == endpoint)
    found = await store.acquire(f"{name}:0", "somebody else", ttl_s)
    assert found is not None
    return found


@pytest.mark.parametrize("how", ["given back", "run out"])
async def test_what_others_have_leased_is_waited_for(how: str) -> None:
    """The store is asked again until its time is over; meanwhile no slot is held, and no place in the queue counts."""
    clock = ManualClock()
    route = Route(name="leases", methods=("lease",), strategy=DEFAULT_ROUTE.strategy, max_queue=0)
    async with stage(routes=[route], clock=clock) as on:
        store = a_store(clock)
        others = await leased_by_others(on, store, "a", ttl_s=20.0)
        waiting = on.wait(store=store, timeout_s=30.0)
        await on.pass_time(10.0)
        assert (waiting.done(), on.in_flight, on.waiting) == (False, 0, 1)
        working = on.ask()
        (await on.provider.calls.next()).finish("in between")
        assert await working == "in between"
        if how == "given back":
            await store.release(others)
            await on.pass_time(1.0)
        else:
            await on.pass_time(10.0)
        lease = await waiting
        assert lease.fence > others.fence
        await lease.release()
        await on.pass_time(5.0)


async def test_what_others_have_leased_is_asked_for_again_while_another_is_waited_for() -> None:
    """Whichever is free first; and nothing that came later overtakes it."""
    clock = ManualClock()
    async with stage({"a": {"max_concurrent": 1}, "b": {"max_concurrent": 1}}, clock=clock) as on:
        store = a_store(clock)
        others = await leased_by_others(on, store, "a")
        busy = await on.lease(store=store, ttl_s=1e6)
        assert busy.instance.endpoint == "b"
        waiting, later = on.wait(store=store), on.wait(store=store)
        await on.pass_time(3.0)
        assert (waiting.done(), later.done(), on.waiting) == (False, False, 2)
        await store.release(others)
        await on.pass_time(1.0)
        assert (waiting.done(), later.done()) == (True, False)
        assert (await waiting).instance.endpoint == "a"
        await busy.release()
        assert (await later).instance.endpoint == "b"
        await (await waiting).release()
        await (await later).release()


async def test_what_goes_down_while_others_have_leased_it_is_said_to_be_down() -> None:
    """That it is leased is no longer what matters."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = a_store(clock)
        await leased_by_others(on, store, "a")
        waiting = on.wait(store=store)
        await on.pass_time(2.0)
        on.hub.report_down(on.hub.instances[0].id, "its power is off")
        await on.pass_time(1.0)
        with pytest.raises(Unavailable, match="its power is off"):
            await waiting


async def test_who_leaves_while_others_have_leased_it_waits_no_more() -> None:
    """The store is not asked for nobody."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        await leased_by_others(on, store, "a")
        waiting = on.wait(store=store)
        await on.pass_time(2.0)
        waiting.cancel()
        await ended(waiting)
        store.asked.clear()
        await on.pass_time(3.0)
        assert not store.asked.is_set()


async def test_a_renewal_counts_in_the_store() -> None:
    """There it lasts as long as here."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = a_store(clock)
        lease = await on.lease(store=store, ttl_s=10.0)
        clock.advance(8.0)
        await lease.renew()
        clock.advance(8.0)
        assert await store.acquire(f"{lease.instance.id}:0", "somebody else", 1.0) is None
        assert lease.expires_at == clock.wall() + 2.0
        await lease.release()


class Slow:
    """A store that answers when a test says so, or fails."""

    def __init__(self, store: Leases) -> None:
        self.store = store
        self.asked, self.answers, self.releases = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.answers.set()
        self.releases.set()
        self.failure: Exception | None = None
        self.released: list[StoredLease] = []

    async def acquire(self, name: str, holder: str, ttl_s: float) -> StoredLease | None:
        """As the store, later."""
        self.asked.set()
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return await self.store.acquire(name, holder, ttl_s)

    async def release(self, lease: StoredLease) -> bool:
        """As the store, later."""
        await self.releases.wait()
        if self.failure is not None:
            raise self.failure
        self.released.append(lease)
        return await self.store.release(lease)


async def test_a_store_that_fails_gives_no_lease() -> None:
    """The slot is free again, and callers see none of its own errors."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        store.failure = LookupError("secret")
        with pytest.raises(Unavailable, match=r"^the store that keeps the leases does not answer$"):
            await on.lease(store=store)
        await turns()
        assert on.in_flight == 0


async def test_who_leaves_while_the_store_is_asked_holds_nothing() -> None:
    """The same for a deadline."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        store.answers.clear()
        leaving = on.wait(store=store)
        await store.asked.wait()
        leaving.cancel()
        await ended(leaving)
        assert (on.dispatcher.active, on.in_flight) == (0, 1)
        store.answers.set()
        await turns()
        assert on.in_flight == 0
        assert len(store.released) == 1
        store.asked.clear()
        store.answers.clear()
        late = on.wait(store=store, timeout_s=5.0)
        await store.asked.wait()
        clock.advance(5.0)
        with pytest.raises(DeadlineExceeded):
            await late
        store.answers.set()
        async with on.dispatcher.lease(ANY, store=store) as lease:
            assert lease.active


async def test_a_store_that_never_answers_does_not_hold_up_the_end() -> None:
    """Nor does it keep a slot."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        store.answers.clear()
        waiting = on.wait(store=store)
        await store.asked.wait()
        async with asyncio.timeout(3):
            await on.dispatcher.aclose()
        with pytest.raises(ShuttingDown):
            await waiting


async def test_a_store_that_takes_nothing_back_keeps_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the slot is free all the same; there it runs out."""
    monkeypatch.setattr("gleitzeit_core.leases._GIVE_BACK_S", 0.0)
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        lease = await on.lease(store=store)
        store.releases.clear()
        await lease.release()
        assert on.in_flight == 0


async def test_who_waits_gets_slot_and_place() -> None:
    """The place in the store is free before the slot is, however the lease before it ends."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        first = await on.lease(store=store, ttl_s=5.0)
        second, third = on.wait(store=store, ttl_s=5.0), on.wait(store=store)
        await turns()
        store.releases.clear()
        clock.advance(5.0)
        await turns()
        assert (first.active, on.in_flight, on.waiting) == (False, 1, 2)
        store.releases.set()
        assert (await second).fence > first.fence
        await (await second).release()
        await (await third).release()


async def test_a_store_that_fails_a_renewal_leaves_the_lease_as_it_was() -> None:
    """It ends when it would have; what cannot be given back runs out there."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        lease = await on.lease(store=store, ttl_s=10.0)
        store.failure = OSError("away")
        with pytest.raises(Unavailable):
            await lease.renew()
        assert lease.active
        clock.advance(10.0)
        await turns()
        assert (lease.active, on.in_flight) == (False, 0)


async def test_a_lease_that_somebody_else_has_now_ends() -> None:
    """A store whose clock runs faster may have given it away; what runs under it is stopped."""
    clock, fast = ManualClock(), ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(fast))
        lease = await on.lease(store=store, ttl_s=10.0)
        work = on.use(lease)
        await on.provider.calls.next()
        fast.advance(10.0)
        await store.store.acquire(f"{lease.instance.id}:0", "somebody else", 600.0)
        with pytest.raises(LeaseExpired, match="somebody else has it"):
            await lease.renew()
        with pytest.raises(LeaseExpired):
            await work


async def test_a_lease_that_had_run_out_in_the_store_ends() -> None:
    """In between somebody else may have had it: its new fence is given back."""
    clock, fast = ManualClock(), ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(fast))
        lease = await on.lease(store=store, ttl_s=10.0)
        fast.advance(10.0)
        with pytest.raises(LeaseExpired):
            await lease.renew()
        await turns()
        assert await store.store.acquire(f"{lease.instance.id}:0", "somebody else", 1.0) is not None


async def test_an_end_while_the_store_is_asked_to_renew() -> None:
    """It has ended, and what the store has kept since is given back."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        lease = await on.lease(store=store, ttl_s=10.0)
        store.answers.clear()
        store.asked.clear()
        renewing = asyncio.create_task(lease.renew())
        await store.asked.wait()
        await lease.release()
        store.answers.set()
        with pytest.raises(LeaseExpired):
            await renewing
        assert await store.store.acquire(f"{lease.instance.id}:0", "somebody else", 1.0) is not None
