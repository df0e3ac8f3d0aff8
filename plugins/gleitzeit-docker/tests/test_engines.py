"""What a real engine does only rarely: refuse a removal, have no disk left, hang in the middle of something.

Here an engine is a script: a socket that answers by path.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_docker import engine as engine_module
from gleitzeit_docker.address import Address, from_environment
from gleitzeit_docker.engine import Engine
from gleitzeit_docker.errors import EngineDown
from gleitzeit_docker.hub import DockerHub
from gleitzeit_docker.options import DockerOptions
from gleitzeit_docker.owners import OWNER, PLACE, Owner
from gleitzeit_docker.testing import EngineProxy

from .waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from docker.api.client import APIClient

    Start = Callable[..., Awaitable[Any]]

ANY = Requirements(accepts=(Speaks("python-runner", ChannelKind.STREAM),))
SOCKET = from_environment().socket or "/var/run/docker.sock"
WELL = {"SecurityOptions": ["name=seccomp,profile=default"], "SwapLimit": True, "Runtimes": {"runc": {}}}


class Script:
    """An engine with the image, and without containers; tests change what it says.

    Attributes:
        says: By method and the last part of the path, without a version: a status and JSON.
        asked: The methods and paths so far, as in `says`; an answer to events is noted when it is given.
        events_after_s: So long it takes to answer a request for events.
        silent: What is not answered, as in `asked`.
    """

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.says: dict[str, tuple[int, Any]] = {
            "GET _ping": (200, "OK"),
            "GET events": (200, ""),
            "GET info": (200, WELL),
            "GET containers/json": (200, []),
            "GET images/json": (200, {"Id": "sha256:1"}),
        }
        self.asked: list[str] = []
        self.events_after_s = 0.0
        self.silent: set[str] = set()
        self._path = path
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._took, self._path)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cut all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def _took(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._answer(reader, writer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        task.add_done_callback(lambda _: writer.close())

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            method, target, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(maxsplit=2)
            parts = [part for part in target.partition("?")[0].split("/")[1:] if not part.startswith("v1.")]
            what = f"{method} {'/'.join(parts if len(parts) < 3 else [parts[0], parts[-1]])}"
            await self._say(what, writer)
            await writer.drain()

    async def _say(self, what: str, writer: asyncio.StreamWriter) -> None:
        if what == "GET events":
            await asyncio.sleep(self.events_after_s)
        self.asked.append(what)
        if what in self.silent:
            await asyncio.Event().wait()
        unknown = (404, {"message": f"no {what}"})
        status, body = self.says.get(what) or self.says.get(what.partition(" ")[0]) or unknown
        head = f"HTTP/1.1 {status} As Asked\r\nApi-Version: 1.41\r\nConnection: close\r\n"
        if what == "GET events":
            writer.write(f"{head}\r\n".encode())
            await writer.drain()
            await asyncio.Event().wait()
        data = json.dumps(body).encode()
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)


@pytest.fixture
async def script(tmp_path: Path) -> AsyncIterator[Script]:
    """An engine."""
    async with Script(tmp_path / "script.sock") as started:
        yield started


def _left_over() -> dict[str, Any]:
    """A container of an owner that has ended, as an engine lists it."""
    owner = Owner.begin()
    owner.close()
    return {"Id": "a" * 64, "Names": ["/left"], "State": "exited", "Labels": {OWNER: owner.name, PLACE: owner.place}}


async def test_a_container_that_cannot_be_removed_is_no_reason_not_to_use_an_engine(
    script: Script, run_hub: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of, and tried again by the next sweep."""
    script.says["GET containers/json"] = (200, [_left_over()])
    script.says["DELETE"] = (500, {"message": "device or resource busy"})
    pooled = await run_hub(engines=[script.url], pull="never")
    assert pooled.hub.problem == ""
    assert "left could not be removed: device or resource busy" in caplog.text
    removals = len([what for what in script.asked if what.startswith("DELETE")])
    await pooled.hub.discover()
    assert len([what for what in script.asked if what.startswith("DELETE")]) > removals


async def test_containers_are_compared_when_events_are_told_of(script: Script, run_hub: Start) -> None:
    """Not before: what happens in between would be missed for as long as until the next comparison."""
    script.events_after_s = 0.2
    await run_hub(engines=[script.url], pull="never")
    before = list(script.asked)
    await until(lambda: "GET containers/json" in script.asked[len(before) :])
    asked = script.asked[len(before) :]
    assert asked.index("GET events") < asked.index("GET containers/json")


async def test_what_an_engine_cannot_limit_is_said(
    script: Script, run_hub: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It would take the profile's limits without a word, and not keep them."""
    lacks = {"MemoryLimit": False, "SwapLimit": False, "PidsLimit": False, "CpuCfsQuota": False, "SecurityOptions": []}
    script.says["GET info"] = (200, {**WELL, **lacks})
    await run_hub(engines=[script.url], pull="never")
    assert "memory, swap, processor time, processes, system calls (seccomp)" in caplog.text


async def test_a_start_that_is_cancelled_holds_no_lock(state: Path) -> None:
    """Whenever that is: the file of an owner that never was is gone."""
    for turns in range(5):
        starting = asyncio.create_task(
            Dispatcher().shell.add_hub(DockerHub(DockerOptions(engines=["unix:///no/such.sock"])))
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert starting.cancelled()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not list((state / "gleitzeit" / "docker").glob("*.lock"))


async def test_one_call_that_hangs_is_enough(script: Script) -> None:
    """Those that wait for its thread ask first whether the engine is still there, and are sent no more."""
    engine = Engine(Address(script.url), name="x", timeout_s=1.2, threads=1)
    try:
        assert await engine.call(lambda client: client.info()) == WELL
        script.silent |= {"GET info"}
        calls = [asyncio.create_task(engine.call(lambda client: client.info())) for _ in range(4)]
        await until(lambda: script.asked.count("GET info") == 2)
        script.silent |= {"GET _ping"}
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, EngineDown) and error.hangs for error in errors)
        assert script.asked.count("GET info") == 2
    finally:
        await engine.aclose()


async def test_a_call_that_waits_can_be_left_at_once(script: Script) -> None:
    """Only one that was sent must be waited for."""
    engine = Engine(Address(script.url), name="x", timeout_s=5, threads=1)
    try:
        await engine.call(lambda client: client.info())
        script.silent |= {"GET info"}
        sent = asyncio.create_task(engine.call(lambda client: client.info()))
        await until(lambda: script.asked.count("GET info") == 2)
        waits = asyncio.create_task(engine.call(lambda client: client.info()))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.wait((waits,))
        assert not sent.done()
        await asyncio.gather(sent, return_exceptions=True)
    finally:
        await engine.aclose()


@pytest.mark.docker
async def test_an_engine_on_which_nothing_can_be_made_does_not_stop_the_others(script: Script, pool: Start) -> None:
    """Its disk is full, say: it has the fewest containers then, and is nevertheless not asked first."""
    script.says["POST containers/create"] = (500, {"message": "no space left on device"})
    near = {"url": f"unix://{SOCKET}", "name": "near"}
    pooled = await pool(engines=[{"url": script.url, "name": "full"}, near], min_total=2, max_total=2)
    await pooled.until(lambda: len(pooled.ready()) == 2)
    assert {each.details["engine"] for each in pooled.ready()} == {"near"}
    assert script.asked.count("POST containers/create") == 1


@pytest.mark.docker
async def test_an_engine_that_hangs_does_not_stop_the_others(
    pool: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed although nobody asks it for anything, named, and asked no more until it goes on."""
    monkeypatch.setattr(engine_module, "_SILENT_S", 0.2)
    near = {"url": f"unix://{SOCKET}", "name": "near"}
    async with EngineProxy(SOCKET, tmp_path / "engine.sock") as proxy:
        pooled = await pool(engines=[{"url": proxy.url, "name": "far"}, near], call_timeout_s=1, max_total=4)
        proxy.hang()
        await until(lambda: "far" in pooled.hub.problem)
        await pooled.hub.scale(ANY, 2)
        await pooled.until(lambda: len(pooled.ready()) == 2)
        assert {each.details["engine"] for each in pooled.ready()} == {"near"}
        proxy.go_on()
        await until(lambda: not pooled.hub.problem)
        await pooled.dispatcher.aclose()


@pytest.mark.docker
async def test_ports_of_this_machines_engine_are_reached_from_it_only(pool: Start, engine: APIClient) -> None:
    """Also where another engine is far, whose ports must be reached from here."""
    server = "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()"
    async with EngineProxy(SOCKET) as proxy:
        far = {"url": proxy.url, "name": "far", "published_at": "127.0.0.1"}
        pooled = await pool(
            engines=[f"unix://{SOCKET}", far],
            api="openai",
            port=8000,
            network="bridge",
            command=["python3", "-c", server],
            min_total=2,
        )
        bound = {
            each.details["engine"]: engine.inspect_container(each.handle.id)["HostConfig"]["PortBindings"]
            for each in pooled.ready()
        }
        assert [binding["HostIp"] for binding in bound[f"unix://{SOCKET}"]["8000/tcp"]] == ["127.0.0.1"]
        assert [binding["HostIp"] for binding in bound["far"]["8000/tcp"]] == [""]
        await pooled.dispatcher.aclose()
