"""The requests of HTTP/1, as bytes and without a socket: what has come is fed in, requests are read off.

The parser is llhttp, Node's, which `httptools` wraps. It bounds nothing, so this does: the size of a head, of a field
in it and of a line between chunks, and the number of fields. The unread body is bounded by who reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from multidict import CIMultiDict

from gleitzeit_gateway.http_head import Head, Written
from gleitzeit_gateway.http_request import Request

if TYPE_CHECKING:
    from gleitzeit_gateway.http_request import Carrier

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of all fields together, those after the last chunk among them."""
MAX_FIELD_BYTES: Final = 16 * 1024
"""Of one field, of the target, and of whatever else stands in one line."""
MAX_FIELDS: Final = 256

_KEPT_BYTES: Final = 4096
"""A head that is longer is read each time."""
_FRAMING: Final = ("content-length", "transfer-encoding")
_BAD_REQUEST: Final = 400
_TOO_LONG: Final = 414
_TOO_MANY: Final = 431


class BadRequest(Exception):
    """What came is no request of HTTP/1, or one beyond all limits.

    Args:
        status: To answer with.
        message: What is wrong with it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class RequestReader:
    """Reads the requests of one connection.

    Args:
        carrier: The connection, for the requests.

    Attributes:
        requests: Those whose heads are there, in order; whoever answers them takes them off.
        current: The one whose body is on its way; None between two requests.
        begun: Whether some of a head has come, and not all of it.
        over: Whether nothing more may come: the last request said so.
    """

    __slots__ = (
        *("_carrier", "_field_bytes", "_fields", "_left_bytes", "_parser", "_problem", "_resuming"),
        *("_silent_bytes", "_target", "_written", "begun", "current", "over", "requests"),
    )

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._fields: list[tuple[bytes, bytes]] = []
        self._field_bytes = self._silent_bytes = 0
        self._target = b""
        self._resuming = False
        self._problem: BadRequest | None = None
        # The last head, and how much is to come of the body of one that was the same: the parser sees neither.
        self._written: Written | None = None
        self._left_bytes = 0
        self.requests: list[Request] = []
        self.current: Request | None = None
        self.begun = self.over = False
        self._parser: Any = HttpRequestParser(self)

    def __repr__(self) -> str:
        """What it waits for."""
        return f"<RequestReader {len(self.requests)} requests, {'in a body' if self.current else 'between bodies'}>"

    def feed(self, data: bytes) -> None:
        """Bytes that have come.

        Raises:
            BadRequest: They are no HTTP, or exceed a limit. Requests that were whole before are among `requests`.
        """
        while data and not self.over:
            if self.current is None and not self.begun:
                data = self._begin(data)
            elif self._left_bytes:
                data = self._feed_body(data)
            else:
                data = self._parse(data)

    def _begin(self, data: bytes) -> bytes:
        """Bytes from the first of a request on; what is left of them."""
        if self._written is not None:
            length, at = self._written.again(data)
            if at:
                self._silent_bytes = 0
                self._begun(Request(self._carrier, self._written.head, length))
                self._left_bytes = int(length or 0)
                return self._feed_body(data[at:])
        before = len(self.requests)
        left = self._parse(data)
        if len(self.requests) > before:
            self._written = _written(self.requests[before], data)
        return left

    def _begun(self, request: Request) -> None:
        self.current = request
        self.requests.append(request)

    def _feed_body(self, data: bytes) -> bytes:
        """Bytes of a body whose head was not read again; what follows it."""
        left, rest = self._left_bytes, b""
        if len(data) > left:
            data, rest = data[:left], data[left:]
        if self.current is not None:
            self._left_bytes = left = left - len(data)
            if data:
                self.current.content.feed(data)
            if not left:
                self.current.content.end()
                self.current = None
        return rest

    def _parse(self, data: bytes) -> bytes:
        """Bytes for the parser; what is left of them."""
        # Whatever the parser finds in them sets it back.
        self._silent_bytes += len(data)
        left = b""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as offer:
            # It is answered in this protocol all the same, and so is what follows.
            left = data[offer.args[0] :]
            self._decline(self.current)
        except HttpParserError as error:
            if self.over and self.current is None:
                return b""
            self._problem = self._problem or BadRequest(_BAD_REQUEST, str(error) or "it is no HTTP")
        if self._silent_bytes > MAX_FIELD_BYTES:
            self._problem = self._problem or BadRequest(_TOO_MANY, f"a line has more than {MAX_FIELD_BYTES} bytes")
        if self._problem is not None:
            self.over = True
            raise self._problem
        return left

    def _decline(self, request: Request | None) -> None:
        """Go on in this protocol. The parser takes the body for another one: a new parser is told what it is."""
        self._parser = HttpRequestParser(self)
        if request is not None:
            self._resuming = True
            framing = next(f"{n}: {v}" for n, v in request.headers.items() if n.lower() in _FRAMING)
            self._parser.feed_data(f"POST / HTTP/1.1\r\n{framing}\r\n\r\n".encode("utf-8", "surrogateescape"))
            self._resuming = False

    def dismiss(self) -> None:
        """Feed nothing more. It and its parser hold each other, which would be left to the cycle collector."""
        self._parser = None

    def end(self) -> None:
        """Nothing more comes: what is not whole by now never will be."""
        self.over = True
        if self.current is not None:
            self.current.content.fail("it broke off")

    # -- what the parser calls ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._resuming:
            return
        self._silent_bytes = 0
        self._fields = []
        self._field_bytes = 0
        self._target = b""
        self.begun = True

    def on_url(self, data: bytes) -> None:
        """A piece of the target."""
        if self._resuming:
            return
        self._silent_bytes = 0
        self._target += data
        if len(self._target) > MAX_FIELD_BYTES:
            self._problem = BadRequest(_TOO_LONG, f"the address has more than {MAX_FIELD_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or one after the last chunk, which only counts."""
        if self._resuming:
            return
        self._silent_bytes = 0
        size = len(name) + len(value)
        self._field_bytes += size
        if size > MAX_FIELD_BYTES:
            self._problem = BadRequest(_TOO_MANY, f"a header has more than {MAX_FIELD_BYTES} bytes")
        elif self._field_bytes > MAX_HEAD_BYTES:
            self._problem = BadRequest(_TOO_MANY, f"the headers have more than {MAX_HEAD_BYTES} bytes")
        elif len(self._fields) >= MAX_FIELDS:
            self._problem = BadRequest(_TOO_MANY, f"there are more than {MAX_FIELDS} headers")
        else:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._resuming:
            return
        self._silent_bytes = 0
        self.begun = False
        if self._problem is not None:
            return
        parser = self._parser
        headers = CIMultiDict([(name.decode("ascii"), _text(value)) for name, value in self._fields])
        version, method = parser.get_http_version(), parser.get_method().decode("ascii")
        if version not in ("1.1", "1.0"):
            self._problem = BadRequest(_BAD_REQUEST, f"HTTP/{version} is not spoken here")
            return
        keep_alive = parser.should_keep_alive() and method != "CONNECT"
        coding = headers.get("Transfer-Encoding")
        # A sender of the older version means something else by chunks, if anything.
        if coding is not None and (version == "1.0" or coding.lower() != "chunked"):
            self._problem = BadRequest(_BAD_REQUEST, "the body is coded in a way that is not known here")
            return
        if len(headers.getall("Host", ())) > 1:
            self._problem = BadRequest(_BAD_REQUEST, "there is more than one Host header")
            return
        try:
            head = Head(method, _text(self._target), version, headers, keep_alive=keep_alive)
        except ValueError:
            self._problem = BadRequest(_BAD_REQUEST, "the address is none")
            return
        self._begun(Request(self._carrier, head, headers.get("Content-Length")))

    def on_chunk_header(self) -> None:
        """The line before a chunk."""
        self._silent_bytes = 0

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._silent_bytes = 0
        if self.current is not None:
            self.current.content.feed(data)

    def on_message_complete(self) -> None:
        """All of it is there."""
        self._silent_bytes = 0
        if self.current is not None and self._parser.should_upgrade() and _has_body(self.current):
            return  # What it takes for another protocol is the body.
        current, self.current = self.current, None
        self._fields = []
        if current is None or self._problem is not None:
            return
        current.content.end()
        if not current.keep_alive:
            self.over = True


def _has_body(request: Request) -> bool:
    """Whether its head says so. What follows the one of CONNECT is none, whatever is said."""
    return request.method != "CONNECT" and (bool(request.content_length) or "Transfer-Encoding" in request.headers)


def _written(request: Request, data: bytes) -> Written | None:
    """The head of `request` as it came at the beginning of `data`, where the next one like it need not be read."""
    headers, end = request.headers, data.find(b"\r\n\r\n") + 4
    usual = request.keep_alive and "Transfer-Encoding" not in headers and "Upgrade" not in headers
    # Empty lines before it would be taken for it; and what each idle connection holds must be small.
    usual = usual and data[0] not in b"\r\n" and end <= _KEPT_BYTES
    # One line for each field, the first and the empty one: nobody can see another end of it.
    if not usual or data.count(b"\n", 0, end) != len(headers) + 2:
        return None
    written = Written(request.head, data[:end])
    return written if written.again(data) == (headers.get("Content-Length"), end) else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
