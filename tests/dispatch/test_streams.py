"""Answers in parts: where they come from, who may take over, and who closes them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gleitzeit_core.errors import (
    FailureKind,
    InstanceFailure,
    InvalidRequest,
)
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Result
from gleitzeit_core.testing.scripted import ScriptedProvider

from .stage import stage


async def test_parts_come_as_they_are_made() -> None:
    """Each before the next one exists; the time to the first is measured."""
    async with stage(["a"]) as on:
        parts = on.provider.stream("echo/parts")
        for number in range(3):
            reading = asyncio.create_task(anext(parts))
            if not number:
                call = await on.call()
                on.clock.advance(2.0)
            call.part(number)
            assert await reading == number
        assert parts.served.instance_id == call.instance.id
        call.end()
        assert [part async for part in parts] == []
        (finished,) = on.watcher.finished
        assert finished.outcome is not None
        assert (finished.outcome.first_output_s, finished.outcome.result) == (2.0, Result.OK)


async def test_an_answer_without_parts_is_one() -> None:
    """An empty stream is no failure."""
    async with stage(["a"]) as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts, None))
        (await on.call()).end()
        assert await reading is None
        assert on.outcomes() == [("ok", None)]


async def test_before_the_first_part_another_instance_may_take_over() -> None:
    """Nobody has seen anything yet."""
    async with stage() as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        (await on.call()).refuse(FailureKind.LOST)
        second = await on.call()
        second.part("first")
        assert await reading == "first"
        assert (parts.served.tries, parts.served.instance_id) == (2, second.instance.id)
        second.end()
        assert [part async for part in parts] == []


async def test_after_the_first_part_nobody_takes_over() -> None:
    """Half an answer cannot be continued by another."""
    async with stage() as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        call = await on.call()
        call.part("first")
        await reading
        call.refuse(FailureKind.LOST)
        with pytest.raises(InstanceFailure) as caught:
            await anext(parts)
        assert caught.value.kind is FailureKind.LOST
        assert len(on.provider.calls.all) == 1


async def test_a_stream_need_not_be_a_generator() -> None:
    """Whatever can be iterated will do; what can be closed is closed."""

    class Parts:
        closed = 0

        def __aiter__(self) -> Parts:
            return self

        async def __anext__(self) -> int:
            return 1

    class Closable(Parts):
        async def aclose(self) -> None:
            Parts.closed += 1

    class Other(ScriptedProvider):
        kind: type[Parts] = Parts

        def stream_on(self, *_: object) -> Any:  # noqa: ANN401 - parts
            return self.kind()

    async with stage(["a"]) as on:
        provider = Other()
        provider.bind(on.dispatcher)
        for provider.kind, closed in ((Parts, 0), (Closable, 1)):  # type: ignore[misc]
            async with provider.stream("echo/parts") as parts:
                assert await anext(parts) == 1
            assert Parts.closed == closed


@pytest.mark.parametrize("problem", [None, LookupError("oops")])
async def test_a_part_that_says_it_is_the_last_frees_its_slot(problem: Exception | None) -> None:
    """Nobody has to ask for another one; and what goes wrong in closing is no success."""

    class Last:
        at_end = False

        def __aiter__(self) -> Last:
            return self

        async def __anext__(self) -> int:
            assert not self.at_end
            self.at_end = True
            return 1

        async def aclose(self) -> None:
            if problem is not None:
                raise problem

    class Other(ScriptedProvider):
        def stream_on(self, *_: object) -> Any:  # noqa: ANN401 - parts
            return Last()

    async with stage(["a"]) as on:
        provider = Other()
        provider.bind(on.dispatcher)
        parts = provider.stream("echo/parts")
        if problem is not None:
            with pytest.raises(InstanceFailure, match="LookupError"):
                await anext(parts)
            assert on.outcomes() == [("failed", "server_error")]
            return
        assert await anext(parts) == 1
        assert (parts.at_end, on.in_flight) == (True, 0)
        assert [part async for part in parts] == []
        assert on.outcomes() == [("ok", None)]


@pytest.mark.parametrize("failure", [None, LookupError("oops")])
async def test_a_stream_that_is_closed_while_it_is_read(failure: Exception | None) -> None:
    """Its slot is freed once, by whoever is first, and the reader hears that it has ended."""

    class Parts:
        def __init__(self) -> None:
            self.asked, self.over = asyncio.Event(), asyncio.Event()
            self.left = ["first"]

        def __aiter__(self) -> Parts:
            return self

        async def __anext__(self) -> str:
            if self.left:
                return self.left.pop()
            self.asked.set()
            await self.over.wait()
            raise failure or StopAsyncIteration

        async def aclose(self) -> None:
            self.over.set()

    class Other(ScriptedProvider):
        def stream_on(self, *_: object) -> Any:  # noqa: ANN401 - parts
            return source

    async with stage(["a"]) as on:
        source, provider = Parts(), Other()
        provider.bind(on.dispatcher)
        parts = provider.stream("echo/parts")
        assert await anext(parts) == "first"
        reading = asyncio.create_task(anext(parts, "the end"))
        await source.asked.wait()
        await parts.aclose()
        assert await reading == "the end"
        assert await anext(parts, "the end") == "the end"
        assert (on.in_flight, len(on.watcher.finished)) == (0, 1)
        assert on.outcomes() == [("cancelled", None)]


async def test_who_is_cancelled_stays_so_however_badly_the_source_closes() -> None:
    """What goes wrong while it is closed is no reason to go on, on another instance, for somebody who has left."""

    class Silent:
        def __aiter__(self) -> Silent:
            return self

        async def __anext__(self) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def aclose(self) -> None:
            raise OSError("cannot be closed")

    class Other(ScriptedProvider):
        begun = 0

        def stream_on(self, *_: object) -> Any:  # noqa: ANN401 - parts
            self.begun += 1
            return Silent()

    async with stage(["a", "b"]) as on:
        provider, begun = Other(), asyncio.Event()
        provider.bind(on.dispatcher)
        task = asyncio.ensure_future(anext(provider.stream("echo/parts")))
        await begun.wait()
        task.cancel()
        await asyncio.wait((task,), timeout=5.0)
        assert (task.cancelled(), provider.begun) == (True, 1)


async def test_what_a_stream_should_not_raise_is_translated() -> None:
    """As for a whole answer."""
    async with stage(["a"]) as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        (await on.call())._parts.put_nowait(LookupError("oops"))
        with pytest.raises(InstanceFailure, match=r"^provider failed: LookupError$"):
            await reading


async def test_the_first_part_lets_others_in() -> None:
    """An instance on trial has proved itself, long before its answer ends."""
    async with stage({"a": {"max_concurrent": 4}}) as on:
        name = on.hub.instances[0].id
        on.dispatcher.shell.admission.set_state(name, State.DOWN)
        on.dispatcher.shell.admission.set_state(name, State.READY)
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        call = await on.call()
        waiting = on.ask()
        await asyncio.sleep(0)
        assert on.dispatcher.shell.admission.waiting == 1
        call.part(1)
        await reading
        (await on.call()).finish("in")
        assert await waiting == "in"
        await parts.aclose()


async def test_a_method_that_does_not_stream_says_so() -> None:
    """At once."""
    async with stage(["a"]) as on:
        with pytest.raises(InvalidRequest, match="echo/say does not answer in parts"):
            on.provider.stream("echo/say")


async def test_a_stream_that_is_never_read_takes_nothing() -> None:
    """Nothing happens before the first part is asked for."""
    async with stage(["a"]) as on:
        parts = on.provider.stream("echo/parts")
        await asyncio.sleep(0)
        assert (on.in_flight, on.dispatcher.active) == (0, 0)
        await parts.aclose()
