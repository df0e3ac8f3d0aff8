"""The limits of a key over real connections: in each client API, in JSON-RPC, and for requests at once."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import aiohttp
import anthropic
import ollama as ollama_client
import openai
import pytest

from gleitzeit_ollama.testing import (
    DropAfter,
    DropBeforeHeaders,
    Gate,
    HangBeforeHeaders,
    OllamaServer,
    Reply,
    StallAfter,
    Status,
)

from .alice import AS_ALICE, CHAT, KEY, MESSAGES, Watch, alice, ask, rpc, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]


# -- over the limit, in each client API ----------------------------------------------------------------------------


async def test_openai_client(serve: Serve, ollama: OllamaServer, watch: Watch) -> None:
    """Its own error, with the headers that it knows; after what `Retry-After` says it goes on."""
    gateway = await serve(ollama, keys=alice(requests_per_minute=2), monotonic=watch)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(model="smollm2", messages=MESSAGES)
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        assert raw.headers["x-ratelimit-reset-requests"] == "30s"
        chunks = await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
        assert chunks.response.headers["x-ratelimit-remaining-requests"] == "0"
        assert [chunk async for chunk in chunks]
        with pytest.raises(openai.RateLimitError) as caught:
            await client.embeddings.create(model="smollm2", input="hi")
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.body == {
            "message": "the key 'alice' has used its 2 requests per minute; retry after 30 s",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert caught.value.response.headers["retry-after"] == "30"
        assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        watch.now += 30
        assert (await client.embeddings.create(model="smollm2", input="hi")).data


async def test_anthropic_client(serve: Serve, ollama: OllamaServer, watch: Watch) -> None:
    """Its own error, too; here for tokens."""
    gateway = await serve(ollama, keys=alice(tokens_per_minute=1), monotonic=watch)
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
        message = await client.messages.create(model="smollm2", max_tokens=64, messages=MESSAGES)
        took = message.usage.input_tokens + message.usage.output_tokens
        assert took > 1
        with pytest.raises(anthropic.RateLimitError, match="has used its 1 tokens per minute") as caught:
            await client.messages.create(model="smollm2", max_tokens=64, messages=MESSAGES)
        assert caught.value.body is not None
        assert caught.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
        assert caught.value.response.headers["retry-after"] == str(60 * took)
        assert caught.value.response.headers["x-ratelimit-remaining-tokens"] == "0"
        watch.now += 60 * took
        assert (await client.messages.create(model="smollm2", max_tokens=64, messages=MESSAGES)).content


async def test_ollama_client(serve: Serve, ollama: OllamaServer) -> None:
    """Its own error, too; here for requests at once."""
    gateway = await serve(ollama, keys=alice(max_concurrent=1))
    ollama.script.next(hang := HangBeforeHeaders())
    async with ollama_client.AsyncClient(host=gateway.url, headers=AS_ALICE) as client, asyncio.timeout(20):
        first = asyncio.create_task(client.chat("smollm2", MESSAGES))
        await hang.reached.wait()
        with pytest.raises(ollama_client.ResponseError, match="has 1 requests running, of at most 1") as caught:
            await client.chat("smollm2", MESSAGES)
        assert caught.value.status_code == 429
        refused = await ask(gateway)
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["X-Gleitzeit-Error"] == "rate_limit_exceeded"
        assert refused.json == {"error": "the key 'alice' has 1 requests running, of at most 1; retry after 1 s"}
        hang.released.set()
        await first
        assert (await client.chat("smollm2", MESSAGES)).message.content


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_of_each_answer_are_charged(
    serve: Serve,
    ollama: OllamaServer,
    watch: Watch,
    stream: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Whole and in parts, in each API, what the answer says it took is gone."""
    gateway = await serve(ollama, keys=alice(tokens_per_day=10_000), monotonic=watch)
    v1 = {**CHAT, "stream": stream, **({"stream_options": {"include_usage": True}} if stream else {})}
    for path, body in (
        ("/api/chat", {**CHAT, "stream": stream}),
        ("/api/generate", {"model": "smollm2", "prompt": "hi", "stream": stream}),
        ("/v1/chat/completions", v1),
        ("/v1/messages", {**CHAT, "stream": stream, "max_tokens": 9}),
        ("/v1/embeddings", {"model": "smollm2", "input": "hi"}),
    ):
        before = 10_000 - gateway.gateway.usage.sum().input_tokens - gateway.gateway.usage.sum().output_tokens
        answered = await ask(gateway, path, body)
        assert answered.status == 200
        assert answered.headers["X-RateLimit-Remaining-Tokens"] == str(before)
        used = gateway.gateway.usage.sum()
        assert used.input_tokens + used.output_tokens > 10_000 - before


async def test_a_stream_that_does_not_say_its_tokens(serve: Serve, watch: Watch) -> None:
    """Who leaves before the end pays for what has come."""
    gate = Gate(20)
    async with OllamaServer(gate=gate, reply=lambda _: Reply(["word "] * 100)) as server:
        gateway = await serve(server, keys=alice(tokens_per_minute=1000), monotonic=watch)
        async with gateway.session.post(f"{gateway.url}/api/chat", json=CHAT, headers=AS_ALICE) as response:
            for _ in range(20):
                await response.content.readline()
        await gateway.until(lambda: not running(gateway))
        left = gateway.gateway.limits.of("alice").headers()["X-RateLimit-Remaining-Tokens"]
        assert 900 < int(left) < 1000
        assert gateway.gateway.usage.sum().cancelled == 1


# -- JSON-RPC and what manages models ------------------------------------------------------------------------------


async def test_rpc_over_the_limit(serve: Serve, ollama: OllamaServer, watch: Watch) -> None:
    """JSON-RPC's error, with HTTP's status of it; of what needs no answer the status is all."""
    gateway = await serve(ollama, keys=alice(requests_per_minute=1), monotonic=watch)
    assert (await rpc(gateway, "llm/chat")).headers["X-RateLimit-Remaining-Requests"] == "0"
    refused = await rpc(gateway, "llm/chat")
    assert (refused.status, refused.headers["Retry-After"]) == (429, "60")
    assert refused.json["error"]["code"] == -32000
    assert refused.json["error"]["data"]["code"] == "rate_limit_exceeded"
    assert refused.json["error"]["data"]["retryable"] is True
    assert refused.json["error"]["data"]["retry_after_s"] == pytest.approx(60.0)
    streamed = await rpc(gateway, "llm/chat", stream=True)
    assert (streamed.status, streamed.json["id"]) == (429, 0)
    silent = await ask(gateway, "/rpc", {"jsonrpc": "2.0", "method": "llm/chat", "params": CHAT})
    assert (silent.status, silent.body, silent.headers["Retry-After"]) == (429, b"", "60")
    watch.now += 60
    assert "result" in (await rpc(gateway, "llm/chat")).json


async def test_each_call_of_a_batch_counts(serve: Serve, ollama: OllamaServer, watch: Watch) -> None:
    """Those beyond the limit have their own error; a batch alone does not run into the limit of what may run."""
    gateway = await serve(ollama, keys=alice(requests_per_minute=10, max_concurrent=2), monotonic=watch)
    answered = await rpc(gateway, *["llm/chat"] * 12, batch=True)
    assert (answered.status, answered.headers["X-RateLimit-Remaining-Requests"]) == (200, "0")
    errors = [one["error"]["data"]["code"] for one in answered.json if "error" in one]
    assert errors == ["rate_limit_exceeded"] * 2
    assert running(gateway) == 0
    notifications = [{"jsonrpc": "2.0", "method": "llm/chat", "params": CHAT}] * 2
    watch.now += 12
    assert (await ask(gateway, "/rpc", notifications)).status == 204
    assert gateway.gateway.limits.of("alice").headers()["X-RateLimit-Remaining-Requests"] == "0"


async def test_what_counts(serve: Serve, ollama: OllamaServer, watch: Watch) -> None:
    """What asks for work counts, in vain or not; what only looks does not, nor does health."""
    gateway = await serve(ollama, keys=alice(requests_per_minute=100, admin=True), monotonic=watch)
    for path in ("/api/tags", "/api/ps", "/api/version", "/v1/models", "/metrics", "/admin/status", "/admin/usage"):
        answered = await gateway.ask(path, headers=AS_ALICE)
        assert answered.status == 200
        assert "X-RateLimit-Limit-Requests" not in answered.headers
    await ask(gateway, "/admin/reload", {}, verb="POST")
    for number, (path, body) in enumerate(
        [
            ("/api/chat", {**CHAT, "stream": False}),
            ("/api/chat", {"model": "nope"}),
            ("/api/chat", b"{"),
            ("/api/show", {"model": "smollm2"}),
            ("/api/copy", {"source": "smollm2", "destination": "mine"}),
            ("/v1/messages/count_tokens", CHAT),
        ],
        start=1,
    ):
        answered = await ask(gateway, path, body)
        assert answered.headers["X-RateLimit-Remaining-Requests"] == str(100 - number), path
    assert running(gateway) == 0


async def test_models_are_managed_within_limits(serve: Serve, ollama: OllamaServer, watch: Watch) -> None:
    """In Ollama's words."""
    gateway = await serve(ollama, keys=alice(requests_per_minute=1, admin=True), monotonic=watch)
    copy = {"source": "smollm2", "destination": "mine"}
    assert (await ask(gateway, "/api/copy", copy)).status == 200
    refused = await ask(gateway, "/api/copy", copy)
    assert (refused.status, refused.json.keys()) == (429, {"error"})


# -- requests at once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [None, Status(500), Status(400), DropBeforeHeaders(), DropAfter(1)],
    ids=["ok", "500", "400", "lost", "cut"],
)
async def test_it_has_ended_however_it_ends(serve: Serve, ollama: OllamaServer, fault: Any, stream: bool) -> None:  # noqa: ANN401, FBT001 - parameters
    """Well, with an error of the server's, or cut off: the next request may begin."""
    gateway = await serve(ollama, keys=alice(max_concurrent=1), route={"max_tries": 1})
    if fault is not None:
        ollama.script.always(fault)
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        answered = await ask(gateway, path, {**CHAT, "stream": stream, "max_tokens": 9})
        assert answered.status != 429
        await gateway.until(lambda: running(gateway) == 0)
    ollama.script.clear()


@pytest.mark.parametrize("body", [b"{", b"", {"model": "nope"}, {"model": "smollm2", "messages": 3}, {}])
async def test_it_has_ended_where_it_never_began(serve: Serve, ollama: OllamaServer, body: object) -> None:
    """A body that is none, a model that nobody has: nothing is left of them."""
    gateway = await serve(ollama, keys=alice(max_concurrent=1))
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/rpc", "/api/nothing"):
        assert (await ask(gateway, path, body)).status != 429
        assert running(gateway) == 0


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/rpc"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True], ids=["before", "within"])
async def test_who_leaves_makes_room(serve: Serve, ollama: OllamaServer, path: str, stream: bool, begun: bool) -> None:  # noqa: FBT001 - parameters
    """Before the answer has begun and within it."""
    hang = StallAfter(1) if begun and stream else HangBeforeHeaders()
    gateway = await serve(ollama, keys=alice(max_concurrent=1))
    ollama.script.next(hang)
    call = {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": CHAT, "stream": stream}
    async with asyncio.timeout(20):
        asking = asyncio.create_task(ask(gateway, path, call if path == "/rpc" else {**CHAT, "stream": stream}))
        await hang.reached.wait()
        assert running(gateway) == 1
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await gateway.until(lambda: running(gateway) == 0)
    assert (await ask(gateway)).status == 200


async def test_who_leaves_a_batch_makes_room(serve: Serve, ollama: OllamaServer) -> None:
    """For all of its calls, those that run and those that have their turn to come."""
    gateway = await serve(ollama, keys=alice(max_concurrent=3))
    ollama.script.next(hang := HangBeforeHeaders(), times=3)
    async with asyncio.timeout(20):
        asking = asyncio.create_task(rpc(gateway, *["llm/chat"] * 6, batch=True))
        await hang.reached.wait()
        await gateway.until(lambda: running(gateway) == 3)
        assert (await ask(gateway)).status == 429
        asking.cancel()
        await gateway.until(lambda: running(gateway) == 0)
    assert (await ask(gateway)).status == 200
    assert gateway.gateway.usage.sum().cancelled == 3


async def test_a_body_that_never_comes(serve: Serve, ollama: OllamaServer) -> None:
    """Who sends no body is sent away, and makes room."""
    gateway = await serve(ollama, keys=alice(max_concurrent=1), body_timeout_s=0.05)
    head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\nContent-Length: 9\r\n\r\n"
    reader, writer = await gateway.connect()
    writer.write(head.encode())
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        await gateway.until(lambda: running(gateway) == 0)
    writer.close()
    await writer.wait_closed()


async def test_storm(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Whoever leaves, fails or is refused, at random: in the end nothing runs, and each that ran was counted once."""
    gateway = await serve(ollama, other, keys=alice(max_concurrent=4), route={"max_tries": 2})
    dice = random.Random(7)
    for server in (ollama, other):
        for fault in (DropBeforeHeaders(), Status(503), DropAfter(1), Status(500)):
            server.script.next(fault, times=3)
    answers: list[int] = []

    async def one() -> None:
        path = dice.choice(["/api/chat", "/v1/chat/completions", "/v1/messages"])
        asking = ask(gateway, path, {**CHAT, "stream": dice.random() < 0.5, "max_tokens": 9})
        try:
            async with asyncio.timeout(dice.choice([0.001, 0.01, 20.0])):
                answers.append((await asking).status)
        except (TimeoutError, aiohttp.ClientError):
            answers.append(0)

    for _ in range(10):
        await asyncio.gather(*(one() for _ in range(8)))
    async with asyncio.timeout(20):
        await gateway.until(lambda: running(gateway) == 0 and gateway.manager.dispatcher.active == 0)
    used = gateway.gateway.usage.sum()
    assert answers.count(429) > 0
    assert answers.count(200) <= used.requests <= 80 - answers.count(429)
    assert used.requests - used.failed - used.cancelled >= answers.count(200) - 24
