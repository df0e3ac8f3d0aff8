from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.resources import HttpChannel
from gleitzeit_llamacpp.files import ModelError, locate
from gleitzeit_llamacpp.options import ModelOptions
from gleitzeit_llamacpp.server import Settings
from gleitzeit_llm.upstream import Upstream

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import Pool
    from gleitzeit_llamacpp.hub import LlamaCppHub


PIPE = asyncio.subprocess.PIPE
SETTINGS = Settings(
    path=str(locate(ModelOptions(path="smollm2"))),
    name="smollm2",
    parent=os.getpid(),
    slots=1,
    context=256,
    threads=1,
    gpu_layers=0,
    embeddings=False,
)


@asynccontextmanager
async def server(settings: Settings = SETTINGS) -> AsyncIterator[Process]:
    """A server without its hub; killed in the end if it still runs."""
    command = (sys.executable, "-P", "-m", "gleitzeit_llamacpp.server", settings.as_argument())
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def greeting(process: Process) -> dict[str, str]:
    """The one line that it prints."""
    assert process.stdout is not None
    found: dict[str, str] = json.loads(await process.stdout.readline())
    return found


def gone(process_id: int) -> Callable[[], bool]:
    """Tells whether a process that need not be ours has ended."""
    try:
        watched = os.pidfd_open(process_id)
    except ProcessLookupError:
        return lambda: True
    return lambda: bool(select.select([watched], [], [], 0)[0])


async def test_ctrl_c_is_not_for_it() -> None:
    """It goes on answering, and ends with SIGTERM; in between it prints one line and no more."""
    upstream = Upstream()
    async with server() as process:
        url = (await greeting(process))["url"]
        process.send_signal(signal.SIGINT)
        await upstream.open()
        assert (await upstream.request(HttpChannel(url), "GET", "/health")).json() == {"status": "ok"}
        await upstream.close()
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert await process.stdout.read() == b""
        assert await process.wait() in (0, -signal.SIGTERM)


async def test_it_ends_with_its_standard_input() -> None:
    """That is how it learns of its parent's end where no kernel tells it."""
    async with server() as process:
        await greeting(process)
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0


async def test_it_does_not_outlive_a_parent_that_is_gone_already() -> None:
    """The parent may end before the kernel is told to watch it."""
    async with server(replace(SETTINGS, parent=1)) as process:
        assert await process.communicate() == (b"", None)
        assert process.returncode == 1


async def test_it_says_why_it_cannot_serve() -> None:
    """In the same one line, for its parent to pass on."""
    async with server(replace(SETTINGS, path="/no/such.gguf")) as process:
        assert "error" in await greeting(process)
        assert await process.wait() == 1


PARENT = """
import asyncio, sys
from random import Random
from gleitzeit_core.clock import SystemClock
from gleitzeit_core.shell import Shell
from gleitzeit_llamacpp.hub import LlamaCppHub
from gleitzeit_llamacpp.options import LlamaCppOptions

async def main():
    shell = Shell(clock=SystemClock(), random=Random(1))
    model = {"path": "smollm2", "instances": 2, "slots": 1, "context": 256}
    hub = LlamaCppHub(LlamaCppOptions.model_validate({"models": [model]}))
    await shell.add_hub(hub)
    print(*(instance.details["pid"] for instance in hub.instances), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

STARTER = """
import json, os, subprocess, sys

settings = json.dumps({**json.loads(sys.argv[1]), "parent": os.getpid()})
command = [sys.executable, "-P", "-m", "gleitzeit_llamacpp.server", settings]
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
child.wait()
"""


async def test_no_process_outlives_a_killed_host(until: Callable[[Callable[[], object]], Awaitable[None]]) -> None:
    """SIGKILL leaves the host no time to stop anything, and nothing stays all the same."""
    host = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=PIPE)
    assert host.stdout is not None
    children = [gone(int(number)) for number in (await host.stdout.readline()).split()]
    assert len(children) == 2
    assert not any(child() for child in children)
    host.kill()
    await host.wait()
    await until(lambda: all(child() for child in children))


async def test_a_process_that_loads_ends_with_its_parent(
    until: Callable[[Callable[[], object]], Awaitable[None]],
) -> None:
    """Whether the parent is killed before the kernel watches it or while the model is read."""
    command = (sys.executable, "-c", STARTER, SETTINGS.as_argument())
    starter = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    assert starter.stdout is not None
    child = gone(int(await starter.stdout.readline()))
    starter.kill()
    await starter.wait()
    await until(child)


async def test_closing_ends_all_processes(pool: Pool, make_hub: Callable[..., LlamaCppHub]) -> None:
    """They are gone when the call returns, and their instances with them; a second close is fine."""
    await pool.shell.add_hub(make_hub({"instances": 2}))
    children = [gone(instance.details["pid"]) for instance in await pool.ready(2)]
    await pool.shell.aclose()
    assert all(child() for child in children)
    assert pool.records == []
    await pool.shell.aclose()


@pytest.mark.parametrize("phase", ["created", "loading"])
async def test_a_start_that_is_cancelled_leaves_nothing(
    phase: str,
    pool: Pool,
    make_hub: Callable[..., LlamaCppHub],
    children: Callable[[], set[int]],
    until: Callable[[Callable[[], object]], Awaitable[None]],
) -> None:
    """Before there is a process as well as while it loads its model."""
    starting = asyncio.create_task(pool.shell.add_hub(make_hub({"instances": 2})))
    before = children()
    if phase == "loading":
        await until(lambda: len(children() - before) == 2)
    else:
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert children() == before
    assert pool.shell.hubs == {}


async def test_a_hub_that_is_stopped_while_it_starts_leaves_nothing(
    pool: Pool,
    make_hub: Callable[..., LlamaCppHub],
    children: Callable[[], set[int]],
    until: Callable[[Callable[[], object]], Awaitable[None]],
) -> None:
    """A host that is told to end does not wait for a model to load."""
    hub = make_hub()
    before = children()
    starting = asyncio.create_task(pool.shell.add_hub(hub))
    await until(lambda: children() - before)
    await hub.stop()
    await asyncio.gather(starting, return_exceptions=True)
    assert children() == before


async def test_a_process_that_takes_too_long_is_given_up(pool: Pool, make_hub: Callable[..., LlamaCppHub]) -> None:
    """The hub says so instead of waiting for ever, and the process is not left to load on."""
    with pytest.raises(ModelError, match=r"smollm2: does not listen after 0\.05 s"):
        await pool.shell.add_hub(make_hub(start_timeout_s=0.05))


async def test_closing_twice_as_hard_leaves_nothing(
    pool: Pool, make_hub: Callable[..., LlamaCppHub], children: Callable[[], set[int]]
) -> None:
    """A second Ctrl-C cancels the close itself: what has not ended by then is killed, not left behind."""
    hub = make_hub()
    await pool.shell.add_hub(hub)
    (instance,) = await pool.ready()
    child, before = gone(instance.details["pid"]), children()
    os.kill(instance.details["pid"], signal.SIGSTOP)  # it cannot even take SIGTERM
    closing = asyncio.create_task(hub.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    assert child()
    assert children() == before - {instance.details["pid"]}


async def test_a_hub_that_is_removed_ends_its_processes(pool: Pool, make_hub: Callable[..., LlamaCppHub]) -> None:
    """One by one, as each has finished what it had."""
    await pool.shell.add_hub(make_hub())
    (instance,) = await pool.ready()
    child = gone(instance.details["pid"])
    await pool.shell.remove_hub("llamacpp")
    assert child()
    assert pool.records == []


async def test_other_options_need_a_restart_only_when_they_change_what_is_served(
    pool: Pool, make_hub: Callable[..., LlamaCppHub]
) -> None:
    """How often processes are checked can change under them; which models they serve cannot."""
    hub = make_hub()
    await pool.shell.add_hub(hub)
    (before,) = await pool.ready()
    assert await hub.reconfigure(make_hub(check_interval_s=3, start_timeout_s=7).options)
    assert (hub.options.check_interval_s, hub.options.start_timeout_s) == (3, 7)
    assert not await hub.reconfigure(make_hub({"slots": 3}, check_interval_s=5).options)
    assert hub.options.check_interval_s == 3
    assert [record.instance for record in pool.records] == [before]


async def test_no_process_is_added_by_hand(pool: Pool, make_hub: Callable[..., LlamaCppHub]) -> None:
    """What there is stands in the options."""
    await pool.shell.add_hub(make_hub())
    with pytest.raises(InvalidRequest, match="'llamacpp' take no instances by hand"):
        await pool.shell.add_instance("llamacpp", {"url": "http://127.0.0.1:1"})
