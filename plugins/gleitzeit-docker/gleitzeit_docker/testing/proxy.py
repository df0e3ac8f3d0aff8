"""An engine that can be made to hang, to vanish and to come back: a socket in front of a real one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

_PART_BYTES = 64 * 1024


class EngineProxy:
    """Passes on what it gets, as long as it is told to. An async context.

    Args:
        engine: The socket of a real engine.
        path: Where to listen; None for a port on loopback.
        tls: With which TLS, on a port.
    """

    def __init__(self, engine: str, path: Path | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self._engine, self._path, self._tls = engine, path, tls
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self._port = 0

    @property
    def url(self) -> str:
        """As in DOCKER_HOST."""
        return f"unix://{self._path}" if self._path else f"tcp://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        """Listen."""
        await self.come_back()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cut all connections."""
        await self.vanish()

    def hang(self) -> None:
        """Take connections, and say nothing more on any."""
        self._flows.clear()

    def go_on(self) -> None:
        """Pass on again, what came meanwhile included."""
        self._flows.set()

    async def vanish(self) -> None:
        """As if the engine were killed: connections break, and new ones are refused."""
        if self._server is not None:
            self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def come_back(self) -> None:
        """Listen again, at the same place."""
        self._flows.set()
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._took, self._path)
            return
        self._server = await asyncio.start_server(self._took, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    def _took(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass_on(reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        # One that is cancelled at once has not even begun.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._engine)
        asking, answering = (asyncio.create_task(way) for way in (self._way(reader, back), self._way(there, writer)))
        try:
            # Whoever asks may have said all and wait still; when the engine has said all, that is it.
            await asyncio.wait((answering,))
        finally:
            for way in (asking, answering):
                way.cancel()
            back.transport.abort()
            await asyncio.gather(asking, answering, return_exceptions=True)

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PART_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
            await self._flows.wait()
            if writer.can_write_eof():
                writer.write_eof()
