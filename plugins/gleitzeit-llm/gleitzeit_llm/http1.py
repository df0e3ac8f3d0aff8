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
from typing import Final

from aiohttp import ClientError
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict

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


class AnswerReader:
    """Reads one answer. What stands here is what is known so far.

    Args:
        method: Of the request.

    Attributes:
        status: From 200, once `begun`; 0 before.
        begun: Whether its head is there.
        complete: Whether all of it is there.
        reusable: Whether its connection can carry another request once it is complete.
        content_type: In lower case, without parameters; ``application/octet-stream`` when nothing is said.
        encoding: How the body is compressed, in lower case; empty for not at all.
        unread_bytes: Of the body, not taken yet.
    """

    __slots__ = (
        "_body",
        "_events",
        "_field_bytes",
        "_field_count",
        "_fields",
        "_head_only",
        "_interim",
        "_parser",
        "_pieces",
        "_problem",
        "_silent_bytes",
        "_until_close",
        "begun",
        "complete",
        "content_type",
        "encoding",
        "on_body",
        "reusable",
        "status",
        "unread_bytes",
    )

    def __init__(self, method: str) -> None:
        self._head_only = method == "HEAD"
        self._fields: list[tuple[bytes, bytes]] = []
        self._field_bytes = self._field_count = self._interim = self._silent_bytes = self._events = 0
        self._body: list[bytes] = []
        # How many of them belong to the answer, once it is complete.
        self._pieces = 0
        # Called for each chunk, of which there may be many: without a step of ours.
        self.on_body = self._body.append
        self._problem = ""
        self._until_close = False
        self.status = self.unread_bytes = 0
        self.begun = self.complete = self.reusable = False
        self.content_type, self.encoding = "application/octet-stream", ""
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        # As lax as aiohttp's client: old servers end lines with LF alone, and pad the sizes of chunks.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_optional_lf_after_cr=False, lenient_spaces_after_chunk_size=True
        )

    @property
    def headers(self) -> CIMultiDict[str]:
        """The fields of the head; case does not count in their names."""
        return CIMultiDict((_text(name), _text(value)) for name, value in self._fields)

    @property
    def plain(self) -> bool:
        """Whether its body is what was asked for: no refusal, and not compressed; also before it has begun."""
        return self.status < 300 and not self.encoding  # noqa: PLR2004 - redirects and errors

    def feed(self, data: bytes) -> None:
        """Bytes that have come. What comes after the end of the answer belongs to none, and spoils the connection.

        Raises:
            NotHTTP: They are no HTTP, or exceed a limit.
        """
        if self.complete or self._parser is None:
            self.reusable = False
            return
        before, pieces = self._events, len(self._body)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._problem = self._problem or "it switches to another protocol"
        except HttpParserError as error:
            if self.complete:
                self.reusable = False
            else:
                self._problem = self._problem or str(error)
        body = self._body
        if self.complete:
            del body[self._pieces :]  # What stands behind it is of another answer, which nobody has asked for.
        came = len(body) - pieces
        if came:
            self.unread_bytes += len(body[pieces]) if came == 1 else sum(map(len, body[pieces:]))
        if came or self._events != before:
            self._silent_bytes = 0
        else:
            self._note_silence(len(data))
        if self._problem:
            self.reusable = False
            raise NotHTTP(self._problem)

    def _note_silence(self, count: int) -> None:
        """So many bytes have come and ended nothing: some line is long."""
        self._silent_bytes += count
        if self._silent_bytes > MAX_FIELD_BYTES:
            self._problem = self._problem or f"a line has more than {MAX_FIELD_BYTES} bytes"

    def end(self) -> bool:
        """The connection has ended. Whether the answer is complete now: it is, when this is how it says so."""
        if self.begun and self._until_close:
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
        self._events += 1
        if self.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or one after the last chunk, which only counts."""
        self._events += 1
        if self.complete:
            return
        size = len(name) + len(value)
        self._field_bytes += size
        self._field_count += 1
        if not self.begun:
            self._fields.append((name, value))
        if self._field_bytes > MAX_FIELD_BYTES or self._field_count > MAX_FIELDS:
            self._check_size(size)

    def _check_size(self, last_bytes: int) -> None:
        if last_bytes > MAX_FIELD_BYTES:
            self._problem = f"a header has more than {MAX_FIELD_BYTES} bytes"
        elif self._field_bytes > MAX_HEAD_BYTES:
            self._problem = f"its headers have more than {MAX_HEAD_BYTES} bytes"
        elif self._field_count > MAX_FIELDS:
            self._problem = f"it has more than {MAX_FIELDS} headers"

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._events += 1
        parser = self._parser
        if parser is None:
            return
        status = parser.get_status_code()
        if self.complete or status == _SWITCHING:
            return
        if parser.get_http_version() not in ("1.1", "1.0"):
            self._problem = self._problem or "it is of another version"
        if status < 200:  # noqa: PLR2004 - interim answers
            self._note_interim(status)
            return
        self.status, self.begun = status, True
        self._until_close = not self._framed(status)
        if self._head_only:
            self.complete = True

    def _note_interim(self, status: int) -> None:
        """Another answer will follow: this one says nothing that is of use here."""
        self._fields.clear()
        self._interim += 1
        if status < 100:  # noqa: PLR2004 - no status at all
            self._problem = self._problem or f"it has the status {status}"
        if self._interim > MAX_INTERIM:
            self._problem = self._problem or f"more than {MAX_INTERIM} interim answers"

    def _framed(self, status: int) -> bool:
        """Look at the fields that matter here; whether they, or the status, say where the body ends."""
        framed = status in _WITHOUT_BODY
        for name, value in self._fields:
            match name.lower():
                case b"content-length":
                    framed = True
                case b"transfer-encoding":
                    framed = True
                    if value.strip().lower() != b"chunked":
                        self._problem = self._problem or "its transfer is coded in a way that was not asked for"
                case b"content-type":
                    self.content_type = _media_type(value) or self.content_type
                case b"content-encoding" if value.strip().lower() not in _PLAIN:
                    self.encoding = _text(value).strip().lower()
        return framed

    def on_message_complete(self) -> None:
        """All of it is there; or all of an interim answer."""
        self._events += 1
        if self.begun and not self.complete:
            self.complete = True
            self._pieces = len(self._body)
            self.reusable = not self._problem and self._parser is not None and self._parser.should_keep_alive()


@lru_cache(64)
def _media_type(value: bytes) -> str:
    # It is told in messages, which must be text.
    return value.partition(b";")[0].decode("utf-8", "replace").strip().lower()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
