"""Closing the dispatcher while requests wait and run."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.errors import FailureKind, RequestError, ShuttingDown
from gleitzeit_core.pool import State
from gleitzeit_core.testing.todo import turns
from tests.tasks import next_part

from .stage import Stage, stage


async def test_a_grace_period_lets_what_runs_finish() -> None:
    """Nothing new is taken, those who wait are sent away, and the end comes as soon as all is done."""
    async with stage() as on:
        running, waiting = on.ask(), on.ask()
        call = await on.provider.calls.next()
        await turns()
        closing = asyncio.create_task(on.dispatcher.aclose(grace_s=1e6))
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await on.provider.execute("echo/say")
        assert not closing.done()
        call.finish("done")
        assert await running == "done"
        await closing
        assert on.hub.closed == 1
        on.dispatcher.shell.admission.put(on.hub.make("a"), State.READY)


async def _after_closing(on: Stage) -> None:
    # `stage` looks at the one instance at its end.
    on.dispatcher.shell.admission.put(on.hub.make("a"), State.READY)


async def test_what_outlives_the_grace_period_ends_with_shutting_down() -> None:
    """Whole answers and streams alike; their work is stopped first."""
    async with stage(max_concurrent=3) as on:
        task = on.ask()
        whole = await on.provider.calls.next()
        parts, stream = await on.begun()
        reading = asyncio.create_task(next_part(parts))
        await turns()
        await on.dispatcher.aclose(grace_s=0)
        for ending in (task, reading):
            with pytest.raises(ShuttingDown):
                await ending
        assert whole.stopped.is_set()
        assert stream.stopped.is_set()
        await _after_closing(on)


async def test_a_stream_nobody_reads_does_not_hold_up_the_end() -> None:
    """Its work is stopped and its slot free although nobody asks for the next part; who does hears why there is none."""
    async with stage() as on:
        parts, call = await on.begun()
        record = on.record
        # It would take as long as what is left may take to stop, which is far beyond this limit.
        async with asyncio.timeout(3):
            await on.dispatcher.aclose(grace_s=0)
        assert call.stopped.is_set()
        assert (on.dispatcher.active, record.in_flight) == (0, 0)
        for _ in range(2):
            with pytest.raises(ShuttingDown):
                await anext(parts)
        await parts.aclose()
        await _after_closing(on)


async def test_closing_a_stream_that_is_being_ended_waits_for_that() -> None:
    """Its slot is free when the closing is done, whoever began it."""
    async with stage() as on:
        parts, call = await on.begun()
        record = on.record
        call.linger()
        ending = asyncio.create_task(on.dispatcher.aclose(grace_s=0))
        await turns()
        closing = asyncio.create_task(parts.aclose())
        await turns()
        assert (closing.done(), record.in_flight) == (False, 1)
        call.let_go()
        await closing
        assert record.in_flight == 0
        await ending
        await _after_closing(on)


async def test_a_stream_being_closed_at_the_end_is_left_alone() -> None:
    """It is being closed already: once is enough."""
    async with stage() as on:
        parts, call = await on.begun()
        call.linger()
        closing = asyncio.create_task(parts.aclose())
        await turns()
        ending = asyncio.create_task(on.dispatcher.aclose(grace_s=0))
        await turns()
        call.let_go()
        await asyncio.gather(closing, ending)
        assert [part async for part in parts] == []
        await _after_closing(on)


async def test_uncancellable_work_is_given_up_in_the_end() -> None:
    """The process is going: its caller hears of it, and no task is left."""
    async with stage(cancellable=False) as on:
        task = on.ask()
        call = await on.provider.calls.next()
        await on.dispatcher.aclose(grace_s=0)
        with pytest.raises(ShuttingDown):
            await task
        assert call.cancelled
        await _after_closing(on)


async def test_closing_twice_is_fine() -> None:
    """The hub is closed once."""
    async with stage() as on:
        await asyncio.gather(on.dispatcher.aclose(), on.dispatcher.aclose())
        await on.dispatcher.aclose()
        assert on.hub.closed == 1
        await _after_closing(on)


async def test_a_failure_while_shutting_down_is_not_tried_again() -> None:
    """Nothing new is taken; the caller may ask another replica."""
    async with stage() as on:
        on.hub.publish(on.hub.make("b"))
        task = on.ask()
        call = await on.provider.calls.next()
        closing = asyncio.create_task(on.dispatcher.aclose(grace_s=1e6))
        await turns()
        call.refuse(FailureKind.LOST)
        with pytest.raises(RequestError) as caught:
            await task
        assert caught.value.retryable
        await closing
        await _after_closing(on)
