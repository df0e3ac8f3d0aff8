"""What every client relies on without thinking of it: what an absent `stream` means, loading, browsers, other paths."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from gleitzeit_ollama.testing import recording

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

HI: Final[dict[str, Any]] = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
PROMPT: Final[dict[str, Any]] = {"model": "smollm2", "prompt": "hi"}
LINES, JSON, WITH_CHARSET = "application/x-ndjson", "application/json", "application/json; charset=utf-8"
# Recorded once, before any loop runs.
FOREIGN, LOCAL = recording("foreign_origin"), recording("local_origin")
over_each_api = pytest.mark.parametrize("apis", [(), ("ollama",), ("openai",)], ids=["both", "ollama", "openai"])


@over_each_api
@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/api/chat", HI, LINES),
        ("/api/generate", PROMPT, LINES),
        ("/api/embed", {"model": "smollm2", "input": "hi"}, WITH_CHARSET),
        ("/api/embeddings", PROMPT, WITH_CHARSET),
        ("/v1/chat/completions", HI, JSON),
        ("/v1/completions", PROMPT, JSON),
        ("/v1/embeddings", {"model": "smollm2", "input": "hi"}, JSON),
        ("/v1/responses", {"model": "smollm2", "input": "hi"}, JSON),
        ("/v1/messages", {**HI, "max_tokens": 9}, JSON),
    ],
)
async def test_an_absent_stream_means_what_each_api_says(
    serve: Serve, ollama: OllamaServer, apis: tuple[str, ...], path: str, body: dict[str, Any], kind: str
) -> None:
    """Ollama's chat and generate stream unless told otherwise, and nothing else does; null is absent too."""
    gateway = await serve(ollama, apis=apis)
    for sent in (body, {**body, "stream": None}):
        answered = await gateway.ask(path, sent)
        assert (answered.status, answered.headers["Content-Type"]) == (200, kind)


@over_each_api
async def test_loading_and_unloading(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """Empty messages or a missing prompt load a model in Ollama's API, and a time of zero unloads it."""
    gateway = await serve(ollama, apis=apis)
    for path, empty in (("/api/chat", {"messages": []}), ("/api/generate", {})):
        loaded = await gateway.ask(path, {"model": "smollm2", **empty})
        gone = await gateway.ask(path, {"model": "smollm2", **empty, "keep_alive": 0})
        assert [json.loads(a.body)["done_reason"] for a in (loaded, gone)] == ["load", "unload"]
        assert loaded.headers["Content-Type"] == WITH_CHARSET


@over_each_api
@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/v1/chat/completions", {"messages": []}, "[] is too short - 'messages'"),
        ("/v1/responses", {"input": []}, "'input' is required"),
        ("/v1/messages", {"messages": [], "max_tokens": 9}, "'messages' is required"),
    ],
)
async def test_other_apis_have_no_word_for_loading(
    serve: Serve, ollama: OllamaServer, apis: tuple[str, ...], path: str, body: dict[str, Any], why: str
) -> None:
    """There nothing to answer is a mistake."""
    gateway = await serve(ollama, apis=apis)
    answered = await gateway.ask(path, {"model": "smollm2", **body})
    if answered.status == 200:
        # A server that has the API itself decides by itself.
        assert (path, apis) == ("/v1/responses", ())
    else:
        assert (answered.status, answered.json["error"]["message"]) == (400, why)


@pytest.mark.parametrize("verb", ["GET", "HEAD"])
async def test_the_root(serve: Serve, ollama: OllamaServer, verb: str) -> None:
    """By it clients see that there is an Ollama."""
    gateway = await serve(ollama)
    answered = await gateway.ask("/", verb=verb)
    assert (answered.status, answered.text) == (200, "Ollama is running" if verb == "GET" else "")
    assert answered.headers["Content-Length"] == "17"


@pytest.mark.parametrize("path", ["/", "/api/chat", "/v1/responses", "/v1/messages", "/v1/models/a/b", "/nowhere"])
async def test_browsers_ask_first(serve: Serve, ollama: OllamaServer, path: str) -> None:
    """A page from this machine is told that it may, whatever it asks for; a foreign one is refused."""
    gateway = await serve(ollama)
    for recorded in (LOCAL, FOREIGN):
        headers = {**recorded.request_headers, "Access-Control-Request-Method": "POST"}
        answered = await gateway.ask(path, verb="OPTIONS", headers=headers)
        assert answered.status == (204 if recorded is LOCAL else recorded.status)
        allowed = answered.headers.get("Access-Control-Allow-Origin")
        assert allowed == recorded.headers.get("Access-Control-Allow-Origin")
        assert answered.body == b""


@pytest.mark.parametrize(
    ("verb", "path", "status", "text"),
    [
        ("GET", "/nowhere", 404, "404 page not found"),
        ("POST", "/v1/nowhere", 404, "404 page not found"),
        ("GET", "/api/chat", 405, "405 method not allowed"),
        ("GET", "/v1/responses", 405, "405 method not allowed"),
        ("DELETE", "/v1/models", 405, "405 method not allowed"),
        ("GET", "/v1/models/", 404, "404 page not found"),
    ],
)
async def test_other_paths(serve: Serve, ollama: OllamaServer, verb: str, path: str, status: int, text: str) -> None:
    """In the words of Ollama's server."""
    gateway = await serve(ollama)
    answered = await gateway.ask(path, verb=verb)
    assert (answered.status, answered.text, answered.headers["Content-Type"]) == (status, text, "text/plain")
