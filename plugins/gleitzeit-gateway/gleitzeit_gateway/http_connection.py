"""One connection of a caller: what comes by it is read, answered in order, and no more is read than is answered."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final, cast

from gleitzeit_gateway.connections import Guarded
from gleitzeit_gateway.http_parsing import BadRequest
from gleitzeit_gateway.http_reader import RequestReader

if TYPE_CHECKING:
    from gleitzeit_gateway.http_server import Server

_AHEAD: Final = 8
"""Requests that are read before their turn has come; whoever sends more of them waits."""
_LINGER_S: Final = 5.0
"""A caller whose request was not read to its end has so long to read the answer."""
_UNREAD_BYTES: Final = 512 * 1024
"""Of a body; its sender waits while more than this is not taken."""


class Connection(Guarded, asyncio.Protocol):
    """See the module's text. Its requests are answered by one task, which is cancelled when the caller leaves.

    Args:
        server: Whose it is.

    Attributes:
        task: Answers its requests; None before the first.
        answering: Whether it does so now.
    """

    __slots__ = (
        *("_arrival", "_drained", "_guard", "_held", "_lingering", "_lingers", "_loop", "_paused", "_reader"),
        *("_reading", "_refused", "_server", "answering", "task"),
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._server, self._guard, self._loop = server, server.guard, loop
        self.task: asyncio.Task[None] | None = None
        self.answering = False
        self._reader = RequestReader(self, self._guard.head_limits, _AHEAD)
        self._refused: BadRequest | None = None
        # What has come and was not read.
        self._held = b""
        self._reading, self._paused, self._lingers = True, False, False
        self._lingering: asyncio.TimerHandle | None = None
        # Set while the task waits: for a request, and for the caller to read.
        self._arrival: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        """What it does."""
        doing = "closed" if self.transport is None else "answering" if self.answering else "waiting"
        return f"<Connection {doing}, {self._reader!r}>"

    @property
    def ahead(self) -> int:
        """Requests that were read before their turn has come."""
        return len(self._reader.requests)

    @property
    def in_head(self) -> bool:
        """Whether some of a request's head has come, and not all of it."""
        return self._reader.begun

    @property
    def lingers(self) -> bool:
        """Whether it was answered for good, and only waits for its caller to notice."""
        return self._lingers

    # -- what the loop calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = opened = cast("asyncio.Transport", transport)
        self._guard.opened(self, opened)
        with contextlib.suppress(OSError, AttributeError):
            # A caller whose machine is gone would hold it for ever.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self.over or self._lingers:
            return
        self._read(self._held + data)
        reader = self._reader
        if reader.requests or reader.over:
            self._look()
        elif not self.answering:
            self._guard.heard(self)

    def eof_received(self) -> bool:
        """The caller sends nothing more: it has left, as to every server that looks for callers who leave.

        Returns:
            False: the transport closes itself.
        """
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the caller has left, one way or another
        """It is gone."""
        self.transport = None
        self._reader.end()
        self._held = b""
        self._guard.lost(self)
        self._server.lost(self)
        if self._lingering is not None:
            self._lingering.cancel()
        if self._arrival is not None:
            self._look()
        elif self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        """The caller reads slower than we write."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has read."""
        self._paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- reading -----------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        reader = self._reader
        try:
            self._held = data[reader.feed(data) :]
        except BadRequest as error:
            # Where it was raised is nobody's business, and would hold all this until the cycle collector comes.
            error.__traceback__ = error.__context__ = None
            self._refused, self._held = error, b""
            if reader.current is not None:
                # Its own answer will say so.
                reader.current.content.fail(error.message)
        if self._held or reader.current is not None:
            self._hold_back()

    def _hold_back(self) -> None:
        if self._reading and (self._held or self._full) and self.transport is not None:
            self._reading = False
            self.transport.pause_reading()

    @property
    def _full(self) -> bool:
        current = self._reader.current
        return len(self._reader.requests) >= _AHEAD or (
            current is not None and current.content.unread_bytes > _UNREAD_BYTES
        )

    def read_on(self) -> None:
        """There is room for more."""
        if self._reading:
            return
        if not self._reader.requests:
            self._read(self._held)
        if not (self._held or self._full) and self.transport is not None:
            self._reading = True
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def forget_head(self) -> None:
        """Read the next one anew, whatever the last one was."""
        self._reader.forget()

    # -- answering ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Have the task look whether there is something to do."""
        self._guard.began(self)
        arrival, self._arrival = self._arrival, None
        if self.task is None:
            self.task = self._loop.create_task(self._serve())
        elif arrival is not None and not arrival.done():
            arrival.set_result(None)

    async def _serve(self) -> None:
        """Answer what comes, in order, until there is nothing more to be answered."""
        server, reader, requests = self._server, self._reader, self._reader.requests
        try:
            while requests or not reader.over:
                if not requests:
                    self._guard.ended(self)
                    self._arrival = self._loop.create_future()
                    await self._arrival
                    continue
                request = requests.pop(0)
                if not self._reading:
                    self.read_on()
                self.answering = True
                try:
                    kept = await server.handler(request)
                except Exception as error:  # noqa: BLE001 - it is logged
                    server.failed(request, error)
                    kept = False
                self.answering = False
                if not (kept and request.complete) or server.closing:
                    self._end(lingers=not request.complete)
                    return
                del request  # Its body may be large, and nobody has taken it perhaps: who waits must hold nothing.
            self._refuse()
        finally:
            self.answering = False
            if self.transport is not None and not self._lingers:
                self.transport.close()

    def _refuse(self) -> None:
        """Tell a caller who does not speak HTTP, as well as that can be done."""
        if self._refused is not None and self.transport is not None and not self.transport.is_closing():
            self.transport.write(self._server.refusal(self._refused))
            self._end(lingers=True)

    def _end(self, *, lingers: bool) -> None:
        """Close it. With something unread that would take back what was sent: the caller must have read that first."""
        transport = self.transport
        if transport is None or transport.is_closing() or not lingers:
            return
        self._lingers, self._held = True, b""
        self._lingering = self._loop.call_later(_LINGER_S, transport.abort)
        if transport.can_write_eof():
            transport.write_eof()
        if not self._reading:
            self._reading = True
            transport.resume_reading()

    def put(self, data: bytes) -> bool:
        """Send `data`; whether the caller must be waited for, who does not read.

        Raises:
            ConnectionError: The caller has left.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the caller has left")
        transport.write(data)
        return self._paused

    async def drained(self) -> None:
        """Wait until the caller has read."""
        while self._paused:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    _drain_helper = drained  # aiohttp's writer calls it so.
