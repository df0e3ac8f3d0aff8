"""By name from a configuration, before servers on real sockets."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.plugins import PluginHost
from gleitzeit_ollama.testing import OllamaServer
from gleitzeit_strategies.speed import Adaptive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

MODELS = ("smollm2", "toolsy")
HOST = PluginHost.load()


class Pool:
    """Three servers behind one route."""

    def __init__(self, manager: ResourceManager, servers: list[OllamaServer]) -> None:
        self.manager, self.servers = manager, servers

    async def chat(self, model: str = MODELS[0], **fields: Any) -> None:  # noqa: ANN401 - any field
        """An answer."""
        messages = [{"role": "user", "content": "hi"}]
        await self.manager.execute("llm/chat", {"model": model, "messages": messages}, **fields)

    def served(self) -> dict[str, list[int]]:
        """How many chats each server has had, by model."""
        chats = [Counter(r.json["model"] for r in server.requests if r.path == "/api/chat") for server in self.servers]
        return {model: [counts[model] for counts in chats] for model in MODELS}


@pytest.fixture
async def pool() -> AsyncIterator[Callable[[Any], Awaitable[Pool]]]:
    """Starts one with this strategy; the first server is near."""
    async with AsyncExitStack() as stack:

        async def start(strategy: Any) -> Pool:  # noqa: ANN401 - as in a configuration
            servers = [await stack.enter_async_context(OllamaServer(models=MODELS)) for _ in range(3)]
            instances = [{"url": it.url, "tags": [] if number else ["near"]} for number, it in enumerate(servers)]
            data = {
                "hubs": {"lan": {"type": "ollama", "instances": instances}},
                "routes": [{"methods": ["*"], "strategy": strategy}],
            }
            checked = check_configuration(read_configuration(None, environ={}, overrides=data), HOST)
            return Pool(await stack.enter_async_context(ResourceManager(checked, HOST)), servers)

        yield start


async def test_a_model_stays_where_it_was_loaded(pool: Callable[[Any], Awaitable[Pool]]) -> None:
    """Two models, three servers, no health check in between: each is loaded on one server, and not on the same one."""
    running = await pool("model_affinity")
    for _ in range(8):
        for model in MODELS:
            await running.chat(model)
    served = running.served()
    assert [sorted(counts) for counts in served.values()] == [[0, 0, 8], [0, 0, 8]]
    assert served[MODELS[0]] != served[MODELS[1]]


async def test_the_same_user_stays_with_a_server(pool: Callable[[Any], Awaitable[Pool]]) -> None:
    """And all servers have users."""
    running = await pool({"name": "consistent_hash", "key": "affinity"})
    where: dict[str, set[tuple[int, ...]]] = {}
    for number in range(60):
        before = running.served()[MODELS[0]]
        await running.chat(affinity=f"user {number % 20}")
        after = running.served()[MODELS[0]]
        where.setdefault(f"user {number % 20}", set()).add(tuple(b - a for a, b in zip(before, after, strict=True)))
    assert all(len(places) == 1 for places in where.values())
    assert all(running.served()[MODELS[0]])


async def test_a_chain_keeps_to_what_is_near(pool: Callable[[Any], Awaitable[Pool]]) -> None:
    """As long as that has room."""
    running = await pool([{"name": "locality", "tags": ["near"]}, "adaptive"])
    for _ in range(6):
        await running.chat()
    assert running.served()[MODELS[0]] == [6, 0, 0]


async def test_what_answers_say_of_their_tokens_is_learned_from(pool: Callable[[Any], Awaitable[Pool]]) -> None:
    """A usual request is known to be some tokens of work, not one."""
    running = await pool("adaptive")
    for _ in range(9):
        await running.chat()
    dispatcher = running.manager.dispatcher
    (strategy,) = (balancer.strategy for balancer in dispatcher.shell.admission.balancers)
    assert isinstance(strategy, Adaptive)
    assert strategy.speeds.units(dispatcher.shell.clock.monotonic()) > 1
