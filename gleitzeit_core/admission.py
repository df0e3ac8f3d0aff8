"""Who gets a slot now and who waits: the upper half of the synchronous machine.

Events come in as method calls; what must be done goes out through ``deliver``, after the state is right again. There is
no I/O and no await in here, and time and randomness are injected.

A waiting request is bound to an instance only when a slot frees. Order is: priority band, then fairness between tenants
by work (start-time fair queueing, Goyal et al., SIGCOMM 1996), then arrival.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from gleitzeit_core.breaker import BreakerPolicy
from gleitzeit_core.effects import Changed, Effect, Emptied, Granted, Recycle, Rejected, Scale, Suspect
from gleitzeit_core.errors import NoCapableInstance, QueueFull, RequestError, ShuttingDown, Unavailable
from gleitzeit_core.hookspecs import InstanceChange
from gleitzeit_core.pool import Pool, Record, Slot, Snapshot, State
from gleitzeit_core.requests import Result
from gleitzeit_core.resources import Ownership
from gleitzeit_core.routing import LoadBalancer, OfferKind, Supplier, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Requirements, ResourceInstance

# A strategy that waits for something better must not hold up all behind; asking it for more than these costs more than
# it brings.
_LOOK_AHEAD = 16
_BALANCERS_MAX = 1024
_SHOWN_MAX = 20


class Admission:
    """The machine. See the module's text.

    Args:
        clock: Time.
        random: For strategies and jitter.
        deliver: Gets every effect, in order, after the state is right. It may call back; what that brings comes after.
        policy: Of the instances' breakers.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        random: Random,
        deliver: Callable[[Effect], None],
        policy: BreakerPolicy | None = None,
    ) -> None:
        self._clock, self._random, self._deliver = clock, random, deliver
        self.pool = Pool(clock=clock, random=random, policy=policy or BreakerPolicy(), on_timer=self._settle)
        self.suppliers: dict[str, Supplier] = {}
        self._balancers: dict[tuple[str, Requirements], LoadBalancer] = {}
        # Those in which somebody waits: a dictionary is an ordered set.
        self._queues: dict[LoadBalancer, None] = {}
        self._effects: deque[Effect] = deque()
        self._delivering = False
        self._arrivals = 0
        self._closed = False

    def __repr__(self) -> str:
        """Counts."""
        return f"<Admission {self.waiting} waiting, {self.pool!r}>"

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        return sum(len(balancer.waiting) for balancer in self._queues)

    def wanting(self, requirements: Requirements) -> int:
        """Requests that wait for just these requirements, over all routes."""
        return sum(len(balancer.waiting) for balancer in self._queues if balancer.requirements == requirements)

    @property
    def balancers(self) -> tuple[LoadBalancer, ...]:
        """All there are now."""
        return tuple(self._balancers.values())

    # -- requests ----------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> Slot | None:
        """A request wants a slot. None: it waits, and ends with `Granted`, `Rejected` or a call of `cancel`.

        Raises:
            RequestError: It cannot be served, now or by waiting.
        """
        # 1. Nothing new is taken any more.
        if self._closed:
            raise ShuttingDown("shutting down: nothing new is taken")
        balancer = ticket.balancer or self._balancer(ticket)
        # 2. Nobody waits, and an instance is free: take it.
        alone = not balancer.waiting
        if alone:
            record = balancer.choose(ticket)
            if record is not None:
                return balancer.start(ticket, record)
        # 3. Nothing that is up or coming could serve it: say so now.
        hopeless = self._hopeless(balancer, ticket)
        if hopeless is not None:
            raise hopeless
        # 4. The queue holds as many as it may.
        size, limit = len(balancer.waiting) - balancer.tried, ticket.route.max_queue
        if size >= limit and not ticket.excluded:
            raise QueueFull(size=size, limit=limit, retry_after_s=balancer.retry_after_s())
        # 5. It waits. It may be one that can use what those before it cannot.
        self._arrivals += 1
        ticket.queued_at = self._clock.monotonic()
        balancer.enqueue(ticket, self._arrivals)
        self._queues[balancer] = None
        if ticket.patient_until > ticket.queued_at:
            self._clock.call_at(ticket.patient_until, self._review)
        if not alone:
            self._grant_next(balancer)
        self._scale(balancer)
        self._flush()
        return None

    def cancel(self, ticket: Ticket) -> bool:
        """Whoever waited left. False when it no longer waited: it has a slot, or was rejected."""
        if not ticket.waits:
            return False
        self._dequeue(ticket)
        return True

    def progress(self, slot: Slot) -> None:
        """First output from an instance."""
        self.pool.progress(slot)
        self._settle(slot.record)

    def release(self, ticket: Ticket, slot: Slot, outcome: Outcome) -> None:
        """A try ended. Called once for each slot, when the work has stopped."""
        record = slot.record
        self.pool.judge(slot, outcome)
        (ticket.balancer or self._balancer(ticket)).finish(ticket, record, outcome)
        supplier = self.suppliers.get(slot.instance.hub)
        if supplier is not None and supplier.recycles:
            self._effects.append(Recycle(slot, outcome))
        else:
            self._free(slot)
        if outcome.result is Result.FAILED and record.condition != record.announced and self.pool.holds(record):
            self._effects.append(Suspect(slot.instance.id))
        self._settle(record)

    def recycled(self, slot: Slot, *, keep: bool) -> None:
        """An instance is ready again after a use, or (not `keep`) will be retired."""
        if not keep and self.pool.holds(slot.record):
            self.pool.set_state(slot.record, State.DRAINING, "retired after use")
        self._free(slot)
        self._settle(slot.record)

    def _free(self, slot: Slot) -> None:
        if self.pool.free(slot):
            self._look_if_empty(slot.record)

    # -- instances ---------------------------------------------------------------------------------------------

    def put(self, instance: ResourceInstance, state: State = State.READY) -> None:
        """An instance is there, or has changed."""
        old = self.pool.records.get(instance.id)
        before = old.instance if old else None
        record = self.pool.put(instance, state)
        if record.instance != before or record.condition != record.announced:
            self._announce(before, record)
        self._flush()

    def set_state(self, instance_id: str, state: State, reason: str = "") -> None:
        """A probe, or a person, says what an instance is good for. Unknown ids are ignored: it may just be gone."""
        record = self.pool.records.get(instance_id)
        if record is not None:
            self.pool.set_state(record, state, reason)
            self._settle(record)

    def drain(self, instance_id: str, reason: str = "") -> None:
        """Let an instance finish what it has; `Emptied` follows when it has."""
        record = self.pool.records.get(instance_id)
        if record is not None and record.state is not State.DRAINING:
            self.pool.set_state(record, State.DRAINING, reason)
            self._look_if_empty(record)
            self._settle(record)

    def remove(self, instance_id: str, reason: str = "") -> None:
        """An instance is gone. What still runs on it ends by itself."""
        record = self.pool.records.get(instance_id)
        if record is not None:
            self.pool.remove(record)
            gone = InstanceChange(before=record.instance, after=None, state="gone", reason=reason)
            self._effects.append(Changed(gone))
            self._review()

    def supply_changed(self) -> None:
        """A hub can create more, or less, than before: look again at those who wait."""
        self._review()

    def close(self) -> None:
        """Take nothing new and send away those who wait; what runs goes on."""
        self._closed = True
        for balancer in tuple(self._queues):
            for ticket in tuple(balancer.waiting):
                self._reject(ticket, ShuttingDown("shutting down: the request was still waiting"))
        self._flush()

    # -- inside ------------------------------------------------------------------------------------------------

    def _settle(self, record: Record) -> None:
        """After every event on an instance: tell of its change, let those who wait for it have it."""
        if record.condition != record.announced and self.pool.holds(record):
            self._announce(record.instance, record)
        elif self._queues:
            self._grant(record)
        self._flush()

    def _announce(self, before: ResourceInstance | None, record: Record) -> None:
        record.announced = state = record.condition
        change = InstanceChange(before=before, after=record.instance, state=state, reason=record.reason)
        self._effects.append(Changed(change))
        self._review()

    def _flush(self) -> None:
        """Deliver what has come together. Not again while that goes on: the loop below takes the rest as well."""
        if self._effects and not self._delivering:
            self._delivering = True
            try:
                while self._effects:
                    self._deliver(self._effects.popleft())
            finally:
                self._delivering = False

    def _look_if_empty(self, record: Record) -> None:
        if record.state is State.DRAINING and record.in_flight == 0 and self.pool.holds(record):
            self._effects.append(Emptied(record.instance))

    def _balancer(self, ticket: Ticket) -> LoadBalancer:
        route, requirements = ticket.route, ticket.request.requirements
        key = (route.name, requirements)
        found = self._balancers.get(key)
        if found is None:
            strategy = route.strategy(self._random, self._clock)
            # Callers name what they need, so the number of balancers is theirs to choose: it is bounded.
            if len(self._balancers) >= _BALANCERS_MAX:
                self._balancers = {key: b for key, b in self._balancers.items() if b.waiting}
            found = self._balancers[key] = LoadBalancer(route, requirements, self.pool, strategy)
        ticket.balancer = found
        return found

    def _dequeue(self, ticket: Ticket, *, granted: bool = False) -> None:
        balancer = ticket.balancer
        if balancer is not None:
            balancer.dequeue(ticket, granted=granted)
            if not balancer.waiting:
                del self._queues[balancer]

    def _grant(self, record: Record | None = None) -> None:
        """Hand out what is free (on `record`, when given) to those who wait, the first of all queues first."""
        progress = True
        while progress and (record is None or record.room > 0):
            queues = [b for b in self._queues if record is None or b.snapshot.holds(record)]
            progress = any(self._grant_next(b) for b in sorted(queues, key=lambda b: b.turn))

    def _grant_next(self, balancer: LoadBalancer) -> bool:
        if not balancer.snapshot.has_room():
            return False
        asked = 0
        for ticket in balancer.waiting:
            record = balancer.choose(ticket)
            if record is not None:
                self._dequeue(ticket, granted=True)
                self._effects.append(Granted(ticket, balancer.start(ticket, record)))
                return True
            asked += not ticket.excluded
            if asked == _LOOK_AHEAD:
                break
        return False

    def _review(self) -> None:
        """After a change of who may serve: grant what can be, send away whose wait is hopeless, ask hubs for more."""
        self._grant()
        for balancer in tuple(self._queues):
            # While something serves, only those that were tried there may have nowhere to go.
            doubtful = tuple(balancer.waiting) if balancer.tried or not balancer.snapshot.candidates else ()
            for ticket in doubtful:
                hopeless = self._hopeless(balancer, ticket)
                if hopeless is not None:
                    self._reject(ticket, hopeless)
            self._scale(balancer)
        self._flush()

    def _reject(self, ticket: Ticket, error: RequestError) -> None:
        self._dequeue(ticket)
        self._effects.append(Rejected(ticket, error))

    def _hopeless(self, balancer: LoadBalancer, ticket: Ticket) -> RequestError | None:
        """Why waiting cannot help; None when it can."""
        snapshot = balancer.snapshot
        if any(ticket.may_use(record) for record in snapshot.candidates) or any(map(self._coming, snapshot.records)):
            return None
        if ticket.patient_until > self._clock.monotonic():
            return None
        offers = [supplier.offer(balancer.requirements) for supplier in self._suppliers(balancer)]
        if any(offer.kind is OfferKind.CREATABLE for offer in offers):
            return None
        if ticket.last_failure is not None:
            return ticket.last_failure
        return self._nobody(
            snapshot, balancer.requirements, "; ".join(offer.reason for offer in offers if offer.reason)
        )

    def _coming(self, record: Record) -> bool:
        """Whether it is being created, or retired just now, which may make room for another."""
        instance, supplier = record.instance, self.suppliers.get(record.instance.hub)
        if record.state is State.DRAINING and not record.in_flight and instance.ownership is not Ownership.EXTERNAL:
            return supplier is not None and supplier.running
        return record.state is State.STARTING

    def _nobody(self, snapshot: Snapshot, requirements: Requirements, why: str) -> RequestError:
        why = f"; {why}" if why else ""
        needs = requirements.describe()
        if snapshot.records:
            names = [record.instance.id for record in snapshot.records]
            states = ", ".join(_described(record) for record in snapshot.records[:_SHOWN_MAX])
            return Unavailable(f"no instance is up for {needs}: {states}{why}", instances=names)
        if why:
            return Unavailable(f"no instance can be had for {needs}{why}")
        have = sorted({c for record in self.pool.records.values() for c in record.instance.capabilities})
        shown = ", ".join([*have[:_SHOWN_MAX], *(["..."] if len(have) > _SHOWN_MAX else [])])
        # What has never been well has not said what it can do; it may be just the one.
        unknown = [_described(r) for r in self.pool if not r.instance.capabilities and r.condition != State.READY]
        doubt = f"; {', '.join(unknown[:_SHOWN_MAX])}" if unknown else ""
        message = f"no instance has {needs}; there is: {shown or 'nothing'}{doubt}"
        return NoCapableInstance(message, needed=sorted(requirements.capabilities))

    def _suppliers(self, balancer: LoadBalancer) -> list[Supplier]:
        hubs = balancer.route.hubs
        return [s for name, s in self.suppliers.items() if s.running and (hubs is None or name in hubs)]

    def _scale(self, balancer: LoadBalancer) -> None:
        """Ask the first hub that can create an instance for as many as wait; it knows its own limits."""
        for supplier in self._suppliers(balancer) if balancer.waiting else ():
            if supplier.offer(balancer.requirements).kind is OfferKind.CREATABLE:
                self._effects.append(Scale(supplier.name, balancer.requirements, len(balancer.waiting)))
                return


def _described(record: Record) -> str:
    text = f"{record.instance.endpoint} is {record.condition}"
    return f"{text} ({record.reason})" if record.reason else text
