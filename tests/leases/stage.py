"""Where leases are tested: instances with few slots, a clock that stands still, and who watches."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.resources import Requirements
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.scripted import ScriptedHub, ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.leases import Lease
    from gleitzeit_core.requests import FinishedRequest
    from gleitzeit_core.routing import Route

ANY = Requirements(accepts=(), kind="echo")


class Watcher:
    """An observer of finished requests that remembers."""

    observes_requests = True

    def __init__(self) -> None:
        self.finished: list[FinishedRequest] = []

    def instance_changed(self, change: InstanceChange) -> None:
        """Not looked at."""

    def request_finished(self, finished: FinishedRequest) -> None:
        """Remember."""
        self.finished.append(finished)


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
    before, unseen = asyncio.all_tasks(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    made = Stage(instances or {"a": {"max_concurrent": 1}}, routes or [], clock or ManualClock())
    await made.dispatcher.shell.add_hub(made.hub)
    yield made
    await turns()
    assert (made.dispatcher.active, made.waiting, made.in_flight) == (0, 0, 0)
    await made.dispatcher.aclose()
    assert not asyncio.all_tasks() - before
    assert clock is not None or made.clock.pending == 0
    assert not unseen


async def turns(count: int = 8) -> None:
    """Let the others run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait until a task was cancelled."""
    with pytest.raises(asyncio.CancelledError):
        await task
