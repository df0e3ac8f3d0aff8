"""Leaving a stream, in every state."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.testing.todo import turns
from tests.tasks import ended, next_part

from .stage import stage


async def test_before_the_first_part() -> None:
    """The work is cancelled."""
    async with stage() as on:
        _, reading = on.read()
        call = await on.provider.calls.next()
        reading.cancel()
        await ended(reading)
        assert call.stopped.is_set()


async def test_between_two_parts() -> None:
    """Closing the stream cancels the work; closing it again is fine."""
    async with stage() as on:
        parts, call = await on.begun()
        assert on.counts == (1, 0, 1)
        await parts.aclose()
        assert call.stopped.is_set()
        await parts.aclose()
        assert [part async for part in parts] == []
        assert on.dispatcher.metrics.sum().results == {"cancelled": 1}


async def test_while_the_next_part_is_awaited() -> None:
    """As for the first one."""
    async with stage() as on:
        parts, call = await on.begun()
        reading = asyncio.create_task(next_part(parts))
        await turns()
        reading.cancel()
        await ended(reading)
        assert call.stopped.is_set()


async def test_a_block_that_is_left_closes_the_stream() -> None:
    """Also by an error."""
    async with stage() as on:
        parts, call = await on.begun()
        with pytest.raises(LookupError):
            async with parts:
                raise LookupError
        assert call.stopped.is_set()


async def test_a_stream_keeps_its_slot_until_it_has_stopped() -> None:
    """Closing waits for that."""
    async with stage() as on:
        parts, call = await on.begun()
        call.linger()
        closing = asyncio.create_task(parts.aclose())
        await turns()
        assert on.counts == (1, 0, 1)
        call.let_go()
        await closing


async def test_in_the_middle_of_closing() -> None:
    """Who loses patience with the closing still leaves nothing behind: the provider's own end is cut short, not ours."""
    async with stage() as on:
        parts, call = await on.begun()
        call.linger()
        closing = asyncio.create_task(parts.aclose())
        await turns()
        closing.cancel()
        await ended(closing)
        assert on.counts == (0, 0, 0)


async def test_a_stream_that_is_forgotten() -> None:
    """Whoever breaks out of the loop and drops the stream has left: the collector sees to it."""
    async with stage() as on:
        parts, call = await on.begun()
        assert on.counts == (1, 0, 1)
        del parts
        async with asyncio.timeout(30):
            await call.stopped.wait()
        await turns()


async def test_a_stream_in_the_queue() -> None:
    """It waits like any other, and leaves like any other."""
    async with stage() as on:
        holder = on.ask()
        call = await on.provider.calls.next()
        _, reading = on.read()
        await turns()
        assert on.counts == (2, 1, 1)
        reading.cancel()
        await ended(reading)
        call.finish()
        await holder
