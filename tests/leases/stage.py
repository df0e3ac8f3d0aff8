"""Where leases are tested: instances with few slots, a clock that stands still, and who watches."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.resources import Requirements
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.scripted import ScriptedHub, ScriptedProvider
from gleitzeit_core.testing.todo import turns
from tests.tasks import nothing_left
from tests.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.leases import Lease
    from gleitzeit_core.routing import Route

ANY = Requirements(accepts=(), kind="echo")


class Stage:
    """One instance with one slot, unless told otherwise, and a clock that stands still."""

    def __init__(self, instances: dict[str, dict[str, Any]], routes: list[Route], clock: ManualClock) -> None:
        self.clock, self.watcher = clock, Watcher()
        self.dispatcher = Dispatcher(routes, observers=self.watcher, clock=clock, random=Random(0))
        self.hub = ScriptedHub(instances)
        self.provider = ScriptedProvider()
        self.provider.bind(self.dispatcher)

    async def lease(self, **options: Any) -> Lease:  # noqa: ANN401 - any option
        """One of any instance."""
        return await self.dispatcher.lease(ANY, **options)

    def wait(self, **options: Any) -> asyncio.Task[Lease]:  # noqa: ANN401 - any option
        """One that must be waited for."""
        return asyncio.create_task(self.lease(**options))

    def ask(self, **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """An ordinary request."""
        return asyncio.create_task(self.provider.execute("echo/say", **options))

    def use(self, lease: Lease, method: str = "echo/say", **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A piece of work under a lease."""
        return asyncio.create_task(lease.execute(self.provider, method, **options))

    async def pass_time(self, seconds: float) -> None:
        """Second by second; what is asked of a store in each is answered."""
        for _ in range(round(seconds)):
            await turns(20)
            self.clock.advance(1.0)
        await turns(20)

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self.dispatcher.shell.admission.pool.in_flight

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self.dispatcher.shell.admission.waiting


@contextlib.asynccontextmanager
async def stage(
    instances: dict[str, dict[str, Any]] | None = None,
    routes: list[Route] | None = None,
    clock: ManualClock | None = None,
) -> AsyncIterator[Stage]:
    """Everything set up; at the end nothing may be left, and nothing may have gone wrong unseen."""
    async with nothing_left():
        made = Stage(instances or {"a": {"max_concurrent": 1}}, routes or [], clock or ManualClock())
        await made.dispatcher.shell.add_hub(made.hub)
        yield made
        await turns()
        assert (made.dispatcher.active, made.waiting, made.in_flight) == (0, 0, 0)
        await made.dispatcher.aclose()
    assert clock is not None or made.clock.pending == 0
