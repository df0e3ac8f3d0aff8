"""Answers as they go out: whole ones, and those in parts. aiohttp's own responses can be sent as well."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from aiohttp import HttpVersion11, web

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import HttpVersion

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

    Attributes:
        signature: Lines that stand in the head of every answer, from `lines_of`; set before it is sent. What it says
            itself under the same names is left out then.
    """

    __slots__ = ("_closes", "_headers", "_type", "body", "signature", "status")
    prepared: Final = False
    """Whether some of it was sent before it was returned."""

    def __init__(
        self, body: bytes, *, status: int = 200, content_type: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.body, self.status = body, status
        self._type = line("Content-Type", content_type) if content_type else ""
        self._headers, self.signature, self._closes = headers, "", False

    def __repr__(self) -> str:
        """Status and size."""
        return f"<Whole {self.status}, {len(self.body)} bytes>"

    def force_close(self) -> None:
        """Close the connection after it."""
        self._closes = True

    def rest_for(self, request: Request) -> tuple[bytes, bool]:
        """What is to be sent, all of it; and whether the connection can be kept.

        Raises:
            ValueError: A header cannot be sent.
        """
        keeps = request.keep_alive and not self._closes
        size = "" if self.status in _WITHOUT_BODY else f"Content-Length: {len(self.body)}\r\n"
        lines = self.signature + self._type + size
        if self._headers:
            lines = with_more(lines, self._headers)
        top = _head(request.head.version, self.status, lines, keeps=keeps)
        return top + self.body if size and request.method != "HEAD" else top, keeps


class InParts:
    """An answer in parts, in chunks where the caller knows them: elsewhere it ends with the connection.

    Args:
        request: That it answers.
        headers: Of it.
        lines: Further ones, from `lines_of`.

    Raises:
        ValueError: A header cannot be sent.
    """

    __slots__ = ("_carrier", "_chunked", "_ended", "_keeps", "_mute", "_unsent")
    prepared: Final = True
    """Whether some of it was sent before it was returned."""
    status: Final = 200

    def __init__(self, request: Request, headers: Mapping[str, str], lines: str = "") -> None:
        self._carrier, self._mute, self._ended = request.carrier, request.method == "HEAD", False
        version = request.head.version
        known = version >= HttpVersion11
        self._chunked, self._keeps = known and not self._mute, known and request.keep_alive
        if headers:
            lines = with_more(lines, headers)
        if self._chunked:
            lines += "Transfer-Encoding: chunked\r\n"
        self._unsent = _head(version, self.status, lines, keeps=self._keeps)
        request.begin()

    def __repr__(self) -> str:
        """How far it is."""
        return f"<InParts {'ended' if self._ended else 'not begun' if self._unsent else 'begun'}>"

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


_OURS: Final = (Whole, InParts)
Reply: TypeAlias = web.StreamResponse | Whole | InParts
"""What an endpoint answers with."""


async def send(request: Request, reply: Reply) -> bool:
    """Send `reply`, or its end; whether the connection can be kept.

    Raises:
        ConnectionError: The caller has left.
        ValueError: A header cannot be sent.
    """
    if isinstance(reply, _OURS):
        rest, keeps = reply.rest_for(request)
        if rest:
            request.begin()
            if request.carrier.put(rest):
                await request.carrier.drained()
        return keeps
    await reply.prepare(cast("Any", request))
    await reply.write_eof()
    return bool(reply.keep_alive)


def lines_of(headers: Mapping[str, str]) -> str:
    """Headers as they stand in a head, each with the end of its line.

    Raises:
        ValueError: One of them cannot be sent.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    # Nothing that stands in a header may begin another one.
    if not lines.count("\n") == lines.count("\r") == len(headers) or "\0" in lines:
        raise ValueError("a header of the answer has characters that cannot be sent")
    return lines


def with_more(lines: str, headers: Mapping[str, str]) -> str:
    """`lines` of a head, and of `headers` those whose names do not stand there.

    Raises:
        ValueError: One of them cannot be sent.
    """
    said = f"\n{lines.lower()}"
    return lines + lines_of({name: value for name, value in headers.items() if f"\n{name.lower()}:" not in said})


@lru_cache(1024)
def line(name: str, value: str) -> str:
    """`lines_of` one header, which stands in many answers."""
    return lines_of({name: value})


def _head(version: HttpVersion, status: int, lines: str, *, keeps: bool) -> bytes:
    """The head of an answer.

    Args:
        version: Of HTTP, that the request came in.
        status: HTTP status.
        lines: All but those of the connection.
        keeps: Whether the connection is kept.
    """
    first = _FIRST_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n"
    end = _end_of_head(version, keeps, int(time.time()))
    return f"{first}{lines}{end}".encode("utf-8", "surrogateescape")


@lru_cache(8)
def _end_of_head(version: HttpVersion, keeps: bool, second: int) -> str:  # noqa: FBT001 - private, and a key
    """When it is sent, and what becomes of the connection: for a second it is the same."""
    return f"Date: {formatdate(second, usegmt=True)}\r\n{_CONNECTION[version < HttpVersion11, keeps]}\r\n"
