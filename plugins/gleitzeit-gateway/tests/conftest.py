"""What the gateway's tests share: gateways over stand-in servers; nothing blocks, and nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import blockbuster_ctx

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.resources import HttpChannel, ResourceInstance, instance_id
from gleitzeit_gateway.testing import RunningGateway
from gleitzeit_llm.models import capability, entry
from gleitzeit_ollama.testing import OllamaProcess, OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Unpack

    from gleitzeit_ollama.testing.process import ProcessOptions

OURS = ["gleitzeit_core", "gleitzeit_gateway", "gleitzeit_llm", "gleitzeit_ollama"]
MODIFIED_AT = "2024-01-02T03:04:05.123456789Z"


class SomeApis(ResourceHub[HubOptions]):
    """Servers of which only some APIs are used, so that requests in the other have to be translated."""

    kind = "some"

    def __init__(self, urls: Sequence[str], apis: Sequence[str], models: Sequence[str]) -> None:
        super().__init__(HubOptions(), name="some")
        self._urls, self._apis, self._models = urls, apis, models

    async def discover(self) -> list[ResourceInstance]:
        """One instance for each URL."""
        return [self._instance(url) for url in self._urls]

    def _instance(self, url: str) -> ResourceInstance:
        return ResourceInstance(
            id=instance_id(self.kind, url),
            hub=self.name,
            kind=self.kind,
            endpoint=url,
            offers=tuple((api, HttpChannel(url)) for api in self._apis),
            capabilities=frozenset(map(capability, self._models)),
            probe=False,
            details={
                "models": {name: entry(name, modified_at=MODIFIED_AT) for name in self._models},
                "version": "0.1.2",
            },
        )


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that is set where the tests run reaches them."""
    for name in ("OLLAMA_HOST", "GLEITZEIT_CONFIG", "GLEITZEIT_KEY", "GLEITZEIT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[None]:
    """A call of ours that blocks the running loop fails the test."""
    with blockbuster_ctx(OURS):
        yield


@pytest.fixture(scope="session")
def plugins() -> PluginHost:
    """What is installed; looked up once, before any loop runs, as the program does."""
    return PluginHost.load()


def _manager(
    data: dict[str, Any], plugins: PluginHost, files: Sequence[Path], disabled: Sequence[str]
) -> ResourceManager:
    if files or disabled:
        plugins = PluginHost.load(files=files, disabled=disabled)
    raw = read_configuration(None, environ={}, overrides=data)
    return ResourceManager(check_configuration(raw, plugins), plugins)


@pytest.fixture
async def serve(plugins: PluginHost) -> AsyncIterator[Callable[..., Awaitable[RunningGateway]]]:
    """Starts gateways over servers that run already, and sees that they leave no task behind.

    The function takes the servers, or their URLs; `apis` (only these are used), `hub` (options of the hub), `route`
    (options of the route), `llm` (options of the protocol), `files` (plugins that are files), `disabled` (plugins),
    `monotonic` (what the limits of keys go by); other keywords are the gateway's.
    """
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def start(
            *servers: OllamaServer | OllamaProcess | str,
            apis: Sequence[str] = (),
            hub: dict[str, Any] | None = None,
            route: dict[str, Any] | None = None,
            models: Sequence[str] = ("smollm2",),
            files: Sequence[Path] = (),
            disabled: Sequence[str] = (),
            llm: dict[str, Any] | None = None,
            monotonic: Callable[[], float] = time.monotonic,
            **gateway: object,
        ) -> RunningGateway:
            urls = [server if isinstance(server, str) else server.url for server in servers]
            instances = [{"url": url, **(hub or {})} for url in urls]
            pooled = urls and not apis
            data = {
                "hubs": {"lan": {"type": "ollama", "instances": instances}} if pooled else {},
                "routes": [{"methods": ["*"], **(route or {})}],
                "providers": {"llm": llm} if llm else {},
                "gateway": {"port": 0, "access_log": False, **gateway},
            }
            # The program reads its configuration before its loop runs.
            manager = await asyncio.to_thread(_manager, data, plugins, files, disabled)
            running = await stack.enter_async_context(RunningGateway(manager, monotonic=monotonic))
            if apis:
                await running.manager.add_hub(SomeApis(urls, apis, models))
            return running

        yield start
    for _ in range(100):
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0)
    pytest.fail(f"tasks were left behind: {left}")


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaServer]:
    """A stand-in Ollama server in this process."""
    async with OllamaServer() as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[OllamaServer]:
    """Another one."""
    async with OllamaServer() as server:
        yield server


@pytest.fixture
async def process() -> AsyncIterator[Callable[..., Awaitable[OllamaProcess]]]:
    """Starts stand-ins in processes of their own, which can be killed."""
    async with AsyncExitStack() as stack:

        async def start(**options: Unpack[ProcessOptions]) -> OllamaProcess:
            return await stack.enter_async_context(OllamaProcess(**options))

        yield start
