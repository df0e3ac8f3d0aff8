from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.processes import signal_group
from gleitzeit_llm.processes import stop_group

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

# Starts a child that shares its deafness and its output, says so, and waits.
PARENT = """
import signal, subprocess, sys
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(child.pid, flush=True)
child.wait()
"""


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[tuple[Process, asyncio.StreamReader]]:
    """A process with a child, and what both write to: it ends when both have ended."""
    command = (sys.executable, "-c", PARENT, *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    await process.stdout.readline()
    async with asyncio.timeout(30):
        yield process, process.stdout
        assert await process.stdout.read() == b""
        await process.wait()


async def test_all_that_it_has_started_ends_with_it() -> None:
    """Gently: with SIGTERM, long before its time is over. More than once is fine."""
    async with started() as (process, _):
        await stop_group(process.pid, process.wait, grace_s=1000)
        assert process.returncode == -signal.SIGTERM
        await stop_group(process.pid, process.wait, grace_s=1000)


async def test_what_does_not_listen_is_killed_after_its_time() -> None:
    """And its children with it."""
    async with started("deaf") as (process, _):
        await stop_group(process.pid, process.wait, grace_s=0.05)
        assert process.returncode == -signal.SIGKILL


async def test_children_of_one_that_has_ended_are_ended() -> None:
    """The group outlives its leader."""
    async with started("deaf") as (process, output):
        process.kill()
        while process.returncode is None:  # `wait` would also wait for the output's end
            await asyncio.sleep(0.01)
        assert not output.at_eof()
        await stop_group(process.pid, process.wait, grace_s=1000)


async def test_a_stop_that_is_cancelled_kills_at_once() -> None:
    """Nobody has time any more, and nothing may be left behind."""
    async with started("deaf") as (process, _):
        stopping = asyncio.create_task(stop_group(process.pid, process.wait, grace_s=1000))
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert process.returncode == -signal.SIGKILL


def test_a_group_that_is_gone_is_fine() -> None:
    """It ended a moment ago."""
    process_id = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ, setpgroup=0)
    os.waitpid(process_id, 0)
    signal_group(process_id, signal.SIGKILL)
