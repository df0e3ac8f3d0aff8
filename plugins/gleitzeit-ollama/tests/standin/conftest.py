"""A stand-in, and a client that calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from gleitzeit_ollama.testing import OllamaServer, fixed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a time limit of its own."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    """A stand-in that says three tokens."""
    async with OllamaServer(models=["smollm2", "other"], reply=fixed("one two three")) as running:
        yield running
