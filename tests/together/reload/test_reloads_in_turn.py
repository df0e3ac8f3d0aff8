"""One reload at a time, and each to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.errors import ClosedError
from gleitzeit_core.manager import ResourceManager
from gleitzeit_ollama.hub import OllamaHub

from .changes import LAN, told

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gleitzeit_core.config import Configuration
    from gleitzeit_ollama.options import OllamaOptions


def checked(manager: ResourceManager, routes: str) -> Configuration:
    """As the manager's, with `routes`."""
    raw = read_configuration(manager.config.source, overrides={"routes": [{"methods": [routes]}]})
    return check_configuration(raw, manager.host)


async def test_one_reload_at_a_time(manager: ResourceManager) -> None:
    """The second begins where the first has ended."""
    first, second = await asyncio.gather(
        *(manager.reload(checked(manager, pattern)) for pattern in ("llm/chat", "llm/*"))
    )
    assert told(first) == [("routes[0]", "added", True, "")]
    assert [(change.path, change.before, change.after) for change in second] == [
        ("routes[0].methods[0]", "llm/chat", "llm/*")
    ]


READING = """
import threading
from pydantic import BaseModel, field_validator
from gleitzeit_core.hookspecs import SectionType, hookimpl

reading, go_on = threading.Event(), threading.Event()

class Options(BaseModel):
    word: str = ""

    @field_validator("word")
    @classmethod
    def slow(cls, word):
        if word == "first":
            reading.set()
            go_on.wait(30)
        return word

@hookimpl
def gleitzeit_register_sections():
    return [SectionType(name="slow", options=f"{__name__}:Options", summary="takes its time")]
"""


async def test_what_is_written_last_counts(file: Path, write: Callable[[str], None]) -> None:
    """However long it takes to read what was there before."""
    file.with_name("slow.py").write_text(READING)
    head = LAN + "plugins: {files: [./slow.py]}\n"
    write(head)
    async with ResourceManager.from_config(file) as manager:
        manager.on_reload("slow", lambda _: "")
        plugin: Any = next(record.module for record in manager.host.records if record.name == "slow")
        write(head + "slow: {word: first}\n")
        first = asyncio.create_task(manager.reload())
        await asyncio.to_thread(plugin.reading.wait)
        write(head + "slow: {word: second}\n")
        second = asyncio.create_task(manager.reload())
        await asyncio.wait({second}, timeout=0.1)
        plugin.go_on.set()
        await asyncio.gather(first, second)
        assert manager.config.sections["slow"].model_dump() == {"word": "second"}


class Slow:
    """A hub that takes other options when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self._reconfigure = OllamaHub.reconfigure
        slow = self

        async def reconfigure(hub: OllamaHub, options: OllamaOptions) -> bool:
            slow.asked.set()
            await slow.go_on.wait()
            return await slow._reconfigure(hub, options)

        monkeypatch.setattr(OllamaHub, "reconfigure", reconfigure)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Ollama's hubs are."""
    return Slow(monkeypatch)


async def test_a_reload_goes_on_without_its_caller(
    manager: ResourceManager, write: Callable[[str], None], slow: Slow
) -> None:
    """Left half-way, it would leave the manager half-way."""
    write(LAN.replace("}}", ", check_interval_s: 3}}") + "routes: [{methods: ['llm/*']}]\n")
    events = manager.events()
    asked = asyncio.create_task(manager.reload())
    await slow.asked.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    slow.go_on.set()
    async for event in events:
        if event.kind == "reload":
            break
    assert len(manager.config.routes) == 2
    assert len(await manager.reload()) == 0


async def test_closed_amid_a_reload(manager: ResourceManager, write: Callable[[str], None], slow: Slow) -> None:
    """Who waits for it is told, and nothing is left behind."""
    write(LAN.replace("}}", ", check_interval_s: 3}}"))
    asked = asyncio.create_task(manager.reload())
    await slow.asked.wait()
    await manager.aclose()
    with pytest.raises(ClosedError):
        await asked
    with pytest.raises(ClosedError):
        await manager.reload()
