"""Frames between a runner's owner and its agent, the same both ways: kind, fence, length, content.

Each carries the fence of the lease or run it belongs to. An agent refuses those with a lower fence than it has seen.
"""

from __future__ import annotations

import struct

_HEAD = struct.Struct(">BQI")
MAX_CONTENT_BYTES = 1 << 20
"""What is longer is no frame: files and output go in several."""
MAX_MESSAGE_BYTES = 128 << 20
"""What is longer is no message to an agent, in however many frames it comes."""

# Both ways: a piece of a file; a piece of what the next frame of another kind ends.
FILE, MORE = range(1, 3)
# From the owner.
OPTIONS, RUN, CANCEL, RESET = range(8, 12)
# From the agent. A STARTED means that the payload may have begun, a DONE that nothing of it is left, or why there may
# be; a REFUSED that nothing has begun.
HELLO, STARTED, STDOUT, STDERR, RESULT, DONE, REFUSED = range(16, 23)


class BadFrame(Exception):
    """What came is no frame."""


def frame(kind: int, fence: int, content: bytes = b"") -> bytes:
    """One frame. `content` must not be longer than `MAX_CONTENT_BYTES`."""
    return _HEAD.pack(kind, fence, len(content)) + content


def frames(kind: int, fence: int, content: bytes) -> bytes:
    """`content` of any length, in as many frames as it takes."""
    starts = range(0, len(content) - MAX_CONTENT_BYTES, MAX_CONTENT_BYTES)
    pieces = [frame(MORE, fence, content[start : start + MAX_CONTENT_BYTES]) for start in starts]
    return b"".join([*pieces, frame(kind, fence, content[len(pieces) * MAX_CONTENT_BYTES :])])


def file_frames(name: str, fence: int, content: bytes) -> bytes:
    """A file, in as many frames as it takes: at least one."""
    label = name.encode("utf-8", "surrogateescape")
    head = struct.pack(">H", len(label)) + label
    size = MAX_CONTENT_BYTES - len(head)
    starts = range(0, max(len(content), 1), size)
    return b"".join(frame(FILE, fence, head + content[start : start + size]) for start in starts)


def file_part(content: bytes) -> tuple[str, bytes]:
    """The name and the next piece of a file.

    Raises:
        BadFrame: It is cut.
    """
    size = int.from_bytes(content[:2], "big") + 2
    if len(content) < max(size, 2):
        raise BadFrame("a file without a name")
    return content[2:size].decode("utf-8", "surrogateescape"), content[size:]


class Decoder:
    """Puts frames together from what comes, however it is cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames that `data` completes: kind, fence and content of each.

        Raises:
            BadFrame: One is longer than any is.
        """
        buffer, found = self._buffer, []
        buffer += data
        start = 0
        while len(buffer) - start >= _HEAD.size:
            kind, fence, size = _HEAD.unpack_from(buffer, start)
            if size > MAX_CONTENT_BYTES:
                raise BadFrame(f"a frame of {size} bytes")
            end = start + _HEAD.size + size
            if len(buffer) < end:
                break
            found.append((kind, fence, bytes(buffer[end - size : end])))
            start = end
        del buffer[:start]
        return found
