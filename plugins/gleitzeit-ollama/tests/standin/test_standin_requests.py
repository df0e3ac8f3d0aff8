"""What the stand-in says to requests that are wrong, forbidden, or odd."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import OllamaServer

from .calls import CHAT, loaded, post, raw

if TYPE_CHECKING:
    import aiohttp


# Bad requests


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/chat", "  ", 400, "missing request body"),
        ("/api/chat", "{", 400, "unexpected EOF"),
        ("/api/chat", '{"model": "smollm2', 400, "unexpected EOF"),
        ("/api/chat", "hello", 400, "invalid character 'h' looking for beginning of value"),
        ("/api/chat", '{"a" 1}', 400, "invalid character '1' after object key"),
        ("/api/chat", "{1}", 400, "invalid character '1' looking for beginning of object key string"),
        ("/api/chat", '{"a": NaN}', 400, "invalid character 'N' looking for beginning of value"),
        ("/api/chat", "[" * 100_000, 400, "exceeded max depth"),
        ("/api/chat", "[1]", 400, "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        (
            "/api/chat",
            {"model": "smollm2", "messages": "x"},
            400,
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        (
            "/api/chat",
            {"model": "smollm2", "messages": ["x"]},
            400,
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type api.Message",
        ),
        (
            "/api/chat",
            {"model": "smollm2", "messages": [{"role": "user", "content": [1]}]},
            400,
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
        ),
        (
            "/api/generate",
            {"model": "smollm2", "prompt": {}},
            400,
            "json: cannot unmarshal object into Go struct field GenerateRequest.prompt of type string",
        ),
        (
            "/api/chat",
            {**CHAT, "stream": "no"},
            400,
            "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool",
        ),
        ("/api/chat", {**CHAT, "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ("/api/chat", {**CHAT, "keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ("/api/chat", {**CHAT, "keep_alive": []}, 400, "Unsupported type: 'array'"),
        ("/api/chat", {**CHAT, "options": {"seed": "x"}}, 500, 'option "seed" must be of type integer'),
        ("/api/chat", {**CHAT, "options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
        (
            "/api/generate",
            {"model": "smollm2", "prompt": "x", "suffix": "y"},
            400,
            "registry.example/library/smollm2:latest does not support insert",
        ),
        (
            "/api/generate",
            {"model": "smollm2", "prompt": "x", "raw": True, "system": "y"},
            400,
            "raw mode does not support template, system, or context",
        ),
        ("/api/generate", {"prompt": "x"}, 404, "model '' not found"),
        ("/api/embed", {"model": "smollm2", "input": 3}, 400, "invalid input type"),
        ("/api/embed", {"model": "smollm2", "input": ["a", 3]}, 400, "invalid input type"),
        ("/api/embeddings", {"prompt": "x"}, 400, "model is required"),
        ("/api/embeddings", {"model": "nope"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/show", {}, 400, "model is required"),
        ("/api/pull", {}, 400, "invalid model name"),
        ("/api/pull", {"model": "a b"}, 400, "invalid model name"),
        ("/api/push", {}, 400, "model is required"),
        ("/api/create", {"from": "smollm2"}, 400, "invalid model name"),
        ("/api/create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        ("/api/copy", {"source": "?", "destination": "x"}, 400, 'source "?" is invalid'),
        ("/api/copy", {"source": "smollm2"}, 400, 'destination "" is invalid'),
        ("/api/blobs/sha256:00", "x", 400, "invalid digest format"),
    ],
)
async def test_bad_request(
    server: OllamaServer, client: aiohttp.ClientSession, path: str, body: object, status: int, error: str
) -> None:
    """Each bad request gets its status and the sentence of the real server."""
    got, text = await post(client, server, body, path)
    assert (got, json.loads(text)) == (status, {"error": error})


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v1/chat/completions", "", "EOF"),
        (
            "/v1/chat/completions",
            {"model": "smollm2", "messages": [{"role": "user"}]},
            "invalid message content type: <nil>",
        ),
        (
            "/v1/chat/completions",
            {"model": "smollm2", "messages": [{"role": "user", "content": 1}]},
            "invalid message content type: float64",
        ),
        (
            "/v1/chat/completions",
            {"model": "smollm2", "messages": [{"role": "user", "content": [{"type": "sound"}]}]},
            "invalid message format",
        ),
        ("/v1/chat/completions", {**CHAT, "reasoning_effort": "low"}, '"smollm2" does not support thinking'),
        ("/v1/embeddings", {"model": "smollm2", "input": []}, "invalid input"),
        ("/v1/embeddings", {"model": "smollm2", "input": 4}, "invalid input type"),
    ],
)
async def test_bad_openai_request(
    server: OllamaServer, client: aiohttp.ClientSession, path: str, body: object, error: str
) -> None:
    """Under /v1 a bad request gets 400 and OpenAI's envelope."""
    status, text = await post(client, server, body, path)
    wanted = {"message": error, "type": "invalid_request_error", "param": None, "code": None}
    assert (status, json.loads(text)) == (400, {"error": wanted})


async def test_what_go_ignores_is_ignored(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """What follows the JSON, unknown fields, unknown options, nulls and broken text do no harm."""
    body = '{"model": "smollm2", "x": 1, "stream": false, "keep_alive": null, "options": {"warp": "9"},'
    status, text = await post(client, server, body + '"messages": [{"role": "user", "content": "\\ud800"}]} rest')
    assert (status, json.loads(text)["message"]["content"]) == (200, "one two three")


async def test_old_names_of_fields_work(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """`name` stands for `model` where models are managed."""
    assert (await post(client, server, {"name": "smollm2"}, "/api/show"))[0] == 200


async def test_empty_inputs_embed_to_nothing(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """Nothing to embed is no error, and loads the model."""
    assert await post(client, server, {"model": "smollm2"}, "/api/embed") == (
        200,
        '{"model":"smollm2","embeddings":[]}',
    )
    assert await post(client, server, {"model": "smollm2"}, "/api/embeddings") == (200, '{"embedding":[]}')
    assert (await post(client, server, {"model": "smollm2", "input": ""}, "/v1/embeddings"))[0] == 200
    assert await loaded(client, server) == ["smollm2:latest"]


async def test_blobs(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A blob is kept if its digest is right; only then is it there."""
    right = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    wrong = f"sha256:{'0' * 64}"
    assert (await post(client, server, "hello", f"/api/blobs/{wrong}"))[0] == 400
    assert (await post(client, server, "hello", f"/api/blobs/{right}"))[0] == 201
    assert (await post(client, server, "hello", f"/api/blobs/{right}"))[0] == 200
    for digest, status in ((right, 200), (wrong, 404)):
        async with client.head(f"{server.url}/api/blobs/{digest}") as response:
            assert response.status == status


async def test_push_of_a_model_fails_in_its_stream(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """There is nowhere to push to: the error stands in the stream."""
    status, text = await post(client, server, {"model": "smollm2"}, "/api/push")
    assert (status, len(text.splitlines())) == (200, 2)
    assert "error" in json.loads(text.splitlines()[-1])


# Who may call


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:11434", 200),
        ("192.168.1.5:11434", 200),
        ("box.local", 200),
        ("evil.example:80", 403),
        ("8.8.8.8", 403),
        ("[bad", 403),
    ],
)
async def test_host_on_loopback(server: OllamaServer, client: aiohttp.ClientSession, host: str, status: int) -> None:
    """On loopback only local hosts may be named; others get 403 with nothing in it."""
    async with client.get(f"{server.url}/api/tags", headers={"Host": host}) as response:
        assert response.status == status
        assert bool(await response.read()) == (status == 200)


async def test_host_beyond_loopback(client: aiohttp.ClientSession) -> None:
    """Where other machines may call, any host may be named."""
    async with (
        OllamaServer(host="0.0.0.0") as server,  # noqa: S104 - for as long as this test
        client.get(f"http://127.0.0.1:{server.port}/api/tags", headers={"Host": "gpu1.example"}) as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize(
    ("origin", "status", "allowed"),
    [
        ("http://localhost:3000", 200, "http://localhost:3000"),
        ("https://127.0.0.1", 200, "https://127.0.0.1"),
        ("tauri://app", 200, "tauri://app"),
        ("http://evil.example", 403, None),
        ("http://localhost.evil.example", 403, None),
        ("http://[", 403, None),
    ],
)
async def test_origin(
    server: OllamaServer, client: aiohttp.ClientSession, origin: str, status: int, allowed: str | None
) -> None:
    """A local page may read the answer; a foreign one is refused."""
    async with client.get(f"{server.url}/api/tags", headers={"Origin": origin}) as response:
        assert (response.status, response.headers.get("Access-Control-Allow-Origin")) == (status, allowed)


async def test_same_origin_is_not_cross_origin(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A page that the server's own address served needs no CORS headers."""
    async with client.get(f"{server.url}/api/tags", headers={"Origin": server.url}) as response:
        assert response.status == 200
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_preflight(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A preflight request of a local page gets 204 and what is allowed."""
    async with client.options(f"{server.url}/api/chat", headers={"Origin": "http://localhost"}) as response:
        assert (response.status, response.headers["Access-Control-Max-Age"]) == (204, "43200")
        assert response.headers["Access-Control-Allow-Origin"] == "http://localhost"
    async with client.options(f"{server.url}/api/chat", headers={"Host": "localhost"}) as response:
        assert response.status == 204


# Paths and protocol


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/api/tags", 405, "HEAD, GET"),
        ("PUT", "/api/blobs/sha256:0", 405, "HEAD, POST"),
        ("OPTIONS", "/api/chat", 405, "POST"),
        ("HEAD", "/api/tags", 200, None),
        ("HEAD", "/v1/models", 405, "GET"),
        ("GET", "/v1/models/", 404, None),
        ("GET", "/v1/models/a/b", 404, None),
        ("GET", "/api/chat/", 404, None),
        ("GET", "/__test__/state", 404, None),
        ("POST", "/__test__/state", 404, None),
    ],
)
async def test_paths(
    server: OllamaServer, client: aiohttp.ClientSession, method: str, path: str, status: int, allow: str | None
) -> None:
    """What is not there is 404; what is there for another method is 405 and says for which."""
    async with client.request(method, f"{server.url}{path}") as response:
        assert (response.status, response.headers.get("Allow")) == (status, allow)


async def test_http_1_0_stream_ends_with_the_connection(server: OllamaServer) -> None:
    """A client of HTTP/1.0 gets the lines without chunks."""
    body = json.dumps(CHAT).encode()
    head = b"POST /api/chat HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = await raw(server, head + body)
    assert b"chunked" not in answer
    assert answer.endswith(b"}\n")


async def test_client_that_leaves_in_its_own_body(server: OllamaServer) -> None:
    """A request whose body never comes whole is recorded as left, and was never started."""
    _, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    await server.wait_for(lambda server: server.requests)
    writer.close()
    await server.wait_for(lambda server: server.requests[0].finished)
    assert (server.requests[0].started, server.requests[0].disconnected, server.in_flight) == (False, True, 0)
