"""Connections to an engine that live on the running loop: attached containers, events, and whatever takes long.

The SDK would keep a thread for each of them, and could not be told to stop. A connection is a Unix socket, TCP with or
without TLS, or the pipes of ``ssh HOST docker system dial-stdio``. HTTP/1.0 is asked for, so that a body ends with the
connection and needs no decoding; only an attached stream is an upgrade, which HTTP/1.1 has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from gleitzeit_docker.errors import DockerError, EngineDown, by_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from gleitzeit_docker.address import Address

# What waits here of one connection is at most twice this. A head or a line of JSON must fit; a stream needs less.
_LINE_MAX: Final = 4 * 1024 * 1024
STREAM_MAX: Final = 64 * 1024
# A connection on which nothing is said for so long is tried, or a firewall in between would drop it without a word.
_KEEP_ALIVE_S: Final = 30
_MESSAGE_MAX: Final = 64 * 1024
_LAST_WORDS_S: Final = 1.0
_ERROR: Final = 400


class Wire:
    """One connection. Made by `dial`; must be closed.

    Args:
        reader: What the engine says.
        writer: What it is told.
        process: The ssh client in between, if there is one.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: asyncio.subprocess.Process | None = None,
    ) -> None:
        self.reader, self.writer = reader, writer
        self._process = process

    async def aclose(self) -> None:
        """Cut it: nobody reads what might still come. More than once is fine."""
        if not self.writer.transport.is_closing():
            # Pipes of Python 3.11 cannot be cut when the other end was first.
            self.writer.transport.abort()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, dict[str, str]]:
        """Send a request and read the head of its answer: the status, and the headers by their names in lower case.

        Raises:
            EngineDown: There is none.
        """
        version = "1.1" if "Upgrade" in headers else "1.0"
        fields = {"Host": "docker", "User-Agent": "gleitzeit", "Content-Length": str(len(body)), **headers}
        lines = [f"{method} {path} HTTP/{version}", *map(": ".join, fields.items()), "", ""]
        try:
            self.writer.write("\r\n".join(lines).encode("latin-1") + body)
            await self.writer.drain()
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *rest = head.decode("latin-1").rstrip().split("\r\n")
            status = int(first.split()[1])
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError, IndexError) as error:
            why = await self._said_by_ssh() or error
            raise EngineDown(f"no answer to {method} {path.partition('?')[0]}: {why}") from error
        return status, {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)
        }

    async def _said_by_ssh(self) -> str:
        """Why the ssh client in between gave up: it knows no key, or no such host."""
        if self._process is None or self._process.stderr is None:
            return ""
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                said = await self._process.stderr.read(_MESSAGE_MAX)
        except (TimeoutError, OSError):
            return ""
        return said.decode(errors="replace").strip()

    async def accepted(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b""
    ) -> dict[str, str]:
        """Send a request that must succeed: the headers of its answer, as `ask`.

        Raises:
            EngineDown: There is none.
            DockerError: It is an error.
        """
        status, found = await self.ask(method, path, headers=headers, body=body)
        if status >= _ERROR:
            raise await self._refusal(status)
        return found

    async def _refusal(self, status: int) -> DockerError:
        """The error that an answer with such a status is."""
        text = b""
        with contextlib.suppress(OSError):
            while len(text) < _MESSAGE_MAX and (part := await self.reader.read(_MESSAGE_MAX)):
                text += part
        try:
            message = str(json.loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            message = text.decode(errors="replace").strip() or f"status {status}"
        return by_status(status, message)


async def dial(address: Address, *, timeout_s: float, limit: int = _LINE_MAX) -> Wire:
    """Connect to an engine.

    Args:
        address: Where it is.
        timeout_s: How long that may take.
        limit: So many bytes that nobody reads may wait here, and as many again.

    Raises:
        EngineDown: It cannot be reached, or not within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _dialled(address, limit)
    except TimeoutError:
        raise EngineDown(f"{address.url} takes no connection within {timeout_s:g} s", hangs=True) from None
    except OSError as error:
        raise EngineDown(f"{address.url} cannot be reached: {error.strerror or error}") from error


async def _dialled(address: Address, limit: int) -> Wire:
    parts = urlsplit(address.url)
    if parts.scheme == "unix":
        return Wire(*await asyncio.open_unix_connection(parts.path, limit=limit))
    if parts.scheme == "ssh":
        process = await asyncio.create_subprocess_exec(
            *_ssh_command(address.url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=limit,
            # A Ctrl-C at a terminal is for us.
            start_new_session=True,
        )
        if process.stdout is None or process.stdin is None:
            raise OSError("ssh has no pipes")
        return Wire(process.stdout, process.stdin, process)
    tls = None if address.tls is None else await asyncio.to_thread(address.context)
    wire = Wire(*await asyncio.open_connection(parts.hostname, parts.port, ssl=tls, limit=limit))
    _keep_alive(wire.writer.get_extra_info("socket"))
    return wire


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), _KEEP_ALIVE_S)


def _ssh_command(url: str) -> list[str]:
    parts = urlsplit(url)
    user = ["-l", parts.username] if parts.username else []
    port = ["-p", str(parts.port)] if parts.port else []
    options = ["-o", "BatchMode=yes", "-o", f"ServerAliveInterval={_KEEP_ALIVE_S}"]
    return ["ssh", *options, *user, *port, "--", parts.hostname or "", "docker system dial-stdio"]


async def answer(
    address: Address,
    method: str,
    path: str,
    *,
    timeout_s: float,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    limit: int = _LINE_MAX,
) -> tuple[Wire, dict[str, str]]:
    """Make a call, and leave its body to be read. The caller closes the connection.

    Args:
        address: Whom to ask.
        method: HTTP method.
        path: Of the call.
        timeout_s: For the connection, and again for the head of the answer.
        query: Parameters.
        headers: Further ones.
        body: Sent whole.
        limit: As of `dial`.

    Raises:
        EngineDown: There is no answer.
        DockerError: It is an error.
    """
    wire = await dial(address, timeout_s=timeout_s, limit=limit)
    try:
        async with asyncio.timeout(timeout_s):
            full = f"{path}?{urlencode(query)}" if query else path
            found = await wire.accepted(method, full, headers=headers or {}, body=body)
    except TimeoutError:
        await wire.aclose()
        raise EngineDown(f"{address.url} does not answer {path} within {timeout_s:g} s", hangs=True) from None
    except BaseException:
        await wire.aclose()
        raise
    return wire, found


async def json_lines(wire: Wire, *, stall_timeout_s: float | None = None) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a body, one a line. Close the iterator when leaving early, and the connection after it.

    Args:
        wire: A connection whose answer's head was read.
        stall_timeout_s: So long it may be silent; None for any time.

    Raises:
        EngineDown: It is silent for too long, or breaks in the middle of a line.
    """
    while True:
        try:
            async with asyncio.timeout(stall_timeout_s):
                line = await wire.reader.readline()
        except TimeoutError:
            raise EngineDown(f"silent for {stall_timeout_s:g} s", hangs=True) from None
        except (OSError, ValueError) as error:
            raise EngineDown(f"the connection broke: {error}") from error
        if not line:
            return
        if line.strip():
            try:
                found: dict[str, Any] = json.loads(line)
            except ValueError as error:
                raise EngineDown(f"what it says is no JSON: {error}") from error
            yield found
