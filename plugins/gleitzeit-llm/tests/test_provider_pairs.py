"""Every method over every api, from every client API, whole and in parts, against the stand-in Ollama.

It serves both APIs, so an instance that offers only one of them stands for a server that has only that one.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    StartPool = Callable[..., Awaitable[Any]]
    MakeInstance = Callable[..., Any]
    Server = Any

testing = pytest.importorskip("gleitzeit_ollama.testing")

pytestmark = pytest.mark.fidelity

MODELS = ["smollm2", "toolsy", "thinky"]
SAID = "You said: hi there"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]},
    },
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "hi there"}]}
GENERATE = {"model": "smollm2", "prompt": "hi there"}
EMBED = {"model": "smollm2", "input": ["one", "two"]}

apis = pytest.mark.parametrize("api", ["ollama", "openai"])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """The stand-in."""
    async with testing.OllamaServer(models=MODELS) as started:
        yield started


@pytest.fixture
def only(pool: StartPool, server: Server, instance_at: MakeInstance) -> Callable[..., Awaitable[Any]]:
    """Starts a pool of that server, as one that speaks only these apis."""

    async def start(*apis: str, **more: object) -> Any:  # noqa: ANN401 - a pool
        return await pool(instance_at(server.url, *apis, models_=MODELS, **more))

    return start


Only = Any


def sent(server: Server) -> tuple[str, dict[str, Any]]:
    """The path and the body of the last request that reached the server."""
    record = server.requests[-1]
    return record.path, json.loads(record.body)


def text_of(parts: list[dict[str, Any]]) -> str:
    """What canonical parts say."""
    return "".join(part["message"]["content"] if "message" in part else part["response"] for part in parts)


# -- from the library ----------------------------------------------------------------------------------------------


@apis
async def test_chat(only: Only, server: Server, api: str) -> None:
    """One canonical answer, with the text, why it ended and the counts."""
    started = await only(api)
    request = started.provider.request("llm/chat", CHAT)
    answer = await started.dispatcher.one(started.provider, request)
    assert answer.value["message"] == {"role": "assistant", "content": SAID}
    assert answer.value["model"] == "smollm2"
    assert (answer.value["done"], answer.value["done_reason"]) == (True, "stop")
    assert answer.value["eval_count"] > 0
    assert answer.served.tries == 1
    assert sent(server)[0] == {"ollama": "/api/chat", "openai": "/v1/chat/completions"}[api]


@apis
async def test_generate(only: Only, api: str) -> None:
    """The same from a prompt."""
    started = await only(api)
    request = started.provider.request("llm/generate", GENERATE)
    answer = (await started.dispatcher.one(started.provider, request)).value
    assert (answer["response"], answer["done"]) == (SAID, True)


@apis
async def test_embed(only: Only, api: str) -> None:
    """One vector for each text."""
    started = await only(api)
    request = started.provider.request("llm/embed", {**EMBED, "dimensions": 8})
    answer = (await started.dispatcher.one(started.provider, request)).value
    assert [len(vector) for vector in answer["embeddings"]] == [8, 8]
    assert answer["model"] == "smollm2"


@apis
@pytest.mark.parametrize("method", ["llm/chat", "llm/generate"])
async def test_in_parts(only: Only, server: Server, api: str, method: str) -> None:
    """Canonical parts, the last of which says that it is."""
    started = await only(api)
    params = {**(CHAT if method == "llm/chat" else GENERATE), "stream": False}
    request = started.provider.request(method, params).changed(stream=True)
    parts = [part async for part in started.dispatcher.stream(started.provider, request)]
    assert text_of(parts) == SAID
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 2
    assert sent(server)[1]["stream"] is True


@apis
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("keep_alive", "reason"), [(None, "load"), (0, "unload")])
async def test_empty_messages_load_and_unload(
    only: Only,
    server: Server,
    api: str,
    keep_alive: int | None,
    reason: str,
    stream: bool,  # noqa: FBT001 - both ways
) -> None:
    """Ollama does it; a server without such a notion is not asked, and the answer is the same."""
    started = await only(api)
    params = {"model": "smollm2", "messages": [], **({} if keep_alive is None else {"keep_alive": keep_alive})}
    request = started.provider.request("llm/chat", params).changed(stream=stream)
    if stream:
        (answer,) = [part async for part in started.dispatcher.stream(started.provider, request)]
    else:
        answer = (await started.dispatcher.one(started.provider, request)).value
    assert (answer["done"], answer["done_reason"], answer["message"]["content"]) == (True, reason, "")
    assert len(server.requests) == (api == "ollama")


@apis
async def test_tools(only: Only, server: Server, api: str) -> None:
    """Tools go out and calls come back, whatever the server speaks."""
    started = await only(api)
    params = {**CHAT, "model": "toolsy", "tools": [WEATHER]}
    answer = (await started.dispatcher.one(started.provider, started.provider.request("llm/chat", params))).value
    (call,) = answer["message"]["tool_calls"]
    assert (call["function"]["name"], call["function"]["arguments"]) == ("get_weather", {"city": "Paris"})
    assert sent(server)[1]["tools"] == [WEATHER]


@apis
async def test_thinking(only: Only, api: str) -> None:
    """`think` makes a model think, and its thoughts come back apart from what it says."""
    started = await only(api)
    params = {**CHAT, "model": "thinky", "think": True}
    request = started.provider.request("llm/chat", params)
    message = (await started.dispatcher.one(started.provider, request)).value["message"]
    assert (message["thinking"], message["content"]) == ("Let me think.", SAID)
    parts = [part async for part in started.dispatcher.stream(started.provider, request.changed(stream=True))]
    assert "".join(part["message"].get("thinking", "") for part in parts) == "Let me think."
    assert text_of(parts) == SAID


@apis
async def test_logprobs(only: Only, api: str) -> None:
    """They come back in one shape."""
    started = await only(api)
    params = {**CHAT, "logprobs": True, "top_logprobs": 2}
    answer = (await started.dispatcher.one(started.provider, started.provider.request("llm/chat", params))).value
    assert "".join(item["token"] for item in answer["logprobs"]) == SAID
    assert all(len(item["top_logprobs"]) == 2 for item in answer["logprobs"])


@apis
async def test_images_and_formats(only: Only, server: Server, api: str) -> None:
    """An image and a schema arrive, in the server's own form."""
    started = await only(api)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    params = {**CHAT, "format": schema, "messages": [{"role": "user", "content": "see", "images": [PIXEL]}]}
    answer = (await started.dispatcher.one(started.provider, started.provider.request("llm/chat", params))).value
    assert json.loads(answer["message"]["content"]) == {"n": 1}
    assert PIXEL in json.dumps(sent(server)[1])


async def test_ollama_gets_every_field(only: Only, server: Server) -> None:
    """What the protocol does not know goes along: the instance knows best what it knows."""
    started = await only("ollama")
    params = {**CHAT, "options": {"seed": 7}, "keep_alive": "5m", "brand_new": {"x": 1}}
    await started.dispatcher.one(started.provider, started.provider.request("llm/chat", params))
    assert sent(server)[1] == {**params, "stream": False}


async def test_show(only: Only) -> None:
    """A real Ollama describes its model; for another server, what is known of it is put in the same shape."""
    described = []
    for api in ("ollama", "openai"):
        started = await only(api)
        request = started.provider.request("llm/show", {"model": "smollm2", "verbose": True})
        described.append((await started.dispatcher.one(started.provider, request)).value)
    real, made = described
    assert real["model_info"]["general.architecture"] == "llama"
    assert set(made) <= set(real)
    assert made["capabilities"] == ["completion"]


# -- from the gateway ----------------------------------------------------------------------------------------------

BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": {**CHAT, "stream": False},
    "/api/generate": {**GENERATE, "stream": False},
    "/api/embed": EMBED,
    "/api/embeddings": GENERATE,
    "/api/show": {"model": "smollm2"},
    "/v1/chat/completions": CHAT,
    "/v1/completions": GENERATE,
    "/v1/embeddings": EMBED,
}
WHOLE: dict[str, Callable[[Any], object]] = {
    "/api/chat": lambda answer: answer["message"]["content"] == SAID and answer["done"],
    "/api/generate": lambda answer: answer["response"] == SAID and answer["done"],
    "/api/embed": lambda answer: len(answer["embeddings"]) == 2,
    "/api/embeddings": lambda answer: len(answer["embedding"]) > 1,
    "/api/show": lambda answer: "completion" in answer["capabilities"],
    "/v1/chat/completions": lambda answer: answer["choices"][0]["message"]["content"] == SAID,
    "/v1/completions": lambda answer: answer["choices"][0]["text"] == SAID,
    "/v1/embeddings": lambda answer: [row["index"] for row in answer["data"]] == [0, 1],
}


def dialect_of(path: str) -> str:
    """Whose path it is."""
    return "openai" if path.startswith("/v1/") else "ollama"


@apis
@pytest.mark.parametrize("path", BODIES)
async def test_whole_answers(only: Only, server: Server, api: str, path: str) -> None:
    """Each endpoint answers in its own API; where the instance has it too, the very bytes pass both ways."""
    dialect = dialect_of(path)
    body = json.dumps(BODIES[path]).encode()
    raw = await (await only(api)).raw(dialect, path, body)
    assert raw.status == 200
    assert raw.content_type == {"ollama": "application/json; charset=utf-8", "openai": "application/json"}[dialect]
    assert WHOLE[path](json.loads(raw.body))
    if api == dialect:
        assert (server.requests[-1].path, server.requests[-1].body) == (path, body)


@apis
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_streams_for_ollama_clients(only: Only, api: str, path: str) -> None:
    """Lines of JSON, the last of which says that it is."""
    pieces = await (await only(api)).raw("ollama", path, {**BODIES[path], "stream": True})
    assert all(piece.endswith(b"\n") for piece in pieces)
    parts = [json.loads(line) for piece in pieces for line in piece.splitlines()]
    assert text_of(parts) == SAID
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]


@apis
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_streams_for_openai_clients(only: Only, api: str, path: str) -> None:
    """Events, then the token counts that were asked for, then the end."""
    body = {**BODIES[path], "stream": True, "stream_options": {"include_usage": True}}
    pieces = await (await only(api)).raw("openai", path, body)
    assert all(piece.endswith(b"\n\n") for piece in pieces)
    *events, last, empty = b"".join(pieces).split(b"\n\n")
    assert (last, empty) == (b"data: [DONE]", b"")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in choices) == SAID
    assert [c["finish_reason"] for c in choices if c.get("finish_reason")] == ["stop"]
    assert chunks[-1]["usage"]["completion_tokens"] > 0


@apis
async def test_tools_for_openai_clients(only: Only, api: str) -> None:
    """A call comes in the client's form, whole and in parts."""
    started = await only(api)
    body = {**CHAT, "model": "toolsy", "tools": [WEATHER]}
    answer = json.loads((await started.raw("openai", "/v1/chat/completions", body)).body)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    pieces = await started.raw("openai", "/v1/chat/completions", {**body, "stream": True})
    assert b"get_weather" in b"".join(pieces)


@apis
async def test_base64_vectors(only: Only, api: str) -> None:
    """The official client asks for base64, and gets it from either kind of server."""
    body = {**EMBED, "encoding_format": "base64", "dimensions": 8}
    raw = await (await only(api)).raw("openai", "/v1/embeddings", body)
    assert [len(base64.b64decode(row["embedding"])) for row in json.loads(raw.body)["data"]] == [32, 32]


@apis
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_load_is_answered_whole(only: Only, api: str, path: str) -> None:
    """Ollama answers it with a plain answer although its API streams, and so do we."""
    (answer,) = await (await only(api)).raw("ollama", path, {"model": "smollm2", "keep_alive": "0s"})
    assert answer.content_type == "application/json; charset=utf-8"
    assert json.loads(answer.body)["done_reason"] == "unload"


@apis
@pytest.mark.parametrize("asked", ["smollm2", "smollm2:latest"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_name_with_and_without_latest(only: Only, server: Server, api: str, asked: str, path: str) -> None:
    """Both reach the model, and the caller sees the name it used."""
    started = await only(api)
    raw = await started.raw(dialect_of(path), path, {**CHAT, "model": asked, "stream": False})
    assert json.loads(raw.body)["model"] in {asked, "smollm2"}
    if api == "ollama" == dialect_of(path):
        assert sent(server)[1]["model"] == json.loads(raw.body)["model"] == asked


@apis
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/embeddings"])
async def test_a_model_that_the_instance_calls_otherwise(only: Only, server: Server, api: str, path: str) -> None:
    """Servers that name a model after its file are asked by that name."""
    started = await only(api, own={"thinky": "smollm2"})
    body = {**BODIES[path], "model": "thinky"}
    assert WHOLE[path](json.loads((await started.raw(dialect_of(path), path, body)).body))
    assert sent(server)[1]["model"] == "smollm2"


async def test_an_instance_with_both_apis_is_spoken_to_in_the_callers(only: Only, server: Server) -> None:
    """So nothing has to be translated."""
    started = await only()
    await started.raw("openai", "/v1/chat/completions", CHAT)
    await started.raw("ollama", "/api/chat", CHAT)
    assert [record.path for record in server.requests] == ["/v1/chat/completions", "/api/chat"]
