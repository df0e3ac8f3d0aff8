"""The client API `openai`: what callers send becomes canonical, and what they get has the recorded shape."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects.openai_client import OpenAIClient, random_id
from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.fidelity

NOW = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
CLIENT = OpenAIClient(wall=lambda: NOW, new_id=lambda: "7")
CHAT_END = CLIENT.endpoints["/v1/chat/completions"]
COMPLETIONS = CLIENT.endpoints["/v1/completions"]
EMBEDDINGS = CLIENT.endpoints["/v1/embeddings"]
BASE = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
# OpenAI's own defaults, which Ollama's server puts in as well.
DEFAULTS = {"temperature": 1.0, "top_p": 1.0}


def _chat(**fields: Any) -> Any:  # noqa: ANN401 - compared as a whole
    return CLIENT.parse(CHAT_END, json.dumps({**BASE, **fields}).encode())


def _complete(**fields: Any) -> Any:  # noqa: ANN401 - compared as a whole
    return CLIENT.parse(COMPLETIONS, json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def _shape(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Keys in their order and types of values; lists by their first item."""
    if isinstance(value, dict):
        return [(key, _shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [_shape(item) for item in value[:1]]
    return type(value)


def _events(data: bytes) -> list[Any]:
    """The events of a stream written here; each must be one line of data and one empty line."""
    items = data.decode().split("\n\n")
    assert items.pop() == ""
    assert all(item.startswith("data: ") and "\n" not in item for item in items)
    return [item[6:] if item == "data: [DONE]" else json.loads(item[6:]) for item in items]


def test_a_chat_becomes_canonical(recorded: Callable[[str], Any]) -> None:
    """The recorded request arrives with everything in its place."""
    parsed = CLIENT.parse(CHAT_END, recorded("ollama/v1_chat").sent)
    assert (parsed.method, parsed.stream, parsed.include_usage) == (CHAT, False, False)
    assert parsed.params == {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "options": {"num_predict": 12, "temperature": 0, "top_p": 1.0, "seed": 7},
    }


def test_tools_and_a_schema_become_canonical(recorded: Callable[[str], Any]) -> None:
    """Tools are the same in both APIs; a schema loses its wrapping."""
    exchange = recorded("ollama/v1_chat_tool_call_stream")
    parsed = CLIENT.parse(CHAT_END, exchange.sent)
    assert parsed.stream
    assert parsed.params["tools"] == exchange.request["tools"]
    assert parsed.params["format"] == exchange.request["response_format"]["json_schema"]["schema"]


def test_absent_settings_have_openais_meaning() -> None:
    """As in Ollama's own /v1: without them its models' settings would apply."""
    assert _chat().params["options"] == DEFAULTS
    assert _complete(temperature=0.5).params["options"] == {**DEFAULTS, "temperature": 0.5}


def test_usage_is_asked_for() -> None:
    """`stream_options` matters to the stream, not to the model."""
    parsed = _chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert (parsed.stream, parsed.include_usage) == (True, True)
    assert not _chat(stream=True, stream_options={"include_usage": False}).include_usage
    with pytest.raises(InvalidRequest, match="'stream_options' must be an object"):
        _chat(stream_options="yes")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}}},
            {"type": "object"},
        ),
    ],
)
def test_response_formats(given: object, expected: object) -> None:
    """Text is the default, and a schema stands for itself."""
    assert _chat(response_format=given).params.get("format") == expected


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "grammar"}, "response_format.type"),
        ({"a": 1}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
        ("json", "response_format"),
    ],
)
def test_other_response_formats_are_refused(given: object, param: str) -> None:
    """The error names the part at fault."""
    with pytest.raises(InvalidRequest) as caught:
        _chat(response_format=given)
    assert caught.value.param == param


@pytest.mark.parametrize(("effort", "think"), [("none", False), ("low", "low"), ("medium", "medium"), ("high", "high")])
def test_reasoning_efforts(effort: str, think: object) -> None:
    """Both ways to ask for it, as Ollama understands them."""
    assert _chat(reasoning_effort=effort).params["think"] == think
    assert _chat(reasoning={"effort": effort}).params["think"] == think


def test_other_reasoning_efforts_are_refused_in_ollamas_words() -> None:
    """An unknown effort is named."""
    text = 'invalid reasoning value: \'minimal\' (must be "high", "medium", "low", or "none")'
    for fields in ({"reasoning_effort": "minimal"}, {"reasoning": {"effort": "minimal"}}):
        with pytest.raises(InvalidRequest) as caught:
            _chat(**fields)
        assert caught.value.message == text
    assert "think" not in _chat(reasoning={"effort": None}).params


def test_the_limit_has_two_names() -> None:
    """Either, or both if they agree."""
    for fields in ({"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5}):
        assert _chat(**fields).params["options"]["num_predict"] == 5
    with pytest.raises(InvalidRequest, match="say different things") as caught:
        _chat(max_tokens=5, max_completion_tokens=6)
    assert caught.value.param == "max_completion_tokens"
    with pytest.raises(InvalidRequest, match="must be a whole number"):
        _chat(max_completion_tokens=1.5)


def test_tool_choices() -> None:
    """`auto` is the default, `none` the same as no tools, and a model cannot be forced."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert _chat(tools=tools, tool_choice="auto").params["tools"] == tools
    assert "tools" not in _chat(tools=tools, tool_choice="none").params
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(InvalidRequest, match="cannot be made to call a tool") as caught:
            _chat(tools=tools, tool_choice=choice)
        assert caught.value.param == "tool_choice"


@pytest.mark.parametrize("tool", [{"type": "custom", "custom": {"name": "x"}}, {"type": "function"}, "f"])
def test_tools_that_are_no_functions_are_refused(tool: object) -> None:
    """Only functions exist in both APIs."""
    with pytest.raises(InvalidRequest) as caught:
        _chat(tools=[tool])
    assert caught.value.param is not None
    assert caught.value.param.startswith("tools[0]")


@pytest.mark.parametrize("messages", [None, [], "absent"])
def test_a_chat_needs_messages(messages: object) -> None:
    """The sentence is Ollama's, as recorded; an OpenAI caller cannot load a model this way."""
    body = {"model": "m"} if messages == "absent" else {"model": "m", "messages": messages}
    with pytest.raises(InvalidRequest, match="is too short - 'messages'"):
        CLIENT.parse(CHAT_END, json.dumps(body).encode())


def test_a_completion_becomes_canonical(recorded: Callable[[str], Any]) -> None:
    """It is a generate through the model's template, as in Ollama."""
    parsed = CLIENT.parse(COMPLETIONS, recorded("ollama/v1_completions").sent)
    assert parsed.method == GENERATE
    assert parsed.params == {
        "model": "smollm2",
        "prompt": "Once",
        "options": {"num_predict": 8, "temperature": 0, "top_p": 1.0},
    }
    assert _complete(prompt=["one"]).params["prompt"] == "one"
    assert _complete(prompt=None).params["prompt"] == ""


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1], [2]], 7])
def test_several_prompts_and_tokens_are_refused(prompt: object) -> None:
    """Ollama answers one text at a time."""
    with pytest.raises(InvalidRequest, match="send one text") as caught:
        _complete(prompt=prompt)
    assert caught.value.param == "prompt"


def test_logprobs_of_a_completion_are_a_number() -> None:
    """Zero asks for those of the chosen tokens only."""
    assert _complete(logprobs=2).params["top_logprobs"] == 2
    parsed = _complete(logprobs=0)
    assert parsed.params["logprobs"] is True
    assert "top_logprobs" not in parsed.params
    with pytest.raises(InvalidRequest, match="must be a number"):
        _complete(logprobs=True)


def test_embeddings_become_canonical(recorded: Callable[[str], Any]) -> None:
    """Text or texts; an empty text is still one, where Ollama's /api/embed would load the model."""
    parsed = CLIENT.parse(EMBEDDINGS, recorded("ollama/v1_embeddings_base64").sent)
    assert (parsed.method, parsed.params) == (EMBED, {"model": "smollm2", "input": "hello"})
    assert parsed.base64_vectors
    for given, expected in [(["a", "b"], ["a", "b"]), ("", [""])]:
        parsed = CLIENT.parse(EMBEDDINGS, json.dumps({"model": "m", "input": given}).encode())
        assert parsed.params["input"] == expected
        assert not parsed.base64_vectors


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "invalid input"),
        ({"input": []}, "invalid input"),
        ({"input": [1, 2]}, "as tokens"),
        ({"input": [[1], [2]]}, "as tokens"),
        ({"input": ["a", 2]}, "must be a string"),
        ({"input": {"a": 1}}, "must be a list"),
        ({"input": "a", "encoding_format": "int8"}, "Supported values: .'float', 'base64'."),
    ],
)
def test_other_inputs_are_refused(fields: dict[str, Any], text: str) -> None:
    """Tokens mean nothing to another model, and an unknown encoding is named."""
    with pytest.raises(InvalidRequest, match=text):
        CLIENT.parse(EMBEDDINGS, json.dumps({"model": "m", **fields}).encode())


@pytest.mark.parametrize(
    ("canonical", "name"),
    [
        ("chat", "v1_chat"),
        ("chat_thinking", "v1_chat_reasoning"),
        ("chat_tool_call", "v1_chat_tool_call"),
        ("chat_logprobs", "v1_chat_logprobs"),
    ],
)
def test_plain_answers_have_the_recorded_shape(recorded: Callable[[str], Any], canonical: str, name: str) -> None:
    """What Ollama answers natively, written for OpenAI's callers, is what its own /v1 writes."""
    exchange = recorded(f"ollama/{name}")
    body = CLIENT.answer(_chat(), recorded(f"ollama/{canonical}").answer)
    assert body.endswith(b"}\n")
    assert _shape(json.loads(body)) == _shape(exchange.answer)
    assert exchange.headers["Content-Type"] == CLIENT.plain_type


def test_a_plain_answer_is_exact(recorded: Callable[[str], Any]) -> None:
    """Up to its id and time, the answer to the same question is the recorded one, in as many bytes."""
    exchange = recorded("ollama/v1_chat")
    body = CLIENT.answer(_chat(), recorded("ollama/chat").answer)
    found = json.loads(body)
    assert found["created"] == 1795232732
    assert {**found, "id": "", "created": 0} == {**exchange.answer, "id": "", "created": 0}
    assert len(body) == int(exchange.headers["Content-Length"]) - len("207") + len("7")


def test_a_completion_has_the_recorded_shape(recorded: Callable[[str], Any]) -> None:
    """The text stands in the choice."""
    body = CLIENT.answer(_complete(), recorded("ollama/generate").answer)
    assert _shape(json.loads(body)) == _shape(recorded("ollama/v1_completions").answer)
    assert json.loads(body)["id"] == "cmpl-7"


def test_embeddings_have_the_recorded_shape(recorded: Callable[[str], Any]) -> None:
    """As numbers or as base64, with the tokens counted once."""
    answer = recorded("ollama/embed_many").answer
    parsed = CLIENT.parse(EMBEDDINGS, json.dumps({"model": "m", "input": "x", "encoding_format": "BASE64"}).encode())
    found = json.loads(CLIENT.answer(parsed, answer))
    assert _shape(found) == _shape(recorded("ollama/v1_embeddings_base64").answer)
    assert [item["index"] for item in found["data"]] == [0, 1]
    assert found["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    plain = CLIENT.parse(EMBEDDINGS, b'{"model":"m","input":"x"}')
    assert json.loads(CLIENT.answer(plain, answer))["data"][0]["embedding"] == answer["embeddings"][0]


@pytest.mark.parametrize(
    ("canonical", "name", "usage"),
    [
        ("chat_stream", "v1_chat_stream", False),
        ("chat_stream", "v1_chat_stream_usage", True),
        ("chat_thinking_stream", "v1_chat_reasoning_stream", False),
        ("chat_tool_call_stream", "v1_chat_tool_call_stream", False),
    ],
)
def test_streams_have_the_recorded_shape(
    recorded: Callable[[str], Any],
    canonical: str,
    name: str,
    usage: bool,  # noqa: FBT001
) -> None:
    """First, last and closing events are those of Ollama's own /v1, key by key."""
    exchange = recorded(f"ollama/{name}")
    encoder = CLIENT.stream_encoder(_chat(stream=True, stream_options={"include_usage": usage}))
    parts = recorded(f"ollama/{canonical}").parts
    events = _events(b"".join(map(encoder.part, parts)) + encoder.finish())
    assert len(events) == len(parts) + 1 + usage
    assert _shape(events[0]) == _shape(exchange.events[0])
    assert [_shape(event) for event in events[-2 - usage :]] == [
        _shape(event) for event in exchange.events[-2 - usage :]
    ]
    assert exchange.headers["Content-Type"] == CLIENT.stream_type


def test_a_stream_is_exact(recorded: Callable[[str], Any]) -> None:
    """Up to its id and time, the answer to the same question is the recorded stream, byte for byte."""
    encoder = CLIENT.stream_encoder(_chat(stream=True))
    written = b"".join(map(encoder.part, recorded("ollama/chat_stream").parts)) + encoder.finish()
    recorded_bytes = recorded("ollama/v1_chat_stream").body
    assert written.replace(b'"chatcmpl-7"', b'"chatcmpl-201"').replace(b"1795233600", b"1795232734") == recorded_bytes


def test_a_stream_of_completions_is_exact(recorded: Callable[[str], Any]) -> None:
    """Its chunks have their keys in an order of their own."""
    encoder = CLIENT.stream_encoder(_complete(stream=True))
    events = _events(b"".join(map(encoder.part, recorded("ollama/generate_stream").parts)) + encoder.finish())
    expected = recorded("ollama/v1_completions_stream").events
    assert [_shape(event) for event in (events[0], *events[-2:])] == [
        _shape(event) for event in (expected[0], *expected[-2:])
    ]


def test_calls_are_counted_over_the_parts() -> None:
    """Calls without index or id get both; the reason says that there were calls."""
    encoder = CLIENT.stream_encoder(_chat(stream=True))
    call = {"function": {"name": "f", "arguments": {}}}
    parts = [{"model": "m", "message": {"tool_calls": [call]}, "done": False}] * 2
    last = {"model": "m", "message": {"content": ""}, "done": True, "done_reason": "stop"}
    events = _events(b"".join(map(encoder.part, [*parts, last])))
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in events[:2]]
    assert [(item["index"], item["id"], item["function"]["arguments"]) for item in calls] == [
        (0, "call_7", "{}"),
        (1, "call_7", "{}"),
    ]
    assert events[2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("reason", "finish"), [("stop", "stop"), ("length", "length"), ("load", "load"), ("", None), (None, None)]
)
def test_reasons_keep_their_word(reason: object, finish: object) -> None:
    """Ollama's words go along; without one there is none, as recorded servers do it."""
    answer = {"model": "m", "message": {"content": "x"}, "done": True, "done_reason": reason}
    assert json.loads(CLIENT.answer(_chat(), answer))["choices"][0]["finish_reason"] == finish


def test_a_call_that_grew_too_long_says_so() -> None:
    """`length` beats `tool_calls`: the caller must know that the answer was cut."""
    call = {"function": {"name": "f", "arguments": {}}}
    answer = {"model": "m", "message": {"tool_calls": [call]}, "done": True, "done_reason": "length"}
    assert json.loads(CLIENT.answer(_chat(), answer))["choices"][0]["finish_reason"] == "length"


def test_logprobs_of_a_completions_stream_know_their_place() -> None:
    """`text_offset` counts the characters of the parts before."""
    encoder = CLIENT.stream_encoder(_complete(stream=True, logprobs=1))
    part = {"model": "m", "response": "né", "done": False, "logprobs": [{"token": "né", "logprob": -1.0}]}
    events = _events(encoder.part(part) + encoder.part(part))
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in events] == [[0], [2]]


def test_an_incomplete_stream_has_no_clean_end() -> None:
    """Without a final part there is no `[DONE]`, and an error inside the stream has OpenAI's form."""
    encoder = CLIENT.stream_encoder(_chat(stream=True))
    encoder.part({"model": "m", "message": {"content": "x"}, "done": False})
    assert encoder.finish() == b""
    assert _events(encoder.error("the instance died", "instance_failure")) == [
        {"error": {"message": "the instance died", "type": "api_error", "param": None, "code": "instance_failure"}}
    ]


@pytest.mark.parametrize("name", ["v1_chat_bad_json", "v1_chat_no_messages", "v1_chat_unknown_model"])
def test_error_bodies_are_as_recorded(recorded: Callable[[str], Any], name: str) -> None:
    """Same keys, same type of error for the same status."""
    exchange = recorded(f"ollama/{name}")
    body = CLIENT.error_body(exchange.status, exchange.answer["error"]["message"])
    assert json.loads(body) == exchange.answer
    assert list(json.loads(body)["error"]) == list(exchange.answer["error"])


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
    ],
)
def test_error_types_follow_the_status(status: int, kind: str) -> None:
    """Clients choose their exception by status; the type says the same, and code and param are passed on."""
    error = json.loads(CLIENT.error_body(status, "x", "queue_full", "model"))["error"]
    assert error == {"message": "x", "type": kind, "param": "model", "code": "queue_full"}


def test_ids_are_random() -> None:
    """Two answers do not share an id, and a stream keeps its own."""
    assert random_id() != random_id()
    client = OpenAIClient()
    first, second = (json.loads(client.answer(_chat(), {"model": "m", "message": {}}))["id"] for _ in range(2))
    assert first != second
    encoder = client.stream_encoder(_chat())
    events = _events(encoder.part({"model": "m"}) + encoder.part({"model": "m", "done": True}))
    assert len({event["id"] for event in events}) == 1
