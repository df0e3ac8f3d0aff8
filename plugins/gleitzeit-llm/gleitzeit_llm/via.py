"""Where a request has been before: the header ``Via``, by which requests that go in a circle are known."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

NAME: Final = "Via"

CHAIN: Final[ContextVar[str]] = ContextVar("via", default="")
"""What goes with every request that is sent on in this context; empty for none. A gateway sets it.

A context variable, because it belongs to where a request came from and not to the request: also what is asked on its
behalf, such as which models are loaded, must not go in a circle.
"""


def headers() -> dict[str, str]:
    """The header as it is sent on."""
    chain = CHAIN.get()
    return {NAME: chain} if chain else {}
