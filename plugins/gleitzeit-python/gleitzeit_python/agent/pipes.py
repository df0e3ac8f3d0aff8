"""Ends of pipes that are never waited for: what is to be written waits, what is read has a limit."""

from __future__ import annotations

import os
import selectors
import time

_CHUNK_BYTES = 65536
_HOLD_S = 0.005
_NEVER = float("inf")


class Outlet:
    """What is written to, as fast as the other side reads.

    Args:
        selector: Says when it can be.
        number: The descriptor; closed with it.
        key: What the selector says then.

    Attributes:
        held_until: When `flush` is to be called for what is held.
    """

    def __init__(self, selector: selectors.BaseSelector, number: int, key: object) -> None:
        os.set_blocking(number, False)
        self._selector, self._number, self._key = selector, number, key
        self.held_until = _NEVER
        self._waiting = bytearray()
        self._watched = self._ending = False

    def write(self, data: bytes) -> None:
        """Write `data` now, or when there is room."""
        if self._number >= 0:
            self._waiting += data
            self.flush()

    def hold(self, data: bytes) -> None:
        """Write `data` soon, together with what comes until then: each piece wakes up everybody on its way."""
        if self._number >= 0:
            if not self._waiting:
                self.held_until = time.monotonic() + _HOLD_S
            self._waiting += data
            if len(self._waiting) >= _CHUNK_BYTES:
                self.flush()

    def end(self) -> None:
        """Close it when all is written."""
        self._ending = True
        self.flush()

    def flush(self) -> None:
        """Write what there is room for."""
        self.held_until = _NEVER
        try:
            while self._waiting and self._number >= 0:
                del self._waiting[: os.write(self._number, self._waiting[:_CHUNK_BYTES])]
        except BlockingIOError:
            pass
        except OSError:
            self.close()  # nobody reads any more
        if self._ending and not self._waiting:
            self.close()
        self._watch(bool(self._waiting))

    @property
    def idle(self) -> bool:
        """Whether all is written."""
        return not self._waiting

    def _watch(self, wanted: bool) -> None:  # noqa: FBT001 - the one thing it says
        if self._number < 0 or wanted == self._watched:
            return
        if wanted:
            self._selector.register(self._number, selectors.EVENT_WRITE, self._key)
        else:
            self._selector.unregister(self._number)
        self._watched = wanted

    def close(self) -> None:
        """Close it at once; what waits is lost. More than once is fine."""
        self._waiting.clear()
        self._watch(False)  # noqa: FBT003 - as above
        if self._number >= 0:
            os.close(self._number)
        self._number = -1


class Inlet:
    """What is read from, up to a limit; what comes after that is thrown away, so that its writer goes on.

    Args:
        selector: Says when there is something.
        number: The descriptor; closed with it.
        key: What the selector says then.
        limit_bytes: So much is passed on.

    Attributes:
        drained: Whether the last look found nothing more.
    """

    def __init__(self, selector: selectors.BaseSelector, number: int, key: object, limit_bytes: int) -> None:
        os.set_blocking(number, False)
        self._selector, self._number = selector, number
        self.left_bytes, self.truncated = limit_bytes, False
        self.drained = False
        selector.register(number, selectors.EVENT_READ, key)

    def read(self) -> bytes | None:
        """What is there, of what is passed on; None when there is nothing now, or never again."""
        try:
            data = os.read(self._number, _CHUNK_BYTES) if self._number >= 0 else b""
        except BlockingIOError:
            self.drained = True
            return None
        except OSError:
            data = b""
        if not data:
            self.close()
            return None
        self.drained = False
        kept = data[: self.left_bytes]
        self.truncated = self.truncated or len(kept) < len(data)
        self.left_bytes -= len(kept)
        return kept

    def close(self) -> None:
        """Close it. More than once is fine."""
        if self._number >= 0:
            self._selector.unregister(self._number)
            os.close(self._number)
        self._number, self.drained = -1, True
