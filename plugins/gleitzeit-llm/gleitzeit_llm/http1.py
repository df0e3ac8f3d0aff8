"""The answers of HTTP/1.1, as bytes and without a socket: what has come is fed in, what it means is read off.

The parser is llhttp, Node's, which `httptools` wraps. It bounds nothing, so this does: the size of a head, of a field
in it and of a line between chunks, and the number of fields and of interim answers. The unread body is bounded by who
reads it.

How a body ends is decided by RFC 9112, section 6.3: by its status or the method of its request, by the last chunk, by
its length, or else by the end of the connection. What says two of these at once, or codes a transfer otherwise than in
chunks, is refused: it would be read differently by different readers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientError
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict

from gleitzeit_llm.written import MAX_WRITTEN_BYTES, written

if TYPE_CHECKING:
    from gleitzeit_llm.written import Written

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of all fields together, those after the last chunk among them."""
MAX_FIELD_BYTES: Final = 16 * 1024
"""Of one field, and of whatever else stands in one line."""
MAX_FIELDS: Final = 256
MAX_INTERIM: Final = 32
"""Answers with a status below 200 that come before the real one."""

_PLAIN: Final = (b"", b"identity")
_WITHOUT_BODY: Final = (204, 304)
_SWITCHING: Final = 101


class NotHTTP(ClientError):
    """What came is no answer of HTTP/1.1, or one beyond all limits.

    Args:
        message: What is wrong with it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Head:
    """What a head says. It does not change: one stands for all answers that have the same.

    Args:
        status: From 200; 0 for a head that has not come yet.
        fields: As they were sent.

    Attributes:
        content_type: In lower case, without parameters; ``application/octet-stream`` when nothing is said.
        encoding: How the body is compressed, in lower case; empty for not at all.
        plain: Whether the body is what was asked for: no refusal, and not compressed; also before it has come.
        framed: Whether it says where the body ends.
        sized: Whether it does so by a length.
        problem: Why there can be no such answer; empty for none.
    """

    __slots__ = ("content_type", "encoding", "fields", "framed", "plain", "problem", "sized", "status")

    def __init__(self, status: int, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        self.status, self.fields = status, fields
        self.content_type, self.encoding, self.problem = "application/octet-stream", "", ""
        chunked = self.sized = False
        for name, value in fields:
            match name.lower():
                case b"content-length":
                    self.sized = status not in _WITHOUT_BODY
                case b"transfer-encoding":
                    chunked = True
                    if value.strip().lower() != b"chunked":
                        self.problem = "its transfer is coded in a way that was not asked for"
                case b"content-type":
                    self.content_type = _media_type(value) or self.content_type
                case b"content-encoding" if value.strip().lower() not in _PLAIN:
                    self.encoding = _text(value).strip().lower()
        self.framed = self.sized or chunked or status in _WITHOUT_BODY
        self.plain = status < 300 and not self.encoding  # noqa: PLR2004 - redirects and errors

    def __repr__(self) -> str:
        """Status and type."""
        return f"<Head {self.status} {self.content_type}>"


NOT_YET: Final = Head(0, ())
"""The head of an answer that has not begun."""
# Also what comes in chunks, or has a date in it, is mostly like another one.
_head = lru_cache(64)(Head)


class AnswerReader:
    """Reads the answers of one connection, one after another. What stands here is what is known so far of this one.

    Attributes:
        head: `NOT_YET` until all of it is there.
        heard: Whether any of the answer has come.
        complete: Whether all of it is there.
        reusable: Whether it is complete, and its connection can carry another request.
        unread_bytes: Of the body, not taken yet.
    """

    __slots__ = (
        *("_body", "_field_bytes", "_fields", "_first_field", "_head_only", "_interim", "_known", "_left_bytes"),
        *("_length", "_parser", "_pieces", "_problem", "_silent_bytes", "_written"),
        *("complete", "head", "heard", "on_body", "reusable", "unread_bytes"),
    )

    def __init__(self) -> None:
        # Those of interim answers too, and those after the last chunk; and where those of the head begin.
        self._fields: list[tuple[bytes, bytes]] = []
        self._first_field = self._field_bytes = self._interim = self._silent_bytes = 0
        self._body: list[bytes] = []
        # How many of them belong to the answer, once it is complete.
        self._pieces = 0
        # Called for each chunk, of which there may be many: without a step of ours.
        self.on_body = self._body.append
        self._problem = ""
        # The last head. Of the next that is the same the parser sees nothing: how long its body is, and what is left.
        self._written: Written | None = None
        self._known = NOT_YET
        self._length: int | None = None
        self._left_bytes = self.unread_bytes = 0
        self._parser: Any = HttpResponseParser(self)
        # As lax as aiohttp's client: old servers end lines with LF alone, and pad the sizes of chunks.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_optional_lf_after_cr=False, lenient_spaces_after_chunk_size=True
        )
        self.expect("GET")

    def __repr__(self) -> str:
        """How far it is, and what it remembers."""
        how = "complete" if self.complete else "begun" if self.head.status else "waiting"
        return f"<AnswerReader {how}, {self._written or 'nothing'} remembered>"

    def expect(self, method: str) -> None:
        """What comes from now on is the answer to a request; the last one, if any, left its connection `reusable`.

        Args:
            method: Of the request.
        """
        self._head_only = method == "HEAD"
        self.head = NOT_YET
        self.heard = self.complete = self.reusable = False

    @property
    def headers(self) -> CIMultiDict[str]:
        """The fields of the head; case does not count in their names."""
        headers = CIMultiDict((_text(name), _text(value)) for name, value in self.head.fields)
        if self._length is not None:
            headers["Content-Length"] = str(self._length)
        return headers

    def feed(self, data: bytes) -> None:
        """Bytes that have come. What comes after the end of the answer belongs to none, and spoils the connection.

        Raises:
            NotHTTP: They are no HTTP, or exceed a limit.
        """
        if not self.heard:
            self._begin(data)
            return
        if self.complete or self._left_bytes:
            self._go_on(data)
            return
        body, fields = self._body, self._fields
        pieces, count = len(body), len(fields)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._note_error(error)
        if self.complete:
            del body[self._pieces :]  # What stands behind it is of another answer, which nobody has asked for.
        came = len(body) - pieces
        if came:
            self.unread_bytes += len(body[pieces]) if came == 1 else sum(map(len, body[pieces:]))
            self._silent_bytes = 0
        if len(fields) > count:
            self._check_fields(count)
        elif not came:
            self._note_silence(len(data))
        if self._problem:
            self.reusable = False
            raise NotHTTP(self._problem)

    def _begin(self, data: bytes) -> None:
        """The first bytes of an answer."""
        self.heard = True
        if self._written is not None and not self._head_only and self._take_again(self._written, data):
            return
        self._fields.clear()
        self._first_field = self._field_bytes = self._interim = self._silent_bytes = self._pieces = 0
        self._length = None
        self.feed(data)
        # Once it is complete, the parser thinks of the next.
        lasts = self.reusable if self.complete else self._parser.should_keep_alive()
        if lasts and self.head.sized and not self._interim:
            found = written(data)
            self._written, self._known = found if found is not None and found.sized else None, self.head

    def _take_again(self, last: Written, data: bytes) -> bool:
        """Take what begins with the last head once more; whether it does. What follows its body the parser judges."""
        length, at = last.again(data)
        came = len(data) - at
        if not at or came > length:
            return False
        self.head, self._length = self._known, length
        if came:
            self._body.append(data[at:])
            self.unread_bytes = came
        if came == length:
            self.complete = self.reusable = True
        else:
            self._left_bytes = length - came
        return True

    def _go_on(self, data: bytes) -> None:
        """More of a body whose head was not parsed; what comes after its end belongs to nobody."""
        mine = data[: self._left_bytes]
        if mine:
            self._body.append(mine)
            self.unread_bytes += len(mine)
            self._left_bytes -= len(mine)
        self.complete = not self._left_bytes
        self.reusable = self.complete and mine == data

    def _note_error(self, error: Exception) -> None:
        if isinstance(error, HttpParserUpgrade):
            self._problem = self._problem or "it switches to another protocol"
        elif self.complete:
            self.reusable = False
        else:
            self._problem = self._problem or str(error)

    def _check_fields(self, count: int) -> None:
        """See that those after the first so many, and all of them together, are within the limits."""
        self._silent_bytes = 0
        if self._field_bytes <= MAX_FIELD_BYTES and len(self._fields) <= MAX_FIELDS:
            return
        if max(len(name) + len(value) for name, value in self._fields[count:]) > MAX_FIELD_BYTES:
            self._problem = f"a header has more than {MAX_FIELD_BYTES} bytes"
        elif self._field_bytes > MAX_HEAD_BYTES:
            self._problem = f"its headers have more than {MAX_HEAD_BYTES} bytes"
        elif len(self._fields) > MAX_FIELDS:
            self._problem = f"it has more than {MAX_FIELDS} headers"

    def _note_silence(self, count: int) -> None:
        """So many bytes have come and ended nothing: some line is long."""
        self._silent_bytes += count
        if self._silent_bytes > MAX_FIELD_BYTES:
            self._problem = self._problem or f"a line has more than {MAX_FIELD_BYTES} bytes"

    def end(self) -> bool:
        """The connection has ended. Whether the answer is complete now: it is, when this is how it says so."""
        if self.head.status and not self.head.framed:
            self.complete = True
        self.reusable = False
        return self.complete

    def dismiss(self) -> None:
        """Feed nothing more. It and its parser hold each other, which would be left to the cycle collector."""
        self._parser = None

    def take(self) -> bytes:
        """What has come of the body since the last time; empty for nothing."""
        body = self._body
        self.unread_bytes = 0
        if len(body) == 1:
            return body.pop()
        data = b"".join(body)
        body.clear()
        return data

    # -- what the parser calls ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins: ours, the next after an interim one, or one that nobody has asked for."""
        if self.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or one after the last chunk, which only counts."""
        if self.complete:
            return
        self._fields.append((name, value))
        self._field_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        parser = self._parser
        status = parser.get_status_code()
        if self.complete or status == _SWITCHING:
            return
        if parser.get_http_version() not in ("1.1", "1.0"):
            self._problem = self._problem or "it is of another version"
        if status < 200:  # noqa: PLR2004 - interim answers
            self._note_interim(status)
            return
        fields = tuple(self._fields[self._first_field :])
        self.head = head = (_head if self._field_bytes <= MAX_WRITTEN_BYTES else Head)(status, fields)
        if head.problem:
            self._problem = self._problem or head.problem
        self.complete = self._head_only

    def _note_interim(self, status: int) -> None:
        """Another answer will follow: this one says nothing that is of use here."""
        self._first_field = len(self._fields)
        self._interim += 1
        if status < 100:  # noqa: PLR2004 - no status at all
            self._problem = self._problem or f"it has the status {status}"
        if self._interim > MAX_INTERIM:
            self._problem = self._problem or f"more than {MAX_INTERIM} interim answers"

    def on_message_complete(self) -> None:
        """All of it is there; or all of an interim answer."""
        if self.head.status and not self.complete:
            self.complete = True
            self._pieces = len(self._body)
            self.reusable = not self._problem and self._parser.should_keep_alive()


@lru_cache(64)
def _media_type(value: bytes) -> str:
    # It is told in messages, which must be text.
    return value.partition(b";")[0].decode("utf-8", "replace").strip().lower()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
