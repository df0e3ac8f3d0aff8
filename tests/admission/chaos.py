"""Random events on a machine, under a strategy that keeps count and breaks its promises."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import FailureKind, InstanceFailure, QueueFull, RequestError
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Ownership, instance_id
from gleitzeit_core.routing import Offer, OfferKind, Route, Share
from gleitzeit_core.strategies.base import NoOptions, Strategy, Wait
from gleitzeit_core.strategies.chain import Chain
from gleitzeit_core.testing.machine import Machine

from .ledger import MAX_QUEUE, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Request
    from gleitzeit_core.reservations import Reservation
    from gleitzeit_core.strategies.base import Candidate, View

NAMES = ("a", "b", "c", "d", "e", "f")
CAPABILITIES = (frozenset[str](), frozenset({"x"}), frozenset({"model:m"}), frozenset({"x", "model:m"}))
SHARES = ((), (Share(share=0.5, tenant="t"),), (Share(share=0.3, model="m"), Share(share=0.3, tenant="a")))


class Counting(Strategy[NoOptions]):
    """Passes on to another strategy, and keeps count; now and then it breaks its promises."""

    name = "counting"

    def __init__(self, inner: type[Strategy[NoOptions]], random: Random, clock: Clock, running: Counter[str]) -> None:
        super().__init__(NoOptions(), random=random, clock=clock)
        self.inner = inner(NoOptions(), random=random, clock=clock)
        self.running = running
        # What it was told has begun, and not that it has ended; another may take over meanwhile.
        self.begun: Counter[str] = Counter()

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """What the other picks."""
        assert any(candidate.room > 0 for candidate in view.candidates)
        if self.random.random() < 0.02:
            raise LookupError("a strategy is a plugin, and plugins fail")
        if self.random.random() < 0.02:
            return self.random.choice(view.candidates)
        if self.random.random() < 0.02:
            return Wait(again_s=0.0)
        return self.inner.pick(request, view)

    def started(self, request: Request, candidate: Candidate) -> None:
        """One more."""
        self.running[request.id] += 1
        self.begun[request.id] += 1
        self.inner.started(request, candidate)

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:
        """One fewer."""
        self.running[request.id] -= 1
        self.begun[request.id] -= 1
        assert self.begun[request.id] >= 0, "it hears of an end without a beginning"
        self.inner.finished(request, candidate, outcome)


class Chaos(Ledger):
    """Random events on a machine, and what must hold after each."""

    def __init__(self, inner: type[Strategy[NoOptions]], seed: int) -> None:
        self.running: Counter[str] = Counter()
        super().__init__(Machine(self.strategy(inner), seed=seed, max_queue=MAX_QUEUE))
        self.reservations: list[Reservation] = []
        self.generation = Counter[str]()
        for name in NAMES[:3]:
            self.put(name, 1)

    def strategy(
        self, inner: type[Strategy[NoOptions]], *, chained: bool = False
    ) -> Callable[[Random, Clock], Strategy[Any]]:
        """What makes a strategy that keeps count."""

        def make(random: Random, clock: Clock) -> Strategy[Any]:
            counting = Counting(inner, random, clock, self.running)
            return Chain([], counting) if chained else counting

        return make

    # -- events ------------------------------------------------------------------------------------------------

    def put(self, name: str, capability: int, state: State = State.READY, *, anew: bool = False) -> None:
        """An instance comes, changes or is started anew."""
        self.generation[name] += anew
        number = NAMES.index(name)
        self.machine.add(
            name,
            state,
            capabilities=CAPABILITIES[capability],
            max_concurrent=1 + number % 3,
            weight=(0.5, 1.0, 2.0)[number % 3],
            probe=number % 2 == 0,
            ownership=Ownership.MANAGED if number % 3 else Ownership.EXTERNAL,
            generation=self.generation[name],
        )

    def submit(self, capability: int, priority: int, tenant: str, cost: float) -> None:
        """A request comes."""
        ticket = self.machine.ticket(capabilities=CAPABILITIES[capability], priority=priority, tenant=tenant, cost=cost)
        with contextlib.suppress(RequestError):
            self.tickets.append(self.machine.submit(ticket))

    def cancel(self, number: int) -> None:
        """A caller leaves: while it waits, or while it runs."""
        ticket = self.ticket(number)
        if ticket is None:
            return
        waited = ticket.waits
        assert self.admission.cancel(ticket) is waited
        if waited:
            self.end(ticket)
        elif ticket in self.machine.granted:
            self.release(number, None, Result.CANCELLED)

    def release(self, number: int, kind: FailureKind | None, result: Result | None = None) -> None:
        """A try ends."""
        ticket = self.holder(number)
        if ticket is not None:
            took_s = self.machine.random.random() * 3
            self.machine.release(ticket, kind, result=result, retry_after_s=0.5, total_s=took_s)
            self.end(ticket)

    def retry(self, number: int, kind: FailureKind) -> None:
        """A try fails and the request is submitted again, as the dispatcher does it."""
        ticket = self.holder(number)
        if ticket is None:
            return
        slot = self.machine.release(ticket, kind)
        ticket.excluded |= {(slot.instance.id, slot.instance.generation)}
        ticket.last_failure = InstanceFailure(kind, "again")
        if kind is FailureKind.LOST:
            ticket.patient_until = self.machine.clock.monotonic() + 0.25
            self.patient += 1
        try:
            self.machine.submit(ticket)
        except RequestError as error:
            assert not isinstance(error, QueueFull), "it had a place"
            self.end(ticket)

    def take_now(self, capability: int, number: int, *, warm: bool) -> None:
        """A second try is begun beside another, if that is possible at once."""
        ticket = self.machine.ticket(capabilities=CAPABILITIES[capability])
        beside = self.holder(number)
        if beside is not None:
            slot = self.machine.granted[beside]
            ticket.excluded = frozenset({(slot.instance.id, slot.instance.generation)})
        waiting = self.admission.waiting
        slot = self.admission.take_now(ticket, warm=warm)
        assert self.admission.waiting == waiting
        if slot is not None:
            assert ticket.may_use(slot.record)
            self.machine.granted[ticket] = slot
            self.tickets.append(ticket)

    def set_routes(self, inner: type[Strategy[NoOptions]], kept: int, *, chained: bool, gone: bool) -> None:
        """The routes change: another strategy, other shares; now and then the route is gone for a while."""
        make = self.strategy(inner, chained=chained)
        names = ["other"] if gone else ["all", "other"]
        routes = [Route(name=n, methods=("*",), strategy=make, max_queue=MAX_QUEUE, shares=SHARES[kept]) for n in names]
        with contextlib.suppress(ValueError):
            self.admission.set_routes(routes)

    def reserve(self, kept: int, *, release: bool) -> None:
        """A share of the route is reserved, or no longer."""
        if release and self.reservations:
            self.reservations.pop().release()
        with contextlib.suppress(ValueError):
            self.reservations += [self.admission.reserve("all", share) for share in SHARES[kept][:1]]

    def progress(self, number: int) -> None:
        """First output."""
        ticket = self.holder(number)
        if ticket is not None:
            self.admission.progress(self.machine.granted[ticket])

    def recycled(self, *, keep: bool) -> None:
        """A use is cleaned up after."""
        if self.recycling:
            self.admission.recycled(self.recycling.pop(0), keep=keep)

    def set_state(self, name: str, state: State) -> None:
        """A probe speaks."""
        self.admission.set_state(instance_id("echo", name), state, "so says a probe")

    def drain(self, name: str) -> None:
        """An instance shall end."""
        self.admission.drain(instance_id("echo", name), "enough")

    def remove(self, name: str) -> None:
        """An instance is gone."""
        self.admission.remove(instance_id("echo", name), "gone")

    def offer(self, kind: OfferKind) -> None:
        """A hub can do more, or less."""
        self.machine.shelf.answer = Offer(kind)
        self.admission.supply_changed()

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.machine.clock.advance(seconds)

    def finish(self) -> None:
        """All ends: nothing is left."""
        for reservation in self.reservations:
            reservation.release()
        self.admission.close()
        self.settle()
        while self.holder(0) is not None:
            self.release(0, None)
            self.settle()
        while self.recycling:
            self.recycled(keep=True)
        self.check()
        assert not self.tickets
        assert (self.admission.waiting, self.admission.pool.in_flight) == (0, 0)
        assert not any(self.running.values()), "started and finished are not as often"
        assert not any(shares._held for shares in self.admission._shares.values()), "a slot is still counted"
        for name in NAMES:
            self.remove(name)
        self.advance(0.25)
        assert self.machine.clock.pending == 0
