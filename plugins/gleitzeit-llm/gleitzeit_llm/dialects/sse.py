"""Server-sent events: read them from bytes cut anywhere, and write them.

After the HTML Living Standard, section "Server-sent events", but stricter in one point: a line that is no field of
an event is an error here, because it means that the instance answers something else, such as a page of HTML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_llm.dialects.errors import shown
from gleitzeit_llm.dialects.lines import MAX_LINE_BYTES, LineBuffer
from gleitzeit_llm.protocol import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BOM = b"\xef\xbb\xbf"
_SILENT_FIELDS = frozenset({b"event", b"id", b"retry"})


def event(data: bytes, name: bytes = b"") -> bytes:
    """One event with one line of data, and a name where it has one."""
    return b"event: %b\ndata: %b\n\n" % (name, data) if name else b"data: %b\n\n" % data


class EventBuffer:
    """Gives the data of each event, its lines joined by newlines.

    Comments, which servers send to keep a connection alive, and the fields `event`, `id` and `retry` are skipped.
    A field `error`, with which llama.cpp used to report errors, becomes data of the form it has today.

    Args:
        max_bytes: The longest event.
    """

    __slots__ = ("_data", "_data_bytes", "_lines", "_max_bytes", "_started")

    def __init__(self, *, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._lines = LineBuffer(lone_cr=True, max_bytes=max_bytes)
        self._max_bytes = max_bytes
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._started = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that `chunk` completes.

        Raises:
            UpstreamError: A line is no field of an event, or an event is too long.
        """
        for line in self._lines.feed(chunk):
            if line:
                self._take(line)
            elif self._data:
                yield self._release()

    def close(self) -> bytes:
        """The data of an event that was not ended by an empty line; some servers leave out the last one."""
        line = self._lines.close()
        if line:
            self._take(line)
        return self._release()

    def _take(self, line: bytes) -> None:
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        if name == b"data":
            self._hold(value.removeprefix(b" "))
        elif name == b"error":
            self._hold(b'{"error":%b}' % value)
        elif line.startswith(b"{"):
            # No event, but a JSON document, which most likely says what went wrong.
            self._hold(line)
        elif name and name not in _SILENT_FIELDS:
            raise UpstreamError(f"the instance sent no event stream but {shown(line)}")

    def _hold(self, value: bytes) -> None:
        self._data_bytes += len(value)
        if self._data_bytes > self._max_bytes:
            raise UpstreamError(f"the instance sent an event longer than {self._max_bytes} bytes")
        self._data.append(value)

    def _release(self) -> bytes:
        data = b"\n".join(self._data)
        self._data.clear()
        self._data_bytes = 0
        return data
