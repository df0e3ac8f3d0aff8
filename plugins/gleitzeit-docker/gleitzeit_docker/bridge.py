"""Lets the SDK reach an engine by ssh: a socket of our own, each connection of which is carried by an ssh client.

The SDK's own way needs another library, or leaves its ssh processes behind when a connection is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gleitzeit_docker import wire
from gleitzeit_docker.errors import EngineDown

if TYPE_CHECKING:
    from gleitzeit_docker.address import Address

_PART_BYTES = 64 * 1024


class Bridge:
    """A socket that leads to an engine. Made by `begin`; must be closed.

    Args:
        address: The engine.
        folder: Where the socket is; nobody else may enter it.
        timeout_s: How long a connection may take.
    """

    def __init__(self, address: Address, folder: Path, timeout_s: float) -> None:
        self._address, self._folder, self._timeout_s = address, folder, timeout_s
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        """Where it leads, and how much goes over it."""
        return f"<Bridge to {self._address.url}, {len(self._carrying)} connections>"

    @classmethod
    async def begin(cls, address: Address, *, timeout_s: float) -> Self:
        """Listen."""
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="gleitzeit-"))
        bridge = cls(address, folder, timeout_s)
        try:
            bridge._server = await asyncio.start_unix_server(bridge._took, folder / "engine.sock")
        except BaseException:
            await bridge.aclose()
            raise
        return bridge

    @property
    def url(self) -> str:
        """As in DOCKER_HOST."""
        return f"unix://{self._folder}/engine.sock"

    async def aclose(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _took(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        # One that is cancelled at once has not even begun.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever asked sees the end of the connection, and asks us why.
        with contextlib.suppress(EngineDown):
            far = await wire.dial(self._address, timeout_s=self._timeout_s)
            ways = [asyncio.create_task(way) for way in (_way(reader, far.writer), _way(far.reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                await far.aclose()


async def _way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_PART_BYTES):
            writer.write(data)
            await writer.drain()
