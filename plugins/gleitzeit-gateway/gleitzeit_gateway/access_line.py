"""The access line: one per request, on the logger ``gleitzeit.access``, also for a caller who has left."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

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
    where = f"{printable(call.request.method)} {printable(call.request.path)}"
    rest = "".join(f" {name}={value}" for name, value in _facts(call).items() if value)
    logger.info("%s %s %d %.1fms%s", call.id, where, status, total_s * 1000, rest)


def _facts(call: Call) -> dict[str, str]:
    facts = {"model": printable(call.model), "instance": call.failed_on}
    if call.served is not None:
        facts |= {"instance": call.served.instance_id, "queued": f"{call.served.queued_s * 1000:.0f}ms"}
        facts["tries"] = str(call.served.tries)
    return {**facts, "key": printable(call.tenant), "error": call.error}


def printable(text: str) -> str:
    """`text` as one word, without control characters, and not endless: nobody forges lines of the log."""
    return "".join(c if c.isprintable() and c != " " else "?" for c in text[:_SHOWN_CHARACTERS])
