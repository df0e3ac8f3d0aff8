"""Whoever leaves, whenever: the code is stopped, its slot is free when it has stopped, and the pool is whole."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Execute = Callable[..., Awaitable[dict[str, Any]]]
    Runners = Callable[..., Any]
    Until = Callable[[Callable[[], object]], Awaitable[None]]

pytestmark = [pytest.mark.attacks]


async def leave(task: asyncio.Task[Any]) -> None:
    """Cancel it, and wait until it is over."""
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_while_it_waits_in_the_queue(of_kind: Runners, execute: Execute) -> None:
    """Nothing of it ever runs."""
    async with of_kind() as provider:
        first = asyncio.create_task(execute(provider, "import time\ntime.sleep(0.3)\n1"))
        waiting = provider.dispatcher.shell.admission
        second = asyncio.create_task(execute(provider, "2"))
        while not waiting.waiting:
            await asyncio.sleep(0)
        await leave(second)
        assert (await first)["result"] == 1
        assert (await execute(provider, "3"))["result"] == 3


async def test_while_the_instance_is_created(of_kind: Runners, execute: Execute) -> None:
    """The instance comes all the same, for the next."""
    async with of_kind() as provider:
        first = asyncio.create_task(execute(provider, "1"))
        while not provider.dispatcher.reports():
            await asyncio.sleep(0)
        await leave(first)
        assert (await execute(provider, "3"))["result"] == 3


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13, 21])
async def test_at_every_step(of_kind: Runners, execute: Execute, steps: int) -> None:
    """After so many turns of the loop, wherever that is."""
    async with of_kind() as provider:
        await execute(provider, "0")
        for _ in range(5):
            task = asyncio.create_task(execute(provider, "import time\ntime.sleep(100)", files={"a": "x" * 300_000}))
            for _ in range(steps):
                await asyncio.sleep(0)
            await leave(task)
        async with asyncio.timeout(20):
            assert (await execute(provider, "3"))["result"] == 3


@pytest.mark.parametrize("interpreter", ["forked", "fresh"])
async def test_while_it_runs(of_kind: Runners, execute: Execute, interpreter: str) -> None:
    """It is killed, with all that it has started; the instance is used again."""
    async with of_kind() as provider:
        code = "import os, time\nos.fork()\nprint('here')\ntime.sleep(100)"
        parameters = {"code": code, "interpreter": interpreter}
        stream = provider.stream("python/execute", parameters)
        assert (await anext(stream))["stdout"].startswith("here")
        (busy,) = provider.dispatcher.reports()
        assert busy.in_flight == 1
        await stream.aclose()
        (free,) = provider.dispatcher.reports()
        assert free.instance.handle.channel.closed is False
        assert (await execute(provider, "3"))["instance"] == busy.instance.id


async def test_its_time_as_a_request_runs_out(of_kind: Runners, execute: Execute) -> None:
    """A deadline from outside ends it as a caller does who leaves."""
    async with of_kind() as provider:
        with pytest.raises(DeadlineExceeded):
            await provider.execute("python/execute", {"code": "while True: pass"}, timeout_s=0.4)
        assert (await execute(provider, "3"))["result"] == 3


async def test_again_and_again(of_kind: Runners, execute: Execute, folder: Path, until: Until) -> None:
    """Cancelled while it is being cancelled, it still waits until the code has stopped."""
    async with of_kind() as provider:
        await execute(provider, "0")
        task = asyncio.create_task(execute(provider, "open('here', 'x').close()\nwhile True: pass"))
        await until(lambda: list(folder.rglob("here")))
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        assert task.cancelled()
        (report,) = provider.dispatcher.reports()
        assert report.in_flight == 0 or report.state != "ready"
        assert (await execute(provider, "3"))["result"] == 3


async def test_many_at_random(of_kind: Runners, execute: Execute) -> None:
    """Half of two hundred leave at some time or other; the other half gets its answers."""
    async with of_kind(max_total=3) as provider, asyncio.timeout(50):
        tasks = [asyncio.create_task(execute(provider, f"import time\ntime.sleep(0.005)\n{n}")) for n in range(120)]
        for number, task in enumerate(tasks):
            if number % 2:
                await asyncio.sleep(0.003 * (number % 5))
                task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [one["result"] for one in ended[::2] if isinstance(one, dict)] == list(range(0, 120, 2))
        assert all(isinstance(one, (dict, asyncio.CancelledError)) for one in ended)
        assert len(provider.dispatcher.reports()) <= 3
        assert (await execute(provider, "3"))["result"] == 3
