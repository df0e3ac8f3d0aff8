"""A model that is being loaded: only the deadline bounds the wait, and who leaves takes the load from nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import HangBeforeHeaders, OllamaServer, SlowLoad

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.faults

PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
in_each_api = pytest.mark.parametrize("api", PATHS)
streaming_or_not = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def ask(gateway: RunningGateway, api: str, *, stream: bool = True) -> asyncio.Task[Answered]:
    """A question in one of the client APIs."""
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    return asyncio.create_task(gateway.ask(PATHS[api], body | ({"max_tokens": 100} if api == "anthropic" else {})))


async def leave(task: asyncio.Task[Answered]) -> None:
    """Close the connection of who asked."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def asked(server: OllamaServer) -> int:
    """How many questions a server was asked."""
    return sum(record.method == "POST" for record in server.requests)


async def none_open(gateway: RunningGateway, requests: int = 0) -> None:
    """Wait until the gateway has so many callers."""
    await gateway.until(lambda: f" {requests} requests" in repr(gateway.gateway))


@in_each_api
@streaming_or_not
async def test_leaving_a_load_for_which_others_wait(
    serve: Serve, ollama: OllamaServer, api: str, *, stream: bool
) -> None:
    """Who has begun a load may leave at once; its connection and its slot are kept until the others have the model."""
    gateway = await serve(ollama, hub={"max_concurrent": 2})
    ollama.script.next(load := SlowLoad())
    async with asyncio.timeout(20):
        first = ask(gateway, api, stream=stream)
        await ollama.wait_for(lambda server: server.runners.queued == 1)
        second = ask(gateway, api, stream=stream)
        await ollama.wait_for(lambda server: server.runners.queued == 2)
        await leave(first)
        await none_open(gateway, 1)
        third = ask(gateway, api, stream=stream)
        await gateway.until(lambda: gateway.waiting == 1)
        assert (ollama.disconnects, ollama.runners.queued, gateway.in_flight) == (0, 2, 2)
        load.event.set()
        assert [(await task).status for task in (second, third)] == [200, 200]
        await gateway.until(lambda: gateway.in_flight == 0)
    assert ollama.runners.loads == {"smollm2:latest": 1}


@streaming_or_not
async def test_a_kept_load_ends_with_the_last_who_waits(serve: Serve, ollama: OllamaServer, *, stream: bool) -> None:
    """When nobody waits any more the load is given up: all connections are closed, all slots free."""
    gateway = await serve(ollama)
    ollama.script.next(SlowLoad())
    async with asyncio.timeout(20):
        tasks = []
        for _ in range(3):
            tasks.append(ask(gateway, "ollama", stream=stream))
            await ollama.wait_for(lambda server: server.runners.queued == len(tasks))
        for task in tasks[:2]:
            await leave(task)
        await none_open(gateway, 1)
        assert (ollama.disconnects, gateway.in_flight) == (0, 3)
        await leave(tasks[2])
        await ollama.wait_for(lambda server: server.disconnects == 3)
        await gateway.until(lambda: gateway.in_flight == 0)
    assert not ollama.runners.loads


async def test_a_deadline_leaves_a_load_to_the_others(serve: Serve, ollama: OllamaServer) -> None:
    """Whose time runs out is told so at once; the load goes on for those who have more."""
    gateway = await serve(ollama)
    ollama.script.next(load := SlowLoad())
    params = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
    call = {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": params}
    async with asyncio.timeout(20):
        hurried = asyncio.create_task(gateway.ask("/rpc", {**call, "timeout_s": 1.0}))
        await ollama.wait_for(lambda server: server.runners.queued == 1)
        patient = asyncio.create_task(gateway.ask("/rpc", call))
        await ollama.wait_for(lambda server: server.runners.queued == 2)
        assert (await hurried).json["error"]["data"]["code"] == "deadline_exceeded"
        assert (ollama.disconnects, gateway.in_flight) == (0, 2)
        load.event.set()
        assert "result" in (await patient).json
        await gateway.until(lambda: gateway.in_flight == 0)
    assert ollama.runners.loads == {"smollm2:latest": 1}


@streaming_or_not
async def test_who_waits_for_a_loaded_model_keeps_nothing(serve: Serve, ollama: OllamaServer, *, stream: bool) -> None:
    """Where the model is in memory, who leaves before the answer begins is gone there too, whoever else waits."""
    gateway = await serve(ollama)
    assert (await ask(gateway, "ollama")).status == 200
    ollama.script.next(HangBeforeHeaders())
    ollama.script.next(hang := HangBeforeHeaders())
    async with asyncio.timeout(20):
        first = ask(gateway, "ollama", stream=stream)
        await ollama.wait_for(lambda server: server.held == 1)
        second = ask(gateway, "ollama", stream=stream)
        await hang.reached.wait()
        await leave(first)
        await ollama.wait_for(lambda server: server.disconnects == 1)
        await gateway.until(lambda: gateway.in_flight == 1)
        ollama.release()
        assert (await second).status == 200


async def test_loads_of_other_models_keep_nothing(serve: Serve) -> None:
    """Only who waits for the same model on the same instance counts."""
    async with OllamaServer(models=["smollm2", "tiny"]) as ollama:
        gateway = await serve(ollama)
        ollama.script.next(SlowLoad())
        ollama.script.next(hang := HangBeforeHeaders())
        async with asyncio.timeout(20):
            first = ask(gateway, "ollama")
            await ollama.wait_for(lambda server: server.runners.queued == 1)
            second = asyncio.create_task(gateway.chat(model="tiny", stream=True))
            await ollama.wait_for(lambda server: server.in_flight == 2)
            await leave(first)
            await ollama.wait_for(lambda server: server.disconnects == 1)
            await hang.reached.wait()
            ollama.release()
            assert (await second).status == 200


async def test_stopping_with_a_kept_load(serve: Serve, ollama: OllamaServer) -> None:
    """A gateway that stops closes what it keeps, too; the fixture sees that nothing is left."""
    gateway = await serve(ollama)
    ollama.script.next(SlowLoad())
    async with asyncio.timeout(20):
        first = ask(gateway, "ollama")
        await ollama.wait_for(lambda server: server.runners.queued == 1)
        second = ask(gateway, "ollama")
        await ollama.wait_for(lambda server: server.runners.queued == 2)
        await leave(first)
        await none_open(gateway, 1)
        await gateway.gateway.aclose()
        await gateway.manager.aclose()
        await ollama.wait_for(lambda server: server.disconnects == 2)
        await asyncio.gather(second, return_exceptions=True)


@streaming_or_not
async def test_no_header_time_out(serve: Serve, ollama: OllamaServer, *, stream: bool) -> None:
    """A load may take longer than any limit but the deadline: than connecting, a stall, a check."""
    gateway = await serve(ollama, llm={"connect_timeout_s": 0.3, "stall_timeout_s": 0.04})
    ollama.script.next(load := SlowLoad())
    task = ask(gateway, "ollama", stream=stream)
    async with asyncio.timeout(20):
        await ollama.wait_for(lambda server: server.runners.queued == 1)
        done, _ = await asyncio.wait({task}, timeout=0.6)
        assert not done
        load.event.set()
        assert (await task).complete


async def test_joining_a_load(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Who needs a model that is being loaded goes where that is done, in whatever API; no other server loads it too."""
    gateway = await serve(ollama, other, hub={"max_concurrent": 2})
    loads = SlowLoad(), SlowLoad()
    ollama.script.next(loads[0])
    other.script.next(loads[1])
    async with asyncio.timeout(20):
        tasks = [ask(gateway, "ollama")]
        await gateway.until(lambda: ollama.runners.queued + other.runners.queued == 1)
        here, there = (ollama, other) if ollama.runners.queued else (other, ollama)
        # That long nobody can tell a load from a moment's thought.
        await asyncio.sleep(1.1)
        tasks += [ask(gateway, "openai"), ask(gateway, "anthropic")]
        await here.wait_for(lambda server: server.runners.queued == 2)
        await gateway.until(lambda: gateway.waiting == 1)
        assert not asked(there)
        for load in loads:
            load.event.set()
        assert [(await task).status for task in tasks] == [200] * 3
    assert here.runners.loads == {"smollm2:latest": 1}
