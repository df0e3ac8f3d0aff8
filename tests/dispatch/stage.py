"""Where dispatching is tested: a dispatcher over scripted instances, its clock, and who watches it."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.breaker import BreakerPolicy
from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.routing import Route
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.scripted import Call, ScriptedHub, ScriptedProvider
from tests.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


class Stage:
    """A dispatcher, its clock, and work that does what the test says."""

    def __init__(self, instances: dict[str, dict[str, Any]] | Iterable[str], **route: Any) -> None:  # noqa: ANN401 - any field
        self.clock = ManualClock()
        self.watcher = Watcher()
        policy = BreakerPolicy(failures=route.pop("failures", 5))
        routes = [Route(**{"name": "all", "methods": ("*",), "strategy": DEFAULT_ROUTE.strategy, **route})]
        self.dispatcher = Dispatcher(routes, observers=self.watcher, clock=self.clock, random=Random(0), policy=policy)
        self.hub = ScriptedHub(instances)
        self.provider = ScriptedProvider()
        self.provider.bind(self.dispatcher)
        self.tasks: list[asyncio.Task[Any]] = []

    def ask(self, method: str = "echo/say", **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A request, in a task of its own."""
        params = options.pop("params", None)
        task = asyncio.create_task(self.provider.execute(method, params, **options))
        self.tasks.append(task)
        return task

    async def call(self) -> Call:
        """The next piece of work that an instance was given."""
        return await self.provider.calls.next()

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self.dispatcher.shell.admission.pool.in_flight

    def outcomes(self) -> list[tuple[str, str | None]]:
        """How the last try of each finished request ended."""
        found = [finished.outcome for finished in self.watcher.finished]
        return [(o.result.value, o.kind.value if o.kind else None) for o in found if o]

    def state(self, endpoint: str) -> str:
        """Of an instance."""
        return next(r.state for r in self.dispatcher.reports() if r.instance.endpoint == endpoint)


@contextlib.asynccontextmanager
async def stage(
    instances: dict[str, dict[str, Any]] | Iterable[str] = ("a", "b"),
    **route: Any,  # noqa: ANN401 - any field
) -> AsyncIterator[Stage]:
    """Everything set up; at the end nothing may be left."""
    made = Stage(instances, **route)
    await made.dispatcher.shell.add_hub(made.hub)
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    assert made.in_flight == 0
    assert made.dispatcher.active == 0
    assert made.dispatcher.running.retrying == 0
    await made.dispatcher.aclose()
    assert made.clock.pending == 0
