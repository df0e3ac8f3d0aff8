"""Two servers whose models are managed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import (
    OllamaServer,
)

from .servers import BIG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def pair() -> AsyncIterator[tuple[OllamaServer, OllamaServer]]:
    """Two servers with one model each, and a registry with another."""
    async with OllamaServer(registry={"big": BIG}) as one, OllamaServer(registry={"big": BIG}) as two:
        yield one, two
