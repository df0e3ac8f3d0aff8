"""Connections that are given up here: those that stand still in mid-answer, and those to a server that is down."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.resources import HttpChannel
from gleitzeit_llm.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Line = Any
    Serve = Callable[..., Awaitable[Any]]

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 6\r\n\r\n"
whole_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A client that gives up soon."""
    made = Upstream(stall_timeout_s=0.05)
    await made.open()
    yield made
    await made.close()


async def ask(upstream: Upstream, url: str, *, stream: bool) -> bytes:
    """The body of an answer, asked for in one of the two ways."""
    channel = HttpChannel(url)
    if not stream:
        return (await upstream.request(channel, "POST", "/", b"{}")).body
    async with upstream.stream(channel, "POST", "/", b"{}") as response:
        return b"".join([data async for data in response.content.iter_any()])


@whole_or_not
async def test_standing_still(serve: Serve, upstream: Upstream, *, stream: bool) -> None:
    """What has begun and does not go on is a time-out, and its connection is closed."""
    closed = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.send(OK + b"abc")
        await line.flush()
        await line.gone()
        closed.set()

    url = (await serve(handle)).url
    async with asyncio.timeout(20):
        with pytest.raises(InstanceFailure, match=r"began to answer and then sent nothing for 0.05 s") as caught:
            await ask(upstream, url, stream=stream)
        await closed.wait()
    assert caught.value.kind is FailureKind.TIMEOUT


@whole_or_not
@pytest.mark.parametrize("sent", [b"", OK], ids=["nothing", "a head"])
async def test_before_the_first_byte_nothing_is_too_long(
    serve: Serve, upstream: Upstream, sent: bytes, *, stream: bool
) -> None:
    """A model may have to be loaded first. Some servers have sent a head by then."""
    go_on = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.send(sent)
        await line.flush()
        await go_on.wait()
        line.send((b"" if sent else OK) + b"abcdef")
        await line.flush()
        await line.gone()

    url = (await serve(handle)).url
    async with asyncio.timeout(20):
        asked = asyncio.create_task(ask(upstream, url, stream=stream))
        done, _ = await asyncio.wait({asked}, timeout=0.3)
        assert not done
        go_on.set()
        assert await asked == b"abcdef"


@whole_or_not
async def test_a_server_that_is_down_is_given_up(serve: Serve, upstream: Upstream, *, stream: bool) -> None:
    """All that waits for its first byte fails at once, kept connections too, and is not sent to it again."""
    waits, count = asyncio.Event(), 0

    async def handle(line: Line) -> None:
        nonlocal count
        await line.request()
        line.send(OK + b"abcdef")
        await line.flush()
        await line.request()
        count += 1
        waits.set()
        await line.gone()

    url = (await serve(handle)).url
    async with asyncio.timeout(20):
        assert await ask(upstream, url, stream=stream) == b"abcdef"
        asked = asyncio.create_task(ask(upstream, url, stream=stream))
        await waits.wait()
        upstream.give_up(HttpChannel("http://127.0.0.1:1"), "is somebody else")
        upstream.give_up(HttpChannel(url), "is down")
        with pytest.raises(InstanceFailure, match="is down") as caught:
            await asked
    assert (caught.value.kind, count) == (FailureKind.LOST, 1)


async def test_what_has_begun_is_not_given_up(serve: Serve, upstream: Upstream) -> None:
    """It may well come to its end."""
    go_on = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.send(OK + b"abc")
        await line.flush()
        await go_on.wait()
        line.send(b"def")
        await line.flush()
        await line.gone()

    url = (await serve(handle)).url
    async with asyncio.timeout(20), upstream.stream(HttpChannel(url), "POST", "/", b"{}") as response:
        parts = response.content.iter_any()
        first = await anext(parts)
        upstream.give_up(HttpChannel(url), "is down")
        go_on.set()
        assert first + b"".join([data async for data in parts]) == b"abcdef"


async def test_who_is_closed_gives_up_nothing() -> None:
    """An instance may go down when nothing is open any more."""
    Upstream().give_up(HttpChannel("http://127.0.0.1:1"), "is down")
