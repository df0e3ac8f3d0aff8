from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import ClosedError, RequestError
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import checked_options
from gleitzeit_ollama.testing import Hang, OllamaProcess, OllamaServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    StartPool = Callable[..., Awaitable[Any]]

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def _sockets() -> int:
    """How many sockets this process has open."""
    return sum(descriptor.is_socket() for descriptor in Path("/proc/self/fd").iterdir())


async def test_down_ready_down(pool: StartPool) -> None:
    """A server that is not there yet is down; it is ready when it comes and down at once when it goes."""
    async with OllamaServer(models=["tiny"]) as server:
        await server.stop()
        pooled = await pool(server.url, check_interval_s=0.05)
        report = pooled.reports()[server.url]
        assert report.state == "down"
        assert server.url in report.reason
        await server.start()
        await pooled.until(lambda: pooled.states()[server.url] == "ready")
        assert pooled.models(server.url) == {"model:tiny"}
        await server.stop()
        assert (await pooled.check(server.url)).startswith("down: ")
        assert pooled.models(server.url) == {"model:tiny"}


async def test_a_killed_server_is_down_and_comes_back(pool: StartPool) -> None:
    """A process that dies is out with the first check; another on its port is let in again."""
    async with OllamaProcess(models=["tiny"]) as first:
        pooled = await pool(first.url, check_interval_s=0.05)
        first.kill()
        await first.wait()
        assert (await pooled.check(first.url)).startswith("down: ")
        port = int(first.url.rpartition(":")[2])
        async with OllamaProcess(models=["other"], port=port):
            await pooled.until(lambda: pooled.states()[first.url] == "ready")
            assert pooled.models(first.url) == {"model:other"}


async def test_a_static_instance_gets_nothing_but_users_requests(pool: StartPool) -> None:
    """With `probe: false` no check, list or search ever reaches the server; a user's request does."""
    async with OllamaServer(models=["tiny"]) as server:
        static = {"url": server.url, "models": ["tiny"], "probe": False}
        pooled = await pool(instances=[static], discover=True, discover_ports=[server.port], check_interval_s=0.01)
        llm = LLMProvider()
        llm.bind(pooled.dispatcher)
        await llm.open()
        try:
            await pooled.hub.search()
            assert await pooled.check(server.url) == "ready"
            assert len((await llm.execute("llm/models"))["models"]) == 1
            await llm.execute("llm/loaded")
            assert server.requests == []
            answer = await llm.execute("llm/chat", CHAT)
            assert answer["message"]["content"] == "You said: hi"
            assert [record.path for record in server.requests] == ["/api/chat"]
        finally:
            await llm.close()


async def test_a_static_instance_that_is_gone_fails_requests_only() -> None:
    """Nobody asks how it is: it counts as ready, and who sends it a request is told that it does not answer."""
    async with OllamaServer(models=["tiny"]) as server:
        await server.stop()
        hub = OllamaHub(checked_options({"instances": [{"url": server.url, "models": ["tiny"], "probe": False}]}))
        async with LLMProvider(hub=hub) as llm:
            with pytest.raises(RequestError, match=server.url.removeprefix("http://")):
                await llm.execute("llm/chat", CHAT)


async def test_nothing_is_left_when_it_closes() -> None:
    """After the end there is no task, no socket and no instance, whatever was under way."""
    async with OllamaProcess(models=["tiny"], gate=True, pullable={"big": 1000}) as server:
        await server.state()  # Its own connection is open from here on.
        gc.collect()
        tasks, sockets = asyncio.all_tasks(), _sockets()
        dispatcher = Dispatcher()
        hub = OllamaHub(checked_options({"instances": [server.url], "discover": True, "discover_ports": [1]}))
        await dispatcher.shell.add_hub(hub)
        pull = asyncio.create_task(hub.ensure_model("big"))
        await server.wait_for(waiting_tokens=1)
        await server.next(Hang(), on="any")
        checking = asyncio.create_task(dispatcher.shell.health.check(hub.instances[0].id))
        await server.wait_for(held=1)
        await dispatcher.aclose()
        with pytest.raises(ClosedError, match="'big' was ended: its hub is closed"):
            await pull
        await asyncio.wait([checking])
        assert asyncio.all_tasks() == tasks
        assert hub.instances == ()
        gc.collect()
        assert _sockets() == sockets


async def test_a_hub_that_was_closed_can_start_again() -> None:
    """Start and stop may alternate; in between nothing can be asked of it."""
    async with OllamaServer(models=["tiny"]) as server:
        hub = OllamaHub(checked_options({"instances": [server.url]}))
        for _ in range(2):
            with pytest.raises(RequestError):
                await hub.ensure_model("tiny")
            dispatcher = Dispatcher()
            await dispatcher.shell.add_hub(hub)
            assert await hub.ensure_model("tiny") == ()
            await dispatcher.aclose()


async def test_an_external_server_is_never_stopped(pool: StartPool) -> None:
    """Removing the hub leaves the server as it is, with its models in memory."""
    async with OllamaServer(models=["tiny"]) as server:
        pooled = await pool(server.url)
        await pooled.dispatcher.shell.remove_hub("ollama")
        assert pooled.states() == {}
        assert server.is_listening
        assert {record.method for record in server.requests} == {"GET"}


async def test_what_is_withdrawn_while_it_is_asked_stays_away(pool: StartPool) -> None:
    """A look at an instance that ends after the instance is gone does not bring it back."""
    async with OllamaServer(models=["tiny"]) as server:
        pooled = await pool(server.url)
        server.script.next(Hang(), on="/api/tags")
        asked = asyncio.create_task(pooled.hub.ensure_model("tiny"))
        await server.wait_for(lambda server: server.held == 1)
        pooled.hub.withdraw(pooled.instance(server.url).id, "gone")
        server.release()
        assert await asked == ()
        assert pooled.states() == {}
