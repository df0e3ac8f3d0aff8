# ruff: noqa: S101 - assertions are what these classes are made of
"""What every hub must do, and every hub that keeps a supply."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import ClosedError
from gleitzeit_core.pool import State
from gleitzeit_core.resources import Requirements, instance_id
from gleitzeit_core.routing import Offer
from gleitzeit_core.supply import SupplyHub
from gleitzeit_core.testing.conformance.base import PATIENCE_S, Conformance, no_task_is_left

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.supply import SupplyOptions


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
        await no_task_is_left(before)

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
        await no_task_is_left(before)

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
            seen = Seen(dispatcher)
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
            seen = Seen(dispatcher)
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
            seen = Seen(dispatcher)
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
            seen, supply = Seen(dispatcher), self._supply(hub)
            assert supply.idle_ttl_s is not None, "make_hub must give one with an idle time"
            await hub.scale(self.requirements, supply.max_total)
            while len(hub.instances) > supply.min_total:
                await seen.wait("gone")
            assert len(hub.instances) == supply.min_total

    async def test_what_is_not_well_is_replaced(self) -> None:
        """Another comes for it, and it is gone."""
        async with self.running() as (hub, dispatcher):
            seen, supply = Seen(dispatcher), self._supply(hub)
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
            seen, pool = Seen(dispatcher), dispatcher.shell.admission.pool
            while not any(record.state is State.READY for record in pool):
                await seen.wait(State.READY)
            pool.take(next(record for record in pool if record.state is State.READY))
            while not any(record.state is State.READY and not record.in_flight for record in pool):
                await seen.wait(State.READY)
            assert len(hub.instances) <= self._supply(hub).max_total

    async def test_the_used_up_are_replaced(self) -> None:
        """After its last use an instance is gone; who comes next gets another."""
        async with self.running_with(min_total=0, max_total=1, max_uses=1) as (_, dispatcher):
            seen, pool = Seen(dispatcher), dispatcher.shell.admission.pool
            for _ in range(2):
                async with asyncio.timeout(PATIENCE_S), dispatcher.lease(self.requirements, timeout_s=None) as lease:
                    used = lease.instance
                while pool.in_flight:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0)
                left = pool.records.get(used.id)
                assert left is None or left.state is State.DRAINING or left.instance.generation > used.generation
                await seen.wait("gone")

    async def test_the_old_are_replaced(self) -> None:
        """Without anybody's doing."""
        async with self.running_with(min_total=1, max_age_s=0.01) as (_, dispatcher):
            seen = Seen(dispatcher)
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


class Seen:
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
        async with asyncio.timeout(PATIENCE_S):
            while True:
                change = await self._queue.get()
                if change.state == state:
                    return change
