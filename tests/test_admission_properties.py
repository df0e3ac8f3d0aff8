"""The machine under thousands of random events: what must hold after each of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gleitzeit_core.effects import Emptied, Recycle, Scale
from gleitzeit_core.errors import FailureKind, InstanceFailure, QueueFull, RequestError
from gleitzeit_core.pool import State
from gleitzeit_core.records import Crowd
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Ownership, instance_id
from gleitzeit_core.routing import Offer, OfferKind, Route, Share
from gleitzeit_core.strategies.base import WAIT, NoOptions, Strategy, Wait
from gleitzeit_core.strategies.chain import Chain
from gleitzeit_core.strategies.simple import LeastLoaded, RandomChoice, RoundRobin
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.balancing import LoadBalancer
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.effects import Effect
    from gleitzeit_core.pool import Record, Slot
    from gleitzeit_core.requests import Request
    from gleitzeit_core.reservations import Reservation
    from gleitzeit_core.routing import Ticket
    from gleitzeit_core.strategies.base import Candidate, View

NAMES = ("a", "b", "c", "d", "e", "f")
CAPABILITIES = (frozenset[str](), frozenset({"x"}), frozenset({"model:m"}), frozenset({"x", "model:m"}))
KINDS = (*FailureKind, None, None, None, None)
MAX_QUEUE = 8
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


class Chaos:
    """Random events on a machine, and what must hold after each."""

    def __init__(self, inner: type[Strategy[NoOptions]], seed: int) -> None:
        self.running: Counter[str] = Counter()
        self.machine = Machine(self.strategy(inner), seed=seed, max_queue=MAX_QUEUE)
        self.reservations: list[Reservation] = []
        self.admission = self.machine.admission
        self.tickets: list[Ticket] = []
        self.recycling: list[Slot] = []
        self.emptied: set[Record] = set()
        self.scaled: dict[Any, int] = {}
        self.ended: set[Ticket] = set()
        self.patient = 0
        # As if they were of many: one for each balancer, brought up to date at each check.
        self.crowds: dict[LoadBalancer, tuple[int, Crowd]] = {}
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


class ChaosMachine(RuleBasedStateMachine):
    """Hypothesis chooses the events, and finds the shortest list of them that breaks a rule."""

    chaos: Chaos

    @initialize(
        inner=st.sampled_from([LeastLoaded, RoundRobin, RandomChoice]), seed=st.integers(0, 99), recycles=st.booleans()
    )
    def begin(self, inner: type[Strategy[NoOptions]], seed: int, recycles: bool) -> None:  # noqa: FBT001 - drawn
        """Begin."""
        self.chaos = Chaos(inner, seed)
        self.chaos.machine.shelf.recycles = recycles

    @rule(
        capability=st.integers(0, 3),
        priority=st.integers(0, 1),
        tenant=st.sampled_from(["", "t"]),
        cost=st.sampled_from([1.0, 5.0]),
        times=st.integers(1, 4),
    )
    def submit(self, capability: int, priority: int, tenant: str, cost: float, times: int) -> None:
        """Requests come."""
        for _ in range(times):
            self.chaos.submit(capability, priority, tenant, cost)

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        """A caller leaves."""
        self.chaos.cancel(number)

    @rule(number=st.integers(0, 20), kind=st.sampled_from(KINDS))
    def release(self, number: int, kind: FailureKind | None) -> None:
        """A try ends."""
        self.chaos.release(number, kind)

    @rule(number=st.integers(0, 20), kind=st.sampled_from([FailureKind.LOST, FailureKind.SERVER_ERROR]))
    def retry(self, number: int, kind: FailureKind) -> None:
        """A try fails and is repeated."""
        self.chaos.retry(number, kind)

    @rule(capability=st.integers(0, 3), number=st.integers(0, 20), warm=st.booleans())
    def take_now(self, capability: int, number: int, warm: bool) -> None:  # noqa: FBT001 - drawn
        """A second try."""
        self.chaos.take_now(capability, number, warm=warm)

    @rule(
        inner=st.sampled_from([LeastLoaded, RoundRobin, RandomChoice]),
        kept=st.integers(0, 2),
        chained=st.booleans(),
        gone=st.booleans(),
    )
    def set_routes(self, inner: type[Strategy[NoOptions]], kept: int, chained: bool, gone: bool) -> None:  # noqa: FBT001 - drawn
        """The routes change."""
        self.chaos.set_routes(inner, kept, chained=chained, gone=gone)

    @rule(kept=st.integers(0, 2), release=st.booleans())
    def reserve(self, kept: int, release: bool) -> None:  # noqa: FBT001 - drawn
        """Reservations come and go."""
        self.chaos.reserve(kept, release=release)

    @rule(number=st.integers(0, 20))
    def progress(self, number: int) -> None:
        """First output."""
        self.chaos.progress(number)

    @rule(keep=st.booleans())
    def recycled(self, keep: bool) -> None:  # noqa: FBT001 - drawn
        """Cleaned up."""
        self.chaos.recycled(keep=keep)

    @rule(
        name=st.sampled_from(NAMES),
        capability=st.integers(0, 3),
        state=st.sampled_from([State.READY, State.STARTING, State.DOWN]),
        anew=st.booleans(),
    )
    def put(self, name: str, capability: int, state: State, anew: bool) -> None:  # noqa: FBT001 - drawn
        """An instance comes or changes."""
        self.chaos.put(name, capability, state, anew=anew)

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from([State.READY, State.DOWN, State.MISCONFIGURED]))
    def set_state(self, name: str, state: State) -> None:
        """A probe speaks."""
        self.chaos.set_state(name, state)

    @rule(name=st.sampled_from(NAMES))
    def drain(self, name: str) -> None:
        """An instance shall end."""
        self.chaos.drain(name)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        """An instance is gone."""
        self.chaos.remove(name)

    @rule(kind=st.sampled_from(list(OfferKind)))
    def offer(self, kind: OfferKind) -> None:
        """A hub can do more, or less."""
        self.chaos.offer(kind)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 6.0, 70.0, 400.0]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.chaos.advance(seconds)

    @invariant()
    def check(self) -> None:
        """What must hold."""
        self.chaos.check()

    def teardown(self) -> None:
        """All ends."""
        if hasattr(self, "chaos"):
            self.chaos.finish()


TestChaos = ChaosMachine.TestCase
TestChaos.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("inner", [LeastLoaded, RoundRobin, RandomChoice])
def test_ten_thousand_random_events_leave_nothing_behind(inner: type[Strategy[NoOptions]]) -> None:
    """However the events come, every rule holds after each, and in the end every slot, ticket and timer is gone."""
    random, chaos = Random(7), Chaos(inner, 7)
    weights = {"submit": 30, "release": 22, "retry": 5, "cancel": 5, "progress": 5, "put": 4, "set_state": 4}
    weights |= {"drain": 1, "remove": 1, "offer": 1, "advance": 5, "take_now": 2, "set_routes": 1, "reserve": 1}
    events = random.choices(list(weights), weights=list(weights.values()), k=3_500)
    for event in events:
        number, name = random.randrange(20), random.choice(NAMES)
        match event:
            case "submit":
                chaos.submit(random.randrange(4), random.randrange(2), random.choice("abc"), random.uniform(0.1, 9))
            case "release":
                chaos.release(number, random.choice(KINDS))
            case "retry":
                chaos.retry(number, random.choice([FailureKind.LOST, FailureKind.SERVER_ERROR]))
            case "cancel" | "progress" | "drain" | "remove":
                getattr(chaos, event)(number if event in ("cancel", "progress") else name)
            case "put":
                chaos.put(name, random.randrange(4), random.choice([State.READY, State.STARTING]), anew=number < 5)
            case "set_state":
                chaos.set_state(name, random.choice([State.READY, State.READY, State.DOWN]))
            case "offer":
                chaos.offer(random.choice(list(OfferKind)))
            case "take_now":
                chaos.take_now(random.randrange(4), number, warm=number % 2 == 0)
            case "set_routes":
                kind = random.choice([LeastLoaded, RoundRobin, RandomChoice])
                chaos.set_routes(kind, number % 3, chained=number % 2 == 0, gone=number == 1)
            case "reserve":
                chaos.reserve(number % 3, release=number < 12)
            case "advance":
                chaos.advance(random.expovariate(0.2))
        chaos.check()
    chaos.finish()


@pytest.mark.parametrize("inner", [LeastLoaded, RoundRobin, RandomChoice])
def test_an_instance_that_fails_at_once_gets_no_pick_after_its_fifth_failure(inner: type[Strategy[NoOptions]]) -> None:
    """Fast failures are a sinkhole for whoever looks at load: after five in a row the others get everything."""
    machine = Machine(lambda random, clock: inner(NoOptions(), random=random, clock=clock))
    for name in ("good", "better", "sink"):
        machine.add(name, max_concurrent=4)
    failures = 0
    for _ in range(400):
        ticket = machine.submit()
        if machine.where(ticket) == "sink":
            failures += 1
            machine.release(ticket, FailureKind.SERVER_ERROR, total_s=0.001)
        else:
            machine.release(ticket)
        machine.clock.advance(0.001)
    assert failures == 5


def test_a_strategy_that_waits_decides_for_itself() -> None:
    """Where a strategy answers Wait although an instance is free, the request waits, and is asked again on every change."""

    class Picky(Strategy[NoOptions]):
        name = "picky"

        def pick(self, request: Request, view: View) -> Candidate | Wait:
            del request
            return next((c for c in view.free if c.instance.endpoint == "best"), WAIT)

    machine = Machine(lambda random, clock: Picky(NoOptions(), random=random, clock=clock))
    machine.add("other")
    ticket = machine.submit()
    assert ticket.waits
    machine.add("best")
    assert machine.where(ticket) == "best"
