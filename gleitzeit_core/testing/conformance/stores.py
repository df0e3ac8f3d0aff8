# ruff: noqa: S101 - assertions are what these classes are made of
"""What every store must do."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from gleitzeit_core.requests import Request
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.conformance.base import Conformance

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.persistence import HubPersistenceAdapter


class StoreConformance(Conformance):
    """What every store must do, facet by facet."""

    facets: ClassVar[tuple[str, ...]] = ("instances", "leases", "queue", "counters", "metrics", "notify")
    """Those it has."""

    @abstractmethod
    async def make_store(self, clock: Clock) -> HubPersistenceAdapter:
        """An empty store that was not opened."""

    async def pass_time(self, clock: ManualClock, seconds: float) -> None:
        """Let `seconds` pass for the store. Override this where it has a clock of its own."""
        clock.advance(seconds)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncGenerator[tuple[HubPersistenceAdapter, ManualClock], None]:
        """A store, open; closed afterwards."""
        clock = ManualClock()
        store = await self.make_store(clock)
        await store.open()
        try:
            yield store, clock
        finally:
            await store.close()

    async def test_it_has_the_facets_it_says(self) -> None:
        """No more, no fewer."""
        async with self.opened() as (store, _):
            assert store.facets == self.facets

    async def test_instances_are_kept_by_id(self) -> None:
        """The last one counts; what is removed is gone."""
        async with self.opened() as (store, _):
            if store.instances is None:
                return
            await store.instances.put("a", {"state": "down"})
            await store.instances.put("a", {"state": "ready"})
            await store.instances.put("b", {"state": "ready", "tags": ["x"]})
            assert await store.instances.all() == {"a": {"state": "ready"}, "b": {"state": "ready", "tags": ["x"]}}
            await store.instances.remove("a")
            await store.instances.remove("never there")
            assert list(await store.instances.all()) == ["b"]

    async def test_a_lease_has_one_holder(self) -> None:
        """Others get it when it is given back, with a higher fence."""
        async with self.opened() as (store, _):
            if store.leases is None:
                return
            first = await store.leases.acquire("it", "me", 10)
            assert first is not None
            assert await store.leases.acquire("it", "you", 10) is None
            assert await store.leases.acquire("another", "you", 10) is not None
            assert await store.leases.release(first)
            second = await store.leases.acquire("it", "you", 10)
            assert second is not None
            assert second.fence > first.fence
            assert not await store.leases.release(first)

    async def test_a_lease_expires(self) -> None:
        """Extended by its holder it goes on, with the same fence; then it is anybody's, with a higher one."""
        async with self.opened() as (store, clock):
            if store.leases is None:
                return
            first = await store.leases.acquire("it", "me", 10)
            await self.pass_time(clock, 6)
            extended = await store.leases.acquire("it", "me", 10)
            assert first is not None
            assert extended is not None
            assert (extended.fence, extended.expires_at > first.expires_at) == (first.fence, True)
            await self.pass_time(clock, 6)
            assert await store.leases.acquire("it", "you", 10) is None
            await self.pass_time(clock, 6)
            assert not await store.leases.release(extended)
            taken = await store.leases.acquire("it", "you", 10)
            assert taken is not None
            assert taken.fence > first.fence

    async def test_its_own_lease_lost_and_taken_again_is_a_new_one(self) -> None:
        """Whoever slept too long must not act under the old fence."""
        async with self.opened() as (store, clock):
            if store.leases is None:
                return
            first = await store.leases.acquire("it", "me", 10)
            await self.pass_time(clock, 11)
            again = await store.leases.acquire("it", "me", 10)
            assert first is not None
            assert again is not None
            assert again.fence > first.fence

    async def test_a_queue_gives_out_by_priority_then_by_age(self) -> None:
        """What is claimed is hidden, what is settled is gone."""
        async with self.opened() as (store, _):
            if store.queue is None:
                return
            requests = [Request(method="m", id=name, priority=name == "urgent") for name in ("a", "b", "urgent")]
            for request in requests:
                assert await store.queue.push(request)
            claimed = [await store.queue.claim(60) for _ in range(4)]
            assert [request and request.id for request in claimed] == ["urgent", "a", "b", None]
            for request in requests:
                await store.queue.settle(request.id)

    async def test_a_claim_that_is_not_settled_comes_back(self) -> None:
        """Delivered at least once, and never after it was settled."""
        async with self.opened() as (store, clock):
            if store.queue is None:
                return
            pushed = Request(method="m", params={"n": 1}, tenant="t")
            await store.queue.push(pushed)
            assert await store.queue.claim(10) == pushed
            await self.pass_time(clock, 11)
            assert await store.queue.claim(10) == pushed
            await store.queue.settle(pushed.id)
            await self.pass_time(clock, 11)
            assert await store.queue.claim(10) is None

    async def test_an_idempotency_key_is_taken_once(self) -> None:
        """Also after the first request is done."""
        async with self.opened() as (store, _):
            if store.queue is None:
                return
            first = Request(method="m", idempotency_key="k")
            assert await store.queue.push(first)
            await store.queue.settle(first.id)
            assert not await store.queue.push(Request(method="m", idempotency_key="k"))
            assert await store.queue.push(Request(method="m"))

    async def test_a_counter_adds_up_and_starts_again(self) -> None:
        """Its time runs from the first addition."""
        async with self.opened() as (store, clock):
            if store.counters is None:
                return
            assert await store.counters.add("n", 2, 10) == 2  # noqa: PLR2004 - as added
            await self.pass_time(clock, 6)
            assert await store.counters.add("n", 0.5, 10) == 2.5  # noqa: PLR2004 - as added
            assert await store.counters.add("m", 1, 10) == 1
            await self.pass_time(clock, 6)
            assert await store.counters.add("n", 1, 10) == 1

    async def test_metrics_are_kept_by_source(self) -> None:
        """Each replaces its own."""
        async with self.opened() as (store, _):
            if store.metrics is None:
                return
            await store.metrics.write("a", {"n": 1})
            await store.metrics.write("b", {"n": 2})
            await store.metrics.write("a", {"n": 3})
            assert await store.metrics.read() == {"a": {"n": 3}, "b": {"n": 2}}

    async def test_who_listens_is_told(self) -> None:
        """All who listen to the topic, and nobody else."""
        async with self.opened() as (store, _):
            if store.notify is None:
                return
            listeners = [store.notify.listen("topic") for _ in range(2)]
            heard = [asyncio.ensure_future(anext(listener)) for listener in listeners]
            while not all(one.done() for one in heard):
                await store.notify.publish("another", "not this")
                await store.notify.publish("topic", "this")
                await asyncio.sleep(0)
            assert [one.result() for one in heard] == ["this", "this"]
            for listener in listeners:
                await listener.aclose()
