"""Connections to engines: TLS, ssh, frames, and answers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InstanceFailure
from gleitzeit_docker import wire
from gleitzeit_docker.address import Address, Tls, from_environment
from gleitzeit_docker.attach import AttachedStream, attach
from gleitzeit_docker.errors import Conflict, DockerError, EngineDown, NotFound
from gleitzeit_docker.testing import EngineProxy

from .waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Start = Callable[..., Awaitable[Any]]
    Serve = Callable[[bytes], Awaitable[Address]]

SOCKET = from_environment().socket or "/var/run/docker.sock"


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """An engine that gives one answer to everything, and then hangs up."""
    servers = []

    async def start(answer: bytes) -> Address:
        async def took(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        path = tmp_path / f"{len(servers)}.sock"
        servers.append(await asyncio.start_unix_server(took, path))
        return Address(f"unix://{path}")

    yield start
    for server in servers:
        server.close()


def frame(stream: int, data: bytes) -> bytes:
    """As an engine wraps what a container writes."""
    return struct.pack(">BxxxI", stream, len(data)) + data


UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


async def _all(stream: AttachedStream, max_bytes: int = 65536) -> bytes:
    found = b""
    while data := await stream.receive(max_bytes):
        assert len(data) <= max_bytes
        found += data
    return found


@pytest.mark.parametrize("max_bytes", [1, 3, 65536])
async def test_frames_are_taken_apart(serve: Serve, max_bytes: int) -> None:
    """Standard output comes as bytes, in whatever pieces; standard error goes to the log, of which the end is kept."""
    frames = frame(1, b"hello ") + frame(2, b"a" * 20_000 + b"trouble") + frame(1, b"") + frame(1, b"world")
    stream = await attach(await serve(UPGRADED + frames), "x", timeout_s=5)
    assert await _all(stream, max_bytes) == b"hello world"
    assert stream.log.endswith("trouble")
    assert len(stream.log) <= 16 * 1024
    assert stream.closed
    with pytest.raises(InstanceFailure, match=r"streams are closed: a+trouble"):
        await stream.send(b"more")
    await stream.aclose()
    await stream.aclose()


async def test_what_the_engine_itself_says_is_no_output(serve: Serve) -> None:
    """It goes to the log, as what went wrong."""
    stream = await attach(await serve(UPGRADED + frame(3, b"error from daemon") + frame(1, b"x")), "x", timeout_s=5)
    assert await _all(stream) == b"x"
    assert stream.log == "error from daemon"
    await stream.aclose()


async def test_what_nobody_reads_stays_in_the_container(tmp_path: Path) -> None:
    """Of a payload that writes without end, a few hundred kilobytes come here."""
    written, full = 0, asyncio.Event()

    async def took(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED)
        with contextlib.suppress(TimeoutError, OSError):
            while written < 20_000_000:
                writer.write(frame(1, bytes(65536)))
                async with asyncio.timeout(0.5):
                    await writer.drain()
                written += 65536
        full.set()
        writer.transport.abort()

    async with await asyncio.start_unix_server(took, tmp_path / "engine.sock"):
        stream = await attach(Address(f"unix://{tmp_path}/engine.sock"), "x", timeout_s=5)
        await full.wait()
        await stream.aclose()
    assert written < 1_500_000


@pytest.mark.parametrize("cut", [b"\x01", frame(1, b"hello")[:10]])
async def test_a_stream_that_breaks_ends(serve: Serve, cut: bytes) -> None:
    """In the middle of a header or of data: what had come is given, and then the end."""
    stream = await attach(await serve(UPGRADED + frame(1, b"so far") + cut), "x", timeout_s=5)
    assert (await _all(stream)).startswith(b"so far")
    await stream.aclose()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (b'HTTP/1.1 404 Not Found\r\n\r\n{"message":"No such container: x"}', NotFound, "No such container: x"),
        (b'HTTP/1.1 409 Conflict\r\n\r\n{"message":"it is paused"}', Conflict, "it is paused"),
        (b"HTTP/1.1 500 Oops\r\n\r\nplain words", DockerError, "plain words"),
        (b"HTTP/1.1 503 Oops\r\n\r\n", DockerError, "status 503"),
        (b"what is this", EngineDown, "no answer"),
        (b"HTTP/1.1 nonsense\r\n\r\n", EngineDown, "no answer"),
        (b"", EngineDown, "no answer"),
    ],
)
async def test_an_answer_that_is_an_error_is_told_as_such(
    serve: Serve, answer: bytes, kind: type[DockerError], message: str
) -> None:
    """By its status, in the engine's words."""
    address = await serve(answer)
    with pytest.raises(kind, match=message):
        await attach(address, "x", timeout_s=5)
    with pytest.raises(kind, match=message):
        await wire.answer(address, "GET", "/events", timeout_s=5)


async def test_lines_that_are_no_json_are_an_error(serve: Serve) -> None:
    """After those that are."""
    connection, _ = await wire.answer(await serve(b'HTTP/1.0 200 OK\r\n\r\n{"a":1}\n\nno\n'), "GET", "/", timeout_s=5)
    lines = wire.json_lines(connection)
    assert await anext(lines) == {"a": 1}
    with pytest.raises(EngineDown, match="no JSON"):
        await anext(lines)
    await connection.aclose()


@pytest.mark.parametrize("url", ["unix:///no/such.sock", "tcp://127.0.0.1:1", "ssh://nobody@127.0.0.1:1"])
async def test_an_engine_that_cannot_be_reached_is_named(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its URL."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineDown, match=url if "ssh" not in url else "ssh"):
        await wire.dial(Address(url), timeout_s=5)


async def test_a_connection_on_which_nothing_happens_is_kept() -> None:
    """Else a firewall in between would drop it, and neither end would ever know."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = await wire.dial(Address(f"tcp://127.0.0.1:{port}"), timeout_s=5)
        assert connection.writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await connection.aclose()


async def test_why_ssh_gave_up_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In its own words: nobody else knows that a key is missing."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'me@far: Permission denied (publickey).' >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EngineDown, match=r"no answer to GET /_ping: me@far: Permission denied \(publickey\)\."):
        await wire.answer(Address("ssh://me@far"), "GET", "/_ping", timeout_s=5)


async def test_an_ssh_that_has_ended_can_be_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It was first, as it always is when an answer ends with the connection."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nexec true\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    connection = await wire.dial(Address("ssh://somewhere"), timeout_s=5)
    assert await connection.reader.read() == b""
    async with asyncio.timeout(5):
        await until(connection.writer.transport.is_closing)
    await asyncio.sleep(0.05)
    await connection.aclose()
    await connection.aclose()


@pytest.mark.docker
async def test_a_hub_works_over_tls(pool: Start, certificate: Path, tmp_path: Path) -> None:
    """Both the SDK's calls and our own streams, with a certificate that is checked."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with EngineProxy(SOCKET, tls=context) as proxy:
        wrong = tmp_path / "none.pem"
        with pytest.raises(EngineDown, match="certificate"):
            await wire.dial(Address(proxy.url, Tls()), timeout_s=5)
        assert not wrong.exists()
        pooled = await pool(engines=[{"url": proxy.url, "tls": {"ca": str(certificate)}}], min_total=1)
        assert [each.details["runner"]["pid"] for each in pooled.ready()] == [1]
        await pooled.dispatcher.aclose()


@pytest.mark.docker
async def test_a_hub_works_over_ssh(pool: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the command `ssh`, for both; here it is one that stays on this machine."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift 2\nexec $*\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pooled = await pool(engines=["ssh://somebody@somewhere"], min_total=1)
    assert [each.details["engine"] for each in pooled.ready()] == ["ssh://somebody@somewhere"]
    await pooled.dispatcher.aclose()
