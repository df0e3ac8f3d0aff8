"""The access line: one per request, on the logger ``gleitzeit.access``, also for a caller who has left."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.line_handler import LineHandler

if TYPE_CHECKING:
    from gleitzeit_gateway.call import Call

logger = logging.getLogger("gleitzeit.access")

GONE: Final = 499
"""The status of a request whose caller left before the answer had begun, or was complete; nginx's number for it."""
_SHOWN_CHARACTERS: Final = 200


def write(call: Call, status: int, total_s: float) -> None:
    """Write the line of a request.

    Args:
        call: The request. No header and no query is shown: there may be keys in them.
        status: What was answered, or `GONE`.
        total_s: From its headers to the end of its answer, in seconds.
    """
    if not (call.options.access_log and logger.isEnabledFor(logging.INFO)):
        return
    where = _where(call.request.method, call.request.path)
    text = f"{call.id} {where} {status} {total_s * 1000:.1f}ms{_facts(call)}"
    handler = LineHandler.alone_at(logger)
    if handler is None:
        logger.info("%s", text)
    else:
        handler.line(text)


@lru_cache(256)
def _where(method: str, path: str) -> str:
    return f"{printable(method)} {printable(path)}"


@lru_cache(256)
def _shown_key(name: str) -> str:
    return printable(name)


def _facts(call: Call) -> str:
    served, instance = call.served, ""
    if served is not None:
        instance = f" instance={served.instance_id} queued={served.queued_s * 1000:.0f}ms tries={served.tries}"
    elif call.failed_on:
        instance = f" instance={call.failed_on}"
    model = f" model={printable(call.model)}" if call.model else ""
    key = f" key={_shown_key(call.tenant)}" if call.tenant else ""
    error = f" error={call.error}" if call.error else ""
    return f"{model}{instance}{key}{error}"


def printable(text: str) -> str:
    """`text` as one word, without control characters, and not endless: nobody forges lines of the log."""
    if len(text) <= _SHOWN_CHARACTERS and " " not in text and text.isprintable():
        return text
    return "".join(c if c.isprintable() and c != " " else "?" for c in text[:_SHOWN_CHARACTERS])
