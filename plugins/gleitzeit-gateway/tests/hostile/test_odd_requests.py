"""Requests that are too large, or that are not what they say: refused, and what they cost is bounded."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
from typing import TYPE_CHECKING, Final

import pytest

from gleitzeit_ollama.testing import HangBeforeHeaders, OllamaServer

from .callers import (
    BODY,
    LIMIT_S,
    MIB,
    QUESTION,
    chat,
    memory_bytes,
    others_are_served,
    pour,
    read_all,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]
    Connect = Callable[..., Awaitable[Connected]]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


# -- too much ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 4 * MIB + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 90 + b"\r\n",
        b"GET /" + b"y" * 4 * MIB + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["10,000 headers", "a header of 4 MiB", "90 large headers", "a path of 4 MiB"],
)
@pytest.mark.parametrize("pieces", [1, 64], ids=["at once", "in pieces"])
async def test_head_that_is_too_large(
    serve: Serve, ollama: OllamaServer, connect: Connect, head: bytes, pieces: int
) -> None:
    """It is 431, long before all of it is read; the next caller is served."""
    gateway = await serve(ollama)
    reader, writer = await connect(gateway)
    size = -(-len(head) // pieces)
    async with asyncio.timeout(LIMIT_S):
        answer = asyncio.ensure_future(read_all(reader))
        await pour(writer, (head[at : at + size] for at in range(0, len(head), size)))
        answered = await answer
    # A caller who still sends when the connection is closed may lose the answer; its system throws it away.
    assert answered.startswith(b"HTTP/1.1 431 ") or not answered
    assert b"Traceback" not in answered
    await others_are_served(gateway)


async def test_heads_of_megabytes_are_not_kept(
    serve: Serve, ollama: OllamaServer, connect: Connect, *, full_size: bool
) -> None:
    """Many of them at once cost next to nothing."""
    gateway = await serve(ollama)
    await others_are_served(gateway)
    before, piece = memory_bytes(), b"y" * 65536
    many = [await connect(gateway, b"GET / HTTP/1.1\r\nX: ") for _ in range(200 if full_size else 20)]
    async with asyncio.timeout(LIMIT_S):
        pouring = [asyncio.ensure_future(pour(writer, [piece] * 160)) for _, writer in many]
        while not all(task.done() for task in pouring):
            await others_are_served(gateway)
    assert memory_bytes() - before < 64 * MIB


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/nope", "/admin/instances"])
async def test_body_without_an_end(serve: Serve, ollama: OllamaServer, connect: Connect, path: str) -> None:
    """A body in chunks that never ends is refused, or not looked at; its connection is closed, others are served."""
    gateway = await serve(ollama, max_body_bytes=MIB)
    verb = "GET" if path == "/api/tags" else "POST"
    head = f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    reader, writer = await connect(gateway, head)
    before = memory_bytes()
    async with asyncio.timeout(LIMIT_S):
        answer = asyncio.ensure_future(reader.readline())
        chunk = b"10000\r\n" + b"y" * 65536 + b"\r\n"
        await pour(writer, itertools.takewhile(lambda _: not answer.done(), itertools.repeat(chunk)))
        status = (await answer).split(b" ")[1:2]
        await others_are_served(gateway)
    expected = {"/api/chat": b"413", "/api/tags": b"200", "/nope": b"404", "/admin/instances": b"415"}
    assert status in ([expected[path]], [])
    assert memory_bytes() - before < 32 * MIB


# -- half-truths ---------------------------------------------------------------------------------------------------

SMUGGLED: Final = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
TWO_LENGTHS: Final = {
    "both": ("Transfer-Encoding: chunked", f"Content-Length: {len(BODY)}"),
    "both, the other way round": (f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"),
    "two lengths": ("Content-Length: 3", f"Content-Length: {len(BODY)}"),
    "a list": (f"Content-Length: 3, {len(BODY)}",),
    "negative": ("Content-Length: -1",),
    "signed": (f"Content-Length: +{len(BODY)}",),
    "hexadecimal": ("Content-Length: 0x10",),
    "endless": ("Content-Length: " + "9" * 40,),
    "not chunked last": ("Transfer-Encoding: chunked, identity",),
    "not quite chunked": ("Transfer-Encoding: xchunked", f"Content-Length: {len(BODY)}"),
    "a space before the colon": ("Transfer-Encoding : chunked", f"Content-Length: {len(BODY)}"),
    "a folded line": ("X: y\r\n Transfer-Encoding: chunked\r\n\tz", "Content-Length: x"),
}


@pytest.mark.parametrize("headers", TWO_LENGTHS.values(), ids=TWO_LENGTHS)
async def test_body_whose_length_is_in_doubt(
    serve: Serve,
    ollama: OllamaServer,
    connect: Connect,
    headers: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where two could differ on where a request ends it is refused whole, and nothing after it is looked at."""
    gateway = await serve(ollama)
    reader, _ = await connect(gateway, chat(*headers, length=None) + BODY + SMUGGLED)
    async with asyncio.timeout(LIMIT_S):
        answered = await read_all(reader)
    assert answered.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert answered.count(b"HTTP/1.") == 1
    # Not in the words of what it is made of, nor with what was sent.
    assert json.loads(answered.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
    assert b"aiohttp" not in answered
    assert [record for record in caplog.records if record.levelname != "INFO"] == []
    assert not [record for record in ollama.requests if record.body]
    await others_are_served(gateway)


async def test_body_shorter_than_said(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """Its caller has left in the middle of it: no instance hears of it."""
    gateway = await serve(ollama)
    _, writer = await connect(gateway, chat(length=len(BODY) + 1) + BODY)
    async with asyncio.timeout(LIMIT_S):
        await gateway.until(lambda: "1 requests" in repr(gateway.gateway))
        writer.close()
        await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
    assert not [record for record in ollama.requests if record.body]
    await others_are_served(gateway)


async def test_body_longer_than_said(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """What is too much is no request: the one before it is answered, the rest is refused, and others are served."""
    gateway = await serve(ollama)
    reader, writer = await connect(gateway, chat() + BODY)
    async with asyncio.timeout(LIMIT_S):
        assert (await reader.readuntil(b'"done":true')).startswith(b"HTTP/1.1 200 ")
        writer.write(b"}}}}\r\n\r\n")
        rest = await read_all(reader)
    assert b"HTTP/1.0 400 " in rest or b"HTTP/1.1 400 " in rest
    assert b"Traceback" not in rest
    await others_are_served(gateway)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_half_close(serve: Serve, ollama: OllamaServer, connect: Connect, *, stream: bool) -> None:
    """Who closes the sending side has left, as far as anybody can tell: upstream is closed, and the slot is free."""
    gateway = await serve(ollama, hub={"max_concurrent": 1})
    ollama.script.next(hang := HangBeforeHeaders())
    body = json.dumps({**QUESTION, "stream": stream}).encode()
    reader, writer = await connect(gateway, chat(length=len(body)) + body)
    async with asyncio.timeout(LIMIT_S):
        await hang.reached.wait()
        writer.write_eof()
        await ollama.wait_for(lambda server: server.disconnects == 1)
        await others_are_served(gateway)
        assert await read_all(reader) == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00" * 600,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 600,
    ],
    ids=["http", "zeros", "nearly TLS"],
)
async def test_garbage_in_place_of_tls(
    serve: Serve, ollama: OllamaServer, connect: Connect, certificate: Path, sent: bytes
) -> None:
    """Who speaks no TLS is cut off, and who does is served; one who says nothing at all is in nobody's way."""
    gateway = await serve(ollama, tls={"certificate": str(certificate)})
    silent = [await connect(gateway) for _ in range(20)]
    reader, _ = await connect(gateway, sent)
    context = await asyncio.to_thread(ssl.create_default_context, cafile=str(certificate))
    async with asyncio.timeout(LIMIT_S):
        assert b"HTTP" not in await read_all(reader)
        async with gateway.session.get(gateway.url + "/health/ready", ssl=context) as response:
            assert response.status == 200
    assert not any(reader.at_eof() for reader, _ in silent)
