"""The HTTP client: whole answers and streams, kept connections, and what happens when its caller leaves."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import ClosedError, FailureKind, InstanceFailure
from gleitzeit_core.resources import HttpChannel
from gleitzeit_llm.upstream import Reply, Upstream, read_whole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Line = Any
    Serve = Callable[..., Awaitable[Any]]


async def answer_all(line: Line) -> None:
    """Answer every request on a connection."""
    while True:
        await line.request()
        line.answer(b'{"ok":true}')


async def failure_of(upstream: Upstream, channel: HttpChannel, body: bytes | None = b"{}") -> InstanceFailure:
    """How a request fails."""
    with pytest.raises(InstanceFailure) as caught:
        await upstream.request(channel, "POST", "/api/chat", body)
    return caught.value


# -- answers -------------------------------------------------------------------------------------------------------


async def test_a_whole_answer(serve: Serve, upstream: Upstream) -> None:
    """Status, type and body come back, and the request has what it needs: path, type, key and body."""

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b'{"a":1}', status="201 Created", kind="Application/JSON; charset=utf-8")

    server = await serve(handle)
    channel = HttpChannel(server.url, headers={"Authorization": "Bearer k"})
    reply = await upstream.request(channel, "POST", "/api/chat", {"model": "m"})
    assert reply == Reply(201, "application/json", b'{"a":1}')
    assert reply.json() == {"a": 1}
    (heard,) = server.heard
    assert (heard.method, heard.path, heard.json) == ("POST", "/api/chat", {"model": "m"})
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["authorization"] == "Bearer k"
    # A proxy that compresses a stream holds parts of it back.
    assert heard.headers["accept-encoding"] == "identity"


async def test_a_request_without_a_body_has_no_type(serve: Serve, upstream: Upstream) -> None:
    """GET sends no body and says nothing about one."""
    server = await serve(answer_all)
    await upstream.request(server.channel, "GET", "/api/ps")
    assert server.heard[0].body == b""
    assert "content-type" not in server.heard[0].headers


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a":', b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_json_is_the_servers_fault(body: bytes) -> None:
    """Whatever stands there instead of JSON, the failure says so."""
    with pytest.raises(InstanceFailure, match="not JSON") as caught:
        Reply(200, "application/json", body).json()
    assert caught.value.kind is FailureKind.SERVER_ERROR


async def test_a_large_body_is_sent_whole(serve: Serve, upstream: Upstream) -> None:
    """Images make bodies of megabytes; they arrive, and nothing is warned of."""
    server = await serve(answer_all)
    body = b'{"images":["' + b"a" * 5_000_000 + b'"]}'
    assert (await upstream.request(server.channel, "POST", "/api/chat", body)).status == 200
    assert server.heard[0].body == body


async def test_an_answer_has_a_limit(serve: Serve, upstream: Upstream) -> None:
    """An answer that goes on and on is given up, and its connection closed."""
    gone = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.begin("application/json")
        for _ in range(20):
            line.chunk(b"x" * 1000)
        await line.gone()
        gone.set()

    server = await serve(handle)
    with pytest.raises(InstanceFailure, match="answered more than 10000 bytes") as caught:
        async with upstream.stream(server.channel, "GET", "/") as response:
            await read_whole(response, 10_000)
    assert caught.value.kind is FailureKind.SERVER_ERROR
    await gone.wait()


async def test_redirects_are_not_followed(serve: Serve, upstream: Upstream) -> None:
    """A redirect is a failure that names where it leads, without the query, and nobody goes there."""
    other = await serve(answer_all)

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"", status="302 Found", more=f"Location: {other.url}/login?token=secret\r\n")

    failure = await failure_of(upstream, (await serve(handle)).channel)
    assert failure.kind is FailureKind.SERVER_ERROR
    assert failure.status == 302
    assert f"redirects to {other.url}/login, and" in failure.message
    assert other.lines == 0


async def test_cookies_are_not_kept(serve: Serve, upstream: Upstream) -> None:
    """Requests of different callers have nothing in common."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            line.answer(b"{}", more="Set-Cookie: session=1\r\n")

    server = await serve(handle)
    for _ in range(2):
        await upstream.request(HttpChannel(server.url.replace("127.0.0.1", "localhost")), "GET", "/")
    assert len(server.heard) == 2
    assert all("cookie" not in heard.headers for heard in server.heard)


async def test_proxies_of_the_environment_are_not_used(
    serve: Serve, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances are reached directly."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = await serve(answer_all)
    assert (await upstream.request(server.channel, "GET", "/")).status == 200


async def test_a_certificate_can_be_trusted(serve: Serve, upstream: Upstream, certificate: Path) -> None:
    """With a context that knows the certificate, TLS works."""
    server = await serve(answer_all, tls=True)
    channel = HttpChannel(server.url, tls=ssl.create_default_context(cafile=certificate))
    assert (await upstream.request(channel, "GET", "/")).json() == {"ok": True}


# -- kept connections ----------------------------------------------------------------------------------------------


async def test_connections_are_kept(serve: Serve, upstream: Upstream) -> None:
    """The next request takes the connection of the last."""
    server = await serve(answer_all)
    for _ in range(3):
        await upstream.request(server.channel, "POST", "/", b"{}")
    assert (len(server.heard), server.lines) == (3, 1)


async def test_a_connection_closed_between_two_requests_is_not_used(serve: Serve, upstream: Upstream) -> None:
    """A server that closed an idle connection gets the next request on a new one."""
    closed = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"{}")
        line.close()
        closed.set()

    server = await serve(handle)
    for _ in range(3):
        closed.clear()
        assert (await upstream.request(server.channel, "POST", "/", b"{}")).status == 200
        await closed.wait()
    assert server.lines == 3


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(("method", "body"), [("GET", None), ("POST", b"{}"), ("POST", b"x" * 2_000_000)])
async def test_a_kept_connection_that_closes_under_a_request_does_not_fail_it(
    serve: Serve, upstream: Upstream, method: str, body: bytes | None, how: str
) -> None:
    """The server closes an idle connection in the moment a request is on its way: it is sent again on a new one."""

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"{}")
        if server.lines == 1:
            await line.request()
            getattr(line, how)()

    server = await serve(handle)
    await upstream.request(server.channel, method, "/first", body and b"{}")
    assert (await upstream.request(server.channel, method, "/second", body)).status == 200
    assert [heard.path for heard in server.heard] == ["/first", "/second", "/second"]
    assert server.heard[2].body == (body or b"")


async def test_many_stale_connections_do_not_matter(serve: Serve, upstream: Upstream) -> None:
    """After a restart without a word all kept connections are dead; the repeated request takes none of them."""
    waiting = asyncio.Barrier(4)

    async def handle(line: Line) -> None:
        await line.request()
        if server.lines <= 4:
            await waiting.wait()
            line.answer(b"{}")
            await line.request()
            line.reset()
        line.answer(b"{}")

    server = await serve(handle)
    await asyncio.gather(*(upstream.request(server.channel, "POST", "/", b"{}") for _ in range(4)))
    assert server.lines == 4
    for count in range(1, 5):
        assert (await upstream.request(server.channel, "POST", "/", b"{}")).status == 200
        assert server.lines == 4 + count


async def test_a_new_connection_that_closes_loses_the_request(serve: Serve, upstream: Upstream) -> None:
    """Nothing is sent twice where the work may have begun on a connection made for it."""

    async def handle(line: Line) -> None:
        await line.request()
        line.close()

    server = await serve(handle)
    failure = await failure_of(upstream, server.channel)
    assert (failure.kind, failure.started) == (FailureKind.LOST, True)
    assert len(server.heard) == 1


async def test_a_request_is_repeated_once(serve: Serve, upstream: Upstream) -> None:
    """A server that drops it on the new connection too has lost it."""

    async def handle(line: Line) -> None:
        await line.request()
        if len(server.heard) == 1:
            line.answer(b"{}")
            await line.request()
        line.close()

    server = await serve(handle)
    await upstream.request(server.channel, "POST", "/", b"{}")
    assert (await failure_of(upstream, server.channel)).kind is FailureKind.LOST
    assert len(server.heard) == 3


async def test_an_answer_that_has_begun_is_not_asked_for_again(serve: Serve, upstream: Upstream) -> None:
    """A kept connection that breaks in the body has lost the request."""

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"{}")
        await line.request()
        line.begin("application/json")
        line.chunk(b'{"half":')
        line.close()

    server = await serve(handle)
    await upstream.request(server.channel, "POST", "/", b"{}")
    assert (await failure_of(upstream, server.channel)).kind is FailureKind.LOST
    assert len(server.heard) == 2


async def test_a_server_that_died_is_refused_after_the_repeat(serve: Serve, upstream: Upstream) -> None:
    """A server that is gone with its kept connections is down, not merely lost."""
    left = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"{}")
        await line.request()
        listener.close()
        left.set()
        line.reset()

    server = await serve(handle)
    listener = server.listener
    await upstream.request(server.channel, "POST", "/", b"{}")
    failure = await failure_of(upstream, server.channel)
    assert left.is_set()
    assert failure.kind is FailureKind.REFUSED


# -- leaving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the headers", "in the body"])
async def test_a_cancelled_request_closes_its_connection(serve: Serve, upstream: Upstream, moment: str) -> None:
    """The server learns at once that nobody wants the answer."""
    reached, gone = asyncio.Event(), asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        if moment == "in the body":
            line.begin("application/json")
            line.chunk(b'{"half":')
            await line.flush()
        reached.set()
        await line.gone()
        gone.set()

    server = await serve(handle)
    task = asyncio.create_task(upstream.request(server.channel, "POST", "/", b"{}"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone.wait()


async def test_an_upload_that_nobody_reads_can_be_cancelled(serve: Serve, upstream: Upstream) -> None:
    """A server that does not read does not hold its caller."""
    reached, end = asyncio.Event(), asyncio.Event()

    async def handle(line: Line) -> None:
        del line
        reached.set()
        await end.wait()

    server = await serve(handle)
    task = asyncio.create_task(upstream.request(server.channel, "POST", "/", b"x" * 50_000_000))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    end.set()


async def test_leaving_a_stream_early_closes_its_connection(serve: Serve, upstream: Upstream) -> None:
    """Who leaves the block has no connection any more, and the next request gets a new one."""
    gone = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.begin("application/x-ndjson")
        line.chunk(b"{}\n")
        await line.gone()
        gone.set()

    server = await serve(handle)
    async with upstream.stream(server.channel, "POST", "/", b"{}") as response:
        assert await response.content.readany() == b"{}\n"
    await gone.wait()


async def test_what_is_raised_in_the_block_is_left_alone(serve: Serve, upstream: Upstream) -> None:
    """A caller's own error is not taken for the server's."""
    server = await serve(answer_all)
    with pytest.raises(KeyError):
        async with upstream.stream(server.channel, "GET", "/"):
            raise KeyError


async def test_the_deadline_of_a_caller_is_a_time_out(serve: Serve, upstream: Upstream) -> None:
    """A caller's own limit around a request is its own: it stays a `TimeoutError`."""

    async def handle(line: Line) -> None:
        await line.request()
        loop.call_soon(limit.reschedule, 0)
        await line.gone()

    server, loop = await serve(handle), asyncio.get_running_loop()
    limit = asyncio.timeout(None)
    with pytest.raises(TimeoutError):
        async with limit:
            await upstream.request(server.channel, "POST", "/", b"{}")


# -- life ----------------------------------------------------------------------------------------------------------


async def test_closing_closes_kept_connections(serve: Serve) -> None:
    """No socket is left, and closing twice is fine."""
    gone = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"{}")
        await line.gone()
        gone.set()

    server = await serve(handle)
    upstream = Upstream()
    await upstream.open()
    assert repr(upstream) == "<Upstream open>"
    await upstream.request(server.channel, "GET", "/")
    await upstream.close()
    await upstream.close()
    await gone.wait()
    assert repr(upstream) == "<Upstream closed>"


async def test_it_cannot_be_used_unless_it_is_open() -> None:
    """Before it is opened and after it is closed, it says that it is not open."""
    upstream = Upstream()
    with pytest.raises(ClosedError, match="not open"):
        await upstream.request(HttpChannel("http://127.0.0.1:1"), "GET", "/")
    await upstream.open()
    await upstream.close()
    with pytest.raises(ClosedError, match="not open"):
        await upstream.request(HttpChannel("http://127.0.0.1:1"), "GET", "/")


async def test_it_is_opened_once(upstream: Upstream) -> None:
    """A second opening would leave the first one's connections behind."""
    with pytest.raises(ClosedError, match="open already"):
        await upstream.open()


async def test_it_can_be_opened_again(serve: Serve) -> None:
    """A closed one can be used anew."""
    server, upstream = await serve(answer_all), Upstream()
    for _ in range(2):
        await upstream.open()
        assert (await upstream.request(server.channel, "GET", "/")).status == 200
        await upstream.close()


async def test_closing_ends_what_runs(serve: Serve) -> None:
    """A request under way fails when the client is closed under it."""
    reached = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        reached.set()
        await line.gone()

    server, upstream = await serve(handle), Upstream()
    await upstream.open()
    task = asyncio.create_task(failure_of(upstream, server.channel))
    await reached.wait()
    await upstream.close()
    assert (await task).kind is FailureKind.LOST


async def test_a_payload_is_written_compactly(serve: Serve, upstream: Upstream) -> None:
    """A mapping becomes JSON without spaces."""
    server = await serve(answer_all)
    await upstream.request(server.channel, "POST", "/", {"model": "ü", "stream": False})
    assert (
        server.heard[0].body
        == json.dumps({"model": "ü", "stream": False}, separators=(",", ":"), ensure_ascii=False).encode()
    )
