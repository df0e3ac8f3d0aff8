"""Connections of our own: how bodies end, what is kept, who has to wait for whom, and what closes at once."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.resources import HttpChannel
from gleitzeit_llm import connections
from gleitzeit_llm.connections import origin_of, target
from gleitzeit_llm.exchange import request_head
from gleitzeit_llm.upstream import Upstream, read_whole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Line = Any
    Serve = Callable[..., Awaitable[Any]]

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def saying(*pieces: bytes, close: bool = False) -> Callable[[Line], Awaitable[None]]:
    """A server that answers every request with these bytes, the loop turned between them."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            for piece in pieces:
                line.send(piece)
                await line.flush()
                await asyncio.sleep(0)
            if close:
                return

    return handle


async def body_of(upstream: Upstream, channel: HttpChannel, *, stream: bool) -> bytes:
    """The body of an answer, asked for in one of the two ways."""
    if not stream:
        return (await upstream.request(channel, "POST", "/", b"{}")).body
    async with upstream.stream(channel, "POST", "/", b"{}") as response:
        return b"".join([data async for data in response.content.iter_any()])


# -- how a body ends -----------------------------------------------------------------------------------------------

BODIES = {
    "length": (OK + b"Content-Length: 6\r\n\r\nabc", b"def"),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n", b"3\r\nde", b"f\r\n0\r\n", b"T: 1\r\n\r\n"),
    "after interim answers": (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", OK + b"Content-Length: 6\r\n\r\nabcdef"),
    "byte by byte": tuple(bytes([byte]) for byte in OK + b"Content-Length: 6\r\n\r\nabcdef"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("pieces", BODIES.values(), ids=BODIES)
async def test_a_body_that_says_where_it_ends(
    serve: Serve, upstream: Upstream, pieces: tuple[bytes, ...], *, stream: bool
) -> None:
    """It is read to its end, and its connection is used again."""
    server = await serve(saying(*pieces))
    for _ in range(2):
        assert await body_of(upstream, server.channel, stream=stream) == b"abcdef"
    assert server.lines == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_that_ends_with_its_connection(
    serve: Serve, upstream: Upstream, version: bytes, *, stream: bool
) -> None:
    """The end of the connection is the end of the answer, when nothing else is said."""
    server = await serve(saying(b"HTTP/" + version + b" 200 OK\r\n\r\nabc", b"def", close=True))
    for _ in range(2):
        assert await body_of(upstream, server.channel, stream=stream) == b"abcdef"
    assert server.lines == 2


async def test_a_body_that_ends_with_a_reset_is_lost(serve: Serve, upstream: Upstream) -> None:
    """A connection that breaks is no end of an answer."""

    async def handle(line: Line) -> None:
        await line.request()
        line.send(OK + b"\r\nabc")
        await line.flush()
        line.reset()

    with pytest.raises(InstanceFailure) as caught:
        await body_of(upstream, (await serve(handle)).channel, stream=True)
    assert caught.value.kind is FailureKind.LOST


@pytest.mark.parametrize("status", [204, 205])
async def test_an_answer_without_a_body(serve: Serve, upstream: Upstream, status: int) -> None:
    """Nothing is waited for."""
    length = b"" if status == 204 else b"Content-Length: 0\r\n"
    server = await serve(saying(b"HTTP/1.1 %d Empty\r\n%b\r\n" % (status, length)))
    for _ in range(2):
        assert await body_of(upstream, server.channel, stream=False) == b""
    assert server.lines == 1


async def test_head_has_no_body(serve: Serve, upstream: Upstream) -> None:
    """Its answer ends with its head, whatever the length in it."""
    server = await serve(saying(OK + b"Content-Length: 10\r\n\r\n"))
    assert (await upstream.request(server.channel, "HEAD", "/")).body == b""


async def test_parts_come_before_what_broke(serve: Serve, upstream: Upstream) -> None:
    """A break is told after everything that had come."""
    server = await serve(saying(OK + b"Content-Length: 9\r\n\r\nabc", b"def", close=True))
    found = b""

    async def read() -> None:
        nonlocal found
        async with upstream.stream(server.channel, "GET", "/") as response:
            async for data in response.content.iter_any():
                found += data

    with pytest.raises(InstanceFailure, match="broke off in its answer"):
        await read()
    assert found == b"abcdef"


# -- compressed without being asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body(
    serve: Serve, upstream: Upstream, name: str, compress: Callable[[bytes], bytes], *, stream: bool
) -> None:
    """It is decompressed, however large it becomes."""
    body = b"a" * 5_000_000
    sent = compress(body)
    head = OK + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (name.encode(), len(sent))
    server = await serve(saying(head + sent[:100], sent[100:]))
    assert await body_of(upstream, server.channel, stream=stream) == body


async def test_a_compressed_body_has_the_same_limit(serve: Serve, upstream: Upstream) -> None:
    """What counts is what becomes of it, and no more than that is made of it."""
    sent = gzip.compress(b"a" * 5_000_000)
    server = await serve(saying(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent))
    with pytest.raises(InstanceFailure, match="answered more than 100000 bytes"):
        async with upstream.stream(server.channel, "GET", "/") as response:
            await read_whole(response, 100_000)


@pytest.mark.parametrize(
    ("name", "sent"),
    [("br", b"x"), ("gzip", b"no gzip"), ("gzip", gzip.compress(b"a" * 100)[:-10])],
    ids=["unknown", "garbage", "cut"],
)
async def test_what_cannot_be_decompressed(serve: Serve, upstream: Upstream, name: str, sent: bytes) -> None:
    """Something else, no such thing, or half of it: that is the server's fault."""
    head = OK + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (name.encode(), len(sent))
    server = await serve(saying(head + sent))
    with pytest.raises(InstanceFailure) as caught:
        await body_of(upstream, server.channel, stream=False)
    assert caught.value.kind is FailureKind.SERVER_ERROR


# -- what is kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        OK + b"Content-Length: 2\r\n\r\n{}{}",
        OK + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    ],
    ids=["close", "old version", "more than there should be", "an answer too many"],
)
async def test_a_connection_that_cannot_be_used_again(serve: Serve, upstream: Upstream, answer: bytes) -> None:
    """It is closed at once, and what nobody asked for is never taken for an answer."""
    gone = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.send(answer)
        await line.gone()
        gone.set()

    server = await serve(handle)
    for _ in range(2):
        gone.clear()
        assert (await upstream.request(server.channel, "POST", "/", b"{}")).body == b"{}"
        await gone.wait()
    assert server.lines == 2


async def test_what_nobody_asked_for_closes_an_idle_connection(serve: Serve, upstream: Upstream) -> None:
    """Else it would be the answer to the next request."""
    gone = asyncio.Event()
    late = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"{}")
        if server.lines == 1:
            await late.wait()
            line.answer(b'{"wrong":true}')
            await line.gone()
            gone.set()

    server = await serve(handle)
    await upstream.request(server.channel, "GET", "/")
    late.set()
    await gone.wait()
    assert (await upstream.request(server.channel, "GET", "/")).body == b"{}"
    assert server.lines == 2


async def test_old_connections_are_closed(serve: Serve, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used for a while goes."""
    monkeypatch.setattr(connections, "_KEEP_S", 0.01)
    gone = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"{}")
        await line.gone()
        gone.set()

    server = await serve(handle)
    await upstream.request(server.channel, "GET", "/")
    await gone.wait()
    await upstream.request(server.channel, "GET", "/")
    assert server.lines == 2


async def test_connections_of_different_trust_are_not_mixed(
    serve: Serve, upstream: Upstream, certificate: Path
) -> None:
    """One context's connection says nothing about what another one trusts."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            line.answer(b"{}")

    server = await serve(handle, tls=True)
    trusting = HttpChannel(server.url, tls=ssl.create_default_context(cafile=certificate))
    for _ in range(2):
        await upstream.request(trusting, "GET", "/")
    assert server.lines == 1
    with pytest.raises(InstanceFailure, match="certificate"):
        await upstream.request(server.channel, "GET", "/")


async def test_an_answer_nobody_reads_to_its_end_that_is_there_keeps_its_connection(
    serve: Serve, upstream: Upstream
) -> None:
    """All of it has come: nothing stands in the way of the next."""
    server = await serve(saying(OK + b"Content-Length: 2\r\n\r\n{}"))
    for _ in range(2):
        async with upstream.stream(server.channel, "GET", "/") as response:
            assert response.status == 200
    assert server.lines == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_answers_with_one_head_and_many_lengths(serve: Serve, upstream: Upstream, *, stream: bool) -> None:
    """On one connection each is read as it is, however it is cut, refusals and chunks between them too."""
    sizes = (2, 0, 10, 100_000, 9, 2_000_000, 3)
    bodies = iter([b"x" * size for size in sizes])

    async def handle(line: Line) -> None:
        while (await line.request()).path == "/":
            body = next(bodies)
            sent = OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            cut = len(body) % 4 * 40
            for piece in (sent[:cut], sent[cut : cut + 40], sent[cut + 40 :]):
                line.send(piece)
                await line.flush()
                await asyncio.sleep(0)
            await line.request()
            line.answer(b"{}", status="404 No")
            await line.request()
            line.send(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")

    server = await serve(handle)
    for size in sizes:
        assert await body_of(upstream, server.channel, stream=stream) == b"x" * size
        with pytest.raises(InstanceFailure, match="404"):
            await upstream.request(server.channel, "POST", "/no", b"{}")
        assert await body_of(upstream, server.channel, stream=stream) == b"{}"
    assert server.lines == 1


# -- who waits for whom --------------------------------------------------------------------------------------------


async def test_a_server_waits_for_a_slow_reader(serve: Serve, upstream: Upstream) -> None:
    """Of a stream that nobody reads on, only so much comes in; then the server has to wait. Nothing is lost by it."""
    total, piece = 200, b"x" * 100_000

    async def handle(line: Line) -> None:
        await line.request()
        line.begin("application/x-ndjson")
        for _ in range(total):
            line.chunk(piece)
            await line.flush()
        line.chunk(b"")

    server = await serve(handle)
    async with upstream.stream(server.channel, "GET", "/") as response:
        while response._connection._reading:
            await asyncio.sleep(0)
        first = await response.content.readany()
        assert len(first) < 2_000_000
        length = len(first) + sum([len(data) async for data in response.content.iter_any()])
    assert length == total * len(piece)


async def test_an_answer_before_the_end_of_its_question(serve: Serve, upstream: Upstream) -> None:
    """A server that refuses a large body need not read it, and its connection is not used again."""

    async def handle(line: Line) -> None:
        line.send(b'HTTP/1.1 413 Too Large\r\nContent-Length: 15\r\n\r\n{"error":"big"}')
        await line.flush()
        await done.wait()

    done = asyncio.Event()
    server = await serve(handle)
    with pytest.raises(InstanceFailure) as caught:
        await upstream.request(server.channel, "POST", "/", b"x" * 50_000_000)
    done.set()
    assert (caught.value.status, caught.value.body) == (413, b'{"error":"big"}')


async def test_a_server_that_closes_half_of_its_connection(serve: Serve, upstream: Upstream) -> None:
    """It has said that nothing comes any more: the request is lost, and not waited for."""

    async def handle(line: Line) -> None:
        await line.request()
        line._writer.write_eof()
        await line.gone()

    server = await serve(handle)
    with pytest.raises(InstanceFailure, match="before it answered") as caught:
        await upstream.request(server.channel, "POST", "/", b"{}")
    assert caught.value.kind is FailureKind.LOST


# -- what is sent --------------------------------------------------------------------------------------------------


async def test_a_request_as_it_is_sent(serve: Serve, upstream: Upstream) -> None:
    """The base path comes first, the host is named, and what belongs to the connection is ours to say."""
    server = await serve(saying(OK + b"Content-Length: 2\r\n\r\n{}"))
    own = {"X-Own": "ü", "content-length": "7", "Connection": "close", "accept": "text/plain"}
    channel = HttpChannel(server.url.replace("://", "://me:secret@") + "/base", headers=own)
    await upstream.request(channel, "POST", "/a b?c=d", b"{}")
    (heard,) = server.heard
    assert heard.path == "/base/a%20b?c=d"
    assert heard.headers == {
        "host": server.url.removeprefix("http://"),
        "authorization": "Basic bWU6c2VjcmV0",
        "accept-encoding": "identity",
        "user-agent": "gleitzeit",
        "content-type": "application/json",
        "content-length": "2",
        "x-own": "ü",
        "accept": "text/plain",
    }


@pytest.mark.parametrize(
    ("url", "host", "port", "header"),
    [
        ("http://gpu1:11434", "gpu1", 11434, "gpu1:11434"),
        ("http://gpu1", "gpu1", 80, "gpu1"),
        ("https://gpu1", "gpu1", 443, "gpu1"),
        ("https://gpu1:80/x/", "gpu1", 80, "gpu1:80"),
        ("http://[::1]:8000", "::1", 8000, "[::1]:8000"),
        ("http://bücher.example", "xn--bcher-kva.example", 80, "xn--bcher-kva.example"),
    ],
)
def test_origins(url: str, host: str, port: int, header: str) -> None:
    """An address has a host, a port and a name for the server."""
    origin = origin_of(url)
    assert (origin.host, origin.port, origin.host_header) == (host, port, header)
    assert origin.secure == url.startswith("https")


@pytest.mark.parametrize("path", ["/a\r\nX: y", "/a b", "/ä", "/a#b"])
def test_a_path_cannot_break_out_of_its_line(path: str) -> None:
    """Whatever it is, one line has it."""
    origin = origin_of("http://gpu1")
    assert target(origin, path).isascii()
    head = request_head(origin, HttpChannel("http://gpu1"), "GET", path, None)
    assert head.count(b"\r\n") == 6
    assert len(head.split(b"\r\n")[0].split(b" ")) == 3


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "ä"])
def test_a_header_with_such_a_name_is_not_sent(name: str) -> None:
    """Its value is not repeated."""
    with pytest.raises(ValueError, match="name that cannot be sent") as caught:
        request_head(origin_of("http://x"), HttpChannel("http://x", headers={name: "secret"}), "GET", "/", None)
    assert "secret" not in str(caught.value)


# -- life ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_left_of_many_requests(serve: Serve) -> None:
    """Answered, refused, cancelled and broken ones: all connections are known, and gone in the end."""
    never = asyncio.Event()

    async def handle(line: Line) -> None:
        while True:
            match (await line.request()).path:
                case "/ok":
                    line.answer(b"{}")
                case "/no":
                    line.answer(b"{}", status="404 Not Found")
                case "/break":
                    line.send(OK + b"Content-Length: 9\r\n\r\n")
                    line.close()
                case _:
                    await line.gone()
                    never.set()

    server, upstream = await serve(handle), Upstream()
    await upstream.open()
    paths = ["/ok", "/no", "/break"] * 20
    works = [asyncio.create_task(upstream.request(server.channel, "POST", path, b"{}")) for path in paths]
    found = await asyncio.gather(*works, return_exceptions=True)
    assert [getattr(one, "kind", None) for one in found] == [None, FailureKind.REJECTED, FailureKind.LOST] * 20
    held = asyncio.create_task(upstream.request(server.channel, "POST", "/hold", b"{}"))
    while not any(heard.path == "/hold" for heard in server.heard):
        await asyncio.sleep(0)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    await never.wait()
    kept = upstream.connections
    await upstream.close()
    assert repr(kept) == "<Connections 0, 0 idle>"


async def test_cancelled_while_connecting(serve: Serve, upstream: Upstream) -> None:
    """Nothing is left of a connection that nobody waits for any more."""
    server = await serve(lambda line: line.gone())
    channel = HttpChannel(server.url.replace("http:", "https:"))
    task = asyncio.create_task(upstream.request(channel, "GET", "/"))
    while not server.lines:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert repr(upstream.connections) == "<Connections 0, 0 idle>"
