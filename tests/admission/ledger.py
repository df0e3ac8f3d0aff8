"""What is on its way in a machine, and what must hold of it at any time."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.effects import Emptied, Recycle, Scale
from gleitzeit_core.pool import State
from gleitzeit_core.records import Crowd
from gleitzeit_core.resources import Ownership
from gleitzeit_core.routing import OfferKind

if TYPE_CHECKING:
    from gleitzeit_core.balancing import LoadBalancer
    from gleitzeit_core.effects import Effect
    from gleitzeit_core.pool import Record, Slot
    from gleitzeit_core.routing import Ticket
    from gleitzeit_core.testing.machine import Machine

MAX_QUEUE = 8


class Ledger:
    """What is on its way in a machine, kept from what it says, and the rules."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.admission = machine.admission
        self.tickets: list[Ticket] = []
        self.recycling: list[Slot] = []
        self.emptied: set[Record] = set()
        self.scaled: dict[Any, int] = {}
        self.ended: set[Ticket] = set()
        self.patient = 0
        # As if they were of many: one for each balancer, brought up to date at each check.
        self.crowds: dict[LoadBalancer, tuple[int, Crowd]] = {}

    # -- bookkeeping -------------------------------------------------------------------------------------------

    def ticket(self, number: int) -> Ticket | None:
        """Any of those on their way."""
        return self.tickets[number % len(self.tickets)] if self.tickets else None

    def holder(self, number: int) -> Ticket | None:
        """Any of those with a slot."""
        holders = [ticket for ticket in self.tickets if ticket in self.machine.granted]
        return holders[number % len(holders)] if holders else None

    def end(self, ticket: Ticket) -> None:
        """A request has ended."""
        assert ticket not in self.ended
        self.ended.add(ticket)
        self.tickets.remove(ticket)

    def settle(self) -> None:
        """Look at what came out."""
        effects, self.machine.effects = self.machine.effects, []
        for effect in effects:
            self.note(effect)
        for ticket in tuple(self.machine.rejected):
            del self.machine.rejected[ticket]
            assert ticket not in self.machine.granted, "granted and rejected"
            self.end(ticket)

    def note(self, effect: Effect) -> None:
        """Keep what a later check needs."""
        match effect:
            case Recycle(slot, _):
                self.recycling.append(slot)
            case Scale(_, requirements, _):
                # As the shell does: what waits for the same in all routes, the one that is gone included.
                self.scaled[requirements] = self.admission.wanting(requirements)
            case Emptied(instance):
                record = self.admission.pool.records.get(instance.id)
                if record is not None and record.instance.generation == instance.generation:
                    assert record not in self.emptied, "emptied twice"
                    assert record.in_flight == 0
                    self.emptied.add(record)

    # -- what must hold ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Everything."""
        self.settle()
        self.check_slots()
        self.check_tickets()
        for balancer in self.admission.balancers:
            self.check_snapshot(balancer)
            self.check_queue(balancer)
        asked_again = sum(1 for balancer in self.admission.balancers if balancer.timer is not None)
        timers = len(self.admission.pool.records) + self.patient + asked_again
        assert self.machine.clock.pending <= timers, "one for an instance, and one for a strategy that waits"

    def check_slots(self) -> None:
        """What is in flight is what is outstanding, within the limits."""
        slots = [*self.machine.granted.values(), *self.recycling]
        assert not any(slot.freed for slot in slots)
        outstanding = Counter(slot.record for slot in slots)
        for record in self.admission.pool:
            assert record.in_flight == outstanding[record]
            assert record.in_flight <= record.instance.max_concurrent
            assert record.load == (2 if record.degraded else 1) * record.in_flight / record.instance.weight
            before = record.room, record.load, record.condition
            record.recount()
            assert (record.room, record.load, record.condition) == before, "they were not worked out anew"
            assert record.condition == record.announced, "a change was not told"

    def check_tickets(self) -> None:
        """Each is in one place."""
        waiting = {ticket for balancer in self.admission.balancers for ticket in balancer.waiting}
        assert self.admission.waiting == len(waiting)
        assert all(ticket.waits for ticket in waiting)
        assert not waiting & set(self.machine.granted)
        assert waiting | set(self.machine.granted) == set(self.tickets)

    def check_snapshot(self, balancer: LoadBalancer) -> None:
        """What is kept up to date step by step is what it would be if it were made anew."""
        kept = balancer.snapshot
        fresh = self.admission.pool.snapshot(balancer.route.hubs, balancer.requirements)
        assert kept.candidates == fresh.candidates
        version, crowd = self.crowds.get(balancer, (-1, None))
        if crowd is None or version != self.admission.pool.version:
            crowd = Crowd(fresh.records, self.admission.pool)
            self.crowds[balancer] = self.admission.pool.version, crowd
        for view in (kept, crowd):
            assert view.candidates == fresh.candidates
            assert view.has_room() is any(record.room > 0 for record in fresh.candidates)
            if view.has_room():
                least = min(record.load for record in fresh.free)
                assert view.least_loaded(Random(0)).load == least
                assert view.least_loaded(Random(0)).room > 0
        up = sum(1 for record in fresh.records if record.state is State.READY)
        assert len(fresh.ejected) <= up // 2, "more than half are ejected"

    def check_queue(self, balancer: LoadBalancer) -> None:
        """Nobody waits in vain, or without need."""
        snapshot, waiting = balancer.snapshot, balancer.waiting
        creatable = self.machine.shelf.answer.kind is OfferKind.CREATABLE
        assert sum(1 for ticket in waiting if not ticket.excluded) <= MAX_QUEUE
        for ticket in waiting:
            usable = [record for record in snapshot.candidates if ticket.may_use(record)]
            shares = balancer.shares
            left = snapshot.candidates if shares is None else shares.view(ticket.request, snapshot).candidates
            free = any(record.room > 0 for record in usable if record in left)
            assert not free or balancer.timer is not None, "an instance is free and somebody waits for it"
            hope = ticket.patient_until > self.machine.clock.monotonic() or any(map(self.coming, snapshot.records))
            assert usable or creatable or hope, "a wait without hope"
        if waiting and creatable:
            assert self.scaled[balancer.requirements] >= len(waiting), "the hub does not know how many wait"

    @staticmethod
    def coming(record: Record) -> bool:
        """Created now, or retired now by a hub that may replace it."""
        retired = record.state is State.DRAINING and record.instance.ownership is Ownership.MANAGED
        return record.state is State.STARTING or (retired and not record.in_flight)
