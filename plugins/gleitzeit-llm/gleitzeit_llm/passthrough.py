"""Same API on both sides: bytes pass unparsed, in whole lines or events, and are only watched.

Watched for two things: the final marker, without which an answer is incomplete, and an error inside a stream that began
with status 200. Nothing is ever cut in mid-line, so that an error of ours can follow at any point.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.dialects import error_text

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
# A value inside a JSON string has its quotes escaped and its line ends too, so these match the framing only.
_ENDS: Final[Mapping[str, re.Pattern[bytes]]] = {
    "ollama": re.compile(rb"\n"),
    "openai": re.compile(rb"\r\n\r\n|\n\n|\r\r"),
}
_FINAL: Final[Mapping[str, re.Pattern[bytes]]] = {
    "ollama": re.compile(rb'[^\n]*"done"\s*:\s*true[^\n]*'),
    "openai": re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]"),
}
_ERROR: Final[Mapping[str, re.Pattern[bytes]]] = {
    "ollama": re.compile(rb'(?:^|\n)(\{\s*"error"\s*:[^\n]*)'),
    "openai": re.compile(rb'(?:^|[\r\n])data: ?(\{\s*"error"\s*:[^\r\n]*)'),
}


class PassThrough:
    """Watches one stream.

    Args:
        dialect: ``ollama`` (NDJSON) or ``openai`` (server-sent events).
    """

    __slots__ = ("_end", "_error", "_final", "_held", "finished")

    def __init__(self, dialect: str) -> None:
        self._end, self._final, self._error = _ENDS[dialect], _FINAL[dialect], _ERROR[dialect]
        self._held = b""
        self.finished = False

    def feed(self, data: bytes) -> bytes:
        """The whole lines or events there are now; may be empty.

        Raises:
            InstanceFailure: The instance reported an error, or a line has no end.
        """
        data = self._held + data if self._held else data
        cut = 0
        for end in self._end.finditer(data):
            cut = end.end()
        self._held, whole = data[cut:], data[:cut]
        if len(self._held) > MAX_EVENT_BYTES:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"a line of more than {MAX_EVENT_BYTES} bytes")
        return self._watched(whole)

    def close(self) -> bytes:
        """What is left at the end of the stream: a last line without its end.

        Raises:
            InstanceFailure: ``LOST``: the answer lacks its final marker; or the instance reported an error.
        """
        held, self._held = self._held, b""
        rest = self._watched(held)
        if not self.finished:
            raise InstanceFailure(FailureKind.LOST, "the answer ended without its final marker: it is incomplete")
        return rest

    def _watched(self, whole: bytes) -> bytes:
        error = self._error.search(whole) if b'"error"' in whole else None
        if error is not None:
            raise InstanceFailure(FailureKind.SERVER_ERROR, error_text(200, error.group(1)))
        if not self.finished:
            self.finished = any(_is_final(line.group()) for line in self._final.finditer(whole))
        return whole


def _is_final(line: bytes) -> bool:
    """Whether a line that looks final is so: a tool call may have an argument called ``done``."""
    if not line.startswith(b"{"):
        return True
    try:
        return msgspec.json.decode(line, type=_Part).done
    except msgspec.MsgspecError:
        return False


class _Part(msgspec.Struct):
    done: bool = False
