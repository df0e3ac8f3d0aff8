"""Bare connections for hostile callers, and as many files for them as there may be."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from gleitzeit_gateway.testing import RunningGateway

    Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """As many open files as this process may have at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[Connected]]]:
    """Opens bare connections, which are closed in the end. The function takes the gateway and what to send first."""
    opened: list[asyncio.StreamWriter] = []

    async def start(gateway: RunningGateway, sent: bytes = b"") -> Connected:
        reader, writer = await gateway.connect()
        opened.append(writer)
        writer.write(sent)
        return reader, writer

    yield start
    for writer in opened:
        writer.transport.abort()
    await asyncio.sleep(0)
