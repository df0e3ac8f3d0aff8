"""The servers and gateways of the fuzzers, one for each file, and what was logged meanwhile."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from .lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gleitzeit_core.plugins import PluginHost
    from gleitzeit_gateway.testing import RunningGateway


@pytest.fixture(autouse=True)
def nothing_blocks() -> None:
    """Here the loop runs in another thread, beside hypothesis, which reads files."""


@pytest.fixture(scope="module")
def lab(plugins: PluginHost) -> Iterator[Lab]:
    """One for all tests of this file."""
    with Lab(plugins) as one:
        yield one


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> RunningGateway:
    """A gateway over a server that is well."""
    return lab.gateway(lab.server().url)


@pytest.fixture(scope="module", autouse=True)
def log() -> Iterator[list[logging.LogRecord]]:
    """What is logged as a mistake."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep(logging.ERROR)
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)
