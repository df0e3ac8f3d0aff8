"""Everything at once, over HTTP: callers who leave, servers that fail, instances that come and go, reloads, listeners."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import pytest

from gleitzeit_core.manager import ResourceManager
from gleitzeit_gateway.testing import RunningGateway
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
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import Answered
    from gleitzeit_ollama.testing import Fault

pytestmark = pytest.mark.faults
CALLS: Final = 300
AT_ONCE: Final = 24
LIMIT_S: Final = 50
PARAMS: Final = {"model": "smollm2", "messages": [{"role": "user", "content": "one two three"}]}
FAULTS: Final[tuple[Callable[[], Fault], ...]] = (
    Status,
    Busy,
    DropBeforeHeaders,
    Garbage,
    Hang,
    lambda: DropAfter(1),
    lambda: TruncateAfter(1),
    lambda: ErrorLineAfter(1),
)


class Storm:
    """Random callers of one gateway.

    Args:
        gateway: It runs, from `file`.
        servers: In the pool, or to be added.
        file: The configuration.
        seed: What happens follows from it, but for the order in which the network delivers.
    """

    def __init__(self, gateway: RunningGateway, servers: list[OllamaServer], file: Path, seed: int) -> None:
        self.gateway, self.servers, self.file = gateway, servers, file
        self.random = Random(seed)
        self.statuses: set[int] = set()
        self.errors: set[str] = set()

    async def run(self) -> None:
        """All calls, some at a time; then let go of what hangs."""
        turns = asyncio.Semaphore(AT_ONCE)
        acts = [self.ask, self.ask, self.ask, self.leave, self.rpc, self.batch, self.listen, self.change, self.reload]

        async def take_turn(act: Callable[[], Awaitable[None]]) -> None:
            async with turns:
                await act()

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLS):
                if self.random.random() < 0.2:
                    self.random.choice(self.servers).script.next(self.random.choice(FAULTS)())
                group.create_task(take_turn(self.random.choice(acts)))
            letting_go = group.create_task(self.let_go())
            group.create_task(self.stop(letting_go))

    async def let_go(self) -> None:
        """Nothing hangs for long."""
        while True:
            await asyncio.sleep(0.01)
            for server in self.servers:
                server.release()

    async def stop(self, letting_go: asyncio.Task[None]) -> None:
        """Stop that when nothing else is left."""
        parent = asyncio.current_task()
        while [task for task in asyncio.all_tasks() if "take_turn" in repr(task) and task is not parent]:
            await asyncio.sleep(0.01)
        letting_go.cancel()

    async def send(self, path: str, body: object = None, verb: str = "") -> Any:  # noqa: ANN401 - JSON
        """Send a request and note its status; the answer, where it is JSON."""
        answered = await self.gateway.ask(path, body, verb=verb)
        self.note(answered)
        with contextlib.suppress(ValueError):
            return answered.json

    def note(self, answered: Answered) -> None:
        """Keep in mind what may be answered."""
        self.statuses.add(answered.status)
        self.errors.add(answered.headers.get("X-Gleitzeit-Error", ""))

    # -- what callers do ---------------------------------------------------------------------------------------

    async def ask(self) -> None:
        """A chat, in either API, whole or in parts."""
        answered = await self.gateway.chat(v1=self.random.random() < 0.5, stream=self.random.random() < 0.5)
        self.note(answered)

    async def leave(self) -> None:
        """A chat whose caller leaves, at any time."""
        asked = asyncio.ensure_future(self.ask())
        await asyncio.wait({asked}, timeout=self.random.random() * 0.02)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked

    async def rpc(self) -> None:
        """A call of JSON-RPC, a notification, or one in parts."""
        more = self.random.choice([{"id": 1}, {}, {"id": 1, "stream": True}])
        await self.send("/rpc", {"jsonrpc": "2.0", "method": "llm/chat", "params": PARAMS, **more})

    async def batch(self) -> None:
        """Several of them."""
        calls = [{"jsonrpc": "2.0", "id": n, "method": "llm/chat", "params": PARAMS} for n in range(4)]
        answers = await self.send("/rpc", calls)
        assert [answer["id"] for answer in answers] == [0, 1, 2, 3]

    async def listen(self) -> None:
        """Events, for a while."""
        async with self.gateway.session.get(f"{self.gateway.url}/admin/events?requests=1") as response:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.random.random() * 0.05):
                    async for line in response.content:
                        assert line.startswith((b":", b"event: ", b"data: ", b"\n"))

    async def change(self) -> None:
        """An instance comes, is drained or resumed, or goes."""
        server = self.random.choice(self.servers)
        reports = self.gateway.manager.instances()
        name = next((r.instance.id for r in reports if r.instance.endpoint == server.url), "")
        path = f"/admin/instances/{quote(name, safe='')}"
        act = self.random.choice(["add", "drain", "resume", "resume", "remove"])
        if act == "add" or not name:
            await self.send("/admin/instances", {"url": server.url, "max_concurrent": self.random.randint(1, 4)})
        elif act == "remove":
            await self.send(f"{path}?grace_s={self.random.choice([0, 1])}", verb="DELETE")
        else:
            await self.send(f"{path}/{act}", verb="POST")

    async def reload(self) -> None:
        """The configuration changes, and is read again; sometimes it is wrong."""
        await asyncio.to_thread(write, self.file, self.servers, self.random)
        await self.send("/admin/reload", verb="POST")


def write(file: Path, servers: list[OllamaServer], random: Random) -> None:
    """A configuration with some of the servers."""
    urls = [server.url for server in servers if random.random() < 0.7] or [servers[0].url]
    route = {"methods": ["*"], "max_queue": random.randint(4, 64)}
    route["strategy"] = random.choice(["least_loaded", "round_robin", "random", "least_loaded", "no_such"])
    hub = {"type": "ollama", "instances": [{"url": url, "max_concurrent": 2} for url in urls]}
    data = {"hubs": {"lan": hub}, "routes": [route], "gateway": {"port": 0, "access_log": False}}
    # As an editor would: nobody reads half of it.
    half = file.with_suffix(f".{random.random()}")
    half.write_text(json.dumps(data))
    half.replace(file)


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_left_behind(tmp_path: Path, seed: int) -> None:
    """After hundreds of calls every slot is free, nobody waits, nothing listens, no task runs and no request is open."""
    file, before = tmp_path / "gleitzeit.yaml", asyncio.all_tasks()
    async with AsyncExitStack() as stack, asyncio.timeout(LIMIT_S):
        servers = [await stack.enter_async_context(OllamaServer()) for _ in range(3)]
        first = {"hubs": {"lan": {"type": "ollama", "instances": [servers[0].url]}}, "gateway": {"port": 0}}
        file.write_text(json.dumps(first))
        manager = await asyncio.to_thread(ResourceManager.from_config, file)
        gateway = await stack.enter_async_context(RunningGateway(manager))
        storm = Storm(gateway, servers, file, seed)
        await storm.run()
        assert 200 in storm.statuses
        assert "internal" not in storm.errors
        await gateway.until(lambda: (gateway.in_flight, gateway.waiting, manager.dispatcher.active) == (0, 0, 0))
        await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
        for server in servers:
            server.script.clear()
            server.release()
            await server.wait_for(lambda server: server.in_flight == 0)
            await storm.send("/admin/instances", {"url": server.url})
        # What was hurt is well again, and serves.
        assert (await gateway.chat()).status == 200
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not [task for task in left if not task.done()]
