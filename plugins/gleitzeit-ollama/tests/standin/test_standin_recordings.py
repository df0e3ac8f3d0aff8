"""The stand-in is held to the recordings: same request, same status, headers and shape of body."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING

import aiohttp
import pytest

from gleitzeit_ollama.testing import (
    Ask,
    Model,
    OllamaServer,
    Recording,
    Reply,
    SlowLoad,
    ToolCall,
    fixed,
    recording,
    recording_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fidelity

_VOLATILE = frozenset(
    {
        "completed_at",
        "completion_tokens",
        "context",
        "created",
        "created_at",
        "digest",
        "embedding",
        "embeddings",
        "eval_count",
        "eval_duration",
        "expires_at",
        "id",
        "input_tokens",
        "item_id",
        "load_duration",
        "logprob",
        "modified_at",
        "output_tokens",
        "prompt_eval_count",
        "prompt_eval_duration",
        "prompt_tokens",
        "top_logprobs",
        "total_duration",
        "total_tokens",
    }
)
_HASH = re.compile(r"sha256([:-])[0-9a-f]{64}")
_QUEUE_FULL = "chat_queue_full"
# Read before any loop runs: what was read once is not read again.
RECORDINGS = {name: recording(name) for name in recording_names()}


def _steady(value: object) -> object:
    """Return a value with its keys in order, and only the types of what differs each time."""
    if isinstance(value, dict):
        return [(key, _shape(item) if key in _VOLATILE else _steady(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [_steady(item) for item in value]
    return _HASH.sub(r"sha256\1HASH", value) if isinstance(value, str) else value


def _shape(value: object) -> object:
    if isinstance(value, dict):
        return [(key, _shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        shapes = [_shape(item) for item in value]
        is_row_of_numbers = all(shape == "float" for shape in shapes)
        return ["float", len(shapes)] if is_row_of_numbers else list(dict.fromkeys(map(repr, shapes)))
    return type(value).__name__


def _steady_line(line: str) -> object:
    head, brace, rest = line.partition("{")
    return (head, _steady(json.loads(brace + rest))) if brace else line


def _split(text: str, count: int) -> list[str]:
    """Cut a text into `count` pieces, none empty."""
    bounds = [len(text) * index // count for index in range(count + 1)]
    return [text[start:end] for start, end in pairwise(bounds)]


def _values(recorded: Recording) -> list[dict[str, object]]:
    if recorded.lines is None:
        return [recorded.json] if isinstance(recorded.json, dict) else []
    texts = [line.removeprefix("data: ") for line in recorded.lines]
    return [json.loads(text) for text in texts if text.startswith("{")]


def _messages(recorded: Recording) -> Iterator[dict[str, object]]:
    if recorded.path == "/v1/responses":
        for value in _values(recorded):
            output = value.get("output") or [{"content": [{"text": value.get("delta", "")}]}]
            yield {"content": output[0]["content"][0]["text"]}  # type: ignore[index]
        return
    for value in _values(recorded):
        for choice in value.get("choices", [value]):  # type: ignore[attr-defined]
            yield choice.get("message") or choice.get("delta") or choice


def _limit(recorded: Recording) -> int:
    body = recorded.body
    options = body.get("options", {}) if isinstance(body, dict) else {}
    limit = options.get("num_predict") or (body.get("max_tokens") if isinstance(body, dict) else 0)
    return limit or 0


def _texts(recorded: Recording, keys: tuple[str, ...]) -> list[str]:
    said = [str(message[key]) for message in _messages(recorded) for key in keys if message.get(key)]
    logprobs = re.findall(r'"token": ("[^"]*"), "logprob": [^,]*, "bytes": [^]]*], "top', json.dumps(recorded.json))
    if logprobs:
        return [json.loads(token) for token in logprobs]
    is_cut = '"length"' in json.dumps(recorded.json)
    return _split(said[0], _limit(recorded)) if said and is_cut else said


def _calls(recorded: Recording) -> list[ToolCall]:
    calls = [call for message in _messages(recorded) for call in message.get("tool_calls") or []]  # type: ignore[attr-defined]
    functions = [call["function"] for call in calls]
    arguments = [function["arguments"] for function in functions]
    read = [json.loads(item) if isinstance(item, str) else item for item in arguments]
    return [ToolCall(function["name"], item) for function, item in zip(functions, read, strict=True)]


def _replayed(recorded: Recording) -> Reply:
    """Return the reply the real model gave, so that texts can be compared too."""
    return Reply(
        _texts(recorded, ("content", "response", "text")),
        _texts(recorded, ("thinking", "reasoning")),
        _calls(recorded),
    )


def _models(name: str) -> list[Model | str]:
    if name == _QUEUE_FULL:
        return ["api-made"]
    if name in {"tags", "local_origin", "v1_models"}:
        return ["smollm2"]
    parent = "smollm2:latest"
    made = [Model("thinky", ("thinking",), parent=parent), Model("toolsy", ("tools",), parent=parent)]
    return ["smollm2", "copied" if name == "delete" else "pirate", *made]


async def _ask(url: str, recorded: Recording) -> tuple[aiohttp.ClientResponse, bytes]:
    address = f"{url}{recorded.path}"
    async with (
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session,
        session.request(
            recorded.method, address, data=recorded.request_bytes or None, headers=recorded.request_headers
        ) as response,
    ):
        return response, await response.read()


def _assert_same_head(response: aiohttp.ClientResponse, body: bytes, recorded: Recording) -> None:
    headers = dict(response.headers)
    assert headers.pop("Date")
    wanted = dict(recorded.headers)
    if "Content-Length" in wanted and recorded.method != "HEAD":
        # Ids, times and counts have other lengths; that the length is told, and is true, remains.
        assert headers.pop("Content-Length") == str(len(body))
        del wanted["Content-Length"]
    assert headers == wanted
    assert response.status == recorded.status


def _assert_same_body(body: bytes, recorded: Recording) -> None:
    text = body.decode()
    if recorded.lines is not None:
        lines = [_steady_line(line) for line in text.split("\n")]
        assert lines == [_steady_line(line) for line in recorded.lines]
    elif recorded.json is not None:
        assert _steady(json.loads(text)) == _steady(recorded.json)
    else:
        assert text == recorded.text


@pytest.mark.parametrize("name", [name for name in RECORDINGS if name != _QUEUE_FULL])
async def test_answers_as_recorded(name: str) -> None:
    """For each recorded request: status, headers, keys in order, types and steady values match."""
    recorded = RECORDINGS[name]
    async with OllamaServer(models=_models(name), reply=lambda _ask: _replayed(recorded)) as server:
        if name == "ps_loaded":
            await _ask(server.url, RECORDINGS["chat_load"])
        response, body = await _ask(server.url, recorded)
    _assert_same_head(response, body, recorded)
    _assert_same_body(body, recorded)


async def test_full_queue_answers_as_recorded() -> None:
    """While a model loads and the queue is full, the next request gets the recorded 503."""
    recorded = RECORDINGS[_QUEUE_FULL]
    async with OllamaServer(models=_models(_QUEUE_FULL), max_queue=1, reply=fixed("once")) as server:
        load = SlowLoad()
        server.script.next(load)
        waiting = [asyncio.create_task(_ask(server.url, recorded)) for _ in range(2)]
        await server.wait_for(lambda server: server.runners.queued == 2)
        response, body = await _ask(server.url, recorded)
        load.event.set()
        loaded = await asyncio.gather(*waiting)
    _assert_same_head(response, body, recorded)
    _assert_same_body(body, recorded)
    assert [response.status for response, _ in loaded] == [200, 200]


@pytest.mark.parametrize("name", ["chat_unknown_model", "v1_chat_unknown_model", "v1_chat_bad_json", "chat_load"])
async def test_lengths_are_as_recorded(name: str) -> None:
    """Where a body holds nothing but steady text and a time, its length is the recorded one."""
    recorded = RECORDINGS[name]
    async with OllamaServer() as server:
        response, body = await _ask(server.url, recorded)
    created = re.search(rb'"created_at":"([^"]*)"', body)
    recorded_at = re.search(r'"created_at": "([^"]*)"', json.dumps(recorded.json))
    slack = len(created[1]) - len(recorded_at[1]) if created and recorded_at else 0
    assert int(response.headers["Content-Length"]) - slack == int(recorded.headers["Content-Length"])


async def test_reply_sees_what_was_asked() -> None:
    """A reply function gets the path, the model as named, the last text and what may be used."""
    seen: list[Ask] = []

    def reply(ask: Ask) -> list[str]:
        seen.append(ask)
        return ["ok"]

    recorded = RECORDINGS["chat_tool_call"]
    async with OllamaServer(models=["toolsy"], reply=reply) as server:
        await _ask(server.url, recorded)
    (ask,) = seen
    assert (ask.path, ask.model, ask.prompt) == ("/api/chat", "toolsy", "What is the weather in Paris?")
    assert len(ask.tools) == 1
    assert isinstance(ask.format, dict)
    assert not ask.think
    assert ask.body == recorded.body


def test_no_recording_names_the_registry() -> None:
    """The recordings carry the stand-in host, and each can be read."""
    texts = [repr(recorded) for recorded in RECORDINGS.values()]
    assert len(texts) > 70
    assert any("registry.example" in text for text in texts)
    assert not any(re.search(r"registry\.(?!example)", text) for text in texts)


def test_unknown_recording_names_those_there_are() -> None:
    """A misspelt name is answered with the names that exist."""
    with pytest.raises(LookupError, match=r"no recording 'chta'; there are: .*chat_stream"):
        recording("chta")
