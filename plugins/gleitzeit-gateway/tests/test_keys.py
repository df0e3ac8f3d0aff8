"""What a key may do, over real connections: its limits in each client API, and the models and methods it may use."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import anthropic
import ollama as ollama_client
import openai
import pytest
from pydantic import ValidationError

from gleitzeit_gateway.options import GatewayOptions
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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

KEY, ROOT_KEY = "alices-key-is-very-secret", "the-key-that-may-do-all"
ROOT: Final = {"name": "root", "key": ROOT_KEY, "admin": True}
AS_ALICE, AS_ROOT = {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {ROOT_KEY}"}
MESSAGES: Final[list[Any]] = [{"role": "user", "content": "hi"}]
CHAT: Final = {"model": "smollm2", "messages": MESSAGES}
RESTRICTED = '''
"""A provider with a restricted method; loaded as a single-file plugin."""

from gleitzeit_core.hookspecs import ProviderType, hookimpl
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.strategies.base import NoOptions


class Shell(Provider[NoOptions]):
    protocol = "shell"
    methods = (
        Method(name="shell/run", summary="anything", replayable=False, local=True, restricted=True),
        Method(name="shell/info", summary="about it", replayable=True, local=True),
    )
    accepts = ()

    async def execute_on(self, instance, api, channel, request):
        return None

    async def answer(self, request, instances):
        return request.method


@hookimpl
def gleitzeit_register_providers():
    options = "gleitzeit_core.strategies.base:NoOptions"
    return [ProviderType(name="shell", target=f"{__name__}:Shell", options=options, summary="a shell")]
'''


class Watch:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """What it shows."""
        return self.now


@pytest.fixture
def watch() -> Watch:
    """A clock."""
    return Watch()


def alice(**options: object) -> list[dict[str, Any]]:
    """Her key, and one that may do all."""
    return [{"name": "alice", "key": KEY, **options}, ROOT]


def running(gateway: RunningGateway) -> int:
    """Requests of hers that count as running."""
    return gateway.gateway.limits.of("alice").running


async def ask(gateway: RunningGateway, path: str = "/api/chat", body: object = None, **more: Any) -> Answered:  # noqa: ANN401 - of `ask`
    """Ask with her key; a chat, where nothing is said."""
    return await gateway.ask(path, {**CHAT, "stream": False} if body is None else body, headers=AS_ALICE, **more)


async def rpc(gateway: RunningGateway, *methods: str, batch: bool = False, **more: object) -> Answered:
    """Call methods with her key, as one call or as a batch."""
    calls = [
        {"jsonrpc": "2.0", "id": n, "method": method, "params": CHAT if method == "llm/chat" else {}, **more}
        for n, method in enumerate(methods)
    ]
    return await ask(gateway, "/rpc", calls if batch else calls[0])


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


# -- models --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def many() -> Any:  # noqa: ANN401 - a server
    """A server with several models."""
    async with OllamaServer(models=["llama3.2", "llama3.2:70b", "qwen3", "smollm2"]) as server:
        yield server


async def test_lists_show_what_may_be_used(serve: Serve, many: OllamaServer) -> None:
    """Every list of models has only those; a key without the option sees all."""
    gateway = await serve(many, keys=alice(models=["llama3*", "smollm2:latest"]))
    may = ["llama3.2:70b", "llama3.2:latest", "smollm2:latest"]
    for model in ("smollm2", "qwen3"):
        await gateway.ask("/api/chat", {"model": model, "messages": []}, headers=AS_ROOT)
    tags = (await gateway.ask("/api/tags", headers=AS_ALICE)).json["models"]
    assert sorted(model["name"] for model in tags) == may
    listed = (await gateway.ask("/v1/models", headers=AS_ALICE)).json["data"]
    assert sorted(model["id"] for model in listed) == may
    assert [model["name"] for model in (await gateway.ask("/api/ps", headers=AS_ALICE)).json["models"]] == may[2:]
    assert len((await gateway.ask("/api/ps", headers=AS_ROOT)).json["models"]) == 2
    assert len((await gateway.ask("/api/tags", headers=AS_ROOT)).json["models"]) == 4
    for method, count in (("llm/models", 3), ("llm/loaded", 1)):
        assert len((await rpc(gateway, method)).json["result"]["models"]) == count
        assert len((await rpc(gateway, method, batch=True)).json[0]["result"]["models"]) == count
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        assert (await client.models.retrieve("llama3.2")).id == "llama3.2"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("qwen3")


async def test_a_model_that_is_not_allowed(serve: Serve, many: OllamaServer) -> None:
    """Is refused in each API's own words, whether there is one of that name or not; no server hears of it."""
    gateway = await serve(many, keys=alice(models=["llama3.2"]))
    said = "this key may not use model 'qwen3'"
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as v1:
        with pytest.raises(openai.PermissionDeniedError, match=said) as caught:
            await v1.chat.completions.create(model="qwen3", messages=MESSAGES)
        assert caught.value.code == "model_not_found"
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.PermissionDeniedError, match=said) as denied:
            await client.messages.create(model="qwen3", max_tokens=64, messages=MESSAGES)
        assert denied.value.body["error"]["type"] == "permission_error"  # type: ignore[index]
    async with ollama_client.AsyncClient(host=gateway.url, headers=AS_ALICE) as native:
        with pytest.raises(ollama_client.ResponseError, match=said) as error:
            await native.chat("qwen3", MESSAGES)
        assert error.value.status_code == 403
        with pytest.raises(ollama_client.ResponseError, match=r"may not use model 'llama3\.2:70b'"):
            await native.embed("llama3.2:70b", "hi")
        with pytest.raises(ollama_client.ResponseError, match="may not use"):
            await native.show("no-such-model")
        assert (await native.chat("llama3.2:latest", MESSAGES)).message.content
    refused = await ask(
        gateway, "/rpc", {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": {"model": "qwen3"}}
    )
    assert refused.json["error"]["data"]["code"] == "model_not_allowed"
    asked = [record for record in many.requests if record.method == "POST"]
    assert [b"llama3.2:latest" in record.body for record in asked] == [True]


@pytest.mark.parametrize("name", ["MODEL", "Model", "NAME"])
async def test_a_model_that_is_smuggled_in(serve: Serve, many: OllamaServer, name: str) -> None:
    """A real Ollama takes these for the model as well: a body that has one is refused."""
    gateway = await serve(many, keys=alice(models=["llama3.2"]))
    answered = await ask(gateway, "/api/chat", {"model": "llama3.2", name: "qwen3", "messages": MESSAGES})
    assert (answered.status, answered.json["error"]) == (400, f"'{name}' must be written '{name.lower()}'")
    params = {"model": "llama3.2", name: "qwen3", "messages": MESSAGES}
    answered = await ask(gateway, "/rpc", {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": params})
    assert answered.json["error"]["data"]["param"] == name
    everybody = await gateway.ask("/api/chat", {"model": "llama3.2", name: "x", "stream": False}, headers=AS_ROOT)
    assert everybody.status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/pull", {"model": "qwen3"}),
        ("/api/push", {"model": "qwen3"}),
        ("/api/create", {"model": "mine", "from": "llama3.2"}),
        ("/api/create", {"model": "llama3.2", "from": "qwen3"}),
        ("/api/copy", {"source": "llama3.2", "destination": "mine"}),
        ("/api/copy", {"source": "qwen3", "destination": "llama3.2"}),
        ("/api/delete", {"model": "qwen3"}),
        ("/api/delete", {"name": "qwen3"}),
        ("/admin/models/load", {"model": "qwen3"}),
        ("/admin/models/unload", {"model": "qwen3"}),
    ],
)
async def test_models_are_managed_where_they_may_be_used(
    serve: Serve, many: OllamaServer, path: str, body: dict[str, str]
) -> None:
    """An admin key with `models` manages only those; no server hears of others."""
    gateway = await serve(many, keys=alice(models=["llama3.2"], admin=True))
    answered = await ask(gateway, path, body, verb="DELETE" if path == "/api/delete" else "POST")
    assert answered.status == 403
    assert "this key may not use model" in answered.text
    assert not [record for record in many.requests if record.path == path]


async def test_an_alias_counts_as_its_model(serve: Serve, many: OllamaServer) -> None:
    """It is listed and may be used where its model is."""
    gateway = await serve(many, keys=alice(models=["llama3.2"]), llm={"aliases": {"best": "llama3.2", "gpt": "qwen3"}})
    tags = (await gateway.ask("/api/tags", headers=AS_ALICE)).json["models"]
    assert [model["name"].removesuffix(":latest") for model in tags] == ["best", "llama3.2"]
    assert (await ask(gateway, body={**CHAT, "model": "best", "stream": False})).status == 200
    assert (await ask(gateway, body={**CHAT, "model": "gpt"})).status == 403


# -- methods -------------------------------------------------------------------------------------------------------


async def methods_of(gateway: RunningGateway, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The methods that there are."""
    found: list[dict[str, Any]] = (await gateway.ask("/rpc/methods", headers=headers)).json["methods"]
    return found


async def test_restricted_methods(serve: Serve, ollama: OllamaServer, tmp_path: Path) -> None:
    """They are not called unless the gateway's configuration names them; the error says how."""
    (tmp_path / "shell.py").write_text(RESTRICTED)
    gateway = await serve(ollama, files=[tmp_path / "shell.py"])
    call = {"jsonrpc": "2.0", "id": 1, "method": "shell/run"}
    refused = (await gateway.ask("/rpc", call)).json["error"]
    assert refused["data"]["code"] == "method_not_allowed"
    said = "shell/run is restricted: to have it called through this gateway, name it in the option 'gateway.methods'"
    assert refused["message"] == said
    assert (await gateway.ask("/rpc", [call])).json[0]["error"]["message"] == said
    assert (await gateway.ask("/rpc", {**call, "method": "shell/info"})).json["result"] == "shell/info"
    listed = {one["name"]: (one["restricted"], one["allowed"]) for one in await methods_of(gateway)}
    assert (listed["shell/info"], listed["shell/run"]) == ((False, True), (True, False))
    named = await serve(ollama, files=[tmp_path / "shell.py"], methods=["shell/*"])
    assert (await named.ask("/rpc", call)).json["result"] == "shell/run"
    listed = {one["name"]: (one["restricted"], one["allowed"]) for one in await methods_of(named)}
    assert listed["shell/run"] == (True, True)


async def test_methods_of_a_key(serve: Serve, ollama: OllamaServer, tmp_path: Path) -> None:
    """What they name, restricted or not, is all it may call, lists of models and client APIs included."""
    (tmp_path / "shell.py").write_text(RESTRICTED)
    gateway = await serve(ollama, files=[tmp_path / "shell.py"], keys=alice(methods=["shell/run", "llm/embed"]))
    assert (await rpc(gateway, "shell/run")).json["result"] == "shell/run"
    for method in ("llm/chat", "llm/models", "shell/info"):
        refused = (await rpc(gateway, method)).json["error"]
        said = f"this key may not call {method}: the option 'methods' of the key does not name it"
        assert (refused["message"], refused["data"]["code"]) == (said, "method_not_allowed")
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        assert (await ask(gateway, path, {**CHAT, "max_tokens": 9})).status == 403
    for path in ("/api/tags", "/api/ps", "/v1/models", "/v1/models/smollm2"):
        assert (await gateway.ask(path, headers=AS_ALICE)).status == 403
    assert (await ask(gateway, "/api/embed", {"model": "smollm2", "input": "hi"})).status == 200
    allowed = [one["name"] for one in await methods_of(gateway, AS_ALICE) if one["allowed"]]
    assert sorted(allowed) == ["llm/embed", "shell/run"]
    as_root = await gateway.ask("/rpc", {"jsonrpc": "2.0", "id": 1, "method": "shell/run"}, headers=AS_ROOT)
    assert "name it in the option 'gateway.methods', or 'methods' of a key" in as_root.json["error"]["message"]


@pytest.mark.parametrize(
    "options", [{"methods": ["python"]}, {"keys": [{"name": "a", "key": KEY, "methods": ["llm"]}]}]
)
def test_patterns_that_match_nothing(options: dict[str, Any]) -> None:
    """A protocol alone is no pattern of methods, and the error says what is."""
    with pytest.raises(ValidationError, match=r"matches no method: write '(python|llm)/\*'"):
        GatewayOptions.model_validate(options)


# -- files ---------------------------------------------------------------------------------------------------------


def test_key_from_a_file(tmp_path: Path) -> None:
    """Without the white space around it; relative to the folder of the configuration."""
    (tmp_path / "alice").write_text(f"\n{KEY}\n")
    for path in ("alice", str(tmp_path / "alice")):
        options = GatewayOptions.model_validate(
            {"keys": [{"name": "alice", "key_file": path}]}, context={"base_dir": tmp_path}
        )
        assert options.keys[0].key.get_secret_value() == KEY
        assert KEY not in repr(options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"'key_file' .*/alice cannot be read: No such file or directory"),
        (b"", r"'key_file' .*/alice is empty"),
        (b" \n\t\n", r"'key_file' .*/alice is empty"),
        (b"x" * 5000, r"'key_file' .*/alice is larger than 4096 bytes"),
        (b"short", "at least 16 characters"),
        (b"two-lines-of-keys\nare-not-one-key", "printable ASCII"),
        (b"\xff" * 20, "printable ASCII"),
    ],
)
def test_files_without_a_key(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Say what is wrong, and nothing of what is in them."""
    if content is not None:
        (tmp_path / "alice").write_bytes(content)
    with pytest.raises(ValidationError, match=words) as caught:
        GatewayOptions.model_validate(
            {"keys": [{"name": "alice", "key_file": "alice"}]}, context={"base_dir": tmp_path}
        )
    assert "two-lines" not in str(caught.value)


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    """Nor is a key in two places one."""
    for key, words in (({"key_file": str(tmp_path)}, "is no file"), ({"key": KEY, "key_file": "x"}, "not both")):
        with pytest.raises(ValidationError, match=words):
            GatewayOptions.model_validate({"keys": [{"name": "alice", **key}]})
