"""Answers as they go out: whole ones, and those in parts. aiohttp's own responses can be sent as well."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from aiohttp import HttpVersion11, web

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_gateway.http_request import Request

_FIRST_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_WITHOUT_BODY: Final = (204, 304)
_LAST_CHUNK: Final = b"0\r\n\r\n"
# By whether the caller speaks the older version, which closes unless told otherwise, and whether it is kept.
_CONNECTION: Final = {
    (False, True): "",
    (False, False): "Connection: close\r\n",
    (True, True): "Connection: keep-alive\r\n",
    (True, False): "",
}


class Whole:
    """An answer with its whole body.

    Args:
        body: Of it.
        status: HTTP status, from 200.
        content_type: Of the body.
        headers: Further ones.
    """

    __slots__ = ("_closes", "body", "headers", "status")

    def __init__(
        self, body: bytes, *, status: int = 200, content_type: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.body, self.status = body, status
        self.headers: dict[str, str] = {**headers} if headers else {}
        if content_type:
            self.headers["Content-Type"] = content_type
        self._closes = False

    def __repr__(self) -> str:
        """Status and size."""
        return f"<Whole {self.status}, {len(self.body)} bytes>"

    @property
    def prepared(self) -> bool:
        """Whether some of it was sent before it was returned: no."""
        return False

    def force_close(self) -> None:
        """Close the connection after it."""
        self._closes = True

    def rest_for(self, request: Request) -> tuple[bytes, bool]:
        """What is to be sent, all of it; and whether the connection can be kept.

        Raises:
            ValueError: A header cannot be sent.
        """
        keeps = request.keep_alive and not self._closes
        empty = self.status in _WITHOUT_BODY
        size = "" if empty else f"Content-Length: {len(self.body)}\r\n"
        top = head(request, self.status, self.headers, size, keeps=keeps)
        return top if empty or request.method == "HEAD" else top + self.body, keeps


class InParts:
    """An answer in parts, in chunks where the caller knows them: elsewhere it ends with the connection.

    Args:
        request: That it answers.
        headers: Of it.

    Attributes:
        status: 200.
    """

    __slots__ = ("_carrier", "_chunked", "_ended", "_keeps", "_mute", "_unsent", "status")

    def __init__(self, request: Request, headers: Mapping[str, str]) -> None:
        self.status: Final = 200
        self._carrier, self._mute = request.carrier, request.method == "HEAD"
        chunked = request.version >= HttpVersion11
        self._keeps = request.keep_alive and chunked
        coding = "Transfer-Encoding: chunked\r\n" if chunked and not self._mute else ""
        self._chunked, self._ended = chunked and not self._mute, False
        self._unsent = head(request, self.status, headers, coding, keeps=self._keeps)
        request.begin()

    def __repr__(self) -> str:
        """How far it is."""
        return f"<InParts {'ended' if self._ended else 'not begun' if self._unsent else 'begun'}>"

    @property
    def prepared(self) -> bool:
        """Whether some of it was sent before it was returned: yes."""
        return True

    def force_close(self) -> None:
        """Close the connection after it."""
        self._keeps = False

    async def begin(self) -> None:
        """Send its head now, without a part.

        Raises:
            ConnectionError: The caller has left.
        """
        top, self._unsent = self._unsent, b""
        if self._carrier.put(top):
            await self._carrier.drained()

    async def write(self, data: bytes) -> None:
        """Send a part; waits while the caller does not read.

        Raises:
            ConnectionError: The caller has left.
        """
        if self.put(data):
            await self.drained()

    def put(self, data: bytes, *, last: bool = False) -> bool:
        """Send a part; whether the caller must be waited for, who does not read.

        Args:
            data: The part.
            last: Nothing follows but the end, and that at once: both are sent together then.

        Raises:
            ConnectionError: The caller has left.
        """
        if not data or self._mute:
            return False
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if self._unsent:
            framed = self._unsent + framed
        if last:
            self._unsent = framed
            return False
        self._unsent = b""
        return self._carrier.put(framed)

    async def drained(self) -> None:
        """Wait until the caller has read."""
        await self._carrier.drained()

    def rest_for(self, request: Request) -> tuple[bytes, bool]:  # noqa: ARG002 - it was given that
        """What is still to be sent, once; and whether the connection can be kept."""
        if self._ended:
            return b"", self._keeps
        self._ended = True
        rest, self._unsent = self._unsent + _LAST_CHUNK if self._chunked else self._unsent, b""
        return rest, self._keeps


Reply: TypeAlias = web.StreamResponse | Whole | InParts
"""What an endpoint answers with."""


async def send(request: Request, reply: Reply) -> bool:
    """Send `reply`, or its end; whether the connection can be kept.

    Raises:
        ConnectionError: The caller has left.
        ValueError: A header cannot be sent.
    """
    if isinstance(reply, web.StreamResponse):
        await reply.prepare(cast("Any", request))
        await reply.write_eof()
        return bool(reply.keep_alive)
    rest, keeps = reply.rest_for(request)
    if rest:
        request.begin()
        if request.carrier.put(rest):
            await request.carrier.drained()
    return keeps


def head(request: Request, status: int, headers: Mapping[str, str], framing: str, *, keeps: bool) -> bytes:
    """The head of an answer.

    Args:
        request: That it answers.
        status: HTTP status.
        headers: All but those of the connection and the body's size.
        framing: The line that says where the body ends.
        keeps: Whether the connection is kept.

    Raises:
        ValueError: A header cannot be sent.
    """
    own = "\r\n".join((*map(": ".join, headers.items()), ""))
    # Nothing that stands in a header may begin another one.
    if not own.count("\n") == own.count("\r") == len(headers) or "\0" in own:
        raise ValueError("a header of the answer has characters that cannot be sent")
    first = _FIRST_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n"
    connection = _CONNECTION[request.version < HttpVersion11, keeps]
    return f"{first}{own}{framing}{_date.line()}{connection}\r\n".encode("utf-8", "surrogateescape")


class _Date:
    """The line that says when: worked out once a second."""

    def __init__(self) -> None:
        self._second, self._line = 0, ""

    def line(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._line = second, f"Date: {formatdate(second, usegmt=True)}\r\n"
        return self._line


_date: Final = _Date()
