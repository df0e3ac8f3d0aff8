"""Whatever happens to a hub that creates: never too many, nobody gets what another has or had, nothing is left."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.testing.todo import turns
from gleitzeit_core.testing.workshop import Cleaning, Running, WorkshopOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.leases import Lease
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.testing.todo import Todo

_STEPS = 150


class Bound(Cleaning):
    """Each bench belongs to the tenant who used it first, and knows which ones are not as they were."""

    tenant_bound = True

    def __init__(self, options: WorkshopOptions) -> None:
        super().__init__(options)
        self.dirty: set[str] = set()

    async def reset(self, instance: ResourceInstance, outcome: Outcome) -> bool:
        """As a test says; it is clean only then."""
        clean = await super().reset(instance, outcome)
        if clean:
            self.dirty.discard(instance.endpoint)
        return clean


class Chaos:
    """A workshop to which anything may happen, in an order that a seed decides; time is injected.

    Args:
        seed: Of all that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.most = random.randint(1, 4)
        self.changes = random.random() < 0.5
        self.on = Running(Bound, **self.bounds())
        self.hub = self.on.hub
        self.hub.quick = False
        self.asking: dict[asyncio.Task[Lease], str] = {}
        self.leases: list[Lease] = []
        self.tenants: defaultdict[str, set[str]] = defaultdict(set)
        self.uses: Counter[str] = Counter()
        self.removals: list[asyncio.Task[None]] = []

    def bounds(self) -> dict[str, Any]:
        """Of the supply; the upper one stays."""
        random, most = self.random, self.most
        return {
            "min_total": random.randint(0, most),
            "max_total": most,
            "min_idle": random.randint(0, most),
            "idle_ttl_s": random.choice([None, 10.0]),
            "max_age_s": random.choice([None, None, 50.0]),
            "max_uses": random.choice([None, 1, 3]),
        }

    # -- what may happen -----------------------------------------------------------------------------------------

    async def ask(self) -> None:
        """Somebody wants one."""
        tenant, ttl_s = self.random.choice(["", "a", "b", "c"]), self.random.choice([5.0, 1e6])
        self.asking[asyncio.create_task(self.on.lease(tenant, ttl_s=ttl_s)._acquire())] = tenant or "anonymous"

    async def give_up(self) -> None:
        """Or does not any more, in whatever state that is."""
        if self.asking:
            self.random.choice(list(self.asking)).cancel()

    async def give_back(self) -> None:
        """Somebody is done; not all wait until that has been noticed."""
        if self.leases:
            releasing = asyncio.create_task(self.random.choice(self.leases).release())
            await turns(self.random.randrange(3))
            if self.random.random() < 0.2:
                releasing.cancel()
            await asyncio.gather(releasing, return_exceptions=True)

    async def work(self) -> None:
        """Something that a hub does ends, well or not."""
        todos = [self.hub.creations.all, self.hub.destructions.all, self.hub.resets_begun.all]
        todo = self.open(*todos)
        if todo is None:
            return
        # What cannot be destroyed is given up, so that would be left.
        if self.random.random() < 0.25 and todo not in self.hub.destructions.all:
            todo.fail(LookupError("no wood"))
        else:
            todo.finish(result=self.random.random() < 0.8)

    async def pass_time(self) -> None:
        """A little, or a lot."""
        self.on.clock.advance(self.random.choice([0.5, 3, 20, 100]))

    async def fall_over(self) -> None:
        """One is not well."""
        for instance in self.some():
            self.hub.replace(instance, "unwell")

    async def go_down(self) -> None:
        """One does not answer."""
        for instance in self.some():
            self.hub.report_down(instance.id, "silent")

    async def drain(self) -> None:
        """One is drained by hand."""
        for instance in self.some():
            self.hub.drain(instance.id, "by hand")

    async def remove(self) -> None:
        """One is removed by hand."""
        for instance in self.some():
            removal = self.on.dispatcher.shell.remove_instance(instance.id, grace_s=0)
            self.removals.append(asyncio.create_task(removal))

    async def leave_off(self) -> None:
        """Whoever removed one by hand does not wait for that; it goes all the same."""
        if self.removals:
            self.random.choice(self.removals).cancel()

    async def reconfigure(self) -> None:
        """Other bounds, in some of the runs."""
        if not self.changes:
            return
        assert await self.hub.reconfigure(WorkshopOptions(**self.bounds()))

    # -- what must hold ------------------------------------------------------------------------------------------

    def some(self) -> list[ResourceInstance]:
        """One of those that are there, if there is any; those that are coming are among them."""
        known = list(self.hub.instances)
        return [self.random.choice(known)] if known else []

    def open(self, *lists: list[Todo]) -> Todo | None:
        """One of the things that are to be done."""
        todos = [todo for one in lists for todo in one if not todo.cancelled and not todo._end.done()]
        return self.random.choice(todos) if todos else None

    def check(self) -> None:
        """After each event."""
        for task in [task for task in self.asking if task.done()]:
            tenant = self.asking.pop(task)
            if not task.cancelled() and task.exception() is None:
                self.got(task.result(), tenant)
            elif not task.cancelled():
                # What is to come may take longer than anybody waits.
                assert re.search(r"creating failed: \w|is down \(silent\)|deadline", str(task.exception()))
        hub = self.hub
        assert len(hub._owned) + len(hub._creations) <= self.most
        assert len(set(hub.created) - set(hub.destroyed)) <= self.most
        self.leases = [lease for lease in self.leases if lease.active]
        held = [lease.instance.id for lease in self.leases]
        assert len(held) == len(set(held)), "none is leased twice"
        assert all(len(tenants) == 1 for tenants in self.tenants.values()), self.tenants
        assert len(hub.destroyed) == len(set(hub.destroyed))

    def got(self, lease: Lease, tenant: str) -> None:
        """Somebody has one."""
        endpoint, most = lease.instance.endpoint, self.hub.supply.max_uses
        self.leases.append(lease)
        self.tenants[endpoint].add(tenant)
        self.uses[endpoint] += 1
        assert endpoint not in self.hub.dirty, "used before and not wiped"
        assert self.changes or most is None or self.uses[endpoint] <= most, "used up"
        self.hub.dirty.add(endpoint)

    async def settle(self) -> None:
        """From now on all goes well: nobody waits for ever, and what is to be ready is."""
        hub = self.hub
        hub.quick = True
        for _ in range(200):
            for todo in (*hub.creations.all, *hub.destructions.all, *hub.resets_begun.all):
                todo.finish(result=True)
            await turns()
            self.check()
            for lease in self.leases:
                await lease.release()
            self.on.clock.advance(1)
            for instance in hub.instances:
                await self.on.dispatcher.shell.health.check(instance.id)
            if not self.asking and not hub._creations and hub._retry is None and not hub._destructions:
                break
        assert not self.asking, (self.on, self.asking)
        await turns()
        there = len(hub._owned) + len(hub._creations)
        assert there >= hub.supply.min_total, self.on
        assert hub._free >= hub.supply.min_idle or there == self.most, self.on

    async def run(self) -> None:
        """All of it, to the end."""
        starting = asyncio.create_task(self.on.dispatcher.shell.add_hub(self.hub))
        events: list[Callable[[], Any]] = [
            *(self.ask, self.ask, self.ask, self.give_back, self.give_back, self.give_up),
            *(self.work, self.work, self.work, self.work, self.work, self.pass_time, self.pass_time),
            *(self.fall_over, self.go_down, self.drain, self.remove, self.leave_off, self.reconfigure),
        ]
        while not starting.done():
            await self.work()
            await turns(3)
            self.check()
        await starting
        for _ in range(_STEPS):
            await self.random.choice(events)()
            await turns(self.random.randrange(5))
            self.check()
        if self.random.random() < 0.7:
            await self.settle()
        await self.close()

    async def close(self) -> None:
        """Nothing is left, whatever was going on."""
        hub = self.hub
        hub.quick = True
        closing = asyncio.create_task(self.on.dispatcher.aclose())
        while not closing.done():
            for todo in (*hub.destructions.all, *hub.resets_begun.all):
                todo.finish(result=True)
            await turns()
        await closing
        await asyncio.gather(*self.asking, *self.removals, return_exceptions=True)
        assert sorted(hub.destroyed) == sorted(hub.created)
        assert not hub._owned
        assert not hub._creations
        assert not hub._destructions
        assert not hub._uses
        assert not hub._created_at
        assert not hub._tenants
        assert not hub._leaving
        assert hub._retry is hub._looking is hub._refilling is None
        assert not self.on.dispatcher.shell.admission.pool.records
        assert self.on.clock.pending == 0


async def test_whatever_happens_there_are_never_too_many_and_nothing_is_left(
    full_size: bool,  # noqa: FBT001 - a fixture
) -> None:
    """Nor does one ever serve two tenants, or two at once, or again unwiped; and who waits gets one, or a reason."""
    before = asyncio.all_tasks()
    for seed in range(2000 if full_size else 60):
        chaos = Chaos(seed)
        try:
            async with asyncio.timeout(30):
                await chaos.run()
        except BaseException as error:
            error.add_note(f"seed {seed}: {chaos.on!r}")
            raise
    await turns()
    assert not asyncio.all_tasks() - before
