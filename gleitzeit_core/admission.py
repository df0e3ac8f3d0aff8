"""Who gets a slot now and who waits: the upper half of the synchronous machine.

Events come in as method calls; what must be done goes out through ``deliver``, after the state is right again. There is
no I/O and no await in here, and time and randomness are injected.

A waiting request is bound to an instance only when a slot frees. Order is: priority band, then fairness between tenants
by work (start-time fair queueing, Goyal et al., SIGCOMM 1996), then arrival.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from gleitzeit_core.breaker import BreakerPolicy
from gleitzeit_core.effects import Changed, Effect, Emptied, Granted, Recycle, Rejected, Scale, Suspect
from gleitzeit_core.errors import (
    DeadlineExceeded,
    NoCapableInstance,
    QueueFull,
    RequestError,
    ShuttingDown,
    Unavailable,
)
from gleitzeit_core.hookspecs import InstanceChange
from gleitzeit_core.pool import Pool, Record, Slot, Snapshot, State
from gleitzeit_core.routing import LoadBalancer, OfferKind, Supplier, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Requirements, ResourceInstance

# A request that cannot use the free slot (it was tried there, or its strategy waits for another) must not hold up all
# behind it; looking further than this costs more than it brings.
_LOOK_AHEAD = 16
_BALANCERS_MAX = 1024


class Admission:
    """The machine. See the module's text.

    Args:
        clock: Time.
        random: For strategies and jitter.
        deliver: Gets every effect, in order, after the state is right; must not call back.
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
        self.pool = Pool(clock=clock, random=random, policy=policy or BreakerPolicy(), on_timer=self._freed)
        self.suppliers: dict[str, Supplier] = {}
        self._balancers: dict[tuple[str, Requirements], LoadBalancer] = {}
        # Those in which somebody waits, in order of the first to wait: a dictionary is an ordered set.
        self._queues: dict[LoadBalancer, None] = {}
        self._virtual_time = 0.0
        self._tenant_time: dict[tuple[int, str], float] = {}
        self._arrivals = 0
        self._closed = False

    def __repr__(self) -> str:
        """Counts."""
        return f"<Admission {self.waiting} waiting, {self.pool!r}>"

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        return sum(len(balancer.waiting) for balancer in self._queues)

    @property
    def balancers(self) -> tuple[LoadBalancer, ...]:
        """All there are now."""
        return tuple(self._balancers.values())

    # -- requests ----------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> Slot | None:
        """A request wants a slot. None: it waits, and ends with `Granted` or `Rejected`.

        Raises:
            RequestError: It cannot be served, now or by waiting.
        """
        # 1. Nothing new is taken any more.
        if self._closed:
            raise ShuttingDown("shutting down: nothing new is taken")
        balancer = self._balancer(ticket)
        # 2. Nobody waits, and an instance is free: take it.
        # 3. Nothing that is up or coming could serve it: say so now.
        # 4. The queue holds as many as it may.
        if not balancer.waiting:
            record = balancer.choose(ticket)
            if record is not None:
                return self._start(balancer, ticket, record)
        hopeless = self._hopeless(balancer, ticket)
        if hopeless is not None:
            raise hopeless
        if len(balancer.waiting) >= ticket.route.max_queue:
            raise QueueFull(
                size=len(balancer.waiting), limit=ticket.route.max_queue, retry_after_s=balancer.retry_after_s()
            )
        # 5. It waits. It may go first by its band or its tenant, so those who wait are looked at again.
        self._enqueue(balancer, ticket)
        self._drain(balancer)
        self._scale(balancer)
        return None

    def cancel(self, ticket: Ticket) -> bool:
        """Whoever waited left. False when it no longer waited: it has a slot, or was rejected."""
        return self._dequeue(ticket)

    def expire(self, ticket: Ticket) -> None:
        """A waiting request's time has run out."""
        if self._dequeue(ticket):
            after_s = self._clock.monotonic() - ticket.arrived_at
            self._deliver(Rejected(ticket, ticket.last_failure or DeadlineExceeded(where="queue", after_s=after_s)))

    def progress(self, slot: Slot) -> None:
        """First output from an instance."""
        before = slot.record.room
        self.pool.progress(slot)
        if slot.record.room > before:
            self._freed(slot.record)

    def release(self, ticket: Ticket, slot: Slot, outcome: Outcome) -> None:
        """A try ended. Called once for each slot, when the work has stopped."""
        record = slot.record
        state, was_open = record.state, record.breaker.until is not None
        self.pool.judge(slot, outcome)
        balancer = ticket.balancer or self._balancer(ticket)
        balancer.strategy.finished(ticket.request, record, outcome)
        balancer.learn(outcome.total_s)
        if record.state is not state or (record.breaker.until is not None) is not was_open:
            self._announce(slot.instance, record)
            self._deliver(Suspect(slot.instance.id))
            self._review()
        supplier = self.suppliers.get(slot.instance.hub)
        if supplier is not None and supplier.recycles:
            self._deliver(Recycle(slot, outcome))
        else:
            self._free(slot)

    def recycled(self, slot: Slot, *, keep: bool) -> None:
        """An instance is ready again after a use, or (not `keep`) will be retired."""
        if not keep and self.pool.records.get(slot.instance.id) is slot.record:
            self.drain(slot.instance.id, "retired after use")
        self._free(slot)

    # -- instances ---------------------------------------------------------------------------------------------

    def put(self, instance: ResourceInstance, state: State = State.READY) -> None:
        """An instance is there, or has changed."""
        old = self.pool.records.get(instance.id)
        before, before_state = (old.instance, old.state) if old else (None, None)
        record = self.pool.put(instance, state)
        if before != instance or before_state is not record.state:
            self._announce(before, record)
            self._review()
        self._freed(record)

    def set_state(self, instance_id: str, state: State, reason: str = "") -> None:
        """A probe, or a person, says what an instance is good for. Unknown ids are ignored: it may just be gone."""
        record = self.pool.records.get(instance_id)
        if record is not None and self.pool.set_state(record, state, reason):
            self._announce(record.instance, record)
            self._review()
            self._freed(record)

    def drain(self, instance_id: str, reason: str = "") -> None:
        """Let an instance finish what it has; `Emptied` follows when it has."""
        record = self.pool.records.get(instance_id)
        if record is None or record.state is State.DRAINING:
            return
        self.set_state(instance_id, State.DRAINING, reason)
        if record.in_flight == 0:
            self._deliver(Emptied(record.instance))

    def remove(self, instance_id: str, reason: str = "") -> None:
        """An instance is gone. What still runs on it ends by itself."""
        record = self.pool.records.get(instance_id)
        if record is not None and self.pool.remove(record):
            self._deliver(Changed(InstanceChange(before=record.instance, after=None, state="gone", reason=reason)))
            self._review()

    def supply_changed(self) -> None:
        """A hub can create more, or less, than before: look again at those who wait."""
        self._review()
        for balancer in tuple(self._queues):
            self._scale(balancer)

    def close(self) -> None:
        """Take nothing new and send away those who wait; what runs goes on."""
        self._closed = True
        for balancer in tuple(self._queues):
            for ticket in tuple(balancer.waiting):
                self._reject(ticket, ShuttingDown("shutting down: the request was still waiting"))

    # -- inside ------------------------------------------------------------------------------------------------

    def _balancer(self, ticket: Ticket) -> LoadBalancer:
        key = (ticket.route.name, ticket.request.requirements)
        found = self._balancers.get(key)
        if found is None:
            strategy = ticket.route.strategy(self._random, self._clock)
            found = LoadBalancer(ticket.route, ticket.request.requirements, self.pool, strategy)
            self._forget_idle()
            self._balancers[key] = found
        ticket.balancer = found
        return found

    def _forget_idle(self) -> None:
        """Callers name what they need, so the number of balancers is theirs to choose: it is bounded."""
        if len(self._balancers) >= _BALANCERS_MAX:
            self._balancers = {key: b for key, b in self._balancers.items() if b.waiting}

    def _start(self, balancer: LoadBalancer, ticket: Ticket, record: Record) -> Slot:
        slot = self.pool.take(record)
        balancer.strategy.started(ticket.request, record)
        return slot

    def _enqueue(self, balancer: LoadBalancer, ticket: Ticket) -> None:
        request = ticket.request
        self._arrivals += 1
        if ticket.excluded:
            # It had its turn, and lost it through no fault of its own: it goes first and is not charged again.
            ticket.key = (-request.priority, self._virtual_time, -self._arrivals)
        else:
            tenant = (request.priority, request.tenant)
            begins = max(self._virtual_time, self._tenant_time.get(tenant, 0.0))
            self._tenant_time[tenant] = begins + request.cost
            ticket.key = (-request.priority, begins, self._arrivals)
        ticket.queued_at = self._clock.monotonic()
        ticket.waits = True
        bisect.insort(balancer.waiting, ticket, key=lambda t: t.key)
        self._queues[balancer] = None

    def _dequeue(self, ticket: Ticket) -> bool:
        balancer = ticket.balancer
        if balancer is None or not ticket.waits:
            return False
        ticket.waits = False
        balancer.waiting.pop(bisect.bisect_left(balancer.waiting, ticket.key, key=lambda t: t.key))
        if not balancer.waiting:
            del self._queues[balancer]
        if not self._queues:
            # With nobody waiting nobody is owed anything, and the table of tenants stays small.
            self._tenant_time.clear()
        return True

    def _free(self, slot: Slot) -> None:
        if not self.pool.free(slot):
            return
        record = slot.record
        drained = record.state is State.DRAINING and record.in_flight == 0
        if drained and self.pool.records.get(slot.instance.id) is record:
            self._deliver(Emptied(record.instance))
        self._freed(record)

    def _freed(self, record: Record) -> None:
        """`record` may have room: let those who wait for it have it, the first of all queues first."""
        progress = True
        while progress and record.room > 0:
            queues = [balancer for balancer in self._queues if record in balancer.snapshot.serving]
            queues.sort(key=lambda b: b.waiting[0].key)
            progress = any(self._grant_next(balancer) for balancer in queues)

    def _drain(self, balancer: LoadBalancer) -> None:
        while balancer.waiting and self._grant_next(balancer):
            continue

    def _grant_next(self, balancer: LoadBalancer) -> bool:
        for ticket in balancer.waiting[:_LOOK_AHEAD]:
            record = balancer.choose(ticket)
            if record is not None:
                self._virtual_time = max(self._virtual_time, ticket.key[1])
                self._dequeue(ticket)
                self._deliver(Granted(ticket, self._start(balancer, ticket, record)))
                return True
        return False

    def _review(self) -> None:
        """After a change for the worse: send away those whose wait has become hopeless."""
        for balancer in tuple(self._queues):
            for ticket in tuple(balancer.waiting):
                hopeless = self._hopeless(balancer, ticket)
                if hopeless is not None:
                    self._reject(ticket, hopeless)

    def _reject(self, ticket: Ticket, error: RequestError) -> None:
        if self._dequeue(ticket):
            self._deliver(Rejected(ticket, error))

    def _hopeless(self, balancer: LoadBalancer, ticket: Ticket) -> RequestError | None:
        """Why waiting cannot help; None when it can."""
        snapshot = balancer.snapshot
        if snapshot.starting or any(ticket.may_use(record) for record in snapshot.serving):
            return None
        offers = [supplier.offer(balancer.requirements) for supplier in self._suppliers(balancer)]
        if any(offer.kind is OfferKind.CREATABLE for offer in offers):
            return None
        if ticket.last_failure is not None:
            return ticket.last_failure
        reasons = [offer.reason for offer in offers if offer.reason]
        return self._nobody(snapshot, balancer.requirements, reasons)

    def _nobody(self, snapshot: Snapshot, requirements: Requirements, reasons: list[str]) -> RequestError:
        why = f"; {'; '.join(reasons)}" if reasons else ""
        if snapshot.records:
            names = [record.instance.id for record in snapshot.records]
            states = ", ".join(f"{r.instance.endpoint} is {r.state.value}" for r in snapshot.records[:8])
            return Unavailable(f"no instance is up for {requirements.describe()}: {states}{why}", instances=names)
        if reasons:
            return Unavailable(f"no instance can be had for {requirements.describe()}{why}")
        have = sorted({c for record in self.pool.records.values() for c in record.instance.capabilities})
        shown = ", ".join(have[:20]) + (", ..." if len(have) > 20 else "")  # noqa: PLR2004 - a line, not a book
        message = f"no instance has {requirements.describe()}; there is: {shown or 'nothing'}{why}"
        return NoCapableInstance(message, needed=sorted(requirements.capabilities))

    def _suppliers(self, balancer: LoadBalancer) -> list[Supplier]:
        hubs = balancer.route.hubs
        return [s for name, s in self.suppliers.items() if hubs is None or name in hubs]

    def _scale(self, balancer: LoadBalancer) -> None:
        """Ask the first hub that can create an instance for as many as wait; it knows its own limits."""
        if not balancer.waiting:
            return
        for supplier in self._suppliers(balancer):
            if supplier.offer(balancer.requirements).kind is OfferKind.CREATABLE:
                self._deliver(Scale(supplier.name, balancer.requirements, len(balancer.waiting)))
                return

    def _announce(self, before: ResourceInstance | None, record: Record) -> None:
        state = "ejected" if record.breaker.until is not None and record.state is State.READY else record.state.value
        change = InstanceChange(before=before, after=record.instance, state=state, reason=record.reason)
        self._deliver(Changed(change))
