"""Ten thousand requests to live servers that fail, come and go, while the configuration changes: nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from gleitzeit_core.errors import InvalidRequest, RequestError, UnknownName
from gleitzeit_core.manager import ResourceManager
from gleitzeit_ollama.testing import (
    Busy,
    DropAfter,
    DropBeforeHeaders,
    ErrorLineAfter,
    Garbage,
    Hang,
    OllamaServer,
    Status,
    TruncateAfter,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gleitzeit_ollama.testing import Fault

REQUESTS: Final = 10_000
AT_ONCE: Final = 48
CHANGE_AFTER: Final = 40
"""So many requests come between two changes."""
SERVERS: Final = 5
STRATEGIES: Final = ("least_loaded", "round_robin", "random")
QUESTION: Final = {"model": "smollm2", "messages": [{"role": "user", "content": "one two three four"}]}
FAULTS: Final[tuple[Callable[[], Fault], ...]] = (
    Status,
    Busy,
    DropBeforeHeaders,
    Garbage,
    Hang,
    lambda: DropBeforeHeaders(reset=True),
    lambda: DropAfter(n_parts=1),
    lambda: TruncateAfter(n_parts=1),
    lambda: ErrorLineAfter(n_parts=2),
)


class Turmoil:
    """A pool of live servers, callers who ask, leave and give up, and somebody who changes everything meanwhile."""

    def __init__(self, servers: list[OllamaServer], folder: Path, seed: int) -> None:
        self.servers, self.random = servers, Random(seed)
        self.file = folder / "gleitzeit.yaml"
        self.write()
        self.manager = ResourceManager.from_config(self.file)
        self.ends = Counter[str]()
        self.done = 0
        self.crashing = asyncio.Lock()

    def write(self) -> None:
        """A configuration like the last, with something in it changed."""
        known = self.random.sample(self.servers, self.random.randint(3, SERVERS))
        instances = [{"url": one.url, "max_concurrent": self.random.randint(1, 6)} for one in known]
        route = {"methods": ["llm/*"], "strategy": self.random.choice(STRATEGIES), "max_queue": 64, "timeout_s": 5}
        hub = {"type": "ollama", "discover": False, "instances": instances, "check_interval_s": 0.2}
        data = {"hubs": {"lan": hub}, "routes": [route], "gateway": {"port": 0}}
        self.file.write_text(yaml.safe_dump(data))

    # -- callers -----------------------------------------------------------------------------------------------

    async def ask(self) -> None:
        """One request, by a caller who may be patient or not."""
        ways = (self.whole, self.whole, self.whole, self.streamed, self.streamed, self.left_early, self.cancelled)
        try:
            end = await self.random.choice(ways)()
        except RequestError as error:
            end = error.code
        self.ends[end] += 1

    async def whole(self) -> str:
        """An answer in one piece; sometimes wanted sooner than it can be had."""
        timeout_s = 0.005 if self.random.random() < 0.05 else 2.0
        answer = await self.manager.execute(
            "llm/chat", QUESTION, timeout_s=timeout_s, priority=self.random.randint(0, 1)
        )
        assert answer["done"] is True
        return "whole"

    async def streamed(self) -> str:
        """All parts of an answer."""
        last: dict[str, Any] = {}
        async with self.manager.stream("llm/chat", QUESTION, timeout_s=2.0) as parts:
            async for part in parts:
                last = part
        assert last["done"] is True
        return "streamed"

    async def left_early(self) -> str:
        """The first part, and then no interest in the others."""
        async with self.manager.stream("llm/chat", QUESTION, timeout_s=2.0) as parts:
            await anext(parts)
        return "left early"

    async def cancelled(self) -> str:
        """A caller who is cancelled at some turn of the loop."""
        task = asyncio.ensure_future(self.whole())
        for _ in range(self.random.randint(0, 30)):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return "cancelled"

    async def callers(self) -> None:
        """So many at once, until all requests were made."""

        async def caller() -> None:
            while self.done < REQUESTS:
                self.done += 1
                await self.ask()
                if self.done % CHANGE_AFTER == 0:
                    await self.change()

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))

    # -- changes -----------------------------------------------------------------------------------------------

    async def change(self) -> None:
        """Something happens to a server, to the pool or to the configuration."""
        ways = (
            self.fail,
            self.fail,
            self.fail,
            self.let_go,
            self.crash,
            self.drain,
            self.remove,
            self.add,
            self.reload,
        )
        await self.random.choice(ways)()

    async def fail(self) -> None:
        """Some of the next requests to a server go wrong."""
        self.random.choice(self.servers).script.next(self.random.choice(FAULTS)(), times=self.random.randint(1, 4))

    async def let_go(self) -> None:
        """Whatever hangs goes on."""
        for server in self.servers:
            server.release()

    async def crash(self) -> None:
        """A server is killed, with all that runs there; or, if one is, it is back."""
        async with self.crashing:
            down = next((server for server in self.servers if not server.is_listening), None)
            await (down.start() if down else self.random.choice(self.servers).stop())

    async def drain(self) -> None:
        """An instance is drained, or one that was drained is taken back."""
        reports = self.manager.instances()
        drained = next((report for report in reports if report.state in ("draining", "drained")), None)
        if drained is None:
            self.manager.drain_instance(self.random.choice(reports).instance.id)
            return
        # Somebody else may just be removing it.
        with contextlib.suppress(InvalidRequest, UnknownName):
            await self.manager.resume_instance(drained.instance.id)

    async def remove(self) -> None:
        """An instance is taken out, whatever it does; the last three stay."""
        reports = self.manager.instances()
        if len(reports) <= 3:
            return
        with contextlib.suppress(UnknownName):
            await self.manager.remove_instance(self.random.choice(reports).instance.id, grace_s=0.01)

    async def add(self) -> None:
        """A server joins by hand, perhaps once more."""
        with contextlib.suppress(RequestError):
            await self.manager.add_instance({"url": self.random.choice(self.servers).url, "max_concurrent": 3}, "lan")

    async def reload(self) -> None:
        """Another configuration comes into effect, while all goes on."""
        self.write()
        await self.manager.reload()

    # -- afterwards --------------------------------------------------------------------------------------------

    async def calm(self) -> None:
        """No faults any more; all servers are up."""
        for server in self.servers:
            server.script.clear()
            server.release()
            if not server.is_listening:
                await server.start()

    def nothing_left(self) -> None:
        """No slot is taken, nobody waits, nobody is on the way."""
        status = self.manager.status()
        assert (status["requests"]["active"], status["requests"]["waiting"]) == (0, 0)
        machine = self.manager.dispatcher.shell.admission
        assert [record for record in machine.pool if record.in_flight] == []
        assert machine.queues() == ()


def sockets() -> set[str]:
    """The sockets this process has open."""

    def targets() -> Iterator[str]:
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield str(link.readlink())

    return {target for target in targets() if target.startswith("socket:")}


async def until(settled: Callable[[], Awaitable[bool]]) -> None:
    """Let the loop turn until it is so; the test's own time limit ends it if it never is."""
    while not await settled():
        await asyncio.sleep(0.01)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts sockets by /proc")  # noqa: PTH112 - short
async def test_ten_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    """However they ended: no slot, no task and no socket is left, most were served, and the pool still serves."""
    tasks, before = asyncio.all_tasks(), sockets()
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(OllamaServer(max_queue=8)) for _ in range(SERVERS)]
        turmoil = Turmoil(servers, tmp_path, seed=20261121)
        async with turmoil.manager as manager:
            await turmoil.callers()
            assert turmoil.ends.total() >= REQUESTS
            assert turmoil.ends["whole"] + turmoil.ends["streamed"] > REQUESTS / 4, turmoil.ends
            assert turmoil.ends["cancelled"], turmoil.ends
            turmoil.nothing_left()
            await turmoil.calm()
            await turmoil.reload()
            for report in manager.instances():
                if report.state in ("draining", "drained"):
                    await manager.resume_instance(report.instance.id)

            async def all_well() -> bool:
                return all(report.state in ("ready", "degraded") for report in manager.instances())

            await until(all_well)
            answers = await manager.each("llm/chat", QUESTION)
            assert answers
            assert [answer.error for answer in answers if answer.error] == []

        async def servers_idle() -> bool:
            return not any(server.in_flight for server in servers)

        await until(servers_idle)
    assert asyncio.all_tasks() == tasks

    # A socket is closed in a later turn of the loop.
    async def sockets_closed() -> bool:
        return not sockets() - before

    await until(sockets_closed)
