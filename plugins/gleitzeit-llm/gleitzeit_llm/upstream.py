"""HTTP to instances: one client for many servers. How it can fail stands in `failures`.

Its connections are our own: `http1` reads answers, `connection` is one connection, `connections` keeps them, `exchange`
is one request. What they raise is what aiohttp's client would, or a `NotHTTP` or an `Unconnected`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from gleitzeit_core.errors import ClosedError, FailureKind, InstanceFailure
from gleitzeit_llm.connection import HEAD_ONLY
from gleitzeit_llm.connections import Connections, origin_of
from gleitzeit_llm.exchange import Response, exchange
from gleitzeit_llm.failures import translated
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from gleitzeit_core.resources import HttpChannel
    from gleitzeit_llm.loading import Waiting

MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""The largest answer that is read as a whole."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole answer with a status from 200 to 299. A struct: made for every answer.

    Args:
        status: HTTP status.
        content_type: In lower case, without parameters.
        body: Decompressed.
    """

    status: int
    content_type: str
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - whatever the server sent
        """The body as JSON.

        Raises:
            InstanceFailure: ``SERVER_ERROR``: it is none.
        """
        try:
            return msgspec.json.decode(self.body)
        except UNREADABLE as error:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"the answer is not JSON: {error}") from None


class Upstream:
    """A client for many servers. Open it in the running loop, close it once it is no longer needed.

    Connections are kept for the next request. A server may close such a connection in the very moment when a request
    sets out on it; then the request is sent once more, on a new one. That repeats nothing the server has answered, and
    whatever is sent through here may be repeated.

    Args:
        connect_timeout_s: A server that has not accepted a connection after this long counts as down; the look-up of
            its name and the TLS handshake are part of it. Above 0.
        stall_timeout_s: A server that has begun to answer and then sends nothing for this long has failed; above 0, or
            None for no limit. Until it begins it may take as long as it likes.
    """

    def __init__(self, *, connect_timeout_s: float = 5.0, stall_timeout_s: float | None = None) -> None:
        self._connect_timeout_s, self._stall_timeout_s = connect_timeout_s, stall_timeout_s
        self._connections: Connections | None = None

    def __repr__(self) -> str:
        """Whether it is open."""
        return f"<Upstream {'closed' if self._connections is None else 'open'}>"

    async def open(self) -> None:
        """Make it ready.

        Raises:
            ClosedError: It is open already.
        """
        if self._connections is not None:
            raise ClosedError("the HTTP client is open already")
        self._connections = Connections(self._connect_timeout_s, self._stall_timeout_s)

    async def close(self) -> None:
        """Close all connections. More than once is fine."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close()

    def give_up(self, channel: HttpChannel, why: str) -> None:
        """Let fail what waits for a server that has not begun to answer.

        Args:
            channel: The server.
            why: A sentence about it, for a person.
        """
        if self._connections is not None:
            self._connections.give_up(origin_of(channel.url), channel.tls, why)

    async def request(
        self,
        channel: HttpChannel,
        method: str,
        path: str,
        payload: bytes | Mapping[str, Any] | None = None,
        waiting: Waiting | None = None,
    ) -> Reply:
        """One request and its whole answer.

        Args:
            channel: The server.
            method: HTTP method.
            path: Below the server's URL, from ``/``.
            payload: The body, or what to encode as JSON; None for none.
            waiting: How to wait for the answer's head, where a model may have to be loaded first.

        Raises:
            InstanceFailure: Anything but a whole answer with a status from 200 to 299.
            ClosedError: This is not open.
        """
        response = await exchange(self.connections, channel, method, path, payload, waiting, MAX_ANSWER_BYTES)
        body = response.at_once(MAX_ANSWER_BYTES)
        if body is None:
            try:
                body = await read_whole(response)
            except (aiohttp.ClientError, OSError) as error:
                raise translated(channel.url, error) from None
            finally:
                response.close()
        return Reply(response.status, response.content_type, body)

    def stream(
        self,
        channel: HttpChannel,
        method: str,
        path: str,
        payload: bytes | Mapping[str, Any] | None = None,
        waiting: Waiting | None = None,
    ) -> AbstractAsyncContextManager[Response]:
        """One request, and its answer once the headers are there. Leaving the block early closes the connection.

        Raises:
            InstanceFailure: As for `request`; also from within the block, when the connection breaks.
            ClosedError: This is not open.
        """
        return _Block(channel.url, partial(self.begin, channel, method, path, payload, waiting))

    def begin(
        self,
        channel: HttpChannel,
        method: str,
        path: str,
        payload: bytes | Mapping[str, Any] | None = None,
        waiting: Waiting | None = None,
    ) -> Awaitable[Response]:
        """One request, and its answer once the headers are there. It must be closed.

        Args:
            channel: As for `request`, and so are the next ones.
            method: HTTP method.
            path: Below the server's URL.
            payload: The body.
            waiting: How to wait for the answer's head.

        Raises:
            InstanceFailure: There is no answer with a status from 200 to 299.
            ClosedError: This is not open.
        """
        return exchange(self.connections, channel, method, path, payload, waiting, HEAD_ONLY)

    @property
    def connections(self) -> Connections:
        """Those that are open.

        Raises:
            ClosedError: This is not open.
        """
        if self._connections is None:
            raise ClosedError("the HTTP client is not open")
        return self._connections


class _Block(AbstractAsyncContextManager[Response]):
    """The block of one answer; a class, because a generator costs more than all the rest of it."""

    __slots__ = ("_begin", "_response", "_url")

    def __init__(self, url: str, begin: Callable[[], Awaitable[Response]]) -> None:
        self._url, self._begin = url, begin
        self._response: Response | None = None

    async def __aenter__(self) -> Response:
        """Send the request.

        Raises:
            InstanceFailure: There is no answer with a status from 200 to 299.
        """
        self._response = response = await self._begin()
        return response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Be done with the answer.

        Raises:
            InstanceFailure: The connection broke in the block.
        """
        if self._response is not None:
            self._response.close()
        if isinstance(error, aiohttp.ClientError | OSError):
            raise translated(self._url, error) from None


async def read_whole(response: Response, limit_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """The whole body.

    Raises:
        InstanceFailure: ``SERVER_ERROR``: it is larger than `limit_bytes`.
    """
    body = await response.whole(limit_bytes)
    if body is None:
        text = f"{response.url} answered more than {limit_bytes} bytes"
        raise InstanceFailure(FailureKind.SERVER_ERROR, text)
    return body
