"""Batches of JSON-RPC: each call has its own answer, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp

from gleitzeit_ollama.testing import Hang, HangBeforeHeaders, OllamaServer, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import pytest

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

PARAMS = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
BROKEN_PROVIDER = '''
"""A provider with a mistake in it; loaded as a single-file plugin."""

from gleitzeit_core.hookspecs import ProviderType, hookimpl
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.strategies.base import NoOptions


class Broken(Provider[NoOptions]):
    protocol = "broken"
    methods = (Method(name="broken/now", summary="raises", replayable=False),)
    accepts = ()

    def requirements(self, request):
        raise ZeroDivisionError("secret")

    async def execute_on(self, instance, api, channel, request):
        return None


@hookimpl
def gleitzeit_register_providers():
    return [
        ProviderType(
            name="broken",
            target=f"{__name__}:Broken",
            options="gleitzeit_core.strategies.base:NoOptions",
            summary="broken",
        )
    ]
'''


def chat(request_id: object = None, **more: object) -> dict[str, Any]:
    """One call; a notification without an id."""
    given = {} if request_id is None else {"id": request_id}
    return {"jsonrpc": "2.0", **given, "method": "llm/chat", "params": PARAMS, **more}


def chats(server: OllamaServer) -> int:
    """How many chats have reached a server."""
    return sum(1 for record in server.requests if record.path == "/api/chat")


async def test_batch(serve: Serve, ollama: OllamaServer) -> None:
    """Calls, notifications and what is no call at all may be mixed: each that has an answer gets its own."""
    gateway = await serve(ollama)
    sent = [
        chat("a"),
        chat(),
        {"jsonrpc": "2.0", "id": "b", "method": "llm/models"},
        1,
        {"jsonrpc": "2.0", "id": 7},
        {"jsonrpc": "2.0", "id": "c", "method": "nobody/knows"},
        {"jsonrpc": "2.0", "method": "nobody/knows"},
        chat("d", params={"model": "nope", "messages": []}),
        chat("e", stream=True),
        chat("f", params=[1]),
    ]
    answered = await gateway.ask("/rpc", sent)
    assert answered.status == 200
    assert answered.headers["Content-Type"] == "application/json"
    found = [(one["id"], one.get("error", {}).get("code")) for one in answered.json]
    assert found == [
        ("a", None),
        ("b", None),
        (None, -32600),
        (7, -32600),
        ("c", -32601),
        ("d", -32000),
        ("e", -32600),
        ("f", -32602),
    ]
    assert all(one["jsonrpc"] == "2.0" and len(one) == 3 for one in answered.json)
    assert answered.json[0]["result"]["message"]["content"] == "You said: hi"
    assert chats(ollama) == 2
    assert not {"X-Gleitzeit-Instance", "X-Gleitzeit-Tries"} & answered.headers.keys()


async def test_calls_go_on_at_once(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """The calls of a batch do not wait for each other, and are requests of their own."""
    gateway = await serve(ollama, other, route={"strategy": "round_robin"})
    hangs = HangBeforeHeaders(), HangBeforeHeaders()
    for server, hang in zip((ollama, other), hangs, strict=True):
        server.script.next(hang)
    asked = asyncio.create_task(gateway.ask("/rpc", [chat(1), chat(2)]))
    async with asyncio.timeout(20):
        for hang in hangs:
            await hang.reached.wait()
        assert gateway.in_flight == 2
        for hang in hangs:
            hang.released.set()
        answered = await asked
    assert [one["id"] for one in answered.json] == [1, 2]


async def test_batch_takes_its_turn(serve: Serve, ollama: OllamaServer) -> None:
    """Of a long batch only some calls are on their way at a time, so that others get between; all are answered."""
    gateway = await serve(ollama, hub={"max_concurrent": 1})
    ollama.script.next(hang := HangBeforeHeaders())
    asked = asyncio.create_task(gateway.ask("/rpc", [chat(n) for n in range(30)]))
    async with asyncio.timeout(20):
        await hang.reached.wait()
        await gateway.until(lambda: gateway.waiting == 7)
        hang.released.set()
        answered = await asked
    assert [one["id"] for one in answered.json] == list(range(30))
    assert all("result" in one for one in answered.json)
    assert gateway.in_flight == gateway.waiting == 0


async def test_notifications_only(serve: Serve, ollama: OllamaServer) -> None:
    """A batch of nothing but notifications is carried out and has no answer at all, not even an empty list."""
    gateway = await serve(ollama)
    answered = await gateway.ask("/rpc", [chat(), chat(params={}), chat()])
    assert (answered.status, answered.body) == (204, b"")
    assert chats(ollama) == 2


async def test_empty_batch(serve: Serve, ollama: OllamaServer) -> None:
    """A batch of nothing is an error, and one error, not a list."""
    gateway = await serve(ollama)
    answered = (await gateway.ask("/rpc", b"[]")).json
    assert (answered["id"], answered["error"]["code"]) == (None, -32600)
    assert "at least one" in answered["error"]["message"]


async def test_batch_that_is_too_long(serve: Serve, ollama: OllamaServer) -> None:
    """A batch beyond the limit is refused as a whole, before any of it is carried out; one of that size is taken."""
    gateway = await serve(ollama, max_batch=3)
    answered = (await gateway.ask("/rpc", [chat(n) for n in range(4)])).json
    assert (answered["id"], answered["error"]["code"]) == (None, -32600)
    assert "at most 3" in answered["error"]["message"]
    assert chats(ollama) == 0
    assert len((await gateway.ask("/rpc", [chat(n) for n in range(3)])).json) == 3


async def test_caller_who_leaves(serve: Serve, ollama: OllamaServer) -> None:
    """Who leaves takes all calls of the batch along, those that run and those that wait."""
    gateway = await serve(ollama, hub={"max_concurrent": 2})
    ollama.script.always(Hang())
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        asked = asyncio.create_task(session.post(f"{gateway.url}/rpc", json=[chat(n) for n in range(5)]))
        await gateway.until(lambda: (gateway.in_flight, gateway.waiting) == (2, 3))
        asked.cancel()
        await asyncio.wait({asked})
        await gateway.until(lambda: gateway.in_flight == gateway.waiting == 0)
        await ollama.wait_for(lambda server: server.in_flight == 0)


async def test_mistake_of_a_provider(
    serve: Serve, ollama: OllamaServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a provider raises by mistake is its call's internal error; its words are in the log and nowhere else."""
    (tmp_path / "broken.py").write_text(BROKEN_PROVIDER)
    gateway = await serve(ollama, files=[tmp_path / "broken.py"])
    broken = {"jsonrpc": "2.0", "id": 1, "method": "broken/now"}
    failed, fine = (await gateway.ask("/rpc", [broken, chat(2)])).json
    alone = await gateway.ask("/rpc", broken)
    assert (alone.status, alone.json) == (200, failed)
    assert failed["error"]["code"] == -32603
    assert failed["error"]["message"] == "internal error"
    assert "secret" not in alone.text
    assert fine["result"]["done"] is True
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 2


async def test_errors_of_instances(serve: Serve, ollama: OllamaServer) -> None:
    """A failure of one call names its instance in its own error, and no header does: there may be several."""
    gateway = await serve(ollama)
    ollama.script.next(Status(400))
    answered = await gateway.ask("/rpc", [chat(1)])
    (report,) = gateway.manager.instances()
    (failed,) = answered.json
    assert failed["error"]["data"]["instance"] == report.instance.id
    assert "X-Gleitzeit-Instance" not in answered.headers
