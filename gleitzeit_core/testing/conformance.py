# ruff: noqa: S101 - assertions are what these classes are made of
"""What every hub, provider, strategy and store must do, as test classes to subclass.

    class TestMyHub(HubConformance):
        async def make_hub(self):
            return MyHub(MyOptions(...))

pytest (with pytest-asyncio in its automatic mode) runs the tests of the subclass. Flags say what a kind cannot do; the
tests for that do nothing then. A standard test may only be replaced by one that is marked as an expected failure, with
a reason: a test in each class looks for that.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import ClosedError, InvalidRequest, UnknownMethod
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Request, Result
from gleitzeit_core.resources import Requirements, instance_id
from gleitzeit_core.routing import Offer
from gleitzeit_core.strategies.base import View, Wait
from gleitzeit_core.supply import SupplyHub
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.persistence import HubPersistenceAdapter
    from gleitzeit_core.pool import Record
    from gleitzeit_core.provider import Provider
    from gleitzeit_core.strategies.base import Strategy
    from gleitzeit_core.supply import SupplyOptions

# A hub or a provider that answers at all answers within this many seconds, on a slow machine too.
_PATIENCE_S = 30.0


def standard_tests(kind: type) -> dict[str, Callable[..., Any]]:
    """The tests that `kind` inherits from this module, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ == __name__:
            found |= {name: test for name, test in vars(base).items() if name.startswith("test_")}
    return found


def _reason(test: object) -> str:
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "xfail"]
    return str(marks[0].kwargs.get("reason", "")) if marks else ""


class Conformance(ABC):  # noqa: B024 - the classes below have the abstract methods
    """Base of the classes below."""

    def test_no_standard_test_is_left_out(self) -> None:
        """A standard test is neither deleted nor replaced, except by one marked ``xfail(reason=...)``."""
        kind = type(self)
        for name, standard in standard_tests(kind).items():
            own = getattr(kind, name)
            kept = own is standard or _reason(own)
            assert kept, f"{kind.__name__}.{name} replaces a standard test: mark it pytest.mark.xfail(reason=...)"


async def _no_task_is_left(before: set[asyncio.Task[Any]]) -> None:
    # What was cancelled gets the turn it needs to end.
    for _ in range(3):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before
    assert not left, f"tasks are left: {left}"


class HubConformance(Conformance):
    """What every hub must do."""

    creates: ClassVar[bool] = False
    """Whether it creates instances when they are wanted; then `requirements` and `limit` are used."""
    restarts: ClassVar[bool] = True
    """Whether it can be started again after it was stopped."""
    requirements: ClassVar[Requirements] = Requirements(accepts=())
    """What an instance that it creates can meet."""
    limit: ClassVar[int] = 1
    """How many instances there may be at most."""

    @abstractmethod
    async def make_hub(self) -> ResourceHub[Any]:
        """A hub that was not started, with at least one instance to find if it does not create them."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[tuple[ResourceHub[Any], Dispatcher], None]:
        """A hub, added to a dispatcher; stopped afterwards."""
        hub, dispatcher = await self.make_hub(), Dispatcher()
        await dispatcher.shell.add_hub(hub)
        try:
            yield hub, dispatcher
        finally:
            await dispatcher.aclose()

    async def test_it_starts_and_stops_and_leaves_no_task(self) -> None:
        """All that it began has ended when it has stopped; stopping it once more is fine."""
        before = asyncio.all_tasks()
        async with self.running() as (hub, dispatcher):
            assert hub.running
        await hub.stop()
        assert not hub.running
        assert not hub.instances
        assert not list(dispatcher.shell.admission.pool)
        await _no_task_is_left(before)

    async def test_it_is_not_started_twice(self) -> None:
        """The second start is refused, and harms nothing."""
        async with self.running() as (hub, dispatcher):
            try:
                await hub.start(dispatcher.shell)
            except ClosedError:
                assert hub.running
                return
        raise AssertionError("it was started twice")

    async def test_it_can_be_started_again(self) -> None:
        """After a stop it begins anew."""
        hub = await self.make_hub()
        for _ in range(2 if self.restarts else 1):
            dispatcher = Dispatcher()
            await dispatcher.shell.add_hub(hub)
            found = len(hub.instances)
            assert found or self.creates
            await dispatcher.aclose()

    async def test_a_start_that_is_cancelled_leaves_nothing(self) -> None:
        """Whoever waits for the start may leave."""
        before, hub, dispatcher = asyncio.all_tasks(), await self.make_hub(), Dispatcher()
        starting = asyncio.create_task(dispatcher.shell.add_hub(hub))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await dispatcher.aclose()
        assert not hub.instances
        await _no_task_is_left(before)

    async def test_its_instances_are_well_formed(self) -> None:
        """They carry its name and kind, and an id that is the same on every replica."""
        async with self.running() as (hub, _):
            for instance in hub.instances:
                assert instance.hub == hub.name
                assert instance.kind == hub.kind
                assert instance.id == instance_id(instance.kind, instance.endpoint)

    async def test_what_it_finds_can_be_used_when_it_is_added(self) -> None:
        """The first checks have passed by then."""
        async with self.running() as (hub, dispatcher):
            states = {report.instance.id: report.state for report in dispatcher.reports()}
            assert states == {instance.id: State.READY for instance in hub.instances}

    async def test_searching_again_finds_nothing_twice(self) -> None:
        """What is known stays as it is."""
        async with self.running() as (hub, dispatcher):
            before = hub.instances
            await hub.search()
            assert hub.instances == before
            assert all(report.state == State.READY for report in dispatcher.reports())

    async def test_a_check_is_about_the_instance_it_was_asked_of(self) -> None:
        """It gives back the same one, as it is now."""
        async with self.running() as (hub, _):
            for instance in hub.instances if all(i.probe for i in hub.instances) else ():
                now = await hub.check(instance)
                assert (now.id, now.hub, now.endpoint) == (instance.id, instance.hub, instance.endpoint)
                assert now.generation >= instance.generation

    async def test_it_offers_something_or_says_no(self) -> None:
        """Whatever is asked for gets an answer, at once."""
        unheard_of = Requirements(accepts=(), capabilities=frozenset(("something unheard of",)))
        async with self.running() as (hub, _):
            assert isinstance(hub.offer(unheard_of), Offer)
            assert isinstance(hub.offer(self.requirements), Offer)

    async def test_unknown_options_are_refused(self) -> None:
        """A misspelt option is an error, not a default."""
        options = (await self.make_hub()).options
        try:
            type(options).model_validate({**options.model_dump(), "no_such_option": 1})
        except ValidationError:
            return
        raise AssertionError(f"{type(options).__name__} takes unknown options")

    async def test_what_it_creates_is_announced_and_then_ready(self) -> None:
        """It counts as coming before it is there."""
        if not self.creates:
            return
        async with self.running() as (hub, dispatcher):
            seen = _Seen(dispatcher)
            await hub.scale(self.requirements, len(hub.instances) + 1)
            change = await seen.wait(State.READY)
            states = [str(c.state) for c in seen.changes if c.after and change.after and c.after.id == change.after.id]
            assert states == [State.STARTING, State.READY]
            assert change.after is not None
            assert self.requirements.allow(change.after)

    async def test_it_creates_no_more_than_its_limit(self) -> None:
        """However many are wanted, and however often."""
        if not self.creates:
            return
        async with self.running() as (hub, dispatcher):
            seen = _Seen(dispatcher)
            for _ in range(3):
                await hub.scale(self.requirements, 1000)
            while any(record.state is State.STARTING for record in dispatcher.shell.admission.pool):
                await seen.wait(State.READY)
            assert 1 <= len(hub.instances) <= self.limit

    async def test_what_it_created_goes_when_it_is_drained(self) -> None:
        """A managed instance without work is retired."""
        if not self.creates:
            return
        async with self.running() as (hub, dispatcher):
            seen = _Seen(dispatcher)
            await hub.scale(self.requirements, len(hub.instances) + 1)
            created = (await seen.wait(State.READY)).after
            assert created is not None
            dispatcher.shell.admission.drain(created.id)
            # Others may go as well.
            while created.id in [instance.id for instance in hub.instances]:
                await seen.wait("gone")


class SupplyConformance(HubConformance):
    """What every `SupplyHub` must do besides.

    `make_hub` gives one with an ``idle_ttl_s`` so short that a test can wait for it, and room for one above the least.
    """

    creates = True

    async def test_it_keeps_its_least_number(self) -> None:
        """They are there when it is added."""
        async with self.running() as (hub, _):
            assert len(hub.instances) >= self._supply(hub).min_total

    async def test_what_is_idle_goes_down_to_the_least_number(self) -> None:
        """By itself, and it is not known any more."""
        async with self.running() as (hub, dispatcher):
            seen, supply = _Seen(dispatcher), self._supply(hub)
            assert supply.idle_ttl_s is not None, "make_hub must give one with an idle time"
            await hub.scale(self.requirements, supply.max_total)
            while len(hub.instances) > supply.min_total:
                await seen.wait("gone")
            assert len(hub.instances) == supply.min_total

    async def test_what_is_not_well_is_replaced(self) -> None:
        """Another comes for it, and it is gone."""
        async with self.running() as (hub, dispatcher):
            seen, supply = _Seen(dispatcher), self._supply(hub)
            await hub.scale(self.requirements, 1)
            while not any(record.state is State.READY for record in dispatcher.shell.admission.pool):
                await seen.wait(State.READY)
            instance = next(record.instance for record in dispatcher.shell.admission.pool)
            assert isinstance(hub, SupplyHub)
            hub.replace(instance, "a test says so")
            assert instance.id not in [known.id for known in hub.instances if known.generation <= instance.generation]
            while len(hub.instances) < supply.min_total:
                await seen.wait(State.READY)

    async def test_some_are_kept_ready(self) -> None:
        """One that is taken is made up for, and there are never more than there may be."""
        async with self.running_with(min_total=0, min_idle=1) as (hub, dispatcher):
            seen, pool = _Seen(dispatcher), dispatcher.shell.admission.pool
            while not any(record.state is State.READY for record in pool):
                await seen.wait(State.READY)
            pool.take(next(record for record in pool if record.state is State.READY))
            while not any(record.state is State.READY and not record.in_flight for record in pool):
                await seen.wait(State.READY)
            assert len(hub.instances) <= self._supply(hub).max_total

    async def test_the_used_up_are_replaced(self) -> None:
        """After its last use an instance is gone; who comes next gets another."""
        async with self.running_with(min_total=0, max_total=1, max_uses=1) as (_, dispatcher):
            seen, pool = _Seen(dispatcher), dispatcher.shell.admission.pool
            for _ in range(2):
                async with asyncio.timeout(_PATIENCE_S), dispatcher.lease(self.requirements, timeout_s=None) as lease:
                    used = lease.instance
                while pool.in_flight:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0)
                left = pool.records.get(used.id)
                assert left is None or left.state is State.DRAINING or left.instance.generation > used.generation
                await seen.wait("gone")

    async def test_the_old_are_replaced(self) -> None:
        """Without anybody's doing."""
        async with self.running_with(min_total=1, max_age_s=0.01) as (_, dispatcher):
            seen = _Seen(dispatcher)
            await seen.wait("gone")
            await seen.wait(State.READY)

    @contextlib.asynccontextmanager
    async def running_with(self, **supply: Any) -> AsyncGenerator[tuple[ResourceHub[Any], Dispatcher], None]:  # noqa: ANN401 - any of the bounds
        """As `running`, with other bounds; what makes instances go is left out unless it is given."""
        hub, dispatcher = await self.make_hub(), Dispatcher()
        kind = type(hub)
        changes = {"min_idle": 0, "idle_ttl_s": None, "max_age_s": None, "max_uses": None, **supply}
        changed = property(lambda hub: kind.supply.fget(hub).model_copy(update=changes))  # type: ignore[attr-defined]
        hub.__class__ = type(kind.__name__, (kind,), {"supply": changed})
        await dispatcher.shell.add_hub(hub)
        try:
            yield hub, dispatcher
        finally:
            await dispatcher.aclose()

    @staticmethod
    def _supply(hub: ResourceHub[Any]) -> SupplyOptions:
        assert isinstance(hub, SupplyHub)
        return hub.supply


class _Seen:
    """The changes of a dispatcher's instances."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.changes: list[InstanceChange] = []
        self._queue: asyncio.Queue[InstanceChange] = asyncio.Queue()
        dispatcher.shell.listen(self._note)

    def _note(self, change: InstanceChange) -> None:
        self.changes.append(change)
        self._queue.put_nowait(change)

    async def wait(self, state: str) -> InstanceChange:
        """The next change to a state."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                change = await self._queue.get()
                if change.state == state:
                    return change


class ProviderConformance(Conformance):
    """What every provider must do."""

    example: ClassVar[tuple[str, Mapping[str, Any]]]
    """A method, and parameters with which it succeeds."""
    invalid: ClassVar[tuple[str, Mapping[str, Any]] | None] = None
    """A method, and parameters that it must refuse; None when it takes any."""
    streams: ClassVar[bool] = False
    """Whether the example's method answers in parts."""

    @abstractmethod
    async def make_provider(self) -> Provider[Any]:
        """A provider that was not opened, with a hub of its own or a given one."""

    async def test_its_methods_are_its_protocols(self) -> None:
        """Each is named after it, and there once."""
        provider = await self.make_provider()
        assert provider.methods
        assert provider.accepts
        assert max(Counter(method.name for method in provider.methods).values()) == 1
        assert all(method.name.startswith(f"{provider.protocol}/") for method in provider.methods)
        assert all(method.summary for method in provider.methods)

    async def test_an_unknown_method_is_refused(self) -> None:
        """By its name, with those there are."""
        provider = await self.make_provider()
        message = ""
        try:
            provider.request(f"{provider.protocol}/no-such-method")
        except UnknownMethod as error:
            message = error.message
        assert provider.methods[0].name in message

    async def test_it_must_be_opened(self) -> None:
        """Before that, it says how."""
        provider = await self.make_provider()
        try:
            await provider.execute(*self.example)
        except ClosedError:
            return
        raise AssertionError("it works without being opened")

    async def test_the_example_is_carried_out(self) -> None:
        """Once, several times at once, and nothing is in flight afterwards."""
        async with asyncio.timeout(_PATIENCE_S), await self.make_provider() as provider:
            await provider.execute(*self.example)
            await asyncio.gather(*(provider.execute(*self.example) for _ in range(3)))
            assert provider.dispatcher.active == 0
            await self._idle(provider)

    async def test_it_opens_and_closes_more_than_once(self) -> None:
        """And leaves no task behind."""
        before, provider = asyncio.all_tasks(), await self.make_provider()
        for _ in range(2):
            async with asyncio.timeout(_PATIENCE_S), provider:
                await provider.execute(*self.example)
        await _no_task_is_left(before)

    async def test_wrong_parameters_are_the_callers_fault(self) -> None:
        """They are refused, and no instance is blamed."""
        if self.invalid is None:
            return
        async with await self.make_provider() as provider:
            try:
                await provider.execute(*self.invalid)
            except InvalidRequest:
                assert provider.dispatcher.metrics.sum().success_rate == 1.0
                return
        raise AssertionError("it takes wrong parameters")

    async def test_a_caller_that_leaves_frees_its_slot(self) -> None:
        """As soon as the work has stopped."""
        async with asyncio.timeout(_PATIENCE_S), await self.make_provider() as provider:
            task = asyncio.create_task(provider.execute(*self.example))
            while not task.done() and not provider.dispatcher.shell.admission.pool.in_flight:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._idle(provider)
            await provider.execute(*self.example)

    async def test_an_answer_in_parts_comes_whole(self) -> None:
        """With at least one part, and says who served it."""
        if not self.streams:
            return
        async with asyncio.timeout(_PATIENCE_S), await self.make_provider() as provider:
            stream = provider.stream(*self.example)
            parts = [part async for part in stream]
            assert parts
            assert stream.served.instance_id
            await self._idle(provider)

    async def test_a_stream_that_is_left_early_frees_its_slot(self) -> None:
        """Leaving cancels the work."""
        if not self.streams:
            return
        async with asyncio.timeout(_PATIENCE_S), await self.make_provider() as provider:
            async with provider.stream(*self.example) as stream:
                await anext(stream)
            await self._idle(provider)
            await provider.execute(*self.example)

    @staticmethod
    async def _idle(provider: Provider[Any]) -> None:
        # An instance may have to be made ready again after its use.
        while provider.dispatcher.shell.admission.pool.in_flight:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)


class StrategyConformance(Conformance):
    """What every strategy must do."""

    may_wait: ClassVar[bool] = False
    """Whether it may answer Wait although an instance is free."""
    uses_all: ClassVar[bool] = True
    """Whether equal instances all get work in the end."""

    @abstractmethod
    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """A new one."""

    def machine(self, seed: int = 0) -> Machine:
        """A machine that uses it."""
        return Machine(self.make_strategy, seed=seed)

    def test_it_has_a_name(self) -> None:
        """The one it is registered under."""
        assert self.make_strategy(Random(0), ManualClock()).name

    def test_it_picks_what_is_free(self) -> None:
        """Never a busy one, whichever are."""
        machine, random = self.machine(), Random(1)
        records = [machine.add(f"i{number}", max_concurrent=2) for number in range(6)]
        strategy = self.make_strategy(Random(2), machine.clock)
        for _ in range(200):
            slots = self._fill(machine, records, random)
            ticket = machine.ticket()
            # The pool's own view, and a part of it as a retry or a chain has it.
            whole = machine.admission.pool.snapshot(None, ticket.request.requirements)
            for view in (whole, View([record for record in records if record is records[0] or record.room > 0])):
                picked = strategy.pick(ticket.request, view)
                if isinstance(picked, Wait):
                    assert self.may_wait
                else:
                    assert picked.room > 0
                    assert picked in view.candidates
            for slot in slots:
                machine.admission.pool.free(slot)

    @staticmethod
    def _fill(machine: Machine, records: list[Record], random: Random) -> list[Any]:
        # One stays free, or there would be nothing to pick.
        busy = random.sample(records, random.randrange(len(records)))
        return [machine.admission.pool.take(record) for record in busy for _ in range(record.room)]

    def test_a_single_instance_is_used(self) -> None:
        """Again and again."""
        machine = self.machine()
        machine.add("only")
        for _ in range(10):
            ticket = machine.submit()
            assert machine.where(ticket) == "only" or self.may_wait
            self._end(machine)

    def test_it_decides_the_same_way_again(self) -> None:
        """Time and randomness come from outside only."""
        runs = []
        for _ in range(2):
            machine = self.machine(seed=3)
            for number in range(5):
                machine.add(f"i{number}")
            runs.append(self._served(machine, 60))
        assert runs[0] == runs[1]

    def test_it_lives_with_instances_that_come_and_go(self) -> None:
        """What is gone is not picked, what is new is not ignored."""
        machine = self.machine()
        for number in range(4):
            machine.add(f"i{number}")
        self._served(machine, 20)
        machine.admission.remove(machine.record("i0").instance.id)
        machine.add("new")
        served = self._served(machine, 200)
        assert "i0" not in served
        assert "new" in served or not self.uses_all

    def test_it_goes_on_with_other_options(self) -> None:
        """Given anew while work is in flight, even the same ones disturb nothing."""
        machine = self.machine()
        for number in range(3):
            machine.add(f"i{number}")
        running = [machine.submit() for _ in range(3)]
        for balancer in machine.admission.balancers:
            balancer.strategy.reconfigure(balancer.strategy.options)
        self._served(machine, 20)
        assert not any(ticket in machine.granted for ticket in running)
        assert machine.admission.pool.in_flight == 0

    def test_it_knows_how_many_wait(self) -> None:
        """It is told of each that begins to wait, and of each that does so no more."""
        machine = self.machine()
        machine.add("only", max_concurrent=1)
        waiting = [machine.submit() for _ in range(4)]
        (balancer,) = machine.admission.balancers
        counts = [balancer.strategy.waiting]
        machine.admission.cancel(waiting[-1])
        counts.append(balancer.strategy.waiting)
        self._end(machine)
        assert [*counts, balancer.strategy.waiting] == [3, 2, 1]

    def test_equals_share_the_work(self) -> None:
        """None of four equal instances is left out of two hundred requests."""
        machine = self.machine()
        for number in range(4):
            machine.add(f"i{number}")
        assert len(set(self._served(machine, 200))) == 4 or not self.uses_all  # noqa: PLR2004 - the four above

    def test_a_failure_does_not_confuse_it(self) -> None:
        """Every end is one it can take: good, bad, and cancelled."""
        machine = self.machine()
        for number in range(3):
            machine.add(f"i{number}", max_concurrent=1)
        for turn in range(90):
            ticket = machine.submit()
            if ticket in machine.granted:
                slot = machine.granted.pop(ticket)
                result = list(Result)[turn % len(Result)]
                machine.admission.release(ticket, slot, Outcome(result=result, total_s=0.1))
            machine.clock.advance(0.1)
        assert machine.admission.pool.in_flight == 0

    def _served(self, machine: Machine, times: int) -> list[str]:
        served = []
        for _ in range(times):
            ticket = machine.submit()
            served.append(machine.where(ticket))
            self._end(machine)
        return served

    @staticmethod
    def _end(machine: Machine) -> None:
        machine.clock.advance(0.1)
        for ticket in tuple(machine.granted):
            machine.release(ticket)


class StoreConformance(Conformance):
    """What every store must do, facet by facet."""

    facets: ClassVar[tuple[str, ...]] = ("instances", "leases", "queue", "counters", "metrics", "notify")
    """Those it has."""

    @abstractmethod
    async def make_store(self, clock: Clock) -> HubPersistenceAdapter:
        """An empty store that was not opened."""

    async def pass_time(self, clock: ManualClock, seconds: float) -> None:
        """Let `seconds` pass for the store. Override this where it has a clock of its own."""
        clock.advance(seconds)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncGenerator[tuple[HubPersistenceAdapter, ManualClock], None]:
        """A store, open; closed afterwards."""
        clock = ManualClock()
        store = await self.make_store(clock)
        await store.open()
        try:
            yield store, clock
        finally:
            await store.close()

    async def test_it_has_the_facets_it_says(self) -> None:
        """No more, no fewer."""
        async with self.opened() as (store, _):
            assert store.facets == self.facets

    async def test_instances_are_kept_by_id(self) -> None:
        """The last one counts; what is removed is gone."""
        async with self.opened() as (store, _):
            if store.instances is None:
                return
            await store.instances.put("a", {"state": "down"})
            await store.instances.put("a", {"state": "ready"})
            await store.instances.put("b", {"state": "ready", "tags": ["x"]})
            assert await store.instances.all() == {"a": {"state": "ready"}, "b": {"state": "ready", "tags": ["x"]}}
            await store.instances.remove("a")
            await store.instances.remove("never there")
            assert list(await store.instances.all()) == ["b"]

    async def test_a_lease_has_one_holder(self) -> None:
        """Others get it when it is given back, with a higher fence."""
        async with self.opened() as (store, _):
            if store.leases is None:
                return
            first = await store.leases.acquire("it", "me", 10)
            assert first is not None
            assert await store.leases.acquire("it", "you", 10) is None
            assert await store.leases.acquire("another", "you", 10) is not None
            assert await store.leases.release(first)
            second = await store.leases.acquire("it", "you", 10)
            assert second is not None
            assert second.fence > first.fence
            assert not await store.leases.release(first)

    async def test_a_lease_expires(self) -> None:
        """Extended by its holder it goes on, with the same fence; then it is anybody's, with a higher one."""
        async with self.opened() as (store, clock):
            if store.leases is None:
                return
            first = await store.leases.acquire("it", "me", 10)
            await self.pass_time(clock, 6)
            extended = await store.leases.acquire("it", "me", 10)
            assert first is not None
            assert extended is not None
            assert (extended.fence, extended.expires_at > first.expires_at) == (first.fence, True)
            await self.pass_time(clock, 6)
            assert await store.leases.acquire("it", "you", 10) is None
            await self.pass_time(clock, 6)
            assert not await store.leases.release(extended)
            taken = await store.leases.acquire("it", "you", 10)
            assert taken is not None
            assert taken.fence > first.fence

    async def test_its_own_lease_lost_and_taken_again_is_a_new_one(self) -> None:
        """Whoever slept too long must not act under the old fence."""
        async with self.opened() as (store, clock):
            if store.leases is None:
                return
            first = await store.leases.acquire("it", "me", 10)
            await self.pass_time(clock, 11)
            again = await store.leases.acquire("it", "me", 10)
            assert first is not None
            assert again is not None
            assert again.fence > first.fence

    async def test_a_queue_gives_out_by_priority_then_by_age(self) -> None:
        """What is claimed is hidden, what is settled is gone."""
        async with self.opened() as (store, _):
            if store.queue is None:
                return
            requests = [Request(method="m", id=name, priority=name == "urgent") for name in ("a", "b", "urgent")]
            for request in requests:
                assert await store.queue.push(request)
            claimed = [await store.queue.claim(60) for _ in range(4)]
            assert [request and request.id for request in claimed] == ["urgent", "a", "b", None]
            for request in requests:
                await store.queue.settle(request.id)

    async def test_a_claim_that_is_not_settled_comes_back(self) -> None:
        """Delivered at least once, and never after it was settled."""
        async with self.opened() as (store, clock):
            if store.queue is None:
                return
            pushed = Request(method="m", params={"n": 1}, tenant="t")
            await store.queue.push(pushed)
            assert await store.queue.claim(10) == pushed
            await self.pass_time(clock, 11)
            assert await store.queue.claim(10) == pushed
            await store.queue.settle(pushed.id)
            await self.pass_time(clock, 11)
            assert await store.queue.claim(10) is None

    async def test_an_idempotency_key_is_taken_once(self) -> None:
        """Also after the first request is done."""
        async with self.opened() as (store, _):
            if store.queue is None:
                return
            first = Request(method="m", idempotency_key="k")
            assert await store.queue.push(first)
            await store.queue.settle(first.id)
            assert not await store.queue.push(Request(method="m", idempotency_key="k"))
            assert await store.queue.push(Request(method="m"))

    async def test_a_counter_adds_up_and_starts_again(self) -> None:
        """Its time runs from the first addition."""
        async with self.opened() as (store, clock):
            if store.counters is None:
                return
            assert await store.counters.add("n", 2, 10) == 2  # noqa: PLR2004 - as added
            await self.pass_time(clock, 6)
            assert await store.counters.add("n", 0.5, 10) == 2.5  # noqa: PLR2004 - as added
            assert await store.counters.add("m", 1, 10) == 1
            await self.pass_time(clock, 6)
            assert await store.counters.add("n", 1, 10) == 1

    async def test_metrics_are_kept_by_source(self) -> None:
        """Each replaces its own."""
        async with self.opened() as (store, _):
            if store.metrics is None:
                return
            await store.metrics.write("a", {"n": 1})
            await store.metrics.write("b", {"n": 2})
            await store.metrics.write("a", {"n": 3})
            assert await store.metrics.read() == {"a": {"n": 3}, "b": {"n": 2}}

    async def test_who_listens_is_told(self) -> None:
        """All who listen to the topic, and nobody else."""
        async with self.opened() as (store, _):
            if store.notify is None:
                return
            listeners = [store.notify.listen("topic") for _ in range(2)]
            heard = [asyncio.ensure_future(anext(listener)) for listener in listeners]
            while not all(one.done() for one in heard):
                await store.notify.publish("another", "not this")
                await store.notify.publish("topic", "this")
                await asyncio.sleep(0)
            assert [one.result() for one in heard] == ["this", "this"]
            for listener in listeners:
                await listener.aclose()
