"""What the tests that cross plugins share: a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    """One that runs."""
    async with OllamaServer() as server:
        yield server
