"""Each fault does what it says, on a real socket, and lets go when it is told to."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gleitzeit_ollama.testing import (
    Busy,
    Cut,
    DropAfter,
    DropBeforeHeaders,
    End,
    ErrorLineAfter,
    Exchange,
    Fault,
    Garbage,
    Gate,
    Hang,
    HangBeforeHeaders,
    OllamaServer,
    Plain,
    SlowLoad,
    StallAfter,
    Status,
    TruncateAfter,
    Unauthorized,
)

from .calls import CHAT, PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_ollama.testing import RequestRecord

LINES = 4  # three tokens and the end


async def _ask(
    client: aiohttp.ClientSession, server: OllamaServer, body: object = CHAT, path: str = "/api/chat"
) -> tuple[int, str]:
    async with client.post(f"{server.url}{path}", json=body) as response:
        return response.status, await response.text()


async def _read_lines(response: aiohttp.ClientResponse, count: int) -> list[Any]:
    return [json.loads(await response.content.readline()) for _ in range(count)]


def _contents(lines: list[Any]) -> list[str]:
    return [line["message"]["content"] for line in lines]


async def test_status(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """The status, body and headers are those of the fault, once."""
    server.script.next(Status(418, "short and stout", {"X-Pot": "tea"}))
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        assert (response.status, response.headers["X-Pot"]) == (418, "tea")
        assert await response.text() == "short and stout"
    status, _ = await _ask(client, server)
    assert status == 200


async def test_status_with_an_object(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """An object is sent as JSON, under the fault's Content-Type if it names one."""
    server.script.next(Status(500, {"error": "out of memory"}))
    server.script.next(Status(500, b"{}", {"Content-Type": "application/problem+json"}))
    assert await _ask(client, server) == (500, '{"error":"out of memory"}')
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        assert response.headers.getall("Content-Type") == ["application/problem+json"]


@pytest.mark.parametrize(("retry_after_s", "header"), [(None, None), (7, "7")])
async def test_busy(
    server: OllamaServer, client: aiohttp.ClientSession, retry_after_s: int | None, header: str | None
) -> None:
    """The recorded 503 comes, with Retry-After only if one is given."""
    server.script.next(Busy(retry_after_s))
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        assert (response.status, response.headers.get("Retry-After")) == (503, header)
        assert "maximum pending requests exceeded" in (await response.json())["error"]


async def test_refusals_have_the_shape_of_their_api(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """Under /v1 the same refusal comes in OpenAI's envelope."""
    server.script.always(Unauthorized())
    assert await _ask(client, server) == (401, '{"error":"unauthorized"}')
    status, text = await _ask(client, server, CHAT, "/v1/chat/completions")
    assert status == 401
    assert json.loads(text)["error"]["message"] == "unauthorized"


async def test_garbage(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A page of HTML, or any bytes, come with status 200."""
    server.script.next(Garbage())
    server.script.next(Garbage(b"\x00\xff", "application/octet-stream", 502))
    status, page = await _ask(client, server)
    assert (status, page[:6]) == (200, "<html>")
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        assert (response.status, await response.read()) == (502, b"\x00\xff")


async def test_hang(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """The request is read and nothing comes until the release; no slot is taken meanwhile."""
    hang = Hang()
    server.script.next(hang)
    asking = asyncio.create_task(_ask(client, server))
    await hang.reached.wait()
    assert (server.held, server.in_flight, server.runners.running) == (1, 1, 0)
    assert server.requests[0].json == CHAT
    hang.released.set()
    status, _ = await asking
    assert (status, server.held) == (200, 0)


async def test_hang_before_headers(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """The request has a slot and no header is sent until the release."""
    hang = HangBeforeHeaders()
    server.script.next(hang)
    asking = asyncio.create_task(_ask(client, server))
    await hang.reached.wait()
    assert (server.runners.running, server.requests[0].status) == (1, 0)
    server.release()
    status, _ = await asking
    assert status == 200


async def test_leaving_a_hang_ends_it(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A client that leaves a request that hangs frees it at once."""
    server.script.next(HangBeforeHeaders())
    asking = asyncio.create_task(_ask(client, server))
    await server.wait_for(lambda server: server.held == 1)
    asking.cancel()
    await server.wait_for(lambda server: server.disconnects == 1)
    await server.wait_for(lambda server: not server.in_flight)
    assert (server.held, server.runners.running) == (0, 0)
    assert server.requests[0].disconnected


@pytest.mark.parametrize("parts", [0, 2, LINES])
async def test_stall_in_a_stream(server: OllamaServer, client: aiohttp.ClientSession, parts: int) -> None:
    """So many lines come, then nothing; after the release the rest follows, and the end."""
    stall = StallAfter(n_parts=parts)
    server.script.next(stall)
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        before = await _read_lines(response, parts)
        await stall.reached.wait()
        assert server.requests[0].parts == parts
        assert not server.requests[0].finished
        stall.released.set()
        after = await _read_lines(response, LINES - parts)
        assert await response.content.readline() == b""
    assert _contents(before + after) == ["one", " two", " three", ""]


async def test_stall_in_a_plain_answer(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """Half of the body comes, and the other half after the release."""
    stall = StallAfter(n_parts=1)
    server.script.next(stall)
    async with client.post(f"{server.url}/api/chat", json=PLAIN) as response:
        half = await response.content.readany()
        await stall.reached.wait()
        assert 0 < len(half) < int(response.headers["Content-Length"])
        stall.released.set()
        assert json.loads(half + await response.read())["done"]


@pytest.mark.parametrize("reset", [False, True])
async def test_drop_before_headers(server: OllamaServer, client: aiohttp.ClientSession, *, reset: bool) -> None:
    """The connection is closed without a byte; the client did not leave, it was left."""
    server.script.next(DropBeforeHeaders(reset=reset))
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await _ask(client, server)
    await server.wait_for(lambda server: not server.in_flight)
    assert (server.requests[0].cut, server.requests[0].disconnected, server.disconnects) == (True, False, 0)


@pytest.mark.parametrize("parts", [0, 2, LINES])
async def test_drop_in_a_stream(server: OllamaServer, client: aiohttp.ClientSession, parts: int) -> None:
    """So many lines come, then the connection ends without the end of the body."""
    server.script.next(DropAfter(parts))
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        lines = await _read_lines(response, parts)
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert len(lines) == parts
    await server.wait_for(lambda server: not server.in_flight)
    assert (server.requests[0].cut, server.runners.running) == (True, 0)


async def test_drop_in_a_plain_answer(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """Half of the promised body comes, then the connection ends."""
    server.script.next(DropAfter(1))
    async with client.post(f"{server.url}/api/chat", json=PLAIN) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.parametrize(("reset", "wanted"), [(False, b""), (True, ConnectionResetError)])
async def test_drop_is_a_fin_or_a_reset(server: OllamaServer, *, reset: bool, wanted: bytes | type[Exception]) -> None:
    """On the wire a drop is the end of the stream, or a reset by the peer, as asked."""
    server.script.next(DropAfter(1, reset=reset))
    reader, writer = await asyncio.open_connection(server.host, server.port)
    body = json.dumps(CHAT).encode()
    writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    try:
        await reader.readuntil(b'"one"}')
        while await reader.read(4096):
            continue
        end: object = b""
    except ConnectionResetError:
        end = ConnectionResetError
    finally:
        writer.close()
    assert end == wanted


@pytest.mark.parametrize("parts", [0, 3])
async def test_truncate_a_stream(server: OllamaServer, client: aiohttp.ClientSession, parts: int) -> None:
    """So many lines come and the body ends cleanly, without the line that says done."""
    server.script.next(TruncateAfter(parts))
    status, text = await _ask(client, server)
    lines = [json.loads(line) for line in text.splitlines()]
    assert (status, len(lines)) == (200, parts)
    assert not any(line["done"] for line in lines)
    assert not server.requests[0].cut


async def test_truncate_an_event_stream(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """Under /v1 the same leaves out the last events and [DONE]."""
    server.script.next(TruncateAfter(2))
    _, text = await _ask(client, server, {**CHAT, "stream": True}, "/v1/chat/completions")
    assert text.count("data: {") == 2
    assert "[DONE]" not in text


@pytest.mark.parametrize("parts", [0, 1, 2])
async def test_truncate_a_plain_answer(server: OllamaServer, client: aiohttp.ClientSession, parts: int) -> None:
    """So many halves of the body come, with a length that fits them."""
    server.script.next(TruncateAfter(parts))
    async with client.post(f"{server.url}/api/chat", json=PLAIN) as response:
        body = await response.read()
        assert response.headers["Content-Length"] == str(len(body))
    whole = (await _ask(client, server, PLAIN))[1]
    assert (len(body) == 0, len(body) >= len(whole) - 3) == (parts == 0, parts == 2)


async def test_error_line_in_a_stream(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """After so many lines an error stands in the stream, and the body ends."""
    server.script.next(ErrorLineAfter(1, "the runner died"))
    status, text = await _ask(client, server)
    lines = [json.loads(line) for line in text.splitlines()]
    assert (status, lines[-1], len(lines)) == (200, {"error": "the runner died"}, 2)


async def test_error_line_in_an_event_stream(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """Under /v1 it is an event with the envelope."""
    server.script.next(ErrorLineAfter(0))
    _, text = await _ask(client, server, {**CHAT, "stream": True}, "/v1/chat/completions")
    assert json.loads(text.removeprefix("data: "))["error"]["type"] == "api_error"


async def test_error_line_in_a_plain_answer(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A plain answer becomes a 500 with that error."""
    server.script.next(ErrorLineAfter(0, "the runner died"))
    assert await _ask(client, server, PLAIN) == (500, '{"error":"the runner died"}')


async def test_slow_load(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """No answer for the model begins until it is loaded, and one load serves all that wait."""
    await _ask(client, server)
    load = SlowLoad()
    server.script.next(load)
    asking = [asyncio.create_task(_ask(client, server)) for _ in range(3)]
    await server.wait_for(lambda server: server.runners.queued == 3)
    assert server.runners.loaded() == []
    load.event.set()
    assert {status for status, _ in await asyncio.gather(*asking)} == {200}
    assert server.runners.loads == {"smollm2:latest": 2}


async def test_slow_load_does_not_stop_loaded_models(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A model in memory answers while another is being loaded."""
    other = {**CHAT, "model": "other"}
    await _ask(client, server, other)
    load = SlowLoad()
    server.script.next(load)
    asking = asyncio.create_task(_ask(client, server))
    await server.wait_for(lambda server: server.runners.queued == 1)
    status, _ = await _ask(client, server, other)
    assert (status, asking.done()) == (200, False)
    load.event.set()
    await asking


async def test_one_who_leaves_aborts_only_his_own_load(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """When the request that loads leaves, the next that waits loads instead."""
    load = SlowLoad()
    server.script.next(load)
    first = asyncio.create_task(_ask(client, server))
    await server.wait_for(lambda server: server.runners.queued == 1)
    second = asyncio.create_task(_ask(client, server))
    await server.wait_for(lambda server: server.runners.queued == 2)
    first.cancel()
    await server.wait_for(lambda server: server.disconnects == 1)
    load.event.set()
    status, _ = await second
    assert (status, server.runners.loads.total()) == (200, 1)


async def test_next_comes_before_always(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """Faults for the next requests are used up in order, then the one for all counts."""
    server.script.always(Status(500))
    server.script.always(Status(501))
    server.script.next(Status(502), times=2)
    server.script.next(Status(503))
    statuses = [(await _ask(client, server))[0] for _ in range(5)]
    assert statuses == [502, 502, 503, 501, 501]
    server.script.clear()
    assert (await _ask(client, server))[0] == 200
    assert repr(server.script) == "<Script 0 next, 0 always>"


@pytest.mark.parametrize(
    ("on", "hit"),
    [
        ("work", ["/api/chat"]),
        ("any", ["/api/chat", "/api/tags"]),
        ("/api/t*", ["/api/tags"]),
        (lambda record: record.method == "GET", ["/api/tags"]),
    ],
)
async def test_faults_hit_what_they_are_for(
    server: OllamaServer,
    client: aiohttp.ClientSession,
    on: str | Callable[[RequestRecord], bool],
    hit: list[str],
) -> None:
    """By default probes are spared; a pattern or a function says otherwise."""
    server.script.always(Status(500), on=on)
    await _ask(client, server)
    async with client.get(f"{server.url}/api/tags") as response:
        await response.read()
    assert [record.path for record in server.requests if record.status == 500] == hit
    assert [record.path for record in server.requests if record.fault] == hit


def test_times_must_be_positive() -> None:
    """A fault for no request is a mistake in the test."""
    with pytest.raises(ValueError, match="at least 1, got 0"):
        OllamaServer().script.next(Busy(), times=0)


async def test_fault_of_ones_own(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A subclass may answer, and judge before each part."""

    class Third(Fault):
        async def on_request(self, exchange: Exchange) -> Plain | Cut | None:
            return Plain(402, b"pay") if exchange.record.index == 1 else None

        async def on_part(self, exchange: Exchange, sent: int) -> End | None:
            return End("no more") if sent == 1 and exchange.path == "/api/chat" else None

    server.script.always(Third())
    assert await _ask(client, server) == (402, "pay")
    status, text = await _ask(client, server)
    assert (status, text.splitlines()[-1]) == (200, '{"error":"no more"}')


async def test_a_stall_does_not_wait_for_a_token(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A fault comes before the gate: it strikes although no further token was let out."""
    gate = Gate(1)
    server.gate = gate
    server.script.next(DropAfter(1))
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        await _read_lines(response, 1)
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert gate.waiting == 0
