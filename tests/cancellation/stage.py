"""Where leaving is tested: one instance with one slot, and a clock that stands still."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.scripted import Call, ScriptedHub, ScriptedProvider
from tests.tasks import next_part, nothing_left

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.pool import Record


class Stage:
    """One instance with one slot, and a clock that stands still."""

    def __init__(self, **instance: Any) -> None:  # noqa: ANN401 - any field
        self.clock = ManualClock()
        self.dispatcher = Dispatcher(clock=self.clock, random=Random(0))
        self.hub = ScriptedHub({"a": {"max_concurrent": 1, **instance}})
        self.provider = ScriptedProvider()
        self.provider.bind(self.dispatcher)

    def ask(self, **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A request, in a task of its own."""
        return asyncio.create_task(self.provider.execute("echo/say", **options))

    def read(self) -> tuple[Any, asyncio.Task[Any]]:
        """A stream, and the task that waits for its next part."""
        parts = self.provider.stream("echo/parts")
        return parts, asyncio.create_task(next_part(parts))

    async def begun(self) -> tuple[Any, Call]:
        """A stream whose first part was read, and the work on it."""
        parts, reading = self.read()
        call = await self.provider.calls.next()
        call.part(1)
        await reading
        return parts, call

    @property
    def record(self) -> Record:
        """Of the instance."""
        (record,) = self.dispatcher.shell.admission.pool
        return record

    @property
    def counts(self) -> tuple[int, int, int]:
        """On their way, waiting, in flight."""
        return self.dispatcher.active, self.dispatcher.shell.admission.waiting, self.record.in_flight


@contextlib.asynccontextmanager
async def stage(**instance: Any) -> AsyncIterator[Stage]:  # noqa: ANN401 - any field
    """Everything set up; at the end nothing may be left."""
    async with nothing_left():
        made = Stage(**instance)
        await made.dispatcher.shell.add_hub(made.hub)
        yield made
        assert made.counts == (0, 0, 0)
        await made.dispatcher.aclose()
    assert made.clock.pending == 0
