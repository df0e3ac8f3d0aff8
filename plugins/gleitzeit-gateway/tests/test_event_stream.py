"""What happens, as server-sent events: who listens misses nothing, and holds up nobody."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_gateway import event_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import aiohttp

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]

LIMIT_S = 20
# Some versions of aiohttp read no longer lines than this.
LINE_BYTES = 1 << 20
HELLO = ": what happens from here on"


@asynccontextmanager
async def listening(gateway: RunningGateway, query: str = "") -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream of events whose head has come."""
    asked = gateway.session.get(f"{gateway.url}/admin/events{query}", read_bufsize=LINE_BYTES)
    async with asyncio.timeout(LIMIT_S), asked as response:
        assert response.status == 200
        yield response


async def block(response: aiohttp.ClientResponse) -> list[str]:
    """The lines of the next block, which an empty line ends."""
    lines: list[str] = []
    while line := (await response.content.readline()).decode().rstrip("\n"):
        lines.append(line)
    return lines


async def event(response: aiohttp.ClientResponse, kind: str = "") -> dict[str, Any]:
    """The next event, or the next of a kind."""
    while True:
        lines = await block(response)
        if lines[0].startswith(":"):
            continue
        head, data = lines
        found: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert found.keys() == {"kind", "at", "data"}
        assert head == f"event: {found['kind']}"
        if kind in ("", found["kind"]):
            return found


def drain(gateway: RunningGateway) -> str:
    """Make something happen; the instance it happens to."""
    (report,) = gateway.manager.instances()
    gateway.manager.drain_instance(report.instance.id)
    return report.instance.id


async def test_events(serve: Serve, ollama: OllamaServer) -> None:
    """The head comes at once, with what keeps others from holding events back; then each event as it happens."""
    gateway = await serve(ollama)
    async with listening(gateway) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert await block(response) == [HELLO]
        name = drain(gateway)
        found = await event(response, "instance")
    assert found["data"]["id"] == name
    assert found["data"]["state"] == "drained"
    assert found["at"] > 1_700_000_000


async def test_requests_are_told_to_those_who_ask(serve: Serve, ollama: OllamaServer) -> None:
    """Finished requests come with ``?requests=1`` and not without."""
    gateway = await serve(ollama)
    async with listening(gateway) as without, listening(gateway, "?requests=1") as with_requests:
        answered = await gateway.chat()
        found = await event(with_requests)
        assert (found["kind"], found["data"]["method"]) == ("request", "llm/chat")
        assert found["data"]["instance"] == answered.headers["X-Gleitzeit-Instance"]
        assert found["data"]["error"] is None
        drain(gateway)
        assert (await event(without))["kind"] == "instance"


async def test_nobody_listens_any_more(serve: Serve, ollama: OllamaServer) -> None:
    """Who leaves is forgotten, though nothing happens."""
    gateway = await serve(ollama)
    async with listening(gateway):
        await gateway.until(lambda: "1 requests" in repr(gateway.gateway))
    async with asyncio.timeout(LIMIT_S):
        await gateway.until(lambda: "0 requests" in repr(gateway.gateway))


async def test_keep_alive(serve: Serve, ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens a comment comes now and then, and events go on after it."""
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.01)
    gateway = await serve(ollama)
    async with listening(gateway) as response:
        assert await block(response) == [HELLO]
        assert await block(response) == [": nothing new"]
        assert await block(response) == [": nothing new"]
        drain(gateway)
        assert (await event(response))["kind"] == "instance"


async def test_shutdown_ends_it(serve: Serve, ollama: OllamaServer) -> None:
    """At shutdown it ends as a whole answer, and does not hold up the drain."""
    gateway = await serve(ollama)
    async with listening(gateway) as response:
        await gateway.gateway.drain()
        assert await response.text() == f"{HELLO}\n\n"
    assert "0 requests" in repr(gateway.gateway)


async def test_end_of_the_manager_ends_it(serve: Serve, ollama: OllamaServer) -> None:
    """When the manager is closed under it, it ends as well."""
    gateway = await serve(ollama)
    async with listening(gateway) as response:
        await gateway.manager.aclose()
        assert HELLO in await response.text()


async def test_slow_reader_is_cut_off(serve: Serve, ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who takes nothing is cut off, and others get their events meanwhile."""
    monkeypatch.setattr(event_stream, "SLOW_S", 0.5)
    gateway = await serve(ollama)
    reader, writer = await gateway.connect()
    async with asyncio.timeout(LIMIT_S):
        writer.write(b"GET /admin/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"from here on\n\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # of all that asyncio has
        async with listening(gateway) as other:
            while "2 requests" in repr(gateway.gateway):
                gateway.manager._events.emit("reload", {"text": "x" * 300_000})
                assert len((await event(other))["data"]["text"]) == 300_000
    writer.transport.abort()


async def test_only_so_many(serve: Serve, ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit nobody more may listen; who is refused is told, and a place that is left can be taken."""
    monkeypatch.setattr(event_stream, "STREAMS_MAX", 1)
    gateway = await serve(ollama)
    async with listening(gateway):
        refused = await gateway.ask("/admin/events")
        assert (refused.status, refused.json["error"]["code"]) == (503, "too_many_streams")
    await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
    async with listening(gateway) as response:
        assert await block(response) == [HELLO]


async def test_head(serve: Serve, ollama: OllamaServer) -> None:
    """HEAD gets the head, and does not wait for events."""
    gateway = await serve(ollama)
    answered = await gateway.ask("/admin/events", verb="HEAD")
    assert (answered.status, answered.headers["Content-Type"], answered.body) == (200, "text/event-stream", b"")


@pytest.mark.parametrize("query", ["?requests=2", "?request=1", "?requests=1&requests=0"])
async def test_wrong_parameters(serve: Serve, ollama: OllamaServer, query: str) -> None:
    """A parameter that is wrong is refused, and not ignored."""
    gateway = await serve(ollama)
    answered = await gateway.ask(f"/admin/events{query}")
    assert (answered.status, answered.json["error"]["code"]) == (400, "invalid_request")


async def test_events_need_a_key(serve: Serve, ollama: OllamaServer) -> None:
    """Where keys are configured it needs one."""
    gateway = await serve(ollama, keys=[{"name": "alice", "key": "alices-key-is-very-secret"}])
    assert (await gateway.ask("/admin/events")).status == 401


async def test_a_key_hears_of_its_own_requests(serve: Serve, ollama: OllamaServer) -> None:
    """What others ask is told to an admin key only; what happens to instances is told to all."""
    names = ("alice", "bob", "root")
    keys = [{"name": name, "key": f"the-key-of-{name}-is-secret", "admin": name == "root"} for name in names]
    gateway = await serve(ollama, keys=keys)
    using = {name: {"X-Api-Key": f"the-key-of-{name}-is-secret"} for name in names}
    url = f"{gateway.url}/admin/events?requests=1"
    async with (
        asyncio.timeout(LIMIT_S),
        gateway.session.get(url, headers=using["alice"]) as hers,
        gateway.session.get(url, headers=using["root"]) as every,
    ):
        assert hers.status == every.status == 200
        for name in ("bob", "alice", "bob"):
            await gateway.ask("/api/chat", {"model": "smollm2", "stream": False}, headers=using[name])
        assert [(await event(every, "request"))["data"]["tenant"] for _ in range(3)] == ["bob", "alice", "bob"]
        drain(gateway)
        assert (await event(hers, "request"))["data"]["tenant"] == "alice"
        assert (await event(hers))["kind"] == "instance"
