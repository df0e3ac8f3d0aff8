"""The access line: one per request, on the logger ``gleitzeit.access``, also for a caller who has left."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.line_handler import LineHandler

if TYPE_CHECKING:
    from gleitzeit_gateway.call import Call

logger = logging.getLogger("gleitzeit.access")
_own_logger = logging.getLogger(__name__)

GONE: Final = 499
"""The status of a request whose caller left before the answer had begun, or was complete; nginx's number for it."""
_SHOWN_CHARACTERS: Final = 200
_MOST_WAITING: Final = 256


class AccessLines:
    """The lines of one gateway. Those of the requests that end in one turn of the loop are written at its end."""

    def __init__(self) -> None:
        # Each with its status and how long it took.
        self._ended: list[tuple[Call, int, float]] = []

    def __repr__(self) -> str:
        """How many wait."""
        return f"<AccessLines {len(self._ended)} to be written>"

    def add(self, call: Call, status: int, total_s: float) -> None:
        """A request has ended.

        Args:
            call: The request. No header and no query is shown: there may be keys in them.
            status: What was answered, or `GONE`.
            total_s: From its headers to the end of its answer, in seconds.
        """
        if call.options.access_log:
            ended = self._ended
            ended.append((call, status, total_s))
            if len(ended) == 1:
                asyncio.get_running_loop().call_soon(self.write)
            elif len(ended) >= _MOST_WAITING:
                self.write()

    def write(self) -> None:
        """Write those that wait."""
        ended, self._ended = self._ended, []
        if not ended or not logger.isEnabledFor(logging.INFO):
            return
        lines = [_line(*one) for one in ended]
        handler = LineHandler.alone_at(logger)
        if handler is not None:
            handler.write(lines)
            return
        for line in lines:
            try:
                logger.info("%s", line)
            except Exception:  # The others are written all the same.
                _own_logger.exception("an access line was not written")


def _line(call: Call, status: int, total_s: float) -> str:
    request, served, instance = call.request, call.served, ""
    if served is not None:
        instance = f" instance={served.instance_id} queued={call.queued_ms}ms tries={served.tries}"
    elif call.failed_on:
        instance = f" instance={call.failed_on}"
    model = f" model={printable(call.model)}" if call.model else ""
    key = _key(call.caller.name)
    error = f" error={call.error}" if call.error else ""
    where = _where(request.method, request.path)
    return f"{call.id} {where} {status} {total_s * 1000:.1f}ms{model}{instance}{key}{error}"


@lru_cache(256)
def _where(method: str, path: str) -> str:
    return f"{printable(method)} {printable(path)}"


@lru_cache(256)
def _key(name: str) -> str:
    return f" key={printable(name)}" if name else ""


def printable(text: str) -> str:
    """`text` as one word, without control characters, and not endless: nobody forges lines of the log."""
    if len(text) <= _SHOWN_CHARACTERS and " " not in text and text.isprintable():
        return text
    return "".join(c if c.isprintable() and c != " " else "?" for c in text[:_SHOWN_CHARACTERS])
