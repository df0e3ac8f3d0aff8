"""How a request is led to an instance: routes, tickets, what hubs offer, and the `LoadBalancer` of a strategy."""

from __future__ import annotations

import bisect
import logging
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from gleitzeit_core.pool import Pool, Record, Slot, Snapshot
from gleitzeit_core.strategies.base import View, Wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.errors import RequestError
    from gleitzeit_core.requests import Outcome, Request
    from gleitzeit_core.resources import Requirements
    from gleitzeit_core.strategies.base import Strategy

logger = logging.getLogger(__name__)


class OfferKind(StrEnum):
    """What a hub can do about requirements that no free instance meets."""

    READY = "ready"
    """Its instances are all there will be."""
    CREATABLE = "creatable"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Offer:
    """A hub's answer to requirements.

    Args:
        kind: What it can do.
        eta_s: For ``CREATABLE``: how long creating one takes, in seconds.
        reason: Why not, for a person.
    """

    kind: OfferKind
    eta_s: float = 0.0
    reason: str = ""


class Supplier(Protocol):
    """The part of a hub that the machine asks, without waiting."""

    @property
    def name(self) -> str:
        """The hub's name."""

    @property
    def recycles(self) -> bool:
        """Whether an instance must be made ready again after each use."""

    @property
    def running(self) -> bool:
        """Whether it may be asked for more instances."""

    def offer(self, requirements: Requirements) -> Offer:
        """Whether an instance that meets `requirements` can be created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePolicy:
    """When a second try is begun beside one that is slow to answer. Only for replayable methods.

    Args:
        percentile: Of first outputs; a try slower than this one is hedged. From 50 to below 100.
        budget: Hedges for each request, at most; 0.02 is 2 % extra work.
        min_samples: First outputs that must have been seen before any is hedged.
    """

    percentile: float = 95.0
    budget: float = 0.02
    min_samples: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of a route's capacity kept for a tenant or a model.

    Args:
        share: Of all slots of the route's instances that are up, above 0, at most 1.
        tenant: Whose requests may use it; empty for anybody's.
        model: Requests for which model may use it; empty for any.
    """

    share: float
    tenant: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How a group of methods is served.

    Args:
        name: For people and metrics.
        methods: Patterns such as ``llm/*``; the first route that matches serves.
        strategy: Makes a strategy for one capability set.
        hubs: Only these; None for all.
        max_queue: Requests that may wait for one capability; 0 for none. Those that failed on an instance and are tried
            again are let in above that: they had a place.
        timeout_s: Deadline of a request that names none; None for no limit.
        max_tries: Instances tried for one request, from 1.
        shed_from: How full the queue is, from 0 to 1, when requests of the lowest band begin to be refused at random
            in favour of those in higher bands; 1 for never.
        hedge: When to try a second instance beside the first; None for never.
        shares: Parts of the capacity that are kept for somebody.
    """

    name: str
    methods: tuple[str, ...]
    strategy: Callable[[Random, Clock], Strategy[Any]] = field(repr=False)
    hubs: frozenset[str] | None = None
    max_queue: int = 256
    timeout_s: float | None = 600.0
    max_tries: int = 3
    shed_from: float = 0.8
    hedge: HedgePolicy | None = None
    shares: tuple[Share, ...] = ()


@dataclass(slots=True, eq=False)
class Ticket:
    """A request on its way to a slot.

    Args:
        request: What is asked for.
        route: How it is served.
        arrived_at: On the monotonic clock.
        deadline: On the monotonic clock; None for no limit. Whoever waits for the slot keeps it.
        waiter: Whatever the shell needs to wake who waits; never looked at here.
        excluded: Instances it was tried on, as (id, generation).
        last_failure: What the last of them said.
        patient_until: Until then, on the monotonic clock, it waits although nothing could serve it.
    """

    request: Request
    route: Route
    arrived_at: float = 0.0
    deadline: float | None = None
    waiter: Any = None
    excluded: frozenset[tuple[str, int]] = frozenset()
    last_failure: RequestError | None = None
    patient_until: float = 0.0
    queued_at: float = 0.0
    key: tuple[int, float, int] = (0, 0.0, 0)
    balancer: LoadBalancer | None = None
    waits: bool = False

    def may_use(self, record: Record) -> bool:
        """Whether it was not tried there before."""
        return not self.excluded or (record.instance.id, record.instance.generation) not in self.excluded


class _Band:
    """Start-time fair queueing between the tenants of one priority, by work."""

    __slots__ = ("now", "served")

    def __init__(self) -> None:
        self.now = 0.0
        self.served: dict[str, float] = {}

    def begin(self, tenant: str, cost: float) -> float:
        """When, in work done, a tenant's next request has its turn."""
        begins = max(self.now, self.served.get(tenant, 0.0))
        self.served[tenant] = begins + cost
        return begins


class LoadBalancer:
    """Binds a strategy to the instances of a route that meet some requirements, and keeps those who wait for them."""

    def __init__(self, route: Route, requirements: Requirements, pool: Pool, strategy: Strategy[Any]) -> None:
        self.route, self.requirements, self.strategy = route, requirements, strategy
        self.waiting: list[Ticket] = []
        # How many of them wait for another try; they do not count against the queue's bound.
        self.tried = 0
        self._pool = pool
        self._version = -1
        self._snapshot: Snapshot
        self._bands: dict[int, _Band] = {}
        self._service_s = 1.0

    def __repr__(self) -> str:
        """What for, and how many wait."""
        return f"<LoadBalancer {self.route.name} {self.requirements.describe()}, {len(self.waiting)} waiting>"

    @property
    def snapshot(self) -> Snapshot:
        """As it is now."""
        if self._version != self._pool.version:
            self._version = self._pool.version
            self._snapshot = self._pool.snapshot(self.route.hubs, self.requirements)
        return self._snapshot

    # -- those who wait ----------------------------------------------------------------------------------------

    @property
    def turn(self) -> tuple[int, int]:
        """The band and the arrival of the first who waits: the lowest of all queues goes first."""
        priority, _, arrival = self.waiting[0].key
        return priority, arrival

    def enqueue(self, ticket: Ticket, arrival: int) -> None:
        """Let `ticket` wait. Its place: priority band, then its tenant's share, then arrival."""
        request = ticket.request
        begins = -1.0
        # One that had its turn, and lost it through no fault of its own, goes first and is not charged again.
        if not ticket.excluded:
            band = self._bands.setdefault(request.priority, _Band())
            begins = band.begin(request.tenant, request.cost)
        ticket.key = (-request.priority, begins, arrival)
        ticket.waits = True
        self.tried += bool(ticket.excluded)
        bisect.insort(self.waiting, ticket, key=_key)

    def dequeue(self, ticket: Ticket, *, granted: bool = False) -> None:
        """Let `ticket` wait no more."""
        ticket.waits = False
        self.tried -= bool(ticket.excluded)
        self.waiting.pop(bisect.bisect_left(self.waiting, ticket.key, key=_key))
        if not self.waiting:
            # With nobody waiting nobody is owed anything, and the table of tenants stays small.
            self._bands.clear()
        elif granted and not ticket.excluded:
            band = self._bands[ticket.request.priority]
            band.now = max(band.now, ticket.key[1])

    def retry_after_s(self) -> float:
        """When a place in the queue is likely to be free: work that waits, at the rate it is done. 1 to 60 seconds."""
        slots = sum(record.instance.max_concurrent for record in self.snapshot.candidates) or 1
        return min(max(1.0, (len(self.waiting) + 1) * self._service_s / slots), 60.0)

    # -- the strategy, a plugin: whatever it answers or raises, the slots stay right -------------------------------

    def choose(self, ticket: Ticket) -> Record | None:
        """An instance with room for `ticket`, by the strategy; None to wait."""
        view: View = self.snapshot
        if ticket.excluded:
            view = View([record for record in self.snapshot.candidates if ticket.may_use(record)])
        if not view.has_room():
            return None
        try:
            picked = self.strategy.pick(ticket.request, view)
        except Exception:
            logger.exception("strategy %r failed; using the first free instance instead", self.strategy.name)
        else:
            if isinstance(picked, Wait):
                return None
            if isinstance(picked, Record) and picked.room > 0 and view.holds(picked):
                return picked
            logger.error("strategy %r picked %r, which is not free; using the first that is", self.strategy, picked)
        return next(record for record in view.free if isinstance(record, Record))

    def start(self, ticket: Ticket, record: Record) -> Slot:
        """Take a slot on `record`."""
        slot = self._pool.take(record)
        try:
            self.strategy.started(ticket.request, record)
        except Exception:
            logger.exception("strategy %r failed", self.strategy.name)
        return slot

    def finish(self, ticket: Ticket, record: Record, outcome: Outcome) -> None:
        """A try on `record` ended."""
        self._service_s += 0.1 * (outcome.total_s - self._service_s)
        try:
            self.strategy.finished(ticket.request, record, outcome)
        except Exception:
            logger.exception("strategy %r failed", self.strategy.name)


def _key(ticket: Ticket) -> tuple[int, float, int]:
    return ticket.key
