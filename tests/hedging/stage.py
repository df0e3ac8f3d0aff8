"""Where second tries are tested: instances that are slow or fail when told to, and a clock that stands still."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.routing import HedgePolicy, Route
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.scripted import Call, ScriptedHub, ScriptedProvider
from gleitzeit_core.testing.todo import turns
from tests.tasks import next_part, nothing_left
from tests.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from gleitzeit_core.runs import Stream

# Every request earns a second try, which begins after 1 second.
ALWAYS = HedgePolicy(percentile=50.0, budget=1.0, min_samples=1)
SLOW_S = 1.1


class Stage:
    """Instances with four slots each, a clock that stands still, and a first output that takes a second."""

    def __init__(self, instances: dict[str, dict[str, Any]] | Iterable[str], **route: Any) -> None:  # noqa: ANN401 - any field
        self.clock = ManualClock()
        fields = {"name": "all", "methods": ("*",), "strategy": DEFAULT_ROUTE.strategy, "hedge": ALWAYS, **route}
        self.watcher = Watcher()
        self.dispatcher = Dispatcher([Route(**fields)], observers=self.watcher, clock=self.clock, random=Random(0))
        self.hub = ScriptedHub(instances)
        self.provider = ScriptedProvider()
        self.provider.bind(self.dispatcher)
        self.known(1.0)

    def known(self, first_output_s: float, *, model: str = "") -> None:
        """Something has answered like that."""
        outcome = Outcome(result=Result.OK, first_output_s=first_output_s, total_s=first_output_s)
        self.dispatcher.metrics.record("echo/say", "somebody", outcome, route="all", model=model)

    def ask(self, method: str = "echo/say", **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A request, in a task of its own: its answer and who served it."""
        request = self.provider.request(method, options.pop("params", None), **options)
        return asyncio.create_task(_answer(self.dispatcher, self.provider, request))

    def read(self) -> tuple[Stream, asyncio.Task[Any]]:
        """A stream, and the task that waits for its next part."""
        parts = self.provider.stream("echo/parts")
        return parts, asyncio.create_task(next_part(parts))

    async def call(self) -> Call:
        """The next piece of work that an instance was given."""
        return await self.provider.calls.next()

    async def both(self) -> tuple[Call, Call]:
        """The first try of what was just asked, and the second beside it."""
        first = await self.call()
        self.clock.advance(SLOW_S)
        second = await self.call()
        assert first.where != second.where
        return first, second

    @property
    def hedges(self) -> tuple[int, int]:
        """Started and won."""
        return self.dispatcher.hedges.started, self.dispatcher.hedges.won

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self.dispatcher.shell.admission.pool.in_flight

    @property
    def results(self) -> dict[str, int]:
        """How the tries here have ended."""
        return dict(self.dispatcher.metrics.sum().results - Counter(ok=1))


async def _answer(dispatcher: Dispatcher, provider: ScriptedProvider, request: Any) -> tuple[Any, int]:  # noqa: ANN401 - a request
    answer = await dispatcher.one(provider, request)
    return answer.value, answer.served.tries


@contextlib.asynccontextmanager
async def stage(
    instances: dict[str, dict[str, Any]] | Iterable[str] = ("a", "b"),
    **route: Any,  # noqa: ANN401 - any field
) -> AsyncIterator[Stage]:
    """Everything set up; at the end nothing may be left, and nothing may have gone wrong unseen."""
    async with nothing_left():
        made = Stage(instances, **route)
        await made.dispatcher.shell.add_hub(made.hub)
        yield made
        await turns()
        assert (made.dispatcher.active, made.in_flight) == (0, 0)
        await made.dispatcher.aclose()
    assert made.clock.pending == 0
