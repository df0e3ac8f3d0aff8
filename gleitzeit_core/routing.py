"""How a request is led to an instance: routes, tickets, what hubs offer, and the `LoadBalancer` that binds a strategy."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from gleitzeit_core.pool import Pool, PoolView, Record, Snapshot
from gleitzeit_core.strategies.base import Wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.errors import RequestError
    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import Requirements
    from gleitzeit_core.strategies.base import Candidate, Strategy

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

    def offer(self, requirements: Requirements) -> Offer:
        """Whether an instance that meets `requirements` can be created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How a group of methods is served.

    Args:
        name: For people and metrics.
        methods: Patterns such as ``llm/*``; the first route that matches serves.
        strategy: Makes a strategy for one capability set.
        hubs: Only these; None for all.
        max_queue: Requests that may wait for one capability; 0 for none.
        timeout_s: Deadline of a request that names none; None for no limit.
        max_tries: Instances tried for one request, from 1.
    """

    name: str
    methods: tuple[str, ...]
    strategy: Callable[[Random, Clock], Strategy[Any]] = field(repr=False)
    hubs: frozenset[str] | None = None
    max_queue: int = 256
    timeout_s: float | None = 600.0
    max_tries: int = 3


@dataclass(slots=True, eq=False)
class Ticket:
    """A request on its way to a slot.

    Args:
        request: What is asked for.
        route: How it is served.
        arrived_at: On the monotonic clock.
        deadline: On the monotonic clock; None for no limit.
        waiter: Whatever the shell needs to wake who waits; never looked at here.
    """

    request: Request
    route: Route
    arrived_at: float
    deadline: float | None = None
    waiter: Any = None
    excluded: set[tuple[str, int]] = field(default_factory=set)
    last_failure: RequestError | None = None
    queued_at: float = 0.0
    key: tuple[int, float, int] = (0, 0.0, 0)
    balancer: LoadBalancer | None = None
    waits: bool = False

    def may_use(self, record: Record) -> bool:
        """Whether it was not tried there before."""
        return not self.excluded or (record.instance.id, record.instance.generation) not in self.excluded


class LoadBalancer:
    """Binds a strategy to the instances of a route that meet some requirements, and keeps those who wait for them."""

    def __init__(self, route: Route, requirements: Requirements, pool: Pool, strategy: Strategy[Any]) -> None:
        self.route, self.requirements, self.strategy = route, requirements, strategy
        self._pool = pool
        self.waiting: list[Ticket] = []
        self._service_s = 1.0

    def __repr__(self) -> str:
        """What for, and how many wait."""
        return f"<LoadBalancer {self.route.name} {self.requirements.describe()}, {len(self.waiting)} waiting>"

    @property
    def snapshot(self) -> Snapshot:
        """As it is now."""
        return self._pool.snapshot(self.route.hubs, self.requirements)

    def choose(self, ticket: Ticket) -> Record | None:
        """An instance with room for `ticket`, by the strategy; None to wait."""
        serving = self.snapshot.serving
        free: list[Candidate] = [r for r in serving if r.room > 0]
        if ticket.excluded:
            free = [r for r in free if isinstance(r, Record) and ticket.may_use(r)]
        if not free:
            return None
        try:
            picked = self.strategy.pick(ticket.request, PoolView(serving, free))
        except Exception:
            logger.exception("strategy %r failed; using the first free instance instead", self.strategy.name)
            picked = free[0]
        return None if isinstance(picked, Wait) else self._checked(picked, free)

    def _checked(self, picked: Candidate, free: list[Candidate]) -> Record:
        """A strategy is a plugin: whatever it answers, only an instance with room gets the request."""
        if isinstance(picked, Record) and picked.room > 0 and picked in free:
            return picked
        logger.error("strategy %r picked %r, which is not free; using the first that is", self.strategy.name, picked)
        return next(record for record in free if isinstance(record, Record))

    def learn(self, seconds: float) -> None:
        """A request took this long on its instance."""
        self._service_s += 0.1 * (seconds - self._service_s)

    def retry_after_s(self) -> float:
        """When a place in the queue is likely to be free: work that waits, at the rate it is done. 1 to 60 seconds."""
        slots = sum(record.instance.max_concurrent for record in self.snapshot.serving) or 1
        return min(max(1.0, (len(self.waiting) + 1) * self._service_s / slots), 60.0)
