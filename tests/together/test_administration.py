"""A real gateway and the commands that administer it, each in a process of its own, over stand-in servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gleitzeit_ollama.testing import HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

LIMIT_S = 60
CHAT = ("chat", "--model", "smollm2", "hello")
SETTINGS = re.compile(r"OLLAMA_|GLEITZEIT_|XDG_|HOME$")


class Desk:
    """Where a person administers a gateway: a folder with a configuration, and the program."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if not SETTINGS.match(name)}
        self._environment |= {"HOME": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.url = ""

    def configure(self, server: OllamaServer, **route: object) -> None:
        """Write the configuration: one hub over `server`, and one route."""
        hub = {"type": "ollama", "discover": False, "instances": [{"url": server.url, "max_concurrent": 1}]}
        found = {"hubs": {"lan": hub}, "routes": [{"methods": ["*"], **route}]}
        (self._folder / "gleitzeit.yaml").write_text(json.dumps(found))

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[Process]:
        """The program, which is gone afterwards."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gleitzeit_core.cli", *arguments),
            *(("--gateway", self.url) if self.url else ()),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env=self._environment,
            cwd=self._folder,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def do(self, *arguments: str) -> str:
        """Run a command, which must do well; what it printed."""
        async with self.running(*arguments) as process:
            out, err = await process.communicate()
            assert process.returncode == 0, (arguments, err.decode())
            return out.decode()

    async def ask(self, *arguments: str) -> Any:  # noqa: ANN401 - any JSON
        """Run a command with ``--json``."""
        return json.loads(await self.do(*arguments, "--json"))

    async def state(self, server: OllamaServer) -> str:
        """Of the instance that `server` is; empty when there is none."""
        found = await self.ask("instances")
        return next((one["state"] for one in found["instances"] if one["endpoint"] == server.url), "")


async def heard(follower: Process, kind: str, **facts: object) -> None:
    """Read what `gleitzeit events` prints until it tells of this."""
    assert follower.stdout is not None
    told: dict[str, Any] = {}
    while told.get("kind") != kind or not facts.items() <= told["data"].items():
        line = await follower.stdout.readline()
        assert line, f"the events ended before {kind} {facts}"
        told = json.loads(line)


@asynccontextmanager
async def following(desk: Desk) -> AsyncIterator[Process]:
    """`gleitzeit events`, connected: it has told of a request."""
    async with desk.running("events", "--requests", "--json", "--once") as follower:
        first = asyncio.create_task(heard(follower, "request", method="llm/chat", error=None))
        while not first.done():
            await desk.do(*CHAT)
        await first
        yield follower


@asynccontextmanager
async def serving(desk: Desk) -> AsyncIterator[Process]:
    """`gleitzeit serve`, which has said where it listens."""
    async with desk.running("serve", "--port", "0", "--no-access-log") as gateway:
        assert gateway.stdout is not None
        desk.url = (await gateway.stdout.readline()).decode().split()[-1]
        yield gateway


async def stopped(gateway: Process, follower: Process) -> None:
    """End the gateway; nothing went wrong in it, and with it the events have ended."""
    gateway.send_signal(signal.SIGTERM)
    _, err = await gateway.communicate()
    assert (gateway.returncode, b"Traceback" in err) == (0, False)
    await follower.communicate()
    assert follower.returncode == 0


async def test_pool_is_changed_while_it_works(tmp_path: Path) -> None:
    """An instance is added, drained, resumed and removed; requests wait, are seen waiting, and none is lost."""
    desk, held = Desk(tmp_path), HangBeforeHeaders()
    async with (
        asyncio.timeout(LIMIT_S),
        OllamaServer(models=["smollm2"]) as one,
        OllamaServer(models=["smollm2"]) as two,
    ):
        desk.configure(one)
        async with serving(desk) as gateway, following(desk) as follower:
            # Added, it is used.
            added = await desk.ask("instances", "add", two.url, "--max-concurrent", "1", "--tag", "spare")
            assert (added["state"], added["hub"], added["tags"]) == ("ready", "lan", ["spare"])
            await heard(follower, "instance", id=added["id"], change="added")
            assert "drained" in await desk.do("instances", "drain", one.url, "--wait")
            two.script.next(held)
            asked = [asyncio.create_task(desk.do(*CHAT))]
            await held.reached.wait()
            # With nobody else to serve it, the next request waits, and that can be seen.
            asked.append(asyncio.create_task(desk.do(*CHAT)))
            while not (queues := (await desk.ask("queues"))["queues"]):
                pass
            assert [(queue["route"], queue["model"], queue["waiting"]) for queue in queues] == [("*", "smollm2", 1)]
            assert "2 active, 1 waiting" in await desk.do("top", "--once")
            # Resumed, the first serves what waits.
            assert "ready" in await desk.do("instances", "resume", one.url)
            assert "hello" in await asked[1]
            assert "nobody waits" in await desk.do("queues")
            # What runs on the other goes on while it is drained.
            draining = asyncio.create_task(desk.ask("instances", "drain", two.url, "--wait"))
            while await desk.state(two) != "draining":
                pass
            assert not draining.done()
            held.released.set()
            assert "hello" in await asked[0]
            assert (await draining)["state"] == "drained"
            numbers = (await desk.ask("metrics"))["instances"][added["id"]]
            assert (numbers["results"], numbers["output_tokens"] > 0) == ({"ok": 1}, True)
            assert (await desk.ask("instances", "remove", two.url))["removed"] == added["id"]
            await heard(follower, "instance", id=added["id"], change="removed")
            assert (await desk.state(one), await desk.state(two)) == ("ready", "")
            assert "(all)" in await desk.do("metrics", "--by", "model", "--total")
            await stopped(gateway, follower)


async def test_configuration_is_changed_while_it_works(tmp_path: Path) -> None:
    """By command and by SIGHUP; tried first, told in the events, and refused whole when it is wrong."""
    desk = Desk(tmp_path)
    async with asyncio.timeout(LIMIT_S), OllamaServer(models=["smollm2"]) as one:
        desk.configure(one)
        async with serving(desk) as gateway, following(desk) as follower:
            desk.configure(one, strategy=["tagged", "random"], max_queue=3)
            async with desk.running("reload") as process:
                _, err = await process.communicate()
                assert (process.returncode, b"is needed" in err) == (2, True)
            desk.configure(one, strategy="random", max_queue=3)
            tried = await desk.ask("reload", "--dry-run")
            assert [(one["path"], one["applied"]) for one in tried["changes"]] == [
                ("routes[0].strategy.name", False),
                ("routes[0].max_queue", False),
            ]
            done = await desk.ask("reload")
            assert [(one["after"], one["applied"]) for one in done["changes"]] == [("random", True), (3, True)]
            await heard(follower, "reload")
            assert "*: random" in await desk.do("status")
            desk.configure(one, strategy=[{"name": "tagged", "none": ["spare"]}, "random"])
            gateway.send_signal(signal.SIGHUP)
            await heard(follower, "reload")
            assert "*: tagged -> random" in await desk.do("status")
            assert "hello" in await desk.do(*CHAT)
            await stopped(gateway, follower)
