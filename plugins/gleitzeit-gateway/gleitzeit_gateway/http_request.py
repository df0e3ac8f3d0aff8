"""One HTTP request as its connection has read it: the head, and the body as it comes.

It is read like aiohttp's own requests, as far as endpoints have use for that, and aiohttp's responses can be sent to
it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from aiohttp import web
from aiohttp.http_writer import StreamWriter

if TYPE_CHECKING:
    from aiohttp import HttpVersion
    from aiohttp.base_protocol import BaseProtocol
    from multidict import CIMultiDictProxy, MultiDictProxy
    from yarl import URL

    from gleitzeit_gateway.http_head import Head

_INFLATED_BYTES: Final = 256 * 1024
_DEFLATE: Final = 8
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Carrier(Protocol):
    """What a request needs of its connection."""

    transport: asyncio.Transport | None

    def read_on(self) -> None:
        """More of the body can be taken."""

    def put(self, data: bytes) -> bool:
        """Send a piece of the answer; whether the caller must be waited for, who does not read."""

    async def drained(self) -> None:
        """Wait until the caller has read."""


class Body:
    """The body of a request, one reader at a time.

    Args:
        carrier: Is told when there is room for more.
        encoding: How it is compressed; empty for not at all.
        whole: All of it, where that is there; None for one that is still to come.

    Attributes:
        complete: Whether all of it has come; some of it may not be taken yet.
        unread_bytes: What has come and was not taken, as it was sent.
    """

    __slots__ = ("_carrier", "_encoding", "_error", "_inflate", "_parts", "_waiter", "complete", "unread_bytes")

    def __init__(self, carrier: Carrier, encoding: str, whole: bytes | None = None) -> None:
        self._carrier, self._encoding = carrier, encoding
        # A sender who cuts a body into single bytes makes very many of them.
        self._parts: deque[bytes] = deque((whole,) if whole else ())
        self._waiter: asyncio.Future[None] | None = None
        self._error = ""
        self._inflate: Any = None
        self.complete = whole is not None
        self.unread_bytes = len(whole or b"")

    def __repr__(self) -> str:
        """How much of it is there."""
        return f"<Body {self.unread_bytes} bytes unread{', complete' if self.complete else ''}>"

    # -- what the connection calls -----------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """A piece has come."""
        self._parts.append(data)
        self.unread_bytes += len(data)
        if self._waiter is not None:
            self._wake()

    def end(self) -> None:
        """All of it has come."""
        self.complete = True
        if self._waiter is not None:
            self._wake()

    def fail(self, text: str) -> None:
        """It broke off, or is not what its headers say."""
        if not self.complete:
            self._error = text
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- what its reader calls ---------------------------------------------------------------------------------

    def take_whole(self) -> bytes | None:
        """All of it, where all has come and was not compressed; None elsewhere."""
        if not self.complete or self._encoding:
            return None
        parts, self.unread_bytes = self._parts, 0
        if len(parts) == 1:
            return parts.pop()
        data = b"".join(parts)
        parts.clear()
        return data

    async def readany(self) -> bytes:
        """What has come, decompressed, at most a few hundred kilobytes of it; empty at its end.

        Raises:
            RequestPayloadError: It is not encoded as its headers say.
        """
        while True:
            if self._inflate is not None and self._inflate.unconsumed_tail:
                return self._inflated(self._inflate.unconsumed_tail)
            if self._parts:
                data = self._parts.popleft()
                self.unread_bytes -= len(data)
                self._carrier.read_on()
                data = self._inflated(data) if self._encoding else data
                if data:
                    return data
            elif self._error:
                raise web.RequestPayloadError(self._error)
            elif self.complete:
                if self._inflate is not None and not self._inflate.eof:
                    raise web.RequestPayloadError("its compressed body has no end")
                return b""
            else:
                await self._wait()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _inflated(self, data: bytes) -> bytes:
        """Some of what `data` becomes: a few bytes may become very many."""
        if self._inflate is None:
            if self._encoding not in ("gzip", "deflate"):
                raise web.RequestPayloadError(f"Content-Encoding: {self._encoding} is not supported")
            # Some senders leave out the two bytes that a deflated body begins with.
            bare = self._encoding == "deflate" and data[0] & 0xF != _DEFLATE
            self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
        try:
            return cast("bytes", self._inflate.decompress(data, _INFLATED_BYTES))
        except zlib.error:
            raise web.RequestPayloadError("its body is not compressed as it says") from None


class Request:
    """One request.

    Args:
        carrier: Its connection.
        head: Its head, which others may share.
        length: Of its body, where its head says so.
        whole: The body, where all of it came with the head, as it mostly does; None for one that is still to come.

    Attributes:
        carrier: As given.
        head: As given.
        method: In capitals.
        path: Decoded, without the query.
        keep_alive: Whether another request may follow.
        content_length: In bytes; None where the head does not say.
    """

    __slots__ = (
        *("_content", "_started", "_whole", "_writer", "carrier", "content_length", "head", "keep_alive"),
        *("method", "path"),
    )

    def __init__(self, carrier: Carrier, head: Head, length: int | None, whole: bytes | None) -> None:
        self.carrier, self.head, self.content_length = carrier, head, length
        self.method, self.path, self.keep_alive = head.method, head.path, head.keep_alive
        self._whole = whole
        self._content = Body(carrier, head.encoding) if whole is None else None
        self._started = False
        self._writer: StreamWriter | None = None

    def __repr__(self) -> str:
        """What was asked for, without a query, which may hold a secret."""
        return f"<Request {self.method} {self.path}>"

    # -- what was asked ----------------------------------------------------------------------------------------

    @property
    def target(self) -> str:
        """What was asked for, as it was sent."""
        return self.head.target

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Case does not count in their names."""
        return self.head.headers_for(self.content_length)

    @property
    def version(self) -> HttpVersion:
        """Of the protocol."""
        return self.head.version

    @property
    def url(self) -> URL:
        """What was asked for."""
        return self.head.url

    @property
    def query(self) -> MultiDictProxy[str]:
        """The parameters after the question mark."""
        return self.url.query

    @property
    def content_type(self) -> str:
        """In lower case, without parameters; ``application/octet-stream`` when nothing is said."""
        return self.head.content_type

    @property
    def complete(self) -> bool:
        """Whether all of its body has come; some of it may not be taken yet."""
        return self._content is None or self._content.complete

    @property
    def content(self) -> Body:
        """The body, for whoever takes it as it comes."""
        if self._content is None:
            self._content = Body(self.carrier, self.head.encoding, self._whole)
        return self._content

    @property
    def can_read_body(self) -> bool:
        """Whether there is something of a body to be read, or may come."""
        return not self.content.complete or self.content.unread_bytes > 0

    @property
    def remote(self) -> str | None:
        """The address of its sender; None where there is none."""
        peer = None if self.transport is None else self.transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else None

    @property
    def transport(self) -> asyncio.Transport | None:
        """What it came by; None once that is closed."""
        return self.carrier.transport

    def take_whole(self) -> bytes | None:
        """The whole body, where all of it has come and was not compressed; None elsewhere."""
        if self._content is not None or self.head.encoding:
            return self.content.take_whole()
        whole, self._whole = self._whole, b""
        return whole

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body.

        Raises:
            HTTPRequestEntityTooLarge: It is larger than `limit_bytes`.
            RequestPayloadError: It is not encoded as its headers say.
        """
        whole = self.take_whole()
        if whole is None:
            body = bytearray()
            while data := await self.content.readany():
                body += data
                if len(body) > limit_bytes:
                    break
            whole = bytes(body)
        if len(whole) > limit_bytes:
            raise web.HTTPRequestEntityTooLarge(limit_bytes, len(whole))
        return whole

    def invite(self) -> None:
        """Tell a sender who waits for it that its body is welcome. That is no part of the answer."""
        if self.head.invites and not self.complete and self.transport is not None:
            self.transport.write(_CONTINUE)

    def begin(self) -> None:
        """An answer is begun, whose head may be sent later."""
        self._started = True

    @property
    def started(self) -> bool:
        """Whether an answer has begun, so that no other can be sent any more."""
        return self._started or (self._writer is not None and self._writer.output_size > 0)

    # -- what aiohttp's responses need -------------------------------------------------------------------------

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """Who answers it."""
        return asyncio.current_task()

    @property
    def _payload_writer(self) -> StreamWriter:
        if self._writer is None:
            self._writer = StreamWriter(cast("BaseProtocol", self.carrier), asyncio.get_running_loop())
        return self._writer

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Nothing is left to be done."""
