"""One request to a server and its answer, as the rest of this package sees it."""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

from aiohttp import ClientError, ServerDisconnectedError

from gleitzeit_llm.connection import CutOff
from gleitzeit_llm.connections import origin_of, target
from gleitzeit_llm.http1 import NotHTTP
from gleitzeit_llm.via import CHAIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from multidict import CIMultiDict

    from gleitzeit_core.resources import HttpChannel
    from gleitzeit_llm.connection import Connection
    from gleitzeit_llm.connections import Connections, Origin
    from gleitzeit_llm.loading import Waiting

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_VALUE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# What belongs to the connection is not a caller's to say; a body's length would be a second one.
_OURS: Final = frozenset(
    ("connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
# Compressing a stream makes proxies hold parts of it back.
_ALWAYS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "gleitzeit"}
_JSON: Final = "application/json"
_INFLATED_BYTES: Final = 1024 * 1024


class Response:
    """An answer whose head is there. It is read as aiohttp's are: by `content`, in whatever parts come.

    Args:
        url: Of the server; for messages.
        connection: Where it comes from.
        connections: Whose connection that is.
    """

    __slots__ = ("_answer", "_connection", "_connections", "content_type", "status", "url")

    def __init__(self, url: str, connection: Connection, connections: Connections) -> None:
        if connection.answer is None:
            raise ServerDisconnectedError
        self._answer, self._connections = connection.answer, connections
        self._connection: Connection | None = connection
        self.url = url
        self.status = self._answer.status
        self.content_type = self._answer.content_type

    def __repr__(self) -> str:
        """Status and server."""
        return f"<Response {self.status} of {self.url}>"

    @property
    def headers(self) -> CIMultiDict[str]:
        """Those of the answer; case does not count in their names."""
        return self._answer.headers

    @property
    def complete(self) -> bool:
        """Whether all of its body has been taken."""
        return self._answer.complete and not self._answer.unread_bytes and not self._answer.encoding

    @property
    def content(self) -> Self:
        """What its body is read from."""
        return self

    def iter_any(self) -> AsyncIterator[bytes]:
        """The body in parts, each as soon as it is there; decompressed, if a server compresses without being asked."""
        return _inflated(self, self._answer.encoding) if self._answer.encoding else _Parts(self)

    def reader(self) -> Callable[[], Awaitable[bytes]]:
        """What gives the next part each time it is awaited, as `iter_any` does, and nothing at the end."""
        if self._connection is not None and not self._answer.encoding:
            return self._connection.part
        parts = self.iter_any()
        return lambda: anext(parts, b"")

    async def readany(self) -> bytes:
        """What has come of the body, as it was sent; empty at its end.

        Raises:
            ClientError, OSError: It broke off before its end.
        """
        return b"" if self._connection is None else await self._connection.part()

    def at_once(self, limit_bytes: int) -> bytes | None:
        """The whole body, if all of it has come and it is not larger than `limit_bytes`; otherwise ask for `whole`."""
        answer = self._answer
        if answer.complete and not answer.encoding and answer.unread_bytes <= limit_bytes:
            return answer.take()
        return None

    async def whole(self, limit_bytes: int) -> bytes | None:
        """The whole body; None when it is larger than `limit_bytes`.

        Raises:
            ClientError, OSError: It broke off before its end.
        """
        body = bytearray()
        async for data in self.iter_any():
            body += data
            if len(body) > limit_bytes:
                return None
        return bytes(body)

    def close(self) -> None:
        """Be done with it; if it has not come to its end yet, its connection is closed. More than once is fine."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.give_back(connection)


class _Parts(AsyncIterator[bytes]):
    __slots__ = ("_response",)

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __anext__(self) -> bytes:
        data = await self._response.readany()
        if not data:
            raise StopAsyncIteration
        return data


async def _inflated(response: Response, encoding: str) -> AsyncIterator[bytes]:
    """A decompressed body, a little at a time: a few bytes may become very many."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise NotHTTP("its body is compressed in a way that was not asked for")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    async for data in _Parts(response):
        rest = data
        while rest:
            try:
                part = inflate.decompress(rest, _INFLATED_BYTES)
            except zlib.error:
                raise NotHTTP("its body is not compressed as it says") from None
            rest = inflate.unconsumed_tail
            if part:
                yield part
    if not inflate.eof:
        raise NotHTTP("its compressed body has no end")


def request_head(origin: Origin, channel: HttpChannel, method: str, path: str, body: bytes | None) -> bytes:
    """The first line and the headers of a request.

    Raises:
        ValueError: One of them cannot be sent; its value is not repeated.
    """
    if not channel.headers and body is not None:
        return b"%bContent-Length: %d\r\n\r\n" % (_usual_head(origin, method, path, CHAIN.get()), len(body))
    lines = [f"{method} {target(origin, path)} HTTP/1.1\r\n"]
    given = _checked(channel.headers)
    if "host" not in given:
        lines.append(f"Host: {origin.host_header}\r\n")
    if origin.authorization and "authorization" not in given:
        lines.append(f"Authorization: {origin.authorization}\r\n")
    lines += [f"{name}: {value}\r\n" for name, value in _ALWAYS.items() if name.lower() not in given]
    via = CHAIN.get()
    if via:
        lines.append(f"Via: {via}\r\n")
    if body is not None and "content-type" not in given:
        lines.append(f"Content-Type: {_JSON}\r\n")
    if body is not None or method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
        lines.append(f"Content-Length: {len(body or b'')}\r\n")
    lines += given.values()
    lines.append("\r\n")
    return "".join(lines).encode("utf-8", "surrogateescape")


@lru_cache(1024)
def _usual_head(origin: Origin, method: str, path: str, via: str) -> bytes:
    """All that is the same for each request with a body, where a server is sent no headers of its own."""
    lines = [f"{method} {target(origin, path)} HTTP/1.1", f"Host: {origin.host_header}"]
    lines += [f"Authorization: {origin.authorization}"] if origin.authorization else []
    lines += [f"{name}: {value}" for name, value in _ALWAYS.items()]
    lines += [f"Via: {via}"] if via else []
    return "\r\n".join([*lines, f"Content-Type: {_JSON}", ""]).encode("utf-8", "surrogateescape")


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    """The lines of a channel's own headers, by their names in lower case."""
    found = {}
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise ValueError("a header has a name that cannot be sent")
        if _NO_VALUE.search(value):
            raise ValueError(f"the header {name} has a value that cannot be sent")
        if name.lower() not in _OURS:
            found[name.lower()] = f"{name}: {value}\r\n"
    return found


async def exchange(
    connections: Connections,
    channel: HttpChannel,
    method: str,
    path: str,
    body: bytes | None,
    *,
    whole_bytes: int | None,
    waiting: Waiting | None = None,
) -> Response:
    """Send a request and wait for the head of its answer, or for all of it.

    A server may close a kept connection in the very moment when a request sets out on it. When nothing of an answer
    has come, the request is sent once more, on a new connection.

    Args:
        connections: To take one from.
        channel: The server.
        method: HTTP method.
        path: Below the server's URL.
        body: What to send; None for nothing.
        whole_bytes: Wait for all of an answer that is not larger than that; None: only for its head.
        waiting: How to wait for its head, where its model may have to be loaded first.

    Raises:
        ClientError, OSError: There is no answer.
        ValueError: Such a request cannot be sent.
    """
    origin = origin_of(channel.url)
    head = request_head(origin, channel, method, path, body)
    connection = connections.kept(origin, channel.tls)
    while True:
        new = connection is None
        if connection is None:
            connection = await connections.fresh(origin, channel.tls)
        try:
            if not connection.send(method, head, body):
                await connection.send_rest()
            if waiting is not None:
                await waiting.head(connection)
            if whole_bytes is not None:
                await connection.whole(whole_bytes)
            elif waiting is None:
                await connection.head()
            return Response(channel.url, connection, connections)
        except BaseException as error:
            if waiting is None or not waiting.kept:
                connection.abort()
            if new or connection.heard or not _may_be_sent_again(error):
                raise
        connection = None


def _may_be_sent_again(error: BaseException) -> bool:
    """Whether a kept connection on which nothing has come was closed, and neither given up here nor spoilt."""
    return isinstance(error, ClientError | OSError) and not isinstance(error, NotHTTP | CutOff)
