"""A body in chunks, taken apart.

llhttp does that too, but does not tell where in what it was given the body has ended, and another request may follow.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from gleitzeit_gateway.http_parsing import (
    BAD_REQUEST,
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    TOO_MANY,
    BadRequest,
)

if TYPE_CHECKING:
    from gleitzeit_gateway.http_request import Body

_SIZE: Final = rb"([0-9A-Fa-f]{1,15})(?:;[^\r\n\0]*)?"
_NAME: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}"
# What stands in a line behind a size or a name goes on until one of these.
_NO_TEXT: Final = re.compile(rb"[\r\n\0]")


class _Line(NamedTuple):
    """A line between chunks.

    Args:
        whole: All of it.
        begun: What can become that.
        wrong: What to say of anything else.
    """

    whole: re.Pattern[bytes]
    begun: re.Pattern[bytes]
    wrong: str


_FIRST: Final = _Line(re.compile(_SIZE + rb"\r\n"), re.compile(_SIZE + rb"\r?"), "the body is not in chunks")
# Behind a chunk its line ends, too.
_NEXT: Final = _Line(
    re.compile(rb"\r\n" + _SIZE + rb"\r\n"),
    re.compile(rb"\r(?:\n(?:" + _SIZE + rb"\r?)?)?"),
    "a chunk of the body has another size than it says, or none",
)
# After the last chunk: the line that is empty is the end.
_FIELD: Final = _Line(
    re.compile(rb"(" + _NAME + rb":[^\r\n\0]*)?\r\n"),
    re.compile(rb"(?:" + _NAME + rb"(?::[^\r\n\0]*)?)?\r?"),
    "what follows the chunks of the body is no header",
)


class Chunks:
    """Takes a body apart. Headers after it only count.

    Args:
        body: Gets it.

    Attributes:
        over: Whether all of it has come.
    """

    __slots__ = ("_awaited", "_begun", "_body", "_field_bytes", "_fields", "_left_bytes", "over")

    def __init__(self, body: Body) -> None:
        self._body = body
        self._awaited, self._begun = _FIRST, b""
        # Of the chunk whose line has come.
        self._left_bytes = 0
        self._field_bytes = self._fields = 0
        self.over = False

    def __repr__(self) -> str:
        """How far it is."""
        return f"<Chunks {'over' if self.over else f'{self._left_bytes} bytes left of one'}>"

    def feed(self, data: bytes, at: int) -> int:
        """Bytes of it, from `at` on; where those that follow it begin.

        Raises:
            BadRequest: They are no chunks, or exceed a limit.
        """
        if self._goes_on(data, at):
            self._begun += data[at:]
            _check(len(self._begun))
            return len(data)
        before, self._begun = self._begun, b""
        if before:
            data = before + data[at:]
        end, pieces = 0 if before else at, []
        try:
            while end < len(data) and not self.over:
                if self._left_bytes:
                    piece = data[end : end + self._left_bytes]
                    pieces.append(piece)
                    self._left_bytes -= len(piece)
                    end += len(piece)
                else:
                    end = self._read_line(data, end)
        finally:
            if pieces:
                self._body.feed(b"".join(pieces))
        return at + end - len(before) if before else end

    def _goes_on(self, data: bytes, at: int) -> bool:
        """Whether that is only more of a line's text: who sends it byte by byte must not have all of it read again."""
        begun = self._begun
        in_text = begun[-1:] != b"\r" and (b";" in begun or b":" in begun)
        return in_text and _NO_TEXT.search(data, at) is None

    def _read_line(self, data: bytes, at: int) -> int:
        """What stands between chunks; where what follows begins."""
        awaited = self._awaited
        found = awaited.whole.match(data, at)
        if found is None:
            if awaited.begun.fullmatch(data, at) is None:
                raise BadRequest(BAD_REQUEST, awaited.wrong)
            self._begun, end = data[at:], len(data)
        else:
            end = found.end()
        _check(end - at)
        if found is None:
            return end
        if awaited is not _FIELD:
            self._left_bytes = int(found[1], 16)
            self._awaited = _NEXT if self._left_bytes else _FIELD
        elif found[1] is None:
            self.over = True
        else:
            self._count_field(end - at)
        return end

    def _count_field(self, size_bytes: int) -> None:
        self._fields += 1
        self._field_bytes += size_bytes
        if self._fields > MAX_FIELDS or self._field_bytes > MAX_HEAD_BYTES:
            text = f"after the body there may be {MAX_FIELDS} headers, and {MAX_HEAD_BYTES} bytes"
            raise BadRequest(TOO_MANY, text)


def _check(size_bytes: int) -> None:
    """Refuse a line that is too long."""
    if size_bytes > MAX_FIELD_BYTES:
        raise BadRequest(TOO_MANY, f"a line between the chunks of the body has more than {MAX_FIELD_BYTES} bytes")
