"""Callers who mean no good, or whose network does not: others are served meanwhile, and what they cost is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import resource
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import pytest

from gleitzeit_ollama.testing import Gate, HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]
    Connect = Callable[..., Awaitable[Connected]]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
QUESTION: Final = {"model": "smollm2", "stream": False, "messages": [{"role": "user", "content": "hi"}]}
BODY: Final = json.dumps(QUESTION).encode()
LIMIT_S: Final = 120
MIB: Final = 1024 * 1024
ALIVE: Final = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWERED_ALIVE: Final = b'{"status":"ok"}'


def chat(*headers: str, length: int | None = len(BODY)) -> bytes:
    """The head of a chat."""
    lines = ["POST /api/chat HTTP/1.1", "Host: localhost", *headers]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough


def memory_bytes() -> int:
    """How much memory this process has, in RAM."""
    gc.collect()
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """As many open files as this process may have at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[Connected]]]:
    """Opens bare connections, which are closed in the end. The function takes the gateway and what to send first."""
    opened: list[asyncio.StreamWriter] = []

    async def start(gateway: RunningGateway, sent: bytes = b"") -> Connected:
        reader, writer = await gateway.connect()
        opened.append(writer)
        writer.write(sent)
        return reader, writer

    yield start
    for writer in opened:
        writer.transport.abort()
    await asyncio.sleep(0)


async def at_most_open(limit: int) -> None:
    """Wait until this process has so few files and sockets open."""
    async with asyncio.timeout(LIMIT_S):
        while await asyncio.to_thread(descriptors) > limit:
            await asyncio.sleep(0.001)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed, by FIN or RST."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65536):
            got += part
    return bytes(got)


async def pour(writer: asyncio.StreamWriter, parts: Iterable[bytes]) -> int:
    """Send until all is sent or the other side has had enough; how many bytes were taken from us."""
    taken = 0
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            if writer.transport.is_closing():
                break
            taken += len(part)
    return taken


def reads_nothing(writer: asyncio.StreamWriter) -> None:
    """Let what comes on a connection lie where it is."""
    cast("asyncio.Transport", writer.transport).pause_reading()


async def others_are_served(gateway: RunningGateway) -> None:
    """A usual caller gets a usual answer."""
    answered = await gateway.chat()
    assert (answered.status, answered.json["message"]["content"]) == (200, "You said: hi")


# -- slow ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"P", chat()[:-2]], ids=["nothing", "a byte", "all but the end"])
async def test_head_that_does_not_come(serve: Serve, ollama: OllamaServer, connect: Connect, sent: bytes) -> None:
    """Who has not sent the head of a request in time is told so, if anything was sent, and is cut off."""
    gateway = await serve(ollama, head_timeout_s=0.2)
    reader, _ = await connect(gateway, sent)
    async with asyncio.timeout(LIMIT_S):
        answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 408 ") == bool(sent)
    await others_are_served(gateway)


async def test_heads_a_byte_at_a_time(serve: Serve, ollama: OllamaServer, connect: Connect, *, full_size: bool) -> None:
    """A byte now and then buys no time; meanwhile others are served, and then nothing is left of the slow ones."""
    gateway = await serve(ollama, head_timeout_s=0.5)
    await others_are_served(gateway)
    before = await asyncio.to_thread(descriptors)
    slow = [await connect(gateway) for _ in range(1000 if full_size else 100)]

    async def drip(connected: Connected) -> bytes:
        reader, writer = connected
        answer = asyncio.ensure_future(read_all(reader))
        for number in range(10**6):
            if answer.done():
                break
            writer.write(b"GET / HTTP/1.1\r\nX: "[number : number + 1] or b"x")
            await asyncio.sleep(0.01)
        writer.close()
        return await answer

    async with asyncio.timeout(LIMIT_S):
        dripping = [asyncio.ensure_future(drip(one)) for one in slow]
        while not all(task.done() for task in dripping):
            await others_are_served(gateway)
        assert all(task.result().startswith((b"HTTP/1.1 408 ", b"")) for task in dripping)
        await at_most_open(before)


async def test_bodies_a_byte_at_a_time(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """The same with bodies; their callers hold no slot until all is there."""
    gateway = await serve(ollama, hub={"max_concurrent": 1})
    slow = [await connect(gateway, chat()) for _ in range(50)]
    async with asyncio.timeout(LIMIT_S):
        for number in range(len(BODY) - 1):
            for _, writer in slow:
                writer.write(BODY[number : number + 1])
            if number % 20 == 0:
                await others_are_served(gateway)
        assert gateway.in_flight == 0
        for reader, writer in slow:
            writer.write(BODY[-1:])
            assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"


async def test_idle_connection(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """A connection that has had its answer is closed without a word when no other request comes."""
    gateway = await serve(ollama, idle_timeout_s=0.2)
    reader, _ = await connect(gateway, ALIVE)
    async with asyncio.timeout(LIMIT_S):
        assert (await read_all(reader)).endswith(ANSWERED_ALIVE)


async def test_caller_who_never_reads(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """The one slot goes to the next when a caller has taken nothing for too long; until then little is kept for it."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, send_timeout_s=0.5)
    words = 100_000
    ollama.reply = lambda _: ["word " * 1000] * words
    body = json.dumps({**QUESTION, "stream": True}).encode()
    before = memory_bytes()
    _, writer = await connect(gateway, chat(length=len(body)) + body)
    reads_nothing(writer)
    async with asyncio.timeout(LIMIT_S):
        await ollama.wait_for(lambda server: server.in_flight == 1)
        waiting = asyncio.ensure_future(gateway.chat())
        await gateway.until(lambda: gateway.waiting == 1)
        ollama.reply = lambda _: ["hi"]
        assert (await waiting).status == 200
    (hog, _) = [record for record in ollama.requests if record.body]
    assert hog.disconnected
    # What lies in the sockets' own buffers on the way, and no more: 500 MB would have been sent.
    assert hog.tokens < words / 10
    assert memory_bytes() - before < 64 * MIB


async def test_callers_who_never_read_whole_answers(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """A whole answer that nobody reads holds no slot; others are served."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, send_timeout_s=0.5)
    ollama.reply = lambda _: ["x" * 8 * MIB]
    for _ in range(3):
        _, writer = await connect(gateway, chat() + BODY)
        reads_nothing(writer)
    async with asyncio.timeout(LIMIT_S):
        await ollama.wait_for(lambda server: sum(r.finished for r in server.requests if r.body) == 3)
        ollama.reply = lambda _: ["You said: hi"]
        await others_are_served(gateway)
        await gateway.until(lambda: "0 requests" in repr(gateway.gateway))


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


# -- many ----------------------------------------------------------------------------------------------------------


async def test_requests_sent_far_ahead(
    serve: Serve, ollama: OllamaServer, connect: Connect, *, full_size: bool
) -> None:
    """They are answered in order, one at a time; meanwhile others are served."""
    gateway = await serve(ollama)
    count = 5000 if full_size else 500
    paths = [f"/v1/models/smollm2?{number}" if number % 2 else f"/nope/{number}" for number in range(count)]
    reader, writer = await connect(gateway)

    async def answers() -> list[bytes]:
        got = []
        for _ in paths:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
            await reader.readexactly(size)
            got.append(head[9:12])
        return got

    async with asyncio.timeout(LIMIT_S):
        answered = asyncio.ensure_future(answers())
        sent = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths]
        pouring = asyncio.ensure_future(pour(writer, sent))
        await others_are_served(gateway)
        assert await answered == [b"200" if number % 2 else b"404" for number in range(count)]
        await pouring


async def test_requests_sent_ahead_and_not_read(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """Who sends without end and reads nothing is held back, and then cut off."""
    gateway = await serve(ollama, send_timeout_s=0.5)
    before = memory_bytes()
    _, writer = await connect(gateway)
    reads_nothing(writer)
    async with asyncio.timeout(LIMIT_S):
        async with asyncio.TaskGroup() as group:
            pouring = group.create_task(pour(writer, itertools.repeat(ALIVE * 100)))
            while not pouring.done():
                await others_are_served(gateway)
    assert pouring.result() < 100 * MIB
    assert memory_bytes() - before < 64 * MIB


async def test_thousands_of_idle_connections(
    serve: Serve, ollama: OllamaServer, connect: Connect, *, full_size: bool
) -> None:
    """They cost little and others are served; above the limit the one that has been idle for longest makes room."""
    room = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2
    count = min(5000, room) if full_size else 300
    kept = count * 4 // 5
    gateway = await serve(ollama, max_connections=kept)
    before, open_before = memory_bytes(), await asyncio.to_thread(descriptors)
    async with asyncio.timeout(LIMIT_S):
        idle = []
        for _ in range(count):
            idle.append(await connect(gateway, ALIVE))
            assert (await idle[-1][0].readuntil(b"}")).endswith(ANSWERED_ALIVE)
        await others_are_served(gateway)
        assert [reader.at_eof() or await reader.read(1) == b"" for reader, _ in idle[: count - kept]]
        # The last ones can still be used.
        for reader, writer in idle[-3:]:
            writer.write(ALIVE)
            assert (await reader.readuntil(b"}")).endswith(ANSWERED_ALIVE)
        await at_most_open(open_before + count + kept + 20)
    assert memory_bytes() - before < count * 40_000 + 8 * MIB


async def test_all_connections_at_work(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """One more than may be is refused with 503 and a time to come back; no work is broken off for it."""
    gateway = await serve(ollama, max_connections=3)
    ollama.gate = gate = Gate()
    async with asyncio.timeout(LIMIT_S):
        working = [await connect(gateway, chat() + BODY) for _ in range(3)]
        await ollama.wait_for(lambda server: server.in_flight == 3)
        reader, _ = await connect(gateway)
        refused = await read_all(reader)
        gate.open()
        for reader, _ in working:
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        # They are idle now, and one makes room.
        reader, _ = await connect(gateway, ALIVE)
        assert (await reader.readuntil(b"}")).endswith(ANSWERED_ALIVE)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in refused
    assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"


async def test_slow_heads_make_room(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """Who fills all connections with beginnings of requests keeps nobody out."""
    gateway = await serve(ollama, max_connections=20)
    slow = [await connect(gateway, b"GET / HTTP") for _ in range(40)]
    async with asyncio.timeout(LIMIT_S):
        await others_are_served(gateway)
        assert [await read_all(reader) for reader, _ in slow[:20]] == [b""] * 20


async def test_connections_that_come_and_go(serve: Serve, ollama: OllamaServer, *, full_size: bool) -> None:
    """Whatever they leave behind in the middle of, nothing of it stays."""
    gateway = await serve(ollama)
    await others_are_served(gateway)
    beginnings = [b"", b"G", chat(), chat() + BODY[:9], chat() + BODY, ALIVE, b"\x16\x03\x01", ALIVE * 9, b"G" * 70_000]
    before, tasks = await asyncio.to_thread(descriptors), len(asyncio.all_tasks())

    async def come_and_go(number: int) -> None:
        _, writer = await gateway.connect()
        writer.write(beginnings[number % len(beginnings)])
        if number % 3:
            await writer.drain()
        if number % 2:
            writer.transport.abort()
        writer.close()

    async with asyncio.timeout(LIMIT_S):
        for number in range(0, 5000 if full_size else 400, 20):
            await asyncio.gather(*(come_and_go(number + step) for step in range(20)))
            if number % 100 == 0:
                await others_are_served(gateway)
        await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
        await gateway.until(lambda: (gateway.in_flight, gateway.waiting) == (0, 0))
        await ollama.wait_for(lambda server: server.in_flight == 0)
        await gateway.until(lambda: len(asyncio.all_tasks()) <= tasks + 4)
        # Connections to the instance may be kept.
        await at_most_open(before + 16)
