"""The stand-in as a server: slots and queues, loads, who leaves, who may call, what is recorded."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gleitzeit_ollama.testing import Gate, Hang, OllamaServer, Pace, Reply, ToolCall, fixed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "smollm2", "messages": MESSAGES}
PLAIN = {**CHAT, "stream": False}


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a time limit of its own."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    """A stand-in that says three tokens."""
    async with OllamaServer(models=["smollm2", "other"], reply=fixed("one two three")) as running:
        yield running


async def _post(
    client: aiohttp.ClientSession, server: OllamaServer, body: object, path: str = "/api/chat"
) -> tuple[int, Any]:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    async with client.post(f"{server.url}{path}", data=data) as response:
        return response.status, await response.text()


async def _get(client: aiohttp.ClientSession, server: OllamaServer, path: str) -> Any:  # noqa: ANN401
    async with client.get(f"{server.url}{path}") as response:
        return await response.json()


async def _loaded(client: aiohttp.ClientSession, server: OllamaServer) -> list[str]:
    return [row["name"] for row in (await _get(client, server, "/api/ps"))["models"]]


async def _raw(server: OllamaServer, request: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


# Slots and the queue before them


async def test_slots_bound_what_runs(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """At most `num_parallel` requests run per model; the others queue, without limit once loaded."""
    server.gate = gate = Gate()
    asking = [asyncio.create_task(_post(client, server, PLAIN)) for _ in range(9)]
    await server.wait_for(lambda server: gate.waiting == 4 and server.runners.queued == 5)
    assert (server.runners.running, server.in_flight, server.max_in_flight) == (4, 9, 9)
    gate.open()
    assert {status for status, _ in await asyncio.gather(*asking)} == {200}
    assert (server.runners.running, server.runners.queued, server.in_flight) == (0, 0, 0)


async def test_slots_are_per_model(client: aiohttp.ClientSession) -> None:
    """A model whose slots are taken does not hold up another."""
    gate = Gate()
    async with OllamaServer(models=["smollm2", "other"], num_parallel=1, gate=gate) as server:
        first = asyncio.create_task(_post(client, server, PLAIN))
        await server.wait_for(lambda _: gate.waiting == 1)
        second = asyncio.create_task(_post(client, server, {**PLAIN, "model": "other"}))
        await server.wait_for(lambda _: gate.waiting == 2)
        assert server.runners.running == 2
        gate.open()
        await asyncio.gather(first, second)


async def test_one_who_leaves_frees_the_slot(client: aiohttp.ClientSession) -> None:
    """When a client leaves in mid-stream, the next that queues starts, and the leaving is recorded."""
    gate = Gate(1)
    async with OllamaServer(num_parallel=1, gate=gate) as server:
        response = await client.post(f"{server.url}/api/chat", json=CHAT)
        await response.content.readline()
        queued = asyncio.create_task(_post(client, server, PLAIN))
        await server.wait_for(lambda server: server.runners.queued == 1)
        response.close()
        await server.wait_for(lambda server: server.requests[0].finished)
        assert (server.requests[0].disconnected, server.requests[0].parts, server.disconnects) == (True, 1, 1)
        gate.open()
        assert (await queued)[0] == 200
        assert not server.requests[1].disconnected


async def test_one_who_leaves_a_plain_answer_frees_the_slot(client: aiohttp.ClientSession) -> None:
    """The same holds for a client that waits for a whole answer, and for one that only queues."""
    gate = Gate()
    async with OllamaServer(num_parallel=1, gate=gate) as server:
        asking = [asyncio.create_task(_post(client, server, PLAIN)) for _ in range(3)]
        await server.wait_for(lambda server: gate.waiting == 1 and server.runners.queued == 2)
        asking[1].cancel()
        await server.wait_for(lambda server: server.disconnects == 1 and server.runners.queued == 1)
        asking[0].cancel()
        await server.wait_for(lambda server: server.disconnects == 2 and server.runners.running == 1)
        gate.open()
        assert (await asking[2])[0] == 200
        assert server.runners.running == 0


async def test_full_queue_refuses_at_once(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """With no place to wait, whoever comes during a load is refused, and the load goes on."""
    server.runners.max_queue = 0
    done = asyncio.Event()
    server.hold_load("smollm2", done)
    asking = asyncio.create_task(_post(client, server, PLAIN))
    await server.wait_for(lambda server: server.runners.queued == 1)
    status, text = await _post(client, server, PLAIN, "/v1/chat/completions")
    assert status == 503
    assert json.loads(text)["error"]["message"].startswith("server busy, please try again.")
    done.set()
    assert (await asking)[0] == 200


# Gates


async def test_gate_lets_tokens_out_one_by_one(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A semaphore decides when each token goes out; the end of the stream needs none."""
    server.gate = gate = asyncio.Semaphore(0)
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        for number in (1, 2, 3):
            gate.release()
            await response.content.readline()
            assert server.requests[0].tokens == number
        assert b'"done":true' in await response.read()


async def test_event_is_a_gate(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """An event holds all tokens until it is set."""
    server.gate = gate = asyncio.Event()
    asking = asyncio.create_task(_post(client, server, PLAIN))
    await server.wait_for(lambda server: server.runners.running == 1)
    assert server.requests[0].tokens == 0
    gate.set()
    assert (await asking)[0] == 200


async def test_pace_still_answers(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A pace delays tokens and loses none."""
    server.gate = Pace(0.0)
    assert "one two three" in (await _post(client, server, PLAIN))[1]
    assert repr(server.gate) == "<Pace 0.0 s>"
    with pytest.raises(ValueError, match=r"interval_s must not be negative, got -1"):
        Pace(-1)


# Loading and unloading


async def test_models_stay_for_their_keep_alive(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A model leaves memory when its time is over, counted from the end of its last request."""
    now_s = 1000.0
    server.runners.clock = lambda: now_s
    await _post(client, server, {"model": "smollm2", "keep_alive": "1m"}, "/api/generate")
    await _post(client, server, {"model": "other", "keep_alive": -1}, "/api/generate")
    assert await _loaded(client, server) == ["other:latest", "smollm2:latest"]
    now_s += 59
    await _post(client, server, {**PLAIN, "keep_alive": 60})
    now_s += 59
    assert await _loaded(client, server) == ["other:latest", "smollm2:latest"]
    now_s += 1
    assert await _loaded(client, server) == ["other:latest"]
    now_s += 1e9
    assert await _loaded(client, server) == ["other:latest"]


async def test_default_keep_alive_is_five_minutes(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """`expires_at` lies five minutes ahead where the request says nothing."""
    server.runners.clock = lambda: 0.0
    await _post(client, server, PLAIN)
    row = (await _get(client, server, "/api/ps"))["models"][0]
    assert row["expires_at"] == "1970-01-01T00:05:00Z"


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/api/chat", {"messages": []}, "load"),
        ("/api/chat", {}, "load"),
        ("/api/chat", {"messages": [], "keep_alive": 0}, "unload"),
        ("/api/generate", {"prompt": ""}, "load"),
        ("/api/generate", {"keep_alive": "0s"}, "unload"),
    ],
)
async def test_empty_request_loads_or_unloads(
    server: OllamaServer, client: aiohttp.ClientSession, path: str, body: dict[str, object], reason: str
) -> None:
    """Nothing to answer loads the model; with a keep-alive of 0 it unloads it."""
    await _post(client, server, PLAIN)
    status, text = await _post(client, server, {"model": "smollm2", **body}, path)
    answer = json.loads(text)
    assert (status, answer["done_reason"], answer["done"]) == (200, reason, True)
    assert await _loaded(client, server) == (["smollm2:latest"] if reason == "load" else [])


async def test_keep_alive_zero_unloads_after_the_answer(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """An answer with a keep-alive of 0 is given whole, and the model is gone afterwards."""
    status, text = await _post(client, server, {**PLAIN, "keep_alive": 0})
    assert (status, json.loads(text)["message"]["content"]) == (200, "one two three")
    assert await _loaded(client, server) == []


async def test_one_model_by_all_its_names(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """`name`, `name:latest` and other letters' case are one model; the answer names it as asked."""
    for name in ("smollm2", "smollm2:latest", "SmolLM2"):
        _, text = await _post(client, server, {**PLAIN, "model": name})
        assert json.loads(text)["model"] == name
    assert server.runners.loads == {"smollm2:latest": 1}
    assert (await _post(client, server, {**PLAIN, "model": "smollm2:1b"}))[0] == 404


async def test_deleted_model_leaves_memory(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A model that is deleted is neither listed nor loaded."""
    await _post(client, server, PLAIN)
    async with client.delete(f"{server.url}/api/delete", json={"name": "smollm2"}) as response:
        assert response.status == 200
    assert await _loaded(client, server) == []
    assert (await _post(client, server, PLAIN))[0] == 404


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
    got, text = await _post(client, server, body, path)
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
    status, text = await _post(client, server, body, path)
    wanted = {"message": error, "type": "invalid_request_error", "param": None, "code": None}
    assert (status, json.loads(text)) == (400, {"error": wanted})


async def test_what_go_ignores_is_ignored(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """What follows the JSON, unknown fields, unknown options, nulls and broken text do no harm."""
    body = '{"model": "smollm2", "x": 1, "stream": false, "keep_alive": null, "options": {"warp": "9"},'
    status, text = await _post(client, server, body + '"messages": [{"role": "user", "content": "\\ud800"}]} rest')
    assert (status, json.loads(text)["message"]["content"]) == (200, "one two three")


async def test_old_names_of_fields_work(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """`name` stands for `model` where models are managed."""
    assert (await _post(client, server, {"name": "smollm2"}, "/api/show"))[0] == 200


async def test_empty_inputs_embed_to_nothing(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """Nothing to embed is no error, and loads the model."""
    assert await _post(client, server, {"model": "smollm2"}, "/api/embed") == (
        200,
        '{"model":"smollm2","embeddings":[]}',
    )
    assert await _post(client, server, {"model": "smollm2"}, "/api/embeddings") == (200, '{"embedding":[]}')
    assert (await _post(client, server, {"model": "smollm2", "input": ""}, "/v1/embeddings"))[0] == 200
    assert await _loaded(client, server) == ["smollm2:latest"]


async def test_blobs(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A blob is kept if its digest is right; only then is it there."""
    right = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    wrong = f"sha256:{'0' * 64}"
    assert (await _post(client, server, "hello", f"/api/blobs/{wrong}"))[0] == 400
    assert (await _post(client, server, "hello", f"/api/blobs/{right}"))[0] == 201
    assert (await _post(client, server, "hello", f"/api/blobs/{right}"))[0] == 200
    for digest, status in ((right, 200), (wrong, 404)):
        async with client.head(f"{server.url}/api/blobs/{digest}") as response:
            assert response.status == status


async def test_push_of_a_model_fails_in_its_stream(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """There is nowhere to push to: the error stands in the stream."""
    status, text = await _post(client, server, {"model": "smollm2"}, "/api/push")
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
    answer = await _raw(server, head + body)
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


# What tests see


async def test_records(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A record has all of the request and what became of it."""
    headers = {"Authorization": "Bearer secret-key"}
    async with client.post(f"{server.url}/api/chat?x=1", json=CHAT, headers=headers) as response:
        await response.read()
    (record,) = server.requests
    assert (record.index, record.method, record.path, record.query) == (1, "POST", "/api/chat", "x=1")
    assert (record.json, record.model, record.headers["authorization"]) == (CHAT, "smollm2", "Bearer secret-key")
    assert (record.status, record.parts, record.tokens) == (200, 4, 3)
    assert (record.started, record.finished, record.disconnected) == (True, True, False)
    assert "secret" not in repr(record)
    assert "hi" not in repr(record)


async def test_record_of_a_body_that_is_no_json(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """`json` and `model` of a record never fail."""
    await _post(client, server, "]")
    await _post(client, server, '{"model": 3}')
    assert [(record.json, record.model) for record in server.requests] == [({}, ""), ({"model": 3}, "")]


async def test_repr_has_the_counts(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """The counts stand in the `repr`."""
    hang = Hang()
    server.script.next(hang)
    asking = asyncio.create_task(_post(client, server, PLAIN))
    await hang.reached.wait()
    counts = "1 requests, 1 in flight (at most 1), 0 running, 0 queued, 1 held, 0 disconnects"
    assert repr(server) == f"<OllamaServer listening on {server.url}: {counts}>"
    server.release()
    await asking


async def test_wait_for_sees_states_that_pass_at_once(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A state that lasts for no time is seen by those who wait for it."""
    waiting = asyncio.create_task(server.wait_for(lambda server: server.runners.running == 1))
    await _post(client, server, PLAIN)
    assert server.runners.running == 0
    await waiting


async def test_wait_for_gives_the_error_of_its_predicate(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A predicate that fails later fails the wait, and nobody else."""
    waiting = asyncio.create_task(server.wait_for(lambda server: server.requests and 1 / 0))
    other = asyncio.create_task(server.wait_for(lambda server: server.requests))
    await asyncio.sleep(0)
    status, _ = await _post(client, server, PLAIN)
    await other
    with pytest.raises(ZeroDivisionError):
        await waiting
    assert status == 200


# Start and stop


async def test_stop_refuses_and_start_returns_to_the_port(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """While stopped, connections are refused; afterwards the same URL answers, with no model loaded."""
    await _post(client, server, PLAIN)
    url = server.url
    await server.stop()
    assert not server.is_listening
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(server.host, server.port)
    await server.start()
    assert server.url == url
    assert await _loaded(client, server) == []
    assert (await _post(client, server, PLAIN))[0] == 200


async def test_stop_cuts_what_is_in_flight(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A stop ends streams in mid-body and requests that hang; nobody is said to have left."""
    server.gate = Gate(1)
    response = await client.post(f"{server.url}/api/chat", json=CHAT)
    await response.content.readline()
    server.script.next(Hang())
    hanging = asyncio.create_task(_post(client, server, PLAIN))
    await server.wait_for(lambda server: server.held == 1)
    await server.stop()
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await hanging
    assert (server.in_flight, server.runners.running, server.held, server.disconnects) == (0, 0, 0, 0)
    assert all(record.finished for record in server.requests)


async def test_start_twice_is_an_error_and_stop_twice_is_none(server: OllamaServer) -> None:
    """A server that listens cannot start again; one that does not can be stopped and closed again."""
    with pytest.raises(RuntimeError, match="listens already"):
        await server.start()
    await server.close()
    await server.stop()
    await server.close()
    assert not server.is_listening


async def test_port_is_kept_while_stopped_and_given_back_at_the_end(server: OllamaServer) -> None:
    """Nobody else can take the port of a stopped server; of a closed one anybody can."""
    await server.stop()
    with pytest.raises(OSError, match="ddress already in use"):
        _bind_and_close(server.port)
    await server.close()
    _bind_and_close(server.port)


def _bind_and_close(port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


async def test_taken_port_is_an_error() -> None:
    """A port that another server has cannot be had, and nothing stays open."""
    async with OllamaServer() as server:
        with pytest.raises(OSError, match="ddress already in use"):
            await OllamaServer(port=server.port).start()


async def test_ipv6(client: aiohttp.ClientSession) -> None:
    """The server listens on IPv6 too, and its URL has the brackets."""
    async with OllamaServer(host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert (await _post(client, server, PLAIN))[0] == 200


async def test_reply_with_everything(client: aiohttp.ClientSession) -> None:
    """A reply may think, speak and call several tools; what was thought does not count as content."""
    reply = Reply(["Hello"], ["Hm"], [ToolCall("a", {"x": 1}), ToolCall("b")])
    async with OllamaServer(models=["both+tools+thinking"], reply=lambda _: reply) as server:
        tools = [{"type": "function", "function": {"name": "a"}}]
        _, text = await _post(client, server, {**PLAIN, "model": "both", "tools": tools})
        message = json.loads(text)["message"]
    assert (message["content"], message["thinking"]) == ("Hello", "Hm")
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["a", "b"]
    assert [call["function"]["index"] for call in message["tool_calls"]] == [0, 1]
