"""`LoadBalancer`: a strategy, the instances it chooses from, and those who wait for them."""

from __future__ import annotations

import bisect
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import QueueFull
from gleitzeit_core.pool import Pool, Record, Slot, Snapshot
from gleitzeit_core.queueing import FairShares, ServiceRate, Shedding
from gleitzeit_core.routing import QueueReport
from gleitzeit_core.strategies.base import Strategy, View, Wait

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.clock import Clock, TimerHandle
    from gleitzeit_core.queueing import Charge
    from gleitzeit_core.requests import Outcome, Request
    from gleitzeit_core.reservations import Shares
    from gleitzeit_core.resources import Requirements
    from gleitzeit_core.routing import Route, Ticket

logger = logging.getLogger(__name__)

# Work as short as this on average is measured too badly to be held against a tenant.
_MEASURABLE_S = 0.01
_SERVICE_LEAST_S = 1e-6
_MEAN_STEP = 0.1
_MOVED_AT_ONCE = 64
# A strategy that wants to be asked again at once is asked after this long.
_AGAIN_LEAST_S = 0.001
# With less than this part of all slots free, a pool has none to spare.
_PLENTY = 0.2


class LoadBalancer:
    """Binds a strategy to the instances of a route that meet some requirements, and keeps those who wait for them."""

    def __init__(self, route: Route, requirements: Requirements, pool: Pool, clock: Clock, random: Random) -> None:
        self.route, self.requirements = route, requirements
        self._use(route.strategy(random, clock))
        self.waiting: list[Ticket] = []
        # How many of them wait for another try; they do not count against the queue's bound.
        self.tried = 0
        # What is kept for somebody, when anything is.
        self.shares: Shares | None = None
        # How often the strategy was asked; when it wants to be asked again, and the timer for that.
        self.asked = 0
        self.again_at: float | None = None
        self.timer: tuple[float, TimerHandle] | None = None
        self._pool, self._clock = pool, clock
        self._loads, self._loadable, self._needs = pool.loads, bool(requirements.model), requirements.capabilities
        self._version, self._slots = -1, 1
        self._snapshot: Snapshot
        self._fair, self._rate, self._shedding = FairShares(), ServiceRate(), Shedding(random)
        # Means over the last ten or so; the first of all is taken as it is.
        self._service_s, self._cost, self._step = 1.0, 1.0, 1.0

    def __repr__(self) -> str:
        """What for, and how many wait."""
        return f"<LoadBalancer {self.route.name} {self.requirements.describe()}, {len(self.waiting)} waiting>"

    @property
    def snapshot(self) -> Snapshot:
        """As it is now."""
        if self._version != self._pool.version:
            self._version = self._pool.version
            self._snapshot = self._pool.snapshot(self.route.hubs, self.requirements)
            self._slots = 0
        return self._snapshot

    def change(self, route: Route, strategy: Strategy[Any]) -> None:
        """Go on under a new form of the route; those who wait keep their places.

        Args:
            route: Of the same name.
            strategy: New, as the route makes it. One that resembles the present one gives it its options only.
        """
        self.route, self._version, self.again_at = route, -1, None
        if self.strategy.resembles(strategy):
            try:
                self.strategy.reconfigure(strategy.options)
            except Exception:
                logger.exception("strategy %r cannot be reconfigured; it begins anew", self.strategy.name)
            else:
                return
        self._use(strategy)
        self._tell()

    def _use(self, strategy: Strategy[Any]) -> None:
        self.strategy = strategy
        # Most learn nothing from what they picked: they are not told, as this is for every request.
        learns = type(strategy).started is not Strategy.started or type(strategy).finished is not Strategy.finished
        self._learner = strategy if learns else None

    # -- those who wait ----------------------------------------------------------------------------------------

    @property
    def turn(self) -> tuple[int, int]:
        """The band and the arrival of the first who waits: the lowest of all queues goes first."""
        priority, _, arrival = self.waiting[0].key
        return priority, arrival

    def full(self, ticket: Ticket) -> QueueFull | None:
        """Why `ticket` may not wait; None when it may. One that had its turn and lost it always may."""
        if ticket.excluded:
            return None
        band, size, limit = ticket.request.priority, len(self.waiting) - self.tried, self.route.max_queue
        self._shedding.came(band, self._clock.monotonic())
        full, begins = size >= limit, self.route.shed_from * limit
        if not full:
            if size <= begins:
                return None
            lowest, highest = -self.waiting[-1].key[0], -self.waiting[0].key[0]
            if not self._shedding.refuses(band, lowest, highest, (size - begins) / (limit - begins)):
                return None
        return QueueFull(size=size, limit=limit, retry_after_s=self.retry_after_s(), shed=not full)

    def enqueue(self, ticket: Ticket, arrival: int) -> None:
        """Let `ticket` wait. Its place: priority band, then its tenant's share, then arrival."""
        request, now = ticket.request, self._clock.monotonic()
        if not self.waiting:
            self._rate.busy(now, busy=True)
        begins = -1.0
        # One that had its turn, and lost it through no fault of its own, goes first and is not charged again.
        if not ticket.excluded:
            begins, ticket.charge = self._fair.begin(request.priority, request.tenant, self._expected_s(request))
            self._fair.prune(self._tenants, len(self.waiting))
        ticket.key = (-request.priority, begins, arrival)
        ticket.waits, ticket.queued_at = True, now
        self.tried += bool(ticket.excluded)
        place = bisect.bisect_right(self.waiting, ticket.key, key=_key)
        self.waiting.insert(place, ticket)
        ticket.position, ticket.expected_wait_s = place + 1, (place + 1) / self.rate_per_s()
        self._tell()

    def _expected_s(self, request: Request) -> float:
        """How long its work is expected to take, by its cost and what others took."""
        return request.cost * max(self._service_s, _MEASURABLE_S) / self._cost

    def _tenants(self) -> set[tuple[int, str]]:
        return {(ticket.request.priority, ticket.request.tenant) for ticket in self.waiting}

    def dequeue(self, ticket: Ticket, *, granted: bool = False) -> None:
        """Let `ticket` wait no more."""
        ticket.waits = False
        self.tried -= bool(ticket.excluded)
        self.waiting.pop(bisect.bisect_left(self.waiting, ticket.key, key=_key))
        if not self.waiting:
            self._fair.clear()
            self._rate.busy(self._clock.monotonic(), busy=False)
            self.again_at = None
            if self.timer is not None:
                self.timer[1].cancel()
                self.timer = None
        elif granted and not ticket.excluded:
            self._fair.granted(ticket.request.priority, ticket.key[1])
        self._tell()

    def rate_per_s(self) -> float:
        """Requests that end each second while somebody waits; without measurements, what slots and service time say."""
        snapshot = self.snapshot
        if not self._slots:
            self._slots = sum(record.instance.max_concurrent for record in snapshot.candidates) or 1
        return self._rate.per_s(self._clock.monotonic(), self._slots / max(self._service_s, _SERVICE_LEAST_S))

    def retry_after_s(self) -> float:
        """When a place in the queue is likely to be free: work that waits, at the rate it is done. 1 to 60 seconds."""
        return min(max(1.0, (len(self.waiting) + 1) / self.rate_per_s()), 60.0)

    def report(self) -> QueueReport:
        """How it is. Somebody must wait."""
        rate, requests = self.rate_per_s(), [ticket.request for ticket in self.waiting]
        return QueueReport(
            route=self.route.name,
            needs=self.requirements.describe(),
            model=self.requirements.model,
            waiting=len(self.waiting),
            limit=self.route.max_queue,
            oldest_s=self._clock.monotonic() - min(ticket.queued_at for ticket in self.waiting),
            rate_per_s=rate,
            expected_wait_s=(len(self.waiting) + 1) / rate,
            tenants=dict(Counter(request.tenant for request in requests)),
            bands=dict(Counter(request.priority for request in requests)),
        )

    # -- the strategy, a plugin: whatever it answers or raises, the slots stay right -------------------------------

    def choose(self, ticket: Ticket) -> Record | None:
        """An instance with room for `ticket`, by the strategy; None to wait."""
        view: View = self.snapshot
        if self.shares is not None:
            view = self.shares.view(ticket.request, self._snapshot)
        if ticket.excluded:
            view = View([record for record in view.candidates if ticket.may_use(record)])
        if self._loads.began and self.strategy.joins_loads:
            view, until = self._loads.joined(self.requirements.capabilities, view, self._clock.monotonic())
            self._ask_again(until)
        return self._ask(ticket, view) if view.has_room() else None

    def considers(self, ticket: Ticket) -> bool:
        """Whether any of the instances that are up, busy or not, may serve `ticket`."""
        view: View = self.snapshot
        if not any(ticket.may_use(record) for record in self._snapshot.candidates):
            return False
        if not self.strategy.narrows:
            return True
        if ticket.excluded:
            view = View([record for record in self._snapshot.candidates if ticket.may_use(record)])
        try:
            return self.strategy.considers(ticket.request, view)
        except Exception:
            logger.exception("strategy %r failed", self.strategy.name)
            return True

    def spare(self, ticket: Ticket, *, warm: bool) -> Record | None:
        """An instance for `ticket` out of plenty: nobody waits, and a fifth of all slots is free. None otherwise.

        Args:
            ticket: Who asks; never gets one of the instances it excludes.
            warm: Only an instance that has ready what is needed, unless none of them says what it has ready.
        """
        records, needs = self.snapshot.candidates, self.requirements.capabilities
        free = sum(record.room for record in records if record.room > 0)
        if self.waiting or free < _PLENTY * (free + sum(record.in_flight for record in records)):
            return None
        # One that has nothing ready now may well be of a kind that would say so.
        told = warm and any(record.instance.warm for record in records)
        view = self.shares.view(ticket.request, self._snapshot) if self.shares is not None else self._snapshot
        left = View([r for r in view.candidates if ticket.may_use(r) and (not told or needs <= r.instance.warm)])
        return self._ask(ticket, left) if left.has_room() else None

    def _ask(self, ticket: Ticket, view: View) -> Record | None:
        self.asked += 1
        try:
            picked = self.strategy.pick(ticket.request, view)
        except Exception:
            logger.exception("strategy %r failed; using the first free instance instead", self.strategy.name)
        else:
            if isinstance(picked, Record) and picked.room > 0 and view.holds(picked):
                return picked
            if isinstance(picked, Wait):
                if picked.again_s is not None:
                    self._ask_again(self._clock.monotonic() + max(_AGAIN_LEAST_S, picked.again_s))
                return None
            logger.error("strategy %r picked %r, which is not free; using the first that is", self.strategy, picked)
        return next(record for record in view.free if isinstance(record, Record))

    def _ask_again(self, when: float | None) -> None:
        if when is not None:
            self.again_at = min(when, self.again_at or when)

    def _tell(self) -> None:
        try:
            self.strategy.queued(len(self.waiting))
        except Exception:
            logger.exception("strategy %r failed", self.strategy.name)

    def start(self, ticket: Ticket, record: Record) -> Slot:
        """Take a slot on `record`."""
        slot = self._pool.take(record)
        # Mostly it is known to have been ready there, and nothing else was said since.
        if self._loadable and record.proved.get(self._needs) is not record.instance.warm:
            self._loads.begin(slot, self._needs)
        if self.shares is not None:
            self.shares.taken(slot, ticket.request)
        # The route may get another strategy meanwhile: the one that was told of the beginning is told of the end.
        ticket.strategy = learner = self._learner
        if learner is not None:
            try:
                learner.started(ticket.request, record)
            except Exception:
                logger.exception("strategy %r failed", learner.name)
        return slot

    def finish(self, ticket: Ticket, slot: Slot, outcome: Outcome) -> None:
        """A try on `slot` ended."""
        # One whose caller left before the work began says nothing of how long that takes.
        if slot.used:
            step, self._step = self._step, _MEAN_STEP
            self._service_s += step * (outcome.total_s - self._service_s)
            self._cost += step * (ticket.request.cost - self._cost)
        if self.waiting:
            self._rate.end(self._clock.monotonic())
            if ticket.charge is not None:
                self._set_right(ticket.request, ticket.charge, outcome.total_s)
                ticket.charge = ticket.charge._replace(work_s=0.0)
        learner = ticket.strategy
        if learner is not None:
            ticket.strategy = None
            try:
                learner.finished(ticket.request, slot.record, outcome)
            except Exception:
                logger.exception("strategy %r failed", learner.name)

    def _set_right(self, request: Request, charge: Charge, total_s: float) -> None:
        """Charge a tenant what its request was, in place of what was expected of it."""
        work_s = total_s if self._service_s > _MEASURABLE_S else self._expected_s(request)
        # Moving those who wait costs a little for each: with many, small differences are put together.
        at_least_s = self._service_s * len(self.waiting) / _MOVED_AT_ONCE
        moved = self._fair.settle(request.priority, request.tenant, charge, work_s, at_least_s)
        if not moved:
            return
        for ticket in self.waiting:
            its, (band, begins, arrival) = ticket.request, ticket.key
            if its.tenant == request.tenant and its.priority == request.priority and not ticket.excluded:
                ticket.key = (band, self._fair.moved(its.priority, begins, moved), arrival)
        self.waiting.sort(key=_key)


def _key(ticket: Ticket) -> tuple[int, float, int]:
    return ticket.key
