"""How a request is led to an instance: routes, tickets, and what hubs offer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from gleitzeit_core.reservations import check_shares

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from gleitzeit_core.balancing import LoadBalancer
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.errors import RequestError
    from gleitzeit_core.queueing import Charge
    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import Requirements
    from gleitzeit_core.strategies.base import Candidate, Strategy


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

    @property
    def occupied(self) -> Callable[[], None] | None:
        """Called when an instance got its first work, if that is wanted."""

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

    Raises:
        ValueError: The shares come to more than there is.
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

    def __post_init__(self) -> None:
        """Refuse shares that cannot be kept."""
        if self.shares:
            check_shares(self.name, self.shares)


class Ticket:
    """A request on its way to a slot.

    Made for every request: what is not given begins with the values of the class, and costs nothing until it changes.

    Args:
        request: What is asked for.
        route: How it is served.
        arrived_at: On the monotonic clock.
        deadline: On the monotonic clock; None for no limit. Whoever waits for the slot keeps it.

    Attributes:
        waiter: Whatever the shell needs to wake who waits; never looked at here.
        excluded: Instances it was tried on, as (id, generation).
        last_failure: What the last of them said.
        patient_until: Until then, on the monotonic clock, it waits although nothing could serve it.
        position: Its place in the queue when it last began to wait, from 1; 0 when it never waited.
        expected_wait_s: How long that was expected to take.
    """

    waiter: Any = None
    excluded: frozenset[tuple[str, int]] = frozenset()
    last_failure: RequestError | None = None
    patient_until: float = 0.0
    position: int = 0
    expected_wait_s: float = 0.0
    queued_at: float = 0.0
    key: tuple[int, float, int] = (0, 0.0, 0)
    balancer: LoadBalancer | None = None
    waits: bool = False
    charge: Charge | None = None
    strategy: Strategy[Any] | None = None

    def __init__(self, request: Request, route: Route, arrived_at: float = 0.0, deadline: float | None = None) -> None:
        self.request, self.route, self.arrived_at, self.deadline = request, route, arrived_at, deadline

    def __repr__(self) -> str:
        """What for, and whether it waits."""
        return f"<{type(self).__name__} {self.request.id} {self.request.method}{', waits' if self.waits else ''}>"

    def may_use(self, candidate: Candidate) -> bool:
        """Whether it was not tried there before."""
        return not self.excluded or (candidate.instance.id, candidate.instance.generation) not in self.excluded


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReport:
    """A queue in which somebody waits, for listings.

    Args:
        route: Its name.
        needs: What is waited for, for a person.
        model: The model among that; empty when none is.
        waiting: How many wait.
        limit: How many may; those that are tried again come on top.
        oldest_s: How long the one that came first has waited.
        rate_per_s: Requests that end each second, as measured while somebody waits.
        expected_wait_s: How long one that came now would wait.
        tenants: How many wait for each.
        bands: How many wait in each priority.
    """

    route: str
    needs: str
    model: str
    waiting: int
    limit: int
    oldest_s: float
    rate_per_s: float
    expected_wait_s: float
    tenants: Mapping[str, int]
    bands: Mapping[int, int]
