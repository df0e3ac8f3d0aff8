"""How bodies end, and what becomes of compressed ones."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.upstream import read_whole

from .saying import OK, body_of, saying

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_llm.upstream import Upstream

    Line = Any
    Serve = Callable[..., Awaitable[Any]]


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
