"""Heads of HTTP/1 as they come. Nearly all of one connection are the same: those are read once, and then known again.

What differs between them is the length of the body, so the digits of ``Content-Length`` do not count.
"""

from __future__ import annotations

import re
from hmac import compare_digest
from typing import Final

MAX_WRITTEN_BYTES: Final = 4096
"""A head that is longer is read each time: what each idle connection holds must be small."""

_LENGTH_LINE: Final = re.compile(rb"\r\nContent-Length: ([0-9]{1,15})(?=\r\n)", re.IGNORECASE)
_DIGITS: Final = re.compile(rb"[0-9]{1,15}")
_NO_DIGITS: Final = re.compile(rb"")
# A line for the beginning and one for each field, and no way to see another end of any of them, or of it all.
_PLAIN: Final = re.compile(rb"[!-~][^\r\n]*\r\n(?:[!-9;-~]+:[^\r\n]*\r\n)*\r\n")


class Written:
    """A head as it came: another one that has the same bytes, but for its body's length, need not be read.

    Args:
        data: From its first byte to its last.

    Attributes:
        sized: Whether it says the body's length.
    """

    __slots__ = ("_before_bytes", "_behind_bytes", "_length", "_others", "sized")

    def __init__(self, data: bytes) -> None:
        # What stands before the digits of the length, and behind them; and both together.
        found = _LENGTH_LINE.search(data)
        self.sized = found is not None
        self._length = _NO_DIGITS if found is None else _DIGITS
        self._before_bytes, end = (0, 0) if found is None else found.span(1)
        self._behind_bytes = len(data) - end
        self._others = data[: self._before_bytes] + data[end:]

    def __repr__(self) -> str:
        """How long it is, and not what it says: there may be a key in it."""
        return f"<Written head of {len(self._others)} bytes, {'with' if self.sized else 'without'} a length>"

    def again(self, data: bytes, at: int = 0) -> tuple[int, int]:
        """Whether it stands in `data` once more, from `at` on.

        Returns:
            The body's length, 0 where none is said; and where the body begins, 0 where this is another head.
        """
        before = at + self._before_bytes
        length = self._length.match(data, before)
        if length is None:
            return 0, 0
        behind = length.end()
        end = behind + self._behind_bytes
        # There may be a key in it: where it differs from the last one must not be told by time.
        if not compare_digest(data[at:before] + data[behind:end], self._others):
            return 0, 0
        return int(length[0] or 0), end


def written(data: bytes) -> Written | None:
    """The head that `data` begins with; None where it is not whole, too long, or not written as nearly all are."""
    found = _PLAIN.match(data, 0, MAX_WRITTEN_BYTES)
    return None if found is None else Written(found[0])
