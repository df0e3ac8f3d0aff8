from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gleitzeit_core.persistence import HubPersistenceAdapter, MemoryStore
from gleitzeit_core.requests import Request
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.conformance import StoreConformance

if TYPE_CHECKING:
    from gleitzeit_core.clock import Clock


class TestMemoryStore(StoreConformance):
    """The store in memory passes what every store must."""

    async def make_store(self, clock: Clock) -> HubPersistenceAdapter:
        """Empty."""
        return MemoryStore(clock=clock)


class Partial(HubPersistenceAdapter):
    """One with a single facet."""

    def __init__(self, clock: Clock) -> None:
        self.counters = MemoryStore(clock=clock).counters


class TestPartialStore(StoreConformance):
    """A store need not have every facet."""

    facets = ("counters",)

    async def make_store(self, clock: Clock) -> HubPersistenceAdapter:
        """With counters only."""
        return Partial(clock)


def test_a_store_shows_its_facets() -> None:
    """By name; what it has not is None."""
    store = Partial(ManualClock())
    assert repr(store) == "<Partial: counters>"
    assert store.leases is None
    assert not store.shared


async def test_what_was_put_there_is_a_copy() -> None:
    """Nobody changes what is stored by changing what he gave."""
    store, record = MemoryStore(clock=ManualClock()), {"state": "ready"}
    assert store.instances is not None
    assert store.metrics is not None
    await store.instances.put("a", record)
    await store.metrics.write("a", record)
    record["state"] = "down"
    assert await store.instances.all() == {"a": {"state": "ready"}}
    assert await store.metrics.read() == {"a": {"state": "ready"}}


async def test_what_has_ended_is_forgotten() -> None:
    """A lease that is given back too late, and a topic nobody listens to, take no memory."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    assert store.leases is not None
    assert store.notify is not None
    lease = await store.leases.acquire("it", "me", 1)
    assert lease is not None
    messages = store.notify.listen("news")
    heard = asyncio.create_task(anext(messages))
    await asyncio.sleep(0)
    await store.notify.publish("news", "one")
    assert await heard == "one"
    empty = {
        name: len(value) for name, value in vars(MemoryStore(clock=clock).leases).items() if isinstance(value, dict)
    }
    clock.advance(2)
    assert not await store.leases.release(lease)
    await messages.aclose()
    assert {name: len(getattr(store.leases, name)) for name in empty} == empty


async def test_counters_that_have_run_out_are_forgotten() -> None:
    """As many as were ever used would fill the memory of a gateway; those that have not run out go on."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    assert store.counters is not None
    await store.counters.add("lasting", 1, 1e9)
    for number in range(20_000):
        await store.counters.add(str(number), 1, 5)
        clock.advance(1)
    assert len(store.counters._sums) < 2000  # type: ignore[attr-defined]
    assert await store.counters.add("lasting", 1, 1e9) == 2
    assert await store.counters.add("19999", 1, 5) == 2


async def test_known_keys_are_bounded() -> None:
    """The oldest are forgotten in the end; a process that runs for a year does not grow for ever."""
    store = MemoryStore(clock=ManualClock())
    assert store.queue is not None
    for number in range(65_537):
        request = Request(method="m", id=str(number), idempotency_key=str(number))
        assert await store.queue.push(request)
        await store.queue.settle(request.id)
    assert not await store.queue.push(Request(method="m", idempotency_key="1"))
    assert await store.queue.push(Request(method="m", idempotency_key="0"))


async def test_a_listener_that_is_slow_loses_messages_and_nothing_else() -> None:
    """Who publishes is never held up, and memory is bounded."""
    store = MemoryStore(clock=ManualClock())
    assert store.notify is not None
    listener = store.notify.listen("t")
    first = asyncio.create_task(anext(listener))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    for number in range(5000):
        await store.notify.publish("t", str(number))
    assert await first == "0"
    assert await anext(listener) == "1"
    await listener.aclose()
    await store.notify.publish("t", "nobody hears this")
