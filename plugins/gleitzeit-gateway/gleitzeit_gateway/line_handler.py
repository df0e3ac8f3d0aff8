"""Where the access lines go: to a stream, those of one turn of the loop in one write."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

_MOST_LINES: Final = 256


class LineHandler(logging.Handler):
    """Writes what is logged in one turn of the running loop at its end, and at once where no loop runs.

    A write for each line, and a date worked out for each, would cost as much as carrying the request out.

    Args:
        stream: To write to. When it is gone, so are the lines.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._second, self._date = 0, ""

    @classmethod
    def alone_at(cls, logger: logging.Logger) -> LineHandler | None:
        """The handler of this kind that gets all that is logged at `logger` as it is; None when others see it too."""
        match logger.handlers:
            case [cls() as only] if not (logger.propagate or logger.filters or only.filters):
                return only
        return None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; its lock is held."""
        self._take(f"{record.levelname} {record.getMessage()}\n")

    def write(self, texts: Iterable[str]) -> None:
        """Write lines with the level INFO now, without records: these would cost more than all the rest."""
        with self.lock or contextlib.nullcontext():
            self._lines += [f"INFO {text}\n" for text in texts]
            self.flush()

    def _take(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:
                self.flush()
        elif len(self._lines) >= _MOST_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what there is, with the time that it is now."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                at = self._now()
                with contextlib.suppress(OSError, ValueError):
                    self._stream.write(at + at.join(lines))
                    self._stream.flush()

    def _now(self) -> str:
        now = time.time()
        if int(now) != self._second:
            self._second, self._date = int(now), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        return f"{self._date},{int((now - self._second) * 1000):03d} "
