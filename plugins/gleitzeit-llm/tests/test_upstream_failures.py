"""Every way a server can fail, told apart."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import socket
import time
import traceback
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.resources import HttpChannel
from gleitzeit_llm import failures
from gleitzeit_llm.failures import MAX_ERROR_BYTES, retry_after
from gleitzeit_llm.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Line = Any
    Serve = Callable[..., Awaitable[Any]]

KEY = "sk-of-nobody-else"


async def failure_of(upstream: Upstream, url: str) -> InstanceFailure:
    """How a request that carries a key fails."""
    channel = HttpChannel(url, headers={"Authorization": f"Bearer {KEY}"})
    with pytest.raises(InstanceFailure) as caught:
        await upstream.request(channel, "POST", "/api/chat", b"{}")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(channel)
    assert KEY not in shown
    return caught.value


@pytest.fixture(autouse=True)
def _no_key_in_any_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever fails here, no log has the key."""
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody listens and that nobody else gets meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# -- no connection -------------------------------------------------------------------------------------------------


async def test_nobody_there(upstream: Upstream, closed_port: int) -> None:
    """A refused connection is REFUSED: nothing was sent."""
    failure = await failure_of(upstream, f"http://127.0.0.1:{closed_port}")
    assert (failure.kind, failure.started, failure.status) == (FailureKind.REFUSED, False, None)
    assert failure.message.startswith(f"http://127.0.0.1:{closed_port} cannot be reached: ")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".example", "ex ample", "-", "%zz"])
async def test_no_such_name(upstream: Upstream, host: str) -> None:
    """A name that nobody has, or that cannot be one, is REFUSED."""
    failure = await failure_of(upstream, f"http://{host}:11434")
    assert (failure.kind, failure.started) == (FailureKind.REFUSED, False)
    assert host in failure.message


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999"])
async def test_no_address(upstream: Upstream, url: str) -> None:
    """What is no address of a server is REFUSED."""
    failure = await failure_of(upstream, url)
    assert (failure.kind, failure.started) == (FailureKind.REFUSED, False)


async def test_a_header_that_cannot_be_sent(serve: Serve, upstream: Upstream) -> None:
    """A line break in a header is refused before anything is sent, without repeating the header."""
    server = await serve(lambda line: line.request())
    channel = HttpChannel(server.url, headers={"X-Key": f"{KEY}\r\nX: y"})
    with pytest.raises(InstanceFailure, match="no request can be sent") as caught:
        await upstream.request(channel, "GET", "/")
    assert caught.value.kind is FailureKind.REFUSED
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert server.heard == []


async def test_no_connection_in_time() -> None:
    """A server that does not accept connections is REFUSED when the time for that is over."""
    upstream = Upstream(connect_timeout_s=0.05)
    await upstream.open()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for other in waiting:
            other.setblocking(False)  # noqa: FBT003 - the socket's own way
            other.connect_ex(("127.0.0.1", port))
        failure = await failure_of(upstream, f"http://127.0.0.1:{port}")
        for other in waiting:
            other.close()
    await upstream.close()
    assert (failure.kind, failure.started) == (FailureKind.REFUSED, False)
    assert "accepted no connection in time" in failure.message


async def test_no_handshake_in_time(serve: Serve) -> None:
    """A server that accepts a connection and leaves TLS at that is REFUSED in the same time."""
    server = await serve(lambda line: line.gone())
    upstream = Upstream(connect_timeout_s=0.05)
    await upstream.open()
    failure = await failure_of(upstream, server.url.replace("http:", "https:"))
    await upstream.close()
    assert (failure.kind, failure.started) == (FailureKind.REFUSED, False)


async def test_out_of_sockets(serve: Serve, upstream: Upstream) -> None:
    """That this process has no more file descriptors is no mark against the server."""
    server = await serve(lambda line: line.gone())
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        failure = await failure_of(upstream, server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (failure.kind, failure.started) == (FailureKind.BUSY, False)
    assert "Too many open files" in failure.message


# -- TLS -----------------------------------------------------------------------------------------------------------


async def test_a_certificate_that_nobody_signed(serve: Serve, upstream: Upstream) -> None:
    """It is REFUSED, and the message says what is wrong with it."""
    server = await serve(lambda line: line.gone(), tls=True)
    failure = await failure_of(upstream, server.url)
    assert (failure.kind, failure.started) == (FailureKind.REFUSED, False)
    assert failure.message.startswith(f"{server.url} has a certificate that is not trusted: self-signed certificate")


async def test_https_where_http_is_spoken(serve: Serve, upstream: Upstream) -> None:
    """It is REFUSED, and the message says that this is no TLS."""

    async def handle(line: Line) -> None:
        line.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await line.gone()

    server = await serve(handle)
    failure = await failure_of(upstream, server.url.replace("http:", "https:"))
    assert (failure.kind, failure.started) == (FailureKind.REFUSED, False)
    assert "does not speak TLS as it should" in failure.message


@pytest.mark.filterwarnings("ignore:.*")
async def test_http_where_https_is_spoken(serve: Serve, upstream: Upstream) -> None:
    """It fails, however the other side puts it."""
    server = await serve(lambda line: line.gone(), tls=True)
    failure = await failure_of(upstream, server.url.replace("https:", "http:"))
    assert failure.kind in (FailureKind.LOST, FailureKind.SERVER_ERROR)


# -- connections that break ----------------------------------------------------------------------------------------

BREAKS = {
    "before the headers": b"",
    "in the first line": b"HTTP/1.1 20",
    "in the headers": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "in a body of known length": b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"half":',
    "before the first chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    "between two chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    "before the last chunk's end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("sent", BREAKS.values(), ids=BREAKS)
async def test_a_connection_that_breaks(serve: Serve, upstream: Upstream, sent: bytes, how: str) -> None:
    """Wherever it breaks, the request is LOST: the work may have begun."""

    async def handle(line: Line) -> None:
        await line.request()
        line.send(sent)
        await line.flush()
        getattr(line, how)()

    server = await serve(handle)
    failure = await failure_of(upstream, server.url)
    assert (failure.kind, failure.started, failure.body) == (FailureKind.LOST, True, None)
    said = r" (broke off in its answer|closed the connection before it answered|broke the connection: [\w ]+)"
    assert re.fullmatch(re.escape(server.url) + said, failure.message)
    assert len(server.heard) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"<html>\r\n<body>\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        bytes(range(256)) + b"\r\n\r\n",
    ],
    ids=["ssh", "html", "status", "header", "length", "long header", "noise"],
)
async def test_what_is_not_http(serve: Serve, upstream: Upstream, sent: bytes) -> None:
    """A server that speaks something else is the one at fault, and one line says so."""

    async def handle(line: Line) -> None:
        await line.request()
        line.send(sent)
        await line.gone()

    server = await serve(handle)
    failure = await failure_of(upstream, server.url)
    assert failure.kind is FailureKind.SERVER_ERROR
    assert failure.message.startswith(f"{server.url} does not speak HTTP")
    assert "\n" not in failure.message


async def test_chunks_that_are_none(serve: Serve, upstream: Upstream) -> None:
    """Garbage where a chunk should begin is not HTTP either."""

    async def handle(line: Line) -> None:
        await line.request()
        line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        await line.gone()

    failure = await failure_of(upstream, (await serve(handle)).url)
    assert failure.kind is FailureKind.SERVER_ERROR


# -- refusals ------------------------------------------------------------------------------------------------------

KINDS = {
    "301 Moved Permanently": (FailureKind.SERVER_ERROR, True),
    "304 Not Modified": (FailureKind.SERVER_ERROR, True),
    "400 Bad Request": (FailureKind.REJECTED, True),
    "401 Unauthorized": (FailureKind.UNAUTHORIZED, False),
    "403 Forbidden": (FailureKind.UNAUTHORIZED, False),
    "404 Not Found": (FailureKind.REJECTED, True),
    "405 Method Not Allowed": (FailureKind.REJECTED, True),
    "408 Request Timeout": (FailureKind.TIMEOUT, True),
    "413 Content Too Large": (FailureKind.REJECTED, True),
    "422 Unprocessable Content": (FailureKind.REJECTED, True),
    "429 Too Many Requests": (FailureKind.BUSY, False),
    "499 Whatever": (FailureKind.REJECTED, True),
    "500 Internal Server Error": (FailureKind.SERVER_ERROR, True),
    "501 Not Implemented": (FailureKind.REJECTED, True),
    "502 Bad Gateway": (FailureKind.SERVER_ERROR, True),
    "503 Service Unavailable": (FailureKind.BUSY, False),
    "504 Gateway Timeout": (FailureKind.SERVER_ERROR, True),
    "508 Loop Detected": (FailureKind.DECLINED, False),
    "599 Whatever": (FailureKind.SERVER_ERROR, True),
}


def refusing(status: str, body: bytes = b'{"error":"no"}', more: str = "") -> Callable[[Line], Awaitable[None]]:
    """A server that answers so."""

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(b"" if status.startswith("304") else body, status=status, more=more)

    return handle


@pytest.mark.parametrize("status", KINDS)
async def test_each_status_has_its_kind(serve: Serve, upstream: Upstream, status: str) -> None:
    """The kind decides what happens next; the status and the server's address are in the message."""
    server = await serve(refusing(status))
    failure = await failure_of(upstream, server.url)
    assert (failure.kind, failure.started) == KINDS[status]
    assert failure.status == int(status[:3])
    assert server.url in failure.message
    assert status[:3] in failure.message


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_what_is_said_about_our_key_is_not_repeated(serve: Serve, upstream: Upstream, status: str) -> None:
    """Servers repeat the key they refuse, so nothing of such an answer is kept."""
    body = b'{"error":{"message":"Incorrect API key provided: ' + KEY.encode() + b'"}}'
    failure = await failure_of(upstream, (await serve(refusing(status, body))).url)
    assert failure.body is None
    assert "refuses our credentials" in failure.message


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
async def test_a_busy_server_says_when_to_come_back(serve: Serve, upstream: Upstream, status: str) -> None:
    """`Retry-After` is passed on."""
    failure = await failure_of(upstream, (await serve(refusing(status, more="Retry-After: 7\r\n"))).url)
    assert failure.retry_after_s == 7


async def test_only_busy_servers_are_asked_when_to_come_back(serve: Serve, upstream: Upstream) -> None:
    """Elsewhere the header means nothing to us."""
    server = await serve(refusing("500 Internal Server Error", more="Retry-After: 7\r\n"))
    assert (await failure_of(upstream, server.url)).retry_after_s is None


async def test_an_error_body_that_comes_in_pieces_is_whole(serve: Serve, upstream: Upstream) -> None:
    """However it is cut on its way, the server's answer is complete."""
    body = b'{"error":"' + b"long " * 5000 + b'"}'

    async def handle(line: Line) -> None:
        await line.request()
        line.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 5000):
            await line.flush()
            await asyncio.sleep(0)
            line.send(body[at : at + 5000])

    failure = await failure_of(upstream, (await serve(handle)).url)
    assert failure.body == body


async def test_an_endless_error_body_is_cut(serve: Serve, upstream: Upstream) -> None:
    """It is read up to the limit, and its connection closed."""
    gone = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.send(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not gone.is_set():
            line.chunk(b"x" * 10_000)
            try:
                await line.flush()
            except ConnectionError:
                gone.set()

    failure = await failure_of(upstream, (await serve(handle)).url)
    assert failure.kind is FailureKind.SERVER_ERROR
    assert failure.body == b"x" * MAX_ERROR_BYTES
    await gone.wait()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_error_body_that_breaks_off_changes_nothing(serve: Serve, upstream: Upstream, how: str) -> None:
    """The status has said enough."""

    async def handle(line: Line) -> None:
        await line.request()
        line.send(b'HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 100\r\n\r\n{"err')
        await line.flush()
        getattr(line, how)()

    failure = await failure_of(upstream, (await serve(handle)).url)
    assert (failure.kind, failure.status, failure.retry_after_s) == (FailureKind.BUSY, 503, 3)


async def test_an_error_body_that_stalls_does_not_hang(
    serve: Serve, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the status has to do."""
    monkeypatch.setattr(failures, "_ERROR_BODY_S", 0.01)

    async def handle(line: Line) -> None:
        await line.request()
        line.send(b'HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\n{"err')
        await line.gone()

    failure = await failure_of(upstream, (await serve(handle)).url)
    assert (failure.kind, failure.body) == (FailureKind.REJECTED, b'{"err')


# -- Retry-After ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("7", 7),
        (" 1.5 ", 1.5),
        ("999999999", 3600),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", 3600),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """A number or a date gives seconds, at most an hour; what makes no sense gives nothing."""
    assert retry_after(header) == seconds


def test_retry_after_a_date() -> None:
    """A date gives the seconds from now."""
    seconds = retry_after(formatdate(time.time() + 100, usegmt=True))
    assert seconds is not None
    assert 50 < seconds <= 100


@given(st.text())
def test_retry_after_never_raises(header: str) -> None:
    """Whatever a server sends there, the answer is nothing or a number of seconds within limits."""
    seconds = retry_after(header)
    assert seconds is None or 0 <= seconds <= 3600
