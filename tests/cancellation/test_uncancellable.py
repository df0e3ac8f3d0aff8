"""Leaving work that cannot be cancelled."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.errors import DeadlineExceeded, FailureKind
from gleitzeit_core.testing.contract import ContractHub, ContractProvider
from gleitzeit_core.testing.todo import turns
from tests.tasks import ended

from .stage import stage


@pytest.mark.parametrize("leave", ["cancel", "deadline"])
async def test_uncancellable_work_keeps_its_slot_until_it_ends(leave: str) -> None:
    """Its caller goes at once; the next one waits for the work."""
    async with stage(cancellable=False) as on:
        task = on.ask(timeout_s=5.0)
        call = await on.provider.calls.next()
        waiting = on.ask()
        await turns()
        if leave == "cancel":
            task.cancel()
            await ended(task)
        else:
            on.clock.advance(5.0)
            with pytest.raises(DeadlineExceeded):
                await task
        assert on.counts == (1, 1, 1)
        assert not call.cancelled
        call.finish("for nobody")
        (await on.provider.calls.next()).finish("next")
        assert await waiting == "next"
        assert on.dispatcher.metrics.sum().results == {"ok": 2}


async def test_uncancellable_work_that_fails_for_nobody_is_quiet() -> None:
    """It counts against the instance, and is no error of ours."""
    async with stage(cancellable=False) as on:
        task = on.ask()
        call = await on.provider.calls.next()
        task.cancel()
        await ended(task)
        call.refuse(FailureKind.SERVER_ERROR)
        await turns()
        assert on.dispatcher.metrics.sum().results == {"server_error": 1}


async def test_uncancellable_work_in_parts_is_one_part() -> None:
    """Leaving does not end it either."""
    async with stage(cancellable=False) as on:
        parts, reading = on.read()
        (await on.provider.calls.next()).finish("whole")
        assert await reading == "whole"
        assert [part async for part in parts] == []
        _, reading = on.read()
        call = await on.provider.calls.next()
        reading.cancel()
        await ended(reading)
        assert on.counts == (0, 0, 1)
        call.finish()
        await turns()


async def test_a_call_that_is_left_ends_before_its_instance_is_recycled() -> None:
    """The contract's whole way: left, ended, recycled, retired."""
    hub = ContractHub()
    async with ContractProvider(hub=hub) as provider:
        task = asyncio.create_task(provider.execute("contract/run"))
        (await hub.creations.next()).finish()
        call = await hub.calls.next()
        task.cancel()
        await ended(task)
        await turns()
        assert (call.cancelled, hub.recycled) == (False, [])
        call.finish(b"1")
        await turns(20)
        assert (hub.recycled, hub.retired) == (["box-1"], ["box-1"])
