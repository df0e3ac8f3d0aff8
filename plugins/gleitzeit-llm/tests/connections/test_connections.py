"""Connections of our own: what is kept, who has to wait for whom, and what closes at once."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.resources import HttpChannel
from gleitzeit_llm import connections
from gleitzeit_llm.upstream import Upstream

from .saying import OK, body_of, saying

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Line = Any
    Serve = Callable[..., Awaitable[Any]]


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


async def test_a_reader_never_gets_the_answer_to_the_next_request(serve: Serve, upstream: Upstream) -> None:
    """Not even where his own is closed, and the next sent, between the coming of its end and his next step."""

    async def handle(line: Line) -> None:
        await line.request()
        if server.lines == 1:
            line.send(OK + b"Content-Length: 3\r\n\r\n")
            await line.request()
        line.answer(b"{}")

    server = await serve(handle)
    response = await upstream.begin(server.channel, "POST", "/", b"{}")
    connection = response._connection
    assert connection is not None
    reader = asyncio.create_task(response.reader()())
    while connection._waiter is None:
        await asyncio.sleep(0)
    connection.data_received(b"abc")
    response.close()
    async with asyncio.timeout(10.0):
        assert (await upstream.request(server.channel, "POST", "/", b"{}")).body == b"{}"
        assert await reader == b"abc"


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
