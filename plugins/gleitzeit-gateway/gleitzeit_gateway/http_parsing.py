"""Heads of requests are taken apart by llhttp, Node's parser, which `httptools` wraps.

It bounds nothing, so this does: the size of a head and of a field in it, and the number of fields.
"""

from __future__ import annotations

from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from multidict import CIMultiDict

from gleitzeit_gateway.http_head import Head

EMPTY_LINE: Final = b"\r\n\r\n"
"""With one ends a head, and a body in chunks."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of all before the body, and of all fields after the last chunk."""
MAX_FIELD_BYTES: Final = 16 * 1024
"""Of one field, of the target, and of whatever else stands in one line."""
MAX_FIELDS: Final = 256

BAD_REQUEST: Final = 400
_TOO_LONG: Final = 414
TOO_MANY: Final = 431


class BadRequest(Exception):
    """What came is no request of HTTP/1, or one beyond all limits.

    Args:
        status: To answer with.
        message: What is wrong with it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class HeadTooLarge(BadRequest):
    """It is a request, with more before its body than it may have."""


class HeadLimits:
    """How large a head may be. All readers that were given these go by them, also when they change.

    Attributes:
        most_bytes: At most `MAX_HEAD_BYTES`.
        most_headers: At most `MAX_FIELDS`.
    """

    __slots__ = ("most_bytes", "most_headers")

    def __init__(self, most_bytes: int = MAX_HEAD_BYTES, most_headers: int = MAX_FIELDS) -> None:
        self.most_bytes, self.most_headers = most_bytes, most_headers

    def __repr__(self) -> str:
        """As numbers."""
        return f"<HeadLimits {self.most_bytes} bytes, {self.most_headers} headers>"


def endless() -> BadRequest:
    """A line that is too long, or too many empty ones."""
    return BadRequest(TOO_MANY, f"a line has more than {MAX_FIELD_BYTES} bytes")


class HeadReader:
    """Reads one head, up to the next empty line: llhttp does not tell where it has found its end.

    Args:
        limits: Of it.

    Attributes:
        head: What was read; None until all of it has come.
    """

    __slots__ = (
        *("_fields", "_limits", "_lines", "_parser", "_problem", "_silent_bytes", "_size_bytes", "_tail", "_target"),
        "head",
    )

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self._problem: BadRequest | None = None
        self._silent_bytes = 0
        # The last bytes, where an empty line may have begun in them.
        self._tail = b""
        self._parser: Any = HttpRequestParser(self)
        self._size_bytes = self._lines = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._target = b""
        self.head: Head | None = None

    def feed(self, data: bytes, at: int) -> int:
        """Bytes of it, from `at` on; where those that follow it begin.

        Raises:
            BadRequest: They are no HTTP, or exceed a limit.
        """
        end = self._end_of_piece(data, at)
        self._size_bytes += end - at
        self._lines += data.count(b"\n", at, end)
        most_bytes, most_headers = self._limits.most_bytes, self._limits.most_headers
        # Besides the headers there are the first line and the empty one.
        if self._size_bytes > most_bytes or self._lines > most_headers + 2:
            self.dismiss()
            text = f"a request may have {most_headers} headers, and {most_bytes} bytes before its body"
            raise HeadTooLarge(TOO_MANY, text)
        self._parse(data[at:end])
        return end

    def dismiss(self) -> None:
        """Feed nothing more. It and its parser hold each other, which would be left to the cycle collector."""
        self._parser = None

    def _end_of_piece(self, data: bytes, at: int) -> int:
        """Where the next empty line ends, or `data`."""
        tail, self._tail = self._tail, b""
        seam = (tail + data[at : at + 3]).find(EMPTY_LINE) if tail else -1
        if seam >= 0:
            return at + seam + len(EMPTY_LINE) - len(tail)
        found = data.find(EMPTY_LINE, at)
        if found >= 0:
            return found + len(EMPTY_LINE)
        self._tail = (tail + data[at:])[-3:]
        return len(data)

    def _parse(self, data: bytes) -> None:
        """Bytes for the parser.

        Raises:
            BadRequest: They are no HTTP, or exceed a limit.
        """
        # Whatever the parser finds in them sets it back.
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            pass  # It is answered in this protocol all the same, and so is what follows.
        except HttpParserError as error:
            self._problem = self._problem or BadRequest(BAD_REQUEST, str(error) or "it is no HTTP")
        if self._problem is None and self._silent_bytes > MAX_FIELD_BYTES:
            self._problem = endless()
        if self._problem is not None:
            self.dismiss()
            raise self._problem

    # -- what the parser calls ----------------------------------------------------------------------------------

    def on_url(self, data: bytes) -> None:
        """A piece of the target."""
        self._silent_bytes = 0
        self._target += data
        if len(self._target) > MAX_FIELD_BYTES:
            self._problem = BadRequest(_TOO_LONG, f"the address has more than {MAX_FIELD_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field."""
        self._silent_bytes = 0
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._problem is None:
            try:
                self.head = self._read()
            except BadRequest as problem:
                self._problem = problem

    def _read(self) -> Head:
        parser = self._parser
        if self._size_bytes > MAX_FIELD_BYTES:
            self._check_fields()
        headers = CIMultiDict([(name.decode("ascii"), _text(value)) for name, value in self._fields])
        version, method = parser.get_http_version(), parser.get_method().decode("ascii")
        if version not in ("1.1", "1.0"):
            raise BadRequest(BAD_REQUEST, f"HTTP/{version} is not spoken here")
        codings = headers.getall("Transfer-Encoding", ())
        # A sender of the older version means something else by chunks, if anything.
        if codings and (version == "1.0" or ",".join(codings).lower() != "chunked"):
            raise BadRequest(BAD_REQUEST, "the body is coded in a way that is not known here")
        if len(headers.getall("Host", ())) > 1:
            raise BadRequest(BAD_REQUEST, "there is more than one Host header")
        try:
            return Head(method, _text(self._target), version, headers, keep_alive=parser.should_keep_alive())
        except ValueError:
            raise BadRequest(BAD_REQUEST, "the address is none") from None

    def _check_fields(self) -> None:
        if any(len(name) + len(value) > MAX_FIELD_BYTES for name, value in self._fields):
            raise BadRequest(TOO_MANY, f"a header has more than {MAX_FIELD_BYTES} bytes")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
