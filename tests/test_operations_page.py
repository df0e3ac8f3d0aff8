"""The page about operations is held to the gateway: its endpoints stand there, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from gleitzeit_gateway.admin import admin_endpoints
from gleitzeit_gateway.event_stream import KEEP_ALIVE_S, SLOW_S, STREAMS_MAX

PAGE = (Path(__file__).parent.parent / "docs/operations.md").read_text()


def test_endpoints() -> None:
    """Each endpoint of the gateway's own is in the table, marked where it changes the pool; and no other is."""
    rows = re.findall(r"^\| (`(?:GET|POST|DELETE) [^|]*)\|", PAGE, re.MULTILINE)
    told = {
        (verb, re.sub(r"/ID.*", "/*", path.partition("?")[0])): "*" in row
        for row in rows
        for verb, path in re.findall(r"`(\w+) (/\S+)`", row)
    }
    assert told == {(endpoint.method, endpoint.path): endpoint.admin for endpoint in admin_endpoints()}


def test_figures() -> None:
    """So are the limits of a stream of events."""
    assert f"A comment comes every {KEEP_ALIVE_S:g} seconds" in PAGE
    assert f"for {SLOW_S:g} seconds is cut off; {STREAMS_MAX} may listen at once" in PAGE
