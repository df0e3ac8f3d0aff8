"""What the tests of gleitzeit-ollama share: a hub that runs, as a manager would run it, and can be watched."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import checked_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.runs import InstanceReport

LIMIT_S = 20


@dataclass(frozen=True)
class Pooled:
    """A hub that runs."""

    hub: OllamaHub
    dispatcher: Dispatcher

    def reports(self) -> dict[str, InstanceReport]:
        """How the instances are, by URL."""
        return {report.instance.endpoint: report for report in self.dispatcher.reports()}

    def states(self) -> dict[str, str]:
        """Their states, by URL."""
        return {url: report.state for url, report in self.reports().items()}

    def instance(self, url: str) -> ResourceInstance:
        """One of them, as the pool knows it."""
        return self.reports()[url].instance

    def models(self, url: str) -> set[str]:
        """What one of them can do, as the pool knows it."""
        return set(self.instance(url).capabilities)

    async def check(self, url: str) -> str:
        """Let the health monitor check one now; return its state then, and why."""
        await self.dispatcher.shell.health.check(self.instance(url).id)
        report = self.reports()[url]
        return f"{report.state}: {report.reason}".removesuffix(": ")

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a change of an instance after which `condition` holds."""
        changed = asyncio.Event()
        self.dispatcher.shell.listen(lambda _: changed.set())
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await changed.wait()
                changed.clear()


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Pooled]:  # noqa: ANN401 - as in a configuration
    """Run a hub with these options."""
    dispatcher = Dispatcher()
    hub = OllamaHub(checked_options(options))
    try:
        await dispatcher.shell.add_hub(hub)
        yield Pooled(hub, dispatcher)
    finally:
        await dispatcher.aclose()


@pytest.fixture
async def pool() -> AsyncIterator[Callable[..., Awaitable[Pooled]]]:
    """Runs a hub with the options it is given, until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(*urls: str, **options: Any) -> Pooled:  # noqa: ANN401 - as above
            given = {"instances": list(urls), "discover": False} if urls else {}
            return await stack.enter_async_context(running(**given, **options))

        yield start


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that is set where the tests run reaches them."""
    for name in ("OLLAMA_HOST", "GLEITZEIT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
