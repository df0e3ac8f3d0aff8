"""A container's standard streams as a channel: an upgraded connection on the running loop.

After ``101 UPGRADED`` the connection is plain bytes in our direction, and frames in the other: a byte for the stream
(1 is standard output, 2 is standard error), three zeros, the length as four bytes with the highest first, and so many
bytes. (Docker Engine API, "Attach to a container", stream format.) What is not standard output is for people: a 3 is an
engine that says what went wrong.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.resources import ChannelKind
from gleitzeit_docker import wire

if TYPE_CHECKING:
    from gleitzeit_docker.address import Address

_HEADER: Final = struct.Struct(">BxxxI")
_STDOUT: Final = 1
_UPGRADE: Final = {"Connection": "Upgrade", "Upgrade": "tcp"}
_LOG_BYTES: Final = 16 * 1024
_READ_BYTES: Final = 64 * 1024
_QUERY: Final = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}


class AttachedStream:
    """What a container's main process reads and writes. Its standard error goes to `log`, of which the end is kept.

    What is not received stays in the container: at most a few hundred kilobytes wait here.

    Args:
        connection: Upgraded.
    """

    kind = ChannelKind.STREAM

    def __init__(self, connection: wire.Wire) -> None:
        self._wire = connection
        self._left = 0
        self._is_log = self._ended = False
        self._log = b""

    def __repr__(self) -> str:
        """Whether it is open."""
        return f"<AttachedStream {'closed' if self.closed else 'open'}>"

    @property
    def closed(self) -> bool:
        """Whether nothing more can come: it was closed, or the container has ended."""
        return self._ended or self._wire.reader.at_eof() or self._wire.writer.is_closing()

    @property
    def log(self) -> str:
        """The end of what the process wrote to its standard error."""
        return self._log.decode(errors="replace").strip()

    async def send(self, data: bytes) -> None:
        """Write all of `data`; waits while the container reads too slowly.

        Raises:
            InstanceFailure: ``LOST`` when the container is gone.
        """
        if self.closed:
            raise InstanceFailure(FailureKind.LOST, self._why())
        try:
            self._wire.writer.write(data)
            await self._wire.writer.drain()
        except OSError as error:
            raise InstanceFailure(FailureKind.LOST, self._why()) from error

    async def receive(self, max_bytes: int = _READ_BYTES) -> bytes:
        """Read what is there of standard output, at most `max_bytes`; ``b""`` at its end.

        It may be cancelled at any time: nothing that has come is lost.
        """
        try:
            while not self._ended:
                if not self._left:
                    stream, self._left = _HEADER.unpack(await self._wire.reader.readexactly(_HEADER.size))
                    self._is_log = stream != _STDOUT
                    continue
                data = await self._wire.reader.read(min(max_bytes, self._left))
                if not data:
                    break
                self._left -= len(data)
                if not self._is_log:
                    return data
                self._log = (self._log + data)[-_LOG_BYTES:]
        except (OSError, EOFError):
            pass
        self._ended = True
        return b""

    async def aclose(self) -> None:
        """Close both directions; more than once is fine."""
        self._ended = True
        await self._wire.aclose()

    def _why(self) -> str:
        return f"the container's streams are closed{f': {self.log}' if self.log else ''}"


async def attach(address: Address, container: str, *, timeout_s: float) -> AttachedStream:
    """Attach to a container that was created and not started, so that nothing of what it writes is missed.

    Raises:
        DockerError: The engine does not answer, or will not.
    """
    path = f"/containers/{container}/attach"
    connection, _ = await wire.answer(
        address, "POST", path, query=_QUERY, headers=_UPGRADE, timeout_s=timeout_s, limit=wire.STREAM_MAX
    )
    return AttachedStream(connection)
