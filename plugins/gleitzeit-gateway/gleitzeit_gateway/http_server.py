"""The server: its connections and their end. How many there may be and how long they may wait, `connections` knows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.errors import Refused
from gleitzeit_gateway.http_connection import Connection
from gleitzeit_gateway.http_parsing import HeadTooLarge
from gleitzeit_gateway.last_answer import last_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.connections import Connections
    from gleitzeit_gateway.http_parsing import BadRequest
    from gleitzeit_gateway.http_request import Request

logger = logging.getLogger(__name__)

_FAILED: Final = b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Server:
    """Makes a connection for each caller; give it to ``loop.create_server``.

    Args:
        handler: Answers a request, and says whether its connection can be kept. Cancelled when the caller leaves.
        guard: Is told what happens on connections, and closes those that there should not be.

    Attributes:
        connections: Those that are open.
        handler: As given.
        guard: As given.
        closing: Whether requests that have not begun will not be answered any more.
    """

    def __init__(self, handler: Callable[[Request], Awaitable[bool]], guard: Connections) -> None:
        self.handler, self.guard = handler, guard
        self.connections: set[Connection] = set()
        self._emptied = asyncio.Event()
        self.closing = False

    def __repr__(self) -> str:
        """How many connections."""
        return f"<Server {len(self.connections)} connections>"

    def __call__(self) -> Connection:
        """A connection that is not made yet."""
        return Connection(self, asyncio.get_running_loop())

    # -- what connections call ---------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """One more."""
        self.connections.add(connection)

    def lost(self, connection: Connection) -> None:
        """One fewer."""
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    def failed(self, request: Request, error: Exception) -> None:
        """The handler has raised something."""
        logger.error("%r failed", request, exc_info=error)
        if not request.started and request.transport is not None:
            request.transport.write(_FAILED)

    def refusal(self, error: BadRequest) -> bytes:
        """The answer to what is no request, or none of a size that is read."""
        if isinstance(error, HeadTooLarge):
            return last_answer(Refused(431, error.message, "head_too_large"))
        return last_answer(Refused(error.status, f"this is no HTTP request: {error.message}", "bad_request"))

    # -- what others call --------------------------------------------------------------------------------------

    def forget_heads(self) -> None:
        """Read what comes next on each connection anew: how large heads may be has changed."""
        for connection in self.connections:
            connection.forget_head()

    # -- the end -----------------------------------------------------------------------------------------------

    def pre_shutdown(self) -> None:
        """Answer nothing that has not begun, and close the connections that wait."""
        self.closing = True
        for connection in tuple(self.connections):
            if not connection.answering:
                _close(connection)

    async def shutdown(self, limit_s: float) -> None:
        """Let what is answered come to its end, for so long at most; then cut it."""
        self.pre_shutdown()
        if self.connections:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._emptied.wait()
        tasks = [connection.task for connection in self.connections if connection.task is not None]
        for connection in tuple(self.connections):
            _abort(connection)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _close(connection: Connection) -> None:
    if connection.transport is not None:
        connection.transport.close()


def _abort(connection: Connection) -> None:
    if connection.transport is not None:
        connection.transport.abort()
