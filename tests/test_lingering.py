"""What goes on when a caller has left: its slot is kept until that has stopped. And who has left with everything."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any, cast

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import DeadlineExceeded, FailureKind, InstanceFailure
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.scripted import ScriptedHub, ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import ResourceInstance


class Lingering(ScriptedProvider):
    """One whose work goes on as long as a test says."""

    rest: Any = None
    last: object = None
    asked: int = 0

    def lingering(self, instance: ResourceInstance, request: Request) -> asyncio.Future[Any] | None:
        """What the test has put there."""
        assert (instance.endpoint, request.method[:4]) == ("a", "echo")
        self.asked += 1
        if isinstance(self.rest, Exception):
            raise self.rest
        return cast("asyncio.Future[Any] | None", self.rest)

    def is_last(self, request: Request, part: Any) -> bool:  # noqa: ANN401 - as the base has it
        """Whether it is the one that the test says."""
        assert request.method == "echo/parts"
        if isinstance(self.last, Exception):
            raise self.last
        return bool(part == self.last)


class Stage:
    """One instance with one slot."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.dispatcher = Dispatcher(clock=self.clock, random=Random(0))
        self.provider = Lingering()
        self.provider.bind(self.dispatcher)

    @property
    def in_flight(self) -> int:
        """Slots that are taken."""
        (report,) = self.dispatcher.reports()
        return report.in_flight

    @property
    def results(self) -> dict[str, int]:
        """How tries have ended."""
        return dict(self.dispatcher.metrics.sum().results)


@pytest.fixture
async def on() -> AsyncIterator[Stage]:
    """Everything set up; at the end every slot is free."""
    made = Stage()
    await made.dispatcher.shell.add_hub(ScriptedHub({"a": {"max_concurrent": 1}}))
    yield made
    assert made.in_flight == 0
    await made.dispatcher.aclose()


async def _left(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_slot_is_free_when_the_rest_has_ended(on: Stage) -> None:
    """The caller is gone at once; the next one gets the slot when the work has stopped, not before."""
    on.provider.rest = rest = asyncio.get_running_loop().create_future()
    leaving = asyncio.create_task(on.provider.execute("echo/say"))
    await on.provider.calls.next()
    staying = asyncio.create_task(on.provider.execute("echo/say"))
    await _left(leaving)
    assert (on.in_flight, on.dispatcher.active, on.results) == (1, 1, {"cancelled": 1})
    on.provider.rest = None
    rest.set_result(None)
    (await on.provider.calls.next()).finish("next")
    assert await staying == "next"


async def test_a_deadline_keeps_the_slot_too(on: Stage) -> None:
    """Whose time runs out is told at once."""
    on.provider.rest = rest = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(on.provider.execute("echo/say", timeout_s=5.0))
    await on.provider.calls.next()
    on.clock.advance(5.0)
    with pytest.raises(DeadlineExceeded):
        await task
    assert on.in_flight == 1
    rest.cancel()
    await asyncio.sleep(0)


async def test_nobody_is_asked_about_what_has_ended(on: Stage) -> None:
    """Neither after an answer, nor after a failure."""
    on.provider.rest = asyncio.get_running_loop().create_future()
    tasks = []
    for end in ("finish", "refuse"):
        tasks.append(asyncio.create_task(on.provider.execute("echo/once")))
        call = await on.provider.calls.next()
        call.finish(1) if end == "finish" else call.refuse(FailureKind.REJECTED)
        await asyncio.wait(tasks)
    assert isinstance(tasks[1].exception(), InstanceFailure)
    assert on.provider.asked == 0


@pytest.mark.parametrize(("rest", "said"), [(RuntimeError("oh"), "failed"), ("soon", "is no future, but 'soon'")])
async def test_a_plugin_that_fails_keeps_no_slot(
    on: Stage, caplog: pytest.LogCaptureFixture, rest: object, said: str
) -> None:
    """The slot is free, and the log says why."""
    on.provider.rest = rest
    task = asyncio.create_task(on.provider.execute("echo/say"))
    await on.provider.calls.next()
    await _left(task)
    assert on.in_flight == 0
    assert said in caplog.text


async def _part_and_leave(on: Stage, part: str) -> None:
    async with on.provider.stream("echo/parts") as parts:
        reading = asyncio.ensure_future(anext(parts))
        (await on.provider.calls.next()).part(part)
        assert await reading == part


@pytest.mark.parametrize(("last", "result"), [("end", "ok"), ("more", "cancelled"), (ValueError("oh"), "cancelled")])
async def test_who_leaves_with_the_last_part_was_served(on: Stage, last: object, result: str) -> None:
    """What the provider calls the last part is all there is; one that cannot tell has given no answer."""
    on.provider.last = last
    await _part_and_leave(on, "end")
    assert on.results == {result: 1}
