"""Two servers, a configuration that names them, and a manager that runs on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.manager import ResourceManager
from gleitzeit_ollama.testing import OllamaServer
from gleitzeit_ollama.testing.gates import Gate

from .changes import LAN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    """One whose tokens pass as a test allows; at first, all."""
    async with OllamaServer(gate=Gate(is_open=True)) as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[OllamaServer]:
    """Another."""
    async with OllamaServer() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "gleitzeit.yaml"


@pytest.fixture
def write(file: Path, server: OllamaServer, other: OllamaServer) -> Callable[[str], None]:
    """Writes the configuration; SERVER and OTHER stand for the servers."""

    def write(text: str) -> None:
        file.write_text(text.replace("SERVER", server.url).replace("OTHER", other.url))

    return write


@pytest.fixture
async def manager(file: Path, write: Callable[[str], None]) -> AsyncIterator[ResourceManager]:
    """With the gateway's section."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        yield manager
