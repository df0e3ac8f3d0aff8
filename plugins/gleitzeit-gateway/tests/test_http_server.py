"""The HTTP server by itself, over real sockets: what it holds back, whom it cuts off, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from httptools import HttpRequestParser
from pydantic import ValidationError

from gleitzeit_gateway.answers import InParts, Reply, Whole, send
from gleitzeit_gateway.connections import Connections
from gleitzeit_gateway.http_parsing import MAX_FIELDS, MAX_HEAD_BYTES
from gleitzeit_gateway.http_request import Request
from gleitzeit_gateway.http_server import Server
from gleitzeit_gateway.options import GatewayOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[Request], Awaitable[Reply]]
    Start = Callable[..., Awaitable["Started"]]

LIMIT_S = 20


class Started:
    """A server that listens."""

    def __init__(self, server: Server, listener: asyncio.Server) -> None:
        self.server, self.listener = server, listener
        self.port = listener.sockets[0].getsockname()[1]
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which this was sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(sent)
        return reader, writer

    async def ask(self, sent: bytes) -> bytes:
        """What comes back until the connection is closed."""
        reader, _ = await self.connect(sent)
        return await reader.read()


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers around a handler, which are ended after the test."""
    started: list[Started] = []

    async def make(
        handler: Handler, *, keep_alive_s: float = 60.0, head_s: float = 60.0, max_headers: int = 100
    ) -> Started:
        async def answer(request: Request) -> bool:
            return await send(request, await handler(request))

        options = GatewayOptions(idle_timeout_s=keep_alive_s, head_timeout_s=head_s, max_headers=max_headers)
        guard = Connections(options)
        server = Server(answer, guard)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        started.append(Started(server, listener))
        return started[-1]

    async with asyncio.timeout(LIMIT_S):
        yield make
        for one in started:
            one.listener.close()
            await one.server.shutdown(0)
            one.server.guard.close()
            for writer in one.writers:
                writer.close()
            assert repr(one.server) == "<Server 0 connections>"


async def echo(request: Request) -> Whole:
    """The path, and the body."""
    return Whole(request.path.encode() + b" " + await request.read(10**9), content_type="text/plain")


def body_of(answer: bytes) -> bytes:
    """Without its head."""
    return answer.partition(b"\r\n\r\n")[2]


CLOSE = b"Connection: close\r\n\r\n"


# -- answers -------------------------------------------------------------------------------------------------------


async def test_forms_of_an_answer(start: Start) -> None:
    """Whole answers and those in parts have the form that their request can read, aiohttp's own among them."""

    async def handler(request: Request) -> Reply:
        if request.path == "/parts":
            parts = InParts(request, {"X": "y"})
            for part in (b"one", b"", b"two"):
                await parts.write(part)
            return parts
        if request.path == "/aiohttp":
            return web.Response(text="theirs", status=201)
        return Whole(b"whole", status=204 if request.path == "/204" else 200)

    server = await start(handler)
    whole = await server.ask(b"GET / HTTP/1.1\r\n" + CLOSE)
    assert whole.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: ")
    assert whole.endswith(b"\r\nConnection: close\r\n\r\nwhole")
    assert b"Content-Length: 5\r\n" in (head := await server.ask(b"HEAD / HTTP/1.1\r\n" + CLOSE))
    assert body_of(head) == b""
    none = await server.ask(b"GET /204 HTTP/1.1\r\n" + CLOSE)
    assert b"Content-Length" not in none
    assert body_of(none) == b""
    assert body_of(await server.ask(b"GET /parts HTTP/1.1\r\n" + CLOSE)) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert body_of(await server.ask(b"HEAD /parts HTTP/1.1\r\n" + CLOSE)) == b""
    assert body_of(await server.ask(b"GET /parts HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")) == b"onetwo"
    old = await server.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n")
    assert old.count(b"whole") == 2
    assert old.count(b"Connection: keep-alive") == 1
    theirs = await server.ask(b"GET /aiohttp HTTP/1.1\r\n\r\nGET /aiohttp HTTP/1.1\r\n" + CLOSE)
    assert theirs.count(b"HTTP/1.1 201 Created\r\n") == theirs.count(b"\r\n\r\ntheirs") == 2


async def test_header_that_would_begin_another(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """What stands in a header cannot end it: nothing of such an answer is sent, and the log says why."""
    values = iter(["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])

    async def handler(_: Request) -> Whole:
        return Whole(b"", headers={"X": next(values)})

    server = await start(handler)
    for _ in range(4):
        answer = await server.ask(b"GET / HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"Set-Cookie" not in answer
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "a header of the answer has characters that cannot be sent"
    ] * 4


async def test_handler_that_fails(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake is in the log; its caller gets a status, or, in the middle of an answer, no clean end."""

    async def handler(request: Request) -> Reply:
        if request.path == "/begun":
            await InParts(request, {}).write(b"begun")
        raise ValueError("a mistake")

    server = await start(handler)
    assert (await server.ask(b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
    assert body_of(await server.ask(b"GET /begun HTTP/1.1\r\n\r\n")) == b"5\r\nbegun\r\n"
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a mistake"] * 2


# -- order and back-pressure ---------------------------------------------------------------------------------------


async def test_thousands_sent_ahead(start: Start) -> None:
    """Requests that are sent ahead are answered in order, and are not even read much before their turn."""
    gate, seen = asyncio.Event(), []

    async def handler(request: Request) -> Whole:
        await gate.wait()
        seen.append(request.path)
        return Whole(b"")

    server = await start(handler)
    sent = b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(5000))
    asked = asyncio.create_task(server.ask(sent + b"GET /last HTTP/1.1\r\n" + CLOSE))
    while not (made := server.server.connections):
        await asyncio.sleep(0)
    (connection,) = made
    for _ in range(100):
        await asyncio.sleep(0.001)
        assert connection.ahead <= 300
    gate.set()
    assert (await asked).count(b"HTTP/1.1 200 OK") == 5001
    assert seen == [f"/{number}" for number in range(5000)] + ["/last"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_that_nobody_takes(start: Start, *, chunked: bool) -> None:
    """A large body is held back at its sender until it is taken, and comes whole."""
    begun, gate, unread, size = asyncio.Event(), asyncio.Event(), 0, 8_000_000

    async def handler(request: Request) -> Whole:
        nonlocal unread
        begun.set()
        await gate.wait()
        unread, whole = request.content.unread_bytes, await request.read(size)
        return Whole(b"%d" % len(whole))

    server = await start(handler)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size) if chunked else b"x" * size
    asked = asyncio.create_task(server.ask(b"POST / HTTP/1.1\r\n" + framing + b"\r\n" + CLOSE + body))
    await begun.wait()
    (connection,) = server.server.connections
    while connection.transport.is_reading():
        await asyncio.sleep(0)
    gate.set()
    assert body_of(await asked) == b"%d" % size
    assert unread <= 1_500_000


async def test_who_waits_holds_nothing(start: Start) -> None:
    """A connection that waits for another request keeps none of the last, whose body nobody has taken."""

    async def handler(_: Request) -> Whole:
        return Whole(b"no", status=401)

    server = await start(handler)
    reader, writer = await server.connect()
    gc.collect()
    for _ in range(2):
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000)
        assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 401 ")
        assert not [one for one in gc.get_objects() if isinstance(one, Request)]


async def test_who_is_refused_leaves_no_parser(start: Start) -> None:
    """What took a head apart that is refused is let go at once, and not left to the cycle collector."""
    server = await start(echo)
    gc.collect()
    gc.disable()
    try:
        for fields in (b"Host: a\r\nHost: b", b"X", b"Transfer-Encoding: gzip", b"\r\n".join([b"X: y"] * 200)):
            assert b" 4" in (await server.ask(b"GET / HTTP/1.1\r\n" + fields + b"\r\n\r\n"))[:10]
        assert b" 400 " in await server.ask(b"GET http://[/ HTTP/1.1\r\n\r\n")
        assert not [one for one in gc.get_objects() if isinstance(one, HttpRequestParser)]
    finally:
        gc.enable()


async def test_body_in_small_pieces_that_nobody_takes(start: Start) -> None:
    """A body that comes in pieces of a few kilobytes is held back at its sender, too, and comes whole."""
    begun, gate, seen = asyncio.Event(), asyncio.Event(), []

    async def handler(request: Request) -> Whole:
        seen.append(request.content)
        begun.set()
        await gate.wait()
        return Whole(b"%d" % len(await request.read(10_000_000)))

    server = await start(handler)
    piece, count = b"x" * 2000, 1000
    reader, writer = await server.connect(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n" % (len(piece) * count) + CLOSE)
    await begun.wait()
    for _ in range(count):
        writer.write(piece)
        await asyncio.sleep(0)
        assert seen[0].unread_bytes <= 600_000
    gate.set()
    assert body_of(await reader.read()) == b"%d" % (len(piece) * count)


async def test_caller_who_does_not_read(start: Start) -> None:
    """Writing waits for a slow reader; when that one leaves, the handler is cancelled."""
    written, cancelled = 0, asyncio.Event()

    async def handler(request: Request) -> Reply:
        nonlocal written
        parts = InParts(request, {})
        try:
            while True:
                await parts.write(b"x" * 100_000)
                written += 100_000
        except asyncio.CancelledError:
            cancelled.set()
            raise

    server = await start(handler)
    reader, writer = await server.connect(b"GET / HTTP/1.1\r\n\r\n")
    await reader.readexactly(100)
    before = -1
    while written != before:
        before = written
        await asyncio.sleep(0.05)
    writer.transport.abort()
    await cancelled.wait()


async def test_leaving_cancels(start: Start) -> None:
    """Who closes, or sends no more, while an answer is worked out has left: the work is cancelled."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(_: Request) -> Reply:
        begun.set()
        with contextlib.suppress(TimeoutError):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()
        return Whole(b"")

    server = await start(handler)
    for leave in (lambda w: w.close(), lambda w: w.write_eof(), lambda w: w.transport.abort()):
        begun.clear()
        cancelled.clear()
        _, writer = await server.connect(b"GET / HTTP/1.1\r\n\r\n")
        await begun.wait()
        leave(writer)
        await cancelled.wait()


# -- who waits too long --------------------------------------------------------------------------------------------


async def test_answer_before_the_body(start: Start) -> None:
    """Who is answered without being read gets the whole answer, however much is sent after it, and is then cut off."""

    async def handler(_: Request) -> Whole:
        return Whole(b"x" * 100_000, status=413)

    server = await start(handler)
    reader, writer = await server.connect(b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(50):
        writer.write(b"x" * 100_000)
        await writer.drain()
    assert len(body_of(await reader.read())) == 100_000
    (left,) = server.server.connections
    assert left.lingers
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\n\r\n"])
async def test_connection_that_waits(start: Start, sent: bytes) -> None:
    """A connection on which nothing comes, or not the rest of a head, is closed; so is one that has been answered."""
    server = await start(echo, keep_alive_s=0.1, head_s=0.1)
    reader, _ = await server.connect(sent)
    with contextlib.suppress(ConnectionResetError):
        answer = await reader.read()
        assert answer[:12] == {b"": b"", b"GET / HT": b"HTTP/1.1 408"}.get(sent, b"HTTP/1.1 200")
    while server.server.connections:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "framed", [b"Content-Length: 1\r\n\r\na", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"\r\n"]
)
@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nX: y\r\n"])
async def test_head_sent_ahead_that_does_not_come(start: Start, framed: bytes, sent: bytes) -> None:
    """Its beginning may come with the request before it: it has the time of a head, and not that of an idle caller."""
    server = await start(echo, head_s=0.1)
    answer = await server.ask(b"POST / HTTP/1.1\r\n" + framed + sent)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"408"]
    assert b"slow_request" in answer


async def test_head_sent_ahead_comes_in_time(start: Start) -> None:
    """The rest of one that was begun while the request before it was at work is read as any other, whatever it took."""
    gate = asyncio.Event()

    async def handler(request: Request) -> Whole:
        await gate.wait()
        return Whole(request.path.encode())

    server = await start(handler, head_s=0.2, keep_alive_s=0.2)
    reader, writer = await server.connect(b"GET /a HTTP/1.1\r\n\r\nGET /b")
    await asyncio.sleep(0.4)
    gate.set()
    assert (await reader.readuntil(b"/a")).startswith(b"HTTP/1.1 200 ")
    writer.write(b" HTTP/1.1\r\n" + CLOSE)
    assert body_of(await reader.read()) == b"/b"


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n" * 9])
async def test_too_many_headers(start: Start, before: bytes) -> None:
    """Also of a request that is sent ahead: those before it are answered, it is refused, and nothing follows."""
    server = await start(echo, max_headers=3)
    usual, large = (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * count + b"\r\n" for count in (3, 4))
    answer = await server.ask(before + usual + large + usual)
    count = before.count(b"GET") + 1
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200"] * count + [b"431"]
    assert b'"code":"head_too_large"' in answer


async def test_refused_once(start: Start) -> None:
    """What is no request is told so, and not that it was slow as well, however little time there is for a head."""
    server = await start(echo, head_s=0.1)
    for before in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        reader, writer = await server.connect(before + b"GET / HTTP/1.1\r\nX")
        for _ in range(before.count(b"GET")):
            assert (await reader.readuntil(b"\r\n\r\n/ ")).startswith(b"HTTP/1.1 200 ")
        writer.write(b" : y\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1
        await asyncio.sleep(0.2)
        (left,) = server.server.connections
        assert left.lingers
        writer.close()
        while server.server.connections:
            await asyncio.sleep(0)


async def test_limits_that_change(start: Start) -> None:
    """A head that was allowed all along is looked at anew when less is allowed, also on a connection that is open."""
    server = await start(echo, max_headers=3)
    sent = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 3 + b"\r\n"
    reader, writer = await server.connect(sent)
    assert (await reader.readuntil(b"\r\n\r\n/ ")).startswith(b"HTTP/1.1 200 ")
    server.server.guard.options = server.server.guard.options.model_copy(update={"max_headers": 2})
    server.server.forget_heads()
    writer.write(sent)
    assert (await reader.read()).startswith(b"HTTP/1.1 431 ")


async def test_work_has_time(start: Start) -> None:
    """None of these limits counts while an answer is worked out or sent."""
    gate = asyncio.Event()

    async def handler(_: Request) -> Whole:
        await gate.wait()
        return Whole(b"done")

    server = await start(handler, keep_alive_s=0.05, head_s=0.05)
    asked = asyncio.create_task(server.ask(b"GET / HTTP/1.1\r\n" + CLOSE))
    await asyncio.sleep(0.3)
    gate.set()
    assert body_of(await asked) == b"done"


# -- the end -------------------------------------------------------------------------------------------------------


async def test_shutdown(start: Start) -> None:
    """At the end idle connections are closed at once, answers get their time, and what is left then is cut."""
    gate, begun, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Whole:
        begun.set()
        try:
            await gate.wait() if request.path == "/soon" else await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Whole(b"done")

    server = await start(handler)
    idle, _ = await server.connect()
    soon = asyncio.create_task(server.ask(b"GET /soon HTTP/1.1\r\n\r\nGET /never HTTP/1.1\r\n\r\n"))
    await begun.wait()
    begun.clear()
    late, _ = await server.connect(b"GET /late HTTP/1.1\r\n\r\n")
    await begun.wait()
    ending = asyncio.create_task(server.server.shutdown(0.3))
    assert await idle.read() == b""
    gate.set()
    assert (await soon).count(b"HTTP/1.1 200 OK") == 1
    assert not cancelled.is_set()
    await ending
    assert cancelled.is_set()
    with contextlib.suppress(ConnectionResetError):
        assert await late.read() == b""


def test_limits_are_those_of_the_reader() -> None:
    """A limit that can be configured is never above the one that is built in, which would refuse first."""
    assert GatewayOptions(max_head_bytes=MAX_HEAD_BYTES).max_headers <= MAX_FIELDS
    with pytest.raises(ValidationError, match="max_head_bytes"):
        GatewayOptions(max_head_bytes=MAX_HEAD_BYTES + 1)
    with pytest.raises(ValidationError, match="max_headers"):
        GatewayOptions(max_headers=MAX_FIELDS + 1)
