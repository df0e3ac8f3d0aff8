"""State that outlives a process or is shared between replicas, in facets; and the store that keeps it in memory.

An adapter declares which facets it has by setting them; what needs one that is missing says so at start. Every lease
carries a **fence**, a number that only grows: whoever acts under a lease sends it along, and a lower one is refused.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from gleitzeit_core.strategies.base import NoOptions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Request

_BACKLOG = 1024
_KEYS_MAX = 65_536
_SUMS_LEAST = 1024


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A hold on something: by whom, until when (Unix time), and its fence."""

    name: str
    holder: str
    expires_at: float
    fence: int


class Instances(Protocol):
    """What instances there are, as their hubs published them."""

    async def put(self, instance_id: str, record: Mapping[str, Any]) -> None:
        """Add or replace."""

    async def remove(self, instance_id: str) -> None:
        """Forget; one that is not there is fine."""

    async def all(self) -> dict[str, Mapping[str, Any]]:
        """All, by id."""


class Leases(Protocol):
    """Holds that expire."""

    async def acquire(self, name: str, holder: str, ttl_s: float) -> StoredLease | None:
        """Take `name`, or extend one's own hold, for `ttl_s` seconds. None while somebody else has it."""

    async def release(self, lease: StoredLease) -> bool:
        """Give it back. False when it was no longer held."""


class Queue(Protocol):
    """Requests that survive. Delivered at least once: a claim that is not settled in time comes back."""

    async def push(self, request: Request) -> bool:
        """Add. False when its idempotency key is known."""

    async def claim(self, visible_after_s: float) -> Request | None:
        """The next one, hidden from others for so many seconds; None when there is none."""

    async def settle(self, request_id: str) -> None:
        """It is done: never deliver it again."""


class Counters(Protocol):
    """Numbers that many add to, such as a key's use in a period."""

    async def add(self, name: str, amount: float, ttl_s: float) -> float:
        """Add and return the sum; it starts from 0 again `ttl_s` seconds after its first addition."""


class Metrics(Protocol):
    """What each process measured, to be merged."""

    async def write(self, source: str, snapshot: Mapping[str, Any]) -> None:
        """Replace what `source` has written."""

    async def read(self) -> dict[str, Mapping[str, Any]]:
        """All, by source."""


class Notify(Protocol):
    """Wakes others at once, where polling would do later: a message may be lost."""

    async def publish(self, topic: str, message: str) -> None:
        """Tell all who listen now."""

    def listen(self, topic: str) -> AsyncGenerator[str, None]:
        """Messages from the first time it waits for one."""


class HubPersistenceAdapter:
    """Base of all stores. A facet that is None is one the store does not have."""

    instances: Instances | None = None
    leases: Leases | None = None
    queue: Queue | None = None
    counters: Counters | None = None
    metrics: Metrics | None = None
    notify: Notify | None = None
    shared: ClassVar[bool] = False
    """Whether other processes see it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self.facets)}>"

    @property
    def facets(self) -> tuple[str, ...]:
        """Names of the facets it has."""
        names = ("instances", "leases", "queue", "counters", "metrics", "notify")
        return tuple(name for name in names if getattr(self, name) is not None)

    async def open(self) -> None:
        """Connect. Called once."""

    async def close(self) -> None:
        """Disconnect. Called once."""


class MemoryStore(HubPersistenceAdapter):
    """All facets, in this process. There are no options to set; `clock` is where time comes from."""

    def __init__(self, options: NoOptions | None = None, *, clock: Clock) -> None:
        self.options = options or NoOptions()
        self.instances = self.leases = self.queue = self.counters = self.metrics = self.notify = _Memory(clock)


class _Memory:
    """Every facet in one; the protocols above say what the methods do."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[str, Mapping[str, Any]] = {}
        self._held: dict[str, StoredLease] = {}
        self._fence = 0
        self._requests: dict[str, tuple[Request, float]] = {}
        self._keys: dict[str, None] = {}
        self._sums: dict[str, tuple[float, float]] = {}
        self._sums_max = _SUMS_LEAST
        self._snapshots: dict[str, Mapping[str, Any]] = {}
        self._listeners: defaultdict[str, set[asyncio.Queue[str]]] = defaultdict(set)

    async def put(self, instance_id: str, record: Mapping[str, Any]) -> None:
        self._records[instance_id] = dict(record)

    async def remove(self, instance_id: str) -> None:
        self._records.pop(instance_id, None)

    async def all(self) -> dict[str, Mapping[str, Any]]:
        return dict(self._records)

    async def acquire(self, name: str, holder: str, ttl_s: float) -> StoredLease | None:
        now, held = self._clock.wall(), self._held.get(name)
        if held is None or held.expires_at <= now:
            self._fence += 1
            fence = self._fence
        elif held.holder == holder:
            fence = held.fence
        else:
            return None
        lease = self._held[name] = StoredLease(name, holder, now + ttl_s, fence)
        return lease

    async def release(self, lease: StoredLease) -> bool:
        held = self._held.get(lease.name)
        if held is None or held.fence != lease.fence:
            return False
        del self._held[lease.name]
        return held.expires_at > self._clock.wall()

    async def push(self, request: Request) -> bool:
        key = request.idempotency_key or request.id
        if key in self._keys:
            return False
        if len(self._keys) >= _KEYS_MAX:
            del self._keys[next(iter(self._keys))]
        self._keys[key] = None
        self._requests[request.id] = (request, 0.0)
        return True

    async def claim(self, visible_after_s: float) -> Request | None:
        now = self._clock.monotonic()
        due = [request for request, visible_at in self._requests.values() if visible_at <= now]
        found = max(due, key=lambda request: request.priority, default=None)  # of equals, the first to come
        if found is not None:
            self._requests[found.id] = (found, now + visible_after_s)
        return found

    async def settle(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    async def add(self, name: str, amount: float, ttl_s: float) -> float:
        now = self._clock.monotonic()
        total, expires_at = self._sums.get(name, (0.0, 0.0))
        if expires_at <= now:
            total, expires_at = 0.0, now + ttl_s
            if len(self._sums) >= self._sums_max:
                # What has run out is forgotten, so rarely that it costs next to nothing.
                self._sums = {key: one for key, one in self._sums.items() if one[1] > now}
                self._sums_max = 2 * len(self._sums) + _SUMS_LEAST
        self._sums[name] = (total + amount, expires_at)
        return total + amount

    async def write(self, source: str, snapshot: Mapping[str, Any]) -> None:
        self._snapshots[source] = dict(snapshot)

    async def read(self) -> dict[str, Mapping[str, Any]]:
        return dict(self._snapshots)

    async def publish(self, topic: str, message: str) -> None:
        for queue in self._listeners.get(topic, ()):
            if not queue.full():
                queue.put_nowait(message)

    async def listen(self, topic: str) -> AsyncGenerator[str, None]:
        queue: asyncio.Queue[str] = asyncio.Queue(_BACKLOG)
        self._listeners[topic].add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners[topic].discard(queue)
            if not self._listeners[topic]:
                del self._listeners[topic]
