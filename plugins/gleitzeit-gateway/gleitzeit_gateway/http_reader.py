"""The requests of HTTP/1, as bytes and without a socket: what has come is fed in, requests are read off.

A head that is the last one once more is not read again; any other has a parser, and limits, of its own, and so has a
body in chunks. The unread body is bounded by who reads it.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.http_chunks import Chunks
from gleitzeit_gateway.http_parsing import (
    EMPTY_LINE,
    MAX_FIELD_BYTES,
    BadRequest,
    HeadLimits,
    HeadReader,
    endless,
)
from gleitzeit_gateway.http_request import Request
from gleitzeit_llm.written import written

if TYPE_CHECKING:
    from gleitzeit_gateway.http_head import Head
    from gleitzeit_gateway.http_request import Carrier
    from gleitzeit_llm.written import Written

_NO_END_OF_LINE: Final = re.compile(rb"[^\r\n]")


class RequestReader:
    """Reads the requests of one connection.

    Args:
        carrier: The connection, for the requests.
        limits: Of their heads.
        ahead: No more is read while so many requests are not taken off.

    Attributes:
        requests: Those whose heads are there, in order; whoever answers them takes them off.
        current: The one whose body is on its way; None between two requests.
        over: Whether nothing more may come: the last request said so.
    """

    __slots__ = (
        *("_ahead", "_blank_bytes", "_carrier", "_chunks", "_head", "_known", "_left_bytes", "_limits", "_written"),
        *("current", "over", "requests"),
    )

    def __init__(self, carrier: Carrier, limits: HeadLimits | None = None, ahead: float = math.inf) -> None:
        self._carrier, self._limits, self._ahead = carrier, limits or HeadLimits(), ahead
        self.requests: list[Request] = []
        self.current: Request | None = None
        self.over = False
        # How much of its body is to come, or what takes that apart.
        self._left_bytes = 0
        self._chunks: Chunks | None = None
        # The head that is on its way; and one that is known again, as it came and as it was read.
        self._head: HeadReader | None = None
        self._written: Written | None = None
        self._known: Head
        self._blank_bytes = 0

    def __repr__(self) -> str:
        """What it waits for."""
        return f"<RequestReader {len(self.requests)} requests, {'in a body' if self.current else 'between bodies'}>"

    @property
    def begun(self) -> bool:
        """Whether some of a head has come, and not all of it."""
        return self._head is not None

    def feed(self, data: bytes, at: int = 0) -> int:
        """Bytes that have come, from `at` on.

        Returns:
            Where those begin that were not read: there are enough requests.

        Raises:
            BadRequest: They are no HTTP, or exceed a limit. Requests that were whole before are among `requests`.
        """
        size = len(data)
        try:
            while at < size and not self.over and len(self.requests) < self._ahead:
                at = self._read_head(data, at) if self.current is None else self._read_body(self.current, data, at)
        except BadRequest:
            self.over = True
            raise
        return size if self.over else at

    def forget(self) -> None:
        """Read the next head anew, whatever the last one was: the limits have changed."""
        self._written = None

    def end(self) -> None:
        """Nothing more comes: what is not whole by now never will be."""
        self.over = True
        if self._head is not None:
            self._head.dismiss()
        if self.current is not None:
            self.current.content.fail("it broke off")

    # -- heads ---------------------------------------------------------------------------------------------------

    def _read_head(self, data: bytes, at: int) -> int:
        """Bytes of a head; where those that follow it begin, also of its body where not all of that is there."""
        if self._head is not None:
            return self._parse_head(self._head, data, at)
        last = self._written
        if last is not None:
            length, end = last.again(data, at)
            if end:
                return self._begin(self._known, length if last.sized else None, data, end)
        if data[at] in EMPTY_LINE:
            return self._skip_empty_lines(data, at)
        return self._parse_head(HeadReader(self._limits), data, at)

    def _skip_empty_lines(self, data: bytes, at: int) -> int:
        """Those before a request are none."""
        begins = _NO_END_OF_LINE.search(data, at)
        end = len(data) if begins is None else begins.start()
        self._blank_bytes += end - at
        if self._blank_bytes > MAX_FIELD_BYTES:
            raise endless()
        return end

    def _parse_head(self, reader: HeadReader, data: bytes, at: int) -> int:
        begins = reader is not self._head
        end = reader.feed(data, at)
        head = reader.head
        if head is None:
            self._head = reader
            return end
        reader.dismiss()
        self._head = None
        if begins:
            self._remember(head, data[at:end])
        return self._begin(head, head.length, data, end)

    def _remember(self, head: Head, data: bytes) -> None:
        """The next one like it need not be read, where it says all that follows from it as `written` knows it."""
        last = written(data) if head.keep_alive and not head.chunked else None
        if last is not None and last.sized != (head.length is not None):
            last = None
        self._written, self._known = last, head

    def _begin(self, head: Head, length: int | None, data: bytes, at: int) -> int:
        """A head is there, whose body begins at `at`. Mostly all of that is there as well."""
        self._blank_bytes = 0
        end = at + (length or 0)
        if end <= len(data) and not head.chunked:
            self.requests.append(Request(self._carrier, head, length, data[at:end]))
            self.over = not head.keep_alive
            return end
        self.current = request = Request(self._carrier, head, length, None)
        self.requests.append(request)
        if head.chunked:
            self._chunks = Chunks(request.content)
        else:
            self._left_bytes = end - at
        return at

    # -- bodies that do not come with their heads ------------------------------------------------------------------

    def _read_body(self, request: Request, data: bytes, at: int) -> int:
        """Bytes of a body; where those that follow it begin."""
        if self._chunks is not None:
            end = self._chunks.feed(data, at)
            whole = self._chunks.over
        else:
            end = min(at + self._left_bytes, len(data))
            self._left_bytes -= end - at
            request.content.feed(data[at:end])
            whole = not self._left_bytes
        if whole:
            self._end_body(request)
        return end

    def _end_body(self, request: Request) -> None:
        self.current = self._chunks = None
        self.over = not request.keep_alive
        request.content.end()
