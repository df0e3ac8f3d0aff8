"""The gateway is held to the recordings of a real Ollama: same request, same status, same type, same keys and types."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_ollama.testing import Model, OllamaServer, Recording, Reply, ToolCall, recording, recording_names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

_LATER = (
    *(f"/api/{name}" for name in ("pull", "push", "create", "copy", "delete", "blobs")),
    "/v1/messages",
)
_MADE = [Model("thinky", ("thinking",), parent="smollm2:latest"), Model("toolsy", ("tools",), parent="smollm2:latest")]
# The queue is the gateway's own here; it has tests of its own.
_QUEUE = "chat_queue_full"
RECORDINGS = {
    name: found
    for name, found in ((name, recording(name)) for name in recording_names())
    if not found.path.startswith(_LATER) and name != _QUEUE
}
# The gateway reads the options there, and knows whose fault it is; Ollama answers 500. And it tells of a response that
# reached its limit that it is incomplete; Ollama calls it complete.
_KNOWN_BETTER = ("chat_bad_option", "v1_responses_stream")
TRANSLATED = [
    name
    for name, found in RECORDINGS.items()
    if found.method == "POST" and found.path != "/api/show" and name not in _KNOWN_BETTER
]
# What no OpenAI server says.
_UNTOLD = frozenset(("context", "eval_duration", "load_duration", "prompt_eval_duration"))


def shape(value: object) -> object:
    """Keys in order and types; of a list the different shapes in it."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json.loads(text) for text in dict.fromkeys(json.dumps(shape(item)) for item in value)]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _values(recorded: Recording) -> list[dict[str, Any]]:
    if recorded.lines is None:
        return [recorded.json] if isinstance(recorded.json, dict) else []
    texts = (line.removeprefix("data: ") for line in recorded.lines)
    return [json.loads(text) for text in texts if text.startswith("{")]


def _messages(recorded: Recording) -> Iterator[dict[str, Any]]:
    if recorded.path == "/v1/responses":
        for value in _values(recorded):
            output = value.get("output") or [{"content": [{"text": value.get("delta", "")}]}]
            yield {"content": output[0]["content"][0]["text"]}
        return
    for value in _values(recorded):
        for choice in value.get("choices", [value]):
            yield choice.get("message") or choice.get("delta") or choice


def _split(text: str, count: int) -> list[str]:
    bounds = [len(text) * index // count for index in range(count + 1)]
    return [text[start:end] for start, end in pairwise(bounds)]


def _reply(recorded: Recording) -> Reply:
    """What the real model said."""
    messages = list(_messages(recorded))
    texts = [m[key] for m in messages for key in ("content", "response", "text") if m.get(key)]
    thoughts = [m[key] for m in messages for key in ("thinking", "reasoning") if m.get(key)]
    calls = [call["function"] for m in messages for call in m.get("tool_calls") or []]
    if '"length"' in json.dumps(_values(recorded)) and len(texts) == 1:
        body: Any = recorded.body
        texts = _split(texts[0], body.get("max_tokens") or body.get("options", {}).get("num_predict") or 1)
    read = [json.loads(c["arguments"]) if isinstance(c["arguments"], str) else c["arguments"] for c in calls]
    return Reply(texts, thoughts, [ToolCall(c["name"], args) for c, args in zip(calls, read, strict=True)])


async def _replayed(serve: Serve, recorded: Recording, apis: Sequence[str] = ()) -> Answered:
    models = ["smollm2"] if recorded.path in ("/api/tags", "/v1/models") else ["smollm2", *_MADE]
    async with OllamaServer(models=models, reply=lambda _: _reply(recorded)) as server:
        gateway = await serve(server, models=["smollm2", "thinky", "toolsy"], apis=apis)
        if recorded.name == "ps_loaded":
            await gateway.chat()
        headers = {"Content-Type": "application/octet-stream", **recorded.request_headers}
        return await gateway.ask(recorded.path, recorded.request_bytes or None, verb=recorded.method, headers=headers)


def _seen(lines: bytes) -> list[Any]:
    """What is in a stream: JSON, or a line as it is."""
    texts = [line.removeprefix("data: ") for line in lines.decode().split("\n") if line]
    return [json.loads(text) if text.startswith("{") else text for text in texts]


def _expected(recorded: Recording, untold: frozenset[str] = frozenset()) -> object:
    """The shape of a recorded body without the keys that are `untold`; the body itself where it is an error or text."""
    if recorded.lines is not None:
        seen = _seen("\n".join(recorded.lines).encode())
        return shape([_told(value, untold) for value in seen])
    if recorded.json is None:
        return "" if recorded.method == "HEAD" else recorded.text
    return shape(_told(recorded.json, untold)) if recorded.status == 200 else recorded.json


def _told(value: object, untold: frozenset[str]) -> object:
    return {key: item for key, item in value.items() if key not in untold} if isinstance(value, dict) else value


def _given(answered: Answered, recorded: Recording, untold: frozenset[str] = frozenset()) -> object:
    if recorded.lines is not None:
        return shape([_told(value, untold) for value in _seen(answered.body)])
    if recorded.json is None:
        return answered.text
    return shape(_told(answered.json, untold)) if recorded.status == 200 else answered.json


@pytest.mark.parametrize("name", RECORDINGS)
async def test_answers_as_recorded(serve: Serve, name: str) -> None:
    """Over a server that speaks the caller's API: status, type, keys in order, types; the very words of an error."""
    recorded = RECORDINGS[name]
    answered = await _replayed(serve, recorded)
    assert answered.status == recorded.status
    for header in ("Content-Type", "Allow", "Access-Control-Allow-Origin", "Vary"):
        assert answered.headers.get(header) == recorded.headers.get(header)
    assert _given(answered, recorded) == _expected(recorded)


@pytest.mark.parametrize("name", TRANSLATED)
async def test_answers_as_recorded_in_translation(serve: Serve, name: str) -> None:
    """Over a server that speaks only the other API the same, but for what that API does not tell."""
    recorded = RECORDINGS[name]
    of_openai = recorded.path.startswith("/v1")
    answered = await _replayed(serve, recorded, apis=["ollama" if of_openai else "openai"])
    assert answered.status == recorded.status
    assert answered.headers["Content-Type"] == recorded.headers["Content-Type"]
    untold = frozenset[str]() if of_openai else _UNTOLD
    assert _given(answered, recorded, untold) == _expected(recorded, untold)


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/v1/models/smollm2"])
async def test_head_answers_as_get_without_a_body(serve: Serve, ollama: OllamaServer, path: str) -> None:
    """HEAD has the status, type and length of GET, and no body."""
    gateway = await serve(ollama)
    got, head = await gateway.ask(path), await gateway.ask(path, verb="HEAD")
    assert (head.status, head.body) == (200, b"")
    for header in ("Content-Type", "Content-Length"):
        assert head.headers[header] == got.headers[header]


async def test_listings_of_other_servers_have_the_same_keys(serve: Serve, ollama: OllamaServer) -> None:
    """What is listed and shown of a server that is no Ollama has the keys that clients of Ollama read."""
    gateway = await serve(ollama, apis=["openai"])
    (entry,) = (await gateway.ask("/api/tags")).json["models"]
    (recorded,) = RECORDINGS["tags"].json["models"]  # type: ignore[call-overload, index]
    assert entry.keys() == recorded.keys()
    assert entry["details"].keys() == recorded["details"].keys()
    shown = (await gateway.ask("/api/show", {"model": "smollm2"})).json
    assert {"details", "model_info", "capabilities", "modified_at"} <= shown.keys()
    assert (await gateway.ask("/api/version")).json == {"version": "0.24.0"}
    assert (await gateway.ask("/api/ps")).json == {"models": []}
    assert entry["modified_at"] == "2024-01-02T03:04:05.123456789Z"
    assert (await gateway.ask("/v1/models/smollm2")).json["created"] == 1704164645


async def test_the_lowest_version_is_told(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Any instance may get the next request, so clients hear the version that all of them can do."""
    ollama.version, other.version = "0.24.0", "0.9.1"
    gateway = await serve(ollama, other)
    assert (await gateway.ask("/api/version")).json == {"version": "0.9.1"}


async def test_model_lists_are_merged(serve: Serve) -> None:
    """The models of all instances are listed, each once."""
    async with OllamaServer(models=["smollm2", "toolsy"]) as one, OllamaServer(models=["smollm2", "thinky"]) as two:
        gateway = await serve(one, two)
        tags = (await gateway.ask("/api/tags")).json["models"]
        listed = (await gateway.ask("/v1/models")).json["data"]
    names = ["smollm2:latest", "thinky:latest", "toolsy:latest"]
    assert [entry["name"] for entry in tags] == names
    assert [entry["id"] for entry in listed] == names
