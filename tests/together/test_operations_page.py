"""The page about operations is held to the gateway: its endpoints stand there, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gleitzeit_gateway.admin import admin_endpoints
from gleitzeit_gateway.event_stream import KEEP_ALIVE_S, SLOW_S, STREAMS_MAX
from gleitzeit_gateway.limits import BYTES_PER_TOKEN
from gleitzeit_gateway.options import KeyOptions
from gleitzeit_gateway.usage import OTHERS, ROWS_MAX

DOCS = Path(__file__).parents[2] / "docs"
PAGE, CONFIGURATION = (DOCS / "operations.md").read_text(), (DOCS / "configuration.md").read_text()


def test_endpoints() -> None:
    """Each endpoint of the gateway's own is in the table, marked where it changes the pool; and no other is."""
    rows = re.findall(r"^\| (`(?:GET|POST|DELETE) [^|]*)\|", PAGE, re.MULTILINE)
    told = {
        (verb, re.sub(r"/ID.*", "/*", path.partition("?")[0])): "*" in row
        for row in rows
        for verb, path in re.findall(r"`(\w+) (/\S+)`", row)
    }
    there = {(endpoint.method, endpoint.path): endpoint.admin for endpoint in admin_endpoints()}
    assert told == {**there, ("GET", "/openapi.json"): False}


def test_figures() -> None:
    """So are the limits of a stream of events."""
    assert f"A comment comes every {KEEP_ALIVE_S:g} seconds" in PAGE
    assert f"for {SLOW_S:g} seconds is cut off; {STREAMS_MAX} may listen at once" in PAGE


@pytest.mark.parametrize("option", KeyOptions.model_fields)
def test_options_of_keys(option: str) -> None:
    """Each option of a key stands in the page about configuration."""
    assert f"\n| `{option}` |" in CONFIGURATION.partition("### Keys")[2]


def test_figures_of_limits_and_usage() -> None:
    """What is estimated and what is kept stands there as it is."""
    assert f"one token for each {BYTES_PER_TOKEN} bytes" in PAGE
    assert f"Each period has {ROWS_MAX:,} rows" in PAGE
    assert f"under `{OTHERS}`" in PAGE
