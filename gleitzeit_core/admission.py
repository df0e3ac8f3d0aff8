"""Who gets a slot now and who waits: the upper half of the synchronous machine.

Events come in as method calls; what must be done goes out through ``deliver``, after the state is right again. There is
no I/O and no await in here, and time and randomness are injected.

A waiting request is bound to an instance only when a slot frees. Order is: priority band, then fairness between tenants
by work (start-time fair queueing, Goyal et al., SIGCOMM 1996), then arrival.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from gleitzeit_core.breaker import BreakerPolicy
from gleitzeit_core.effects import Changed, Effect, Emptied, Granted, Recycle, Rejected, Scale, Suspect
from gleitzeit_core.errors import ShuttingDown
from gleitzeit_core.hookspecs import InstanceChange
from gleitzeit_core.pool import Pool, Record, Slot, State
from gleitzeit_core.prospects import Prospects
from gleitzeit_core.requests import Result
from gleitzeit_core.route_table import RouteTable
from gleitzeit_core.routing import OfferKind, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from gleitzeit_core.balancing import LoadBalancer
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.errors import RequestError
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.reservations import Reservation
    from gleitzeit_core.resources import Requirements, ResourceInstance
    from gleitzeit_core.routing import QueueReport, Route, Share, Supplier

# A strategy that waits for something better must not hold up all behind; asking it for more than these costs more than
# it brings.
_LOOK_AHEAD = 16
# Looked up once: see the records' module.
_FAILED, _DRAINING = Result.FAILED, State.DRAINING


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
        self._clock, self._deliver = clock, deliver
        self.pool = Pool(clock=clock, random=random, policy=policy or BreakerPolicy(), on_timer=self._settle)
        self.suppliers: dict[str, Supplier] = {}
        self._prospects = Prospects(self.pool, self.suppliers, clock)
        self._table = RouteTable(self.pool, clock, random)
        # What is kept of each route, by its name; empty while nothing is.
        self._shares = self._table.shares
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
        # Of a route that is gone those stay in which somebody waits.
        return tuple(dict.fromkeys([*self._table.balancers.values(), *self._queues]))

    def queues(self) -> tuple[QueueReport, ...]:
        """The queues in which somebody waits."""
        return tuple(balancer.report() for balancer in self._queues)

    # -- requests ----------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> Slot | None:
        """A request wants a slot. None: it waits, and ends with `Granted`, `Rejected` or a call of `cancel`.

        Raises:
            RequestError: It cannot be served, now or by waiting.
        """
        # 1. Nothing new is taken any more.
        if self._closed:
            raise ShuttingDown("shutting down: nothing new is taken")
        balancer = ticket.balancer or self._table.balancer(ticket)
        # 2. Nobody waits, and an instance is free: take it.
        alone = not balancer.waiting
        if alone:
            record = balancer.choose(ticket)
            if record is not None:
                slot = balancer.start(ticket, record)
                if self._shares and self._queues:
                    # It may have met what was kept for several, and so leave something for others.
                    self._grant()
                    self._flush()
                return slot
        # 3. Nothing that is up or coming could serve it: say so now.
        refusal = self._prospects.hopeless(balancer, ticket)
        # 4. The queue holds as many as it may, or so many that it is kept for those in higher bands.
        refusal = refusal or balancer.full(ticket)
        if refusal is not None:
            raise refusal
        # 5. It waits. It may be one that can use what those before it cannot.
        self._arrivals += 1
        balancer.enqueue(ticket, self._arrivals)
        self._queues[balancer] = None
        if ticket.patient_until > ticket.queued_at:
            self._clock.call_at(ticket.patient_until, self._review)
        if alone:
            self._look_again(balancer)
        else:
            self._grant_next(balancer)
        self._scale(balancer)
        self._flush()
        return None

    def take_now(self, ticket: Ticket, *, warm: bool) -> Slot | None:
        """A slot at once, out of plenty, or None; never a wait. For work that is done a second time to be quicker.

        Only when nobody waits in its queue and at least a fifth of all slots is free, and never on an instance that
        the ticket excludes.

        Args:
            ticket: Who asks.
            warm: Only on an instance that has ready what is needed, where instances say what they have ready.
        """
        if self._closed:
            return None
        balancer = ticket.balancer or self._table.balancer(ticket)
        record = balancer.spare(ticket, warm=warm)
        return None if record is None else balancer.start(ticket, record)

    def cancel(self, ticket: Ticket) -> bool:
        """Whoever waited left. False when it no longer waited: it has a slot, or was rejected."""
        if not ticket.waits:
            return False
        self._dequeue(ticket)
        return True

    def progress(self, slot: Slot) -> None:
        """First output from an instance."""
        loads = slot.loads
        self.pool.progress(slot)
        self._settle(slot.record, others=bool(loads))

    def release(self, ticket: Ticket, slot: Slot, outcome: Outcome) -> None:
        """A try ended. Called once for each slot, when the work has stopped."""
        record, others = slot.record, bool(slot.loads)
        self.pool.judge(slot, outcome)
        # Work under a lease has nothing to free: that is the lease's.
        if not slot.freed:
            (ticket.balancer or self._table.balancer(ticket)).finish(ticket, slot, outcome)
            supplier = self.suppliers.get(slot.instance.hub)
            if supplier is None or not supplier.recycles:
                self._free(slot)
            elif slot.used:
                self._effects.append(Recycle(slot, outcome))
            else:
                self._free(slot)
                # Nobody will recycle it, but it may be in the way of others who wait.
                self._review()
        if outcome.result is _FAILED and record.condition != record.announced and self.pool.holds(record):
            self._effects.append(Suspect(slot.instance.id))
        self._settle(record, others=others)

    def recycled(self, slot: Slot, *, keep: bool) -> None:
        """An instance is ready again after a use, or (not `keep`) will be retired."""
        if not keep and self.pool.holds(slot.record):
            self.pool.set_state(slot.record, State.DRAINING, "retired after use")
        self._free(slot)
        self._settle(slot.record)

    def _free(self, slot: Slot) -> None:
        if self._shares:
            for shares in self._shares.values():
                shares.freed(slot)
        if self.pool.free(slot) and slot.record.state is _DRAINING:
            self._look_if_empty(slot.record)

    # -- instances ---------------------------------------------------------------------------------------------

    def put(self, instance: ResourceInstance, state: State = State.READY) -> None:
        """An instance is there, or has changed."""
        old = self.pool.records.get(instance.id)
        before = old.instance if old else None
        record, supplier = self.pool.put(instance, state), self.suppliers.get(instance.hub)
        record.on_work = None if supplier is None else supplier.occupied
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

    def resume(self, instance_id: str) -> None:
        """A draining or drained instance may be used again, once a check has found it well. Others are left alone."""
        record = self.pool.records.get(instance_id)
        if record is not None and record.state is State.DRAINING:
            self.pool.resume(record)
            self._settle(record)

    def set_degraded(self, instance_id: str, source: str, reason: str) -> None:
        """`source` says why an instance is worth less than it could be: it counts half. An empty reason ends that."""
        record = self.pool.records.get(instance_id)
        if record is not None:
            self.pool.set_degraded(record, source, reason)
            self._settle(record)

    def remove(self, instance_id: str, reason: str = "") -> None:
        """An instance is gone. What still runs on it ends by itself."""
        record = self.pool.records.get(instance_id)
        if record is not None:
            self.pool.remove(record)
            gone = InstanceChange(before=record.instance, after=None, state="gone", reason=reason)
            self._effects.append(Changed(gone))
            self._review()

    def in_the_way(self, instance: ResourceInstance, fresh: ResourceInstance) -> bool:
        """Whether the first of those who wait for one like `fresh`, of the same hub, cannot use `instance`."""
        hub = instance.hub
        waiting = [b for b in self._queues if hub in (b.route.hubs or {hub}) and b.requirements.allow(fresh)]
        return bool(waiting) and not min(waiting, key=lambda b: b.turn).requirements.allow(instance)

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

    # -- routes ------------------------------------------------------------------------------------------------

    def set_routes(self, routes: Sequence[Route]) -> None:
        """Go on with these routes. Nothing is dropped: those who wait keep their places, and are looked at again.

        A route goes on by its name: its strategy gets the new options and keeps what it learned, or is replaced when it
        is another. Of a route that is gone those who wait are still served as before.

        Raises:
            ValueError: The shares of one, with what is reserved, come to more than there is. Nothing is changed then.
        """
        self._table.set(routes, self.balancers)
        self._review()

    def reserve(self, route_name: str, share: Share) -> Reservation:
        """Keep a share of a route's capacity until the reservation is released.

        Requests that run already, on a route that had no share so far, count as nobody's until they end. A route of
        that name may come later.

        Raises:
            ValueError: The route's shares would come to more than there is.
        """
        return self._table.reserve(route_name, share, self.balancers, self._review)

    # -- inside ------------------------------------------------------------------------------------------------

    def _settle(self, record: Record, *, others: bool = False) -> None:
        """After every event on an instance: tell of its change, let those who wait for it (and `others`) have it."""
        if record.condition != record.announced and self.pool.holds(record):
            self._announce(record.instance, record)
        elif self._queues:
            # Where shares are kept, what one instance has room for depends on all of them.
            self._grant(None if self._shares or others else record)
        if self._effects:
            self._flush()

    def _announce(self, before: ResourceInstance | None, record: Record) -> None:
        record.announced = state = record.condition
        change = InstanceChange(before=before, after=record.instance, state=state, reason=record.why)
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
        granted = balancer.snapshot.has_room() and self._grant_first(balancer)
        self._look_again(balancer)
        return granted

    def _grant_first(self, balancer: LoadBalancer) -> bool:
        enough = balancer.asked + _LOOK_AHEAD
        for ticket in balancer.waiting:
            record = balancer.choose(ticket)
            if record is not None:
                self._dequeue(ticket, granted=True)
                self._effects.append(Granted(ticket, balancer.start(ticket, record)))
                return True
            # One that may use nothing of what is free costs no question, and holds up nobody.
            if balancer.asked >= enough:
                break
        return False

    def _look_again(self, balancer: LoadBalancer) -> None:
        """See to it that a strategy that waits is asked again when it wants to: by one timer for each balancer."""
        when, balancer.again_at = balancer.again_at, None
        if when is None or not balancer.waiting:
            return
        if balancer.timer is not None:
            if balancer.timer[0] <= when:
                return
            balancer.timer[1].cancel()
        balancer.timer = (when, self._clock.call_at(when, partial(self._again, balancer)))

    def _again(self, balancer: LoadBalancer) -> None:
        balancer.timer = None
        while balancer.waiting and self._grant_next(balancer):
            pass
        self._flush()

    def _review(self) -> None:
        """After a change of who may serve: grant what can be, send away whose wait is hopeless, ask hubs for more."""
        self._grant()
        for balancer in tuple(self._queues):
            # While something serves, only those that were tried there, or that a filter keeps away, have nowhere to go.
            doubtful = balancer.tried or balancer.strategy.narrows or not balancer.snapshot.candidates
            for ticket in tuple(balancer.waiting) if doubtful else ():
                hopeless = self._prospects.hopeless(balancer, ticket)
                if hopeless is not None:
                    self._reject(ticket, hopeless)
            self._scale(balancer)
        self._flush()

    def _reject(self, ticket: Ticket, error: RequestError) -> None:
        self._dequeue(ticket)
        self._effects.append(Rejected(ticket, error))

    def _scale(self, balancer: LoadBalancer) -> None:
        """Ask the first hub that can create an instance for as many as wait; it knows its own limits."""
        for supplier in self._prospects.suppliers_of(balancer) if balancer.waiting else ():
            if supplier.offer(balancer.requirements).kind is OfferKind.CREATABLE:
                self._effects.append(Scale(supplier.name, balancer.requirements, len(balancer.waiting)))
                return
