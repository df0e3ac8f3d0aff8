"""Lines out of bytes that come cut anywhere, with a limit on how long one may grow."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gleitzeit_llm.protocol import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE_BYTES = 16 * 1024 * 1024
"""The longest line, and the longest event, that is taken from an instance. An image in base64 fits."""

_ANY_NEWLINE = re.compile(rb"\r\n|\n|\r")


class LineBuffer:
    r"""Splits a stream of bytes at newlines.

    Args:
        lone_cr: Whether a CR that is not followed by LF ends a line too, as in server-sent events. In NDJSON it is
            white space inside a line.
        max_bytes: The longest line; more is an error, so that memory stays bounded.
    """

    __slots__ = ("_held", "_held_bytes", "_lone_cr", "_max_bytes", "_skip_lf")

    def __init__(self, *, lone_cr: bool = False, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._lone_cr = lone_cr
        self._max_bytes = max_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._skip_lf = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes, without their ends.

        Raises:
            UpstreamError: A line is longer than the limit.
        """
        data = self._without_split_crlf(data)
        first, *rest = _ANY_NEWLINE.split(data) if self._lone_cr else data.split(b"\n")
        self._hold(first)
        for line in rest:
            yield self._release()
            self._hold(line)

    def close(self) -> bytes:
        """What stands after the last newline; empty when nothing does."""
        return self._release()

    def _without_split_crlf(self, data: bytes) -> bytes:
        """Drop an LF whose CR ended the chunk before: the line was given out already."""
        if not self._lone_cr or not data:
            return data
        if self._skip_lf and data.startswith(b"\n"):
            data = data[1:]
        self._skip_lf = data.endswith(b"\r")
        return data

    def _hold(self, piece: bytes) -> None:
        """Keep the beginning of a line; pieces are joined once, so a long line costs no more than its length."""
        self._held_bytes += len(piece)
        if self._held_bytes > self._max_bytes:
            raise UpstreamError(f"the instance sent a line longer than {self._max_bytes} bytes")
        if piece:
            self._held.append(piece)

    def _release(self) -> bytes:
        line = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return line
