"""One request to a server and its answer, as the rest of this package sees it."""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from aiohttp import ClientError

from gleitzeit_llm.connection import CutOff
from gleitzeit_llm.connections import origin_of, target
from gleitzeit_llm.failures import refusal, translated
from gleitzeit_llm.http1 import NotHTTP
from gleitzeit_llm.via import CHAIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from multidict import CIMultiDict

    from gleitzeit_core.resources import HttpChannel
    from gleitzeit_llm.connection import Connection
    from gleitzeit_llm.connections import Connections, Origin
    from gleitzeit_llm.http1 import AnswerReader
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
        answer: What has come of it.
        connection: Where the rest comes from.
        connections: Whose connection that is.
    """

    __slots__ = ("_answer", "_connection", "_connections", "_head", "url")

    def __init__(self, url: str, answer: AnswerReader, connection: Connection, connections: Connections) -> None:
        self.url, self._answer, self._head, self._connections = url, answer, answer.head, connections
        self._connection: Connection | None = connection

    def __repr__(self) -> str:
        """Status and server."""
        return f"<Response {self.status} of {self.url}>"

    @property
    def status(self) -> int:
        """HTTP status, from 200."""
        return self._head.status

    @property
    def content_type(self) -> str:
        """In lower case, without parameters."""
        return self._head.content_type

    @property
    def headers(self) -> CIMultiDict[str]:
        """Those of the answer, asked before it is closed; case does not count in their names."""
        return self._answer.headers

    @property
    def complete(self) -> bool:
        """Whether all of its body has been taken; asked before it is closed."""
        return self._answer.complete and not self._answer.unread_bytes and not self._head.encoding

    @property
    def content(self) -> Self:
        """What its body is read from."""
        return self

    def iter_any(self) -> AsyncIterator[bytes]:
        """The body in parts, each as soon as it is there; decompressed, if a server compresses without being asked."""
        return _inflated(self, self._head.encoding) if self._head.encoding else _Parts(self)

    def reader(self) -> Callable[[], Awaitable[bytes]]:
        """What gives the next part each time it is awaited, as `iter_any` does, and nothing at the end."""
        if self._connection is not None and not self._head.encoding:
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
        """The whole body, if all of it has come and it is not larger than `limit_bytes`: then this is closed.

        None for whatever else; then ask for `whole`.
        """
        answer = self._answer
        if not answer.complete or self._head.encoding or answer.unread_bytes > limit_bytes:
            return None
        body = answer.take()
        self.close()
        return body

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
    own = tuple(channel.headers.items()) if channel.headers else ()
    head = _head(origin, method, path, CHAIN.get(), "" if body is None else _JSON, own)
    if body is None and method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        return head + b"\r\n"
    return b"%bContent-Length: %d\r\n\r\n" % (head, len(body or b""))


@lru_cache(1024)
def _head(origin: Origin, method: str, path: str, via: str, kind: str, own: tuple[tuple[str, str], ...]) -> bytes:
    """All that is the same for each request of its kind: all but the length of the body, and the empty line."""
    given = _checked(own)
    lines = [f"{method} {target(origin, path)} HTTP/1.1\r\n"]
    if "host" not in given:
        lines.append(f"Host: {origin.host_header}\r\n")
    if origin.authorization and "authorization" not in given:
        lines.append(f"Authorization: {origin.authorization}\r\n")
    lines += [f"{name}: {value}\r\n" for name, value in _ALWAYS.items() if name.lower() not in given]
    if via:
        lines.append(f"Via: {via}\r\n")
    if kind and "content-type" not in given:
        lines.append(f"Content-Type: {kind}\r\n")
    return "".join([*lines, *given.values()]).encode("utf-8", "surrogateescape")


def _checked(headers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The lines of a channel's own headers, by their names in lower case."""
    found = {}
    for name, value in headers:
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
    payload: bytes | Mapping[str, Any] | None,
    waiting: Waiting | None,
    whole_bytes: int,
) -> Response:
    """Send a request and wait for the head of its answer, or for all of it.

    A server may close a kept connection in the very moment when a request sets out on it. When nothing of an answer
    has come, the request is sent once more, on a new connection.

    Args:
        connections: To take one from.
        channel: The server.
        method: HTTP method.
        path: Below the server's URL.
        payload: The body, or what to encode as JSON; None for none.
        waiting: How to wait for the head, where a model may have to be loaded first.
        whole_bytes: As for `Connection.arrival`.

    Raises:
        InstanceFailure: There is no answer with a status from 200 to 299.
    """
    url = channel.url
    try:
        body = payload if payload is None or isinstance(payload, bytes) else msgspec.json.encode(payload)
        origin = origin_of(url)
        head = request_head(origin, channel, method, path, body)
        kept = connections.kept(origin, channel.tls)
        while True:
            connection = kept or await connections.fresh(origin, channel.tls)
            try:
                connection.send(method, head, body)
                if waiting is not None:
                    await waiting.head(connection)
                await connection.arrival(whole_bytes)
                answer = connection.arrived()
                break
            except BaseException as error:
                if waiting is None or not waiting.kept:
                    connection.abort()
                if kept is None or connection.heard or not _may_be_sent_again(error):
                    raise
            kept = None
    except (ClientError, OSError, ValueError) as error:
        # Not `from error`, here and elsewhere: what failed may hold the request with its headers, and so our key.
        raise translated(url, error) from None
    response = Response(url, answer, connection, connections)
    if answer.head.status < 300:  # noqa: PLR2004 - redirects and errors
        return response
    try:
        raise await refusal(url, response)
    finally:
        response.close()


def _may_be_sent_again(error: BaseException) -> bool:
    """Whether a kept connection on which nothing has come was closed, and neither given up here nor spoilt."""
    return isinstance(error, ClientError | OSError) and not isinstance(error, NotHTTP | CutOff)
