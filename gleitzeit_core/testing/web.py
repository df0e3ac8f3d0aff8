"""A hub reached over HTTP on a real socket, the small server behind it, and the provider that drives it.

The server answers ``POST /`` with what it was told to: a status and a body, lines one by one, nothing at all, or an end
in the middle. It is as much HTTP as the tests of the core need.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.resources import ChannelKind, HttpChannel, ResourceInstance, Speaks, instance_id
from gleitzeit_core.strategies.base import NoOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import Channel

WEB = Speaks("web", ChannelKind.HTTP)

_KINDS = {401: FailureKind.UNAUTHORIZED, 403: FailureKind.UNAUTHORIZED, 429: FailureKind.BUSY, 503: FailureKind.BUSY}
_BAD_REQUEST, _SERVER_ERROR = 400, 500


class WebServer:
    """Listens on loopback. Use it in an ``async with`` block; what it answers can be changed at any time."""

    def __init__(self) -> None:
        self.status = 200
        self.retry_after_s: float | None = None
        self.lines = ["0", "1", "2"]
        self.silent = False
        """Take requests and say nothing."""
        self.breaks_off = False
        """End the connection before the last line."""
        self.asked = 0
        self.left = asyncio.Event()
        """Set when a client has gone before its answer was complete."""
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen."""
        await self.listen(0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close, connections too."""
        await self.stop()

    async def listen(self, port: int) -> None:
        """Listen on a port; 0 for any that is free."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Refuse connections from now on, and break off those there are."""
        if self._server is not None:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line.split(":")[1]) for line in headers.splitlines() if line.startswith("content-length"))
        body = json.loads(await reader.readexactly(length))
        if body.get("check"):
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            return
        self.asked += 1
        if self.silent:
            await reader.read(1)
            self.left.set()
            return
        after = "" if self.retry_after_s is None else f"Retry-After: {self.retry_after_s}\r\n"
        writer.write(f"HTTP/1.1 {self.status} Some\r\n{after}Connection: close\r\n\r\n".encode())
        for line in self.lines[:-1] if self.breaks_off else [*self.lines, "end"]:
            writer.write(f"{line}\n".encode())
            await writer.drain()


class WebHub(ResourceHub[HubOptions]):
    """Servers at known URLs."""

    kind = "web"

    def __init__(self, *urls: str, name: str = "", options: HubOptions | None = None) -> None:
        super().__init__(options or HubOptions(), name=name)
        self._urls = urls

    async def discover(self) -> Iterable[ResourceInstance]:
        """All."""
        return [
            ResourceInstance(
                id=instance_id(self.kind, url),
                hub=self.name,
                kind=self.kind,
                endpoint=url,
                offers=((WEB.api, HttpChannel(url)),),
            )
            for url in self._urls
        ]

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Whether it answers.

        Raises:
            InstanceFailure: It does not.
        """
        async for _ in _ask(HttpChannel(instance.endpoint), {"check": True}):
            break
        return instance


class WebProvider(Provider[NoOptions]):
    """Asks a server, and gives back its lines."""

    protocol = "web"
    accepts = (WEB,)
    methods = (
        Method(name="web/get", summary="all lines", replayable=True, streams=True),
        Method(name="web/put", summary="all lines, once", replayable=False),
    )

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - a list
        """All lines."""
        return [line async for line in self.stream_on(instance, api, channel, request)]

    async def stream_on(
        self, instance: ResourceInstance, api: str, channel: Channel, request: Request
    ) -> AsyncIterator[Any]:
        """Each line as it comes. Leaving closes the connection.

        Raises:
            InstanceFailure: As the server failed.
        """
        del instance, api
        if not isinstance(channel, HttpChannel):
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"cannot ask {channel!r}", started=False)
        source = _ask(channel, dict(request.params))
        async with contextlib.aclosing(source):
            async for line in source:
                if line == "end":
                    return
                yield line
        raise InstanceFailure(FailureKind.LOST, f"{channel.url} broke off")


async def _ask(channel: HttpChannel, message: dict[str, Any]) -> Any:  # noqa: ANN401 - an async generator of lines
    address = urlsplit(channel.url)
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
    except OSError as error:
        raise InstanceFailure(FailureKind.REFUSED, f"{channel.url}: {error}", started=False) from error
    try:
        body = json.dumps(message).encode()
        writer.write(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        _raise_for(channel.url, head.decode().splitlines())
        while line := await reader.readline():
            yield line.decode().strip()
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise InstanceFailure(FailureKind.LOST, f"{channel.url}: {error}") from error
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def _raise_for(url: str, head: list[str]) -> None:
    status = int(head[0].split()[1])
    if status < _BAD_REQUEST:
        return
    after = next((float(line.split(":")[1]) for line in head if line.lower().startswith("retry-after")), None)
    kind = _KINDS.get(status, FailureKind.SERVER_ERROR if status >= _SERVER_ERROR else FailureKind.REJECTED)
    unstarted = kind in (FailureKind.BUSY, FailureKind.UNAUTHORIZED)
    raise InstanceFailure(kind, f"{url} answered {status}", started=not unstarted, retry_after_s=after, status=status)
