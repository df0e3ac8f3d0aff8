"""The api `openai`: what a server is sent, and what its answers become. The recordings are llama.cpp's."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import tool_calls
from gleitzeit_llm.dialects.openai_instance import OpenAIInstance
from gleitzeit_llm.dialects.openai_wire import Function, ToolCall
from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.fidelity

NOW = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
STAMP = "2026-11-21T04:00:00.000000Z"
INSTANCE = OpenAIInstance(wall=lambda: NOW)
PARAMS = {"model": "mine"}
HI = [{"role": "user", "content": "hi"}]


def _answer(choice: dict[str, Any], **rest: Any) -> bytes:  # noqa: ANN401 - any JSON
    return json.dumps({"choices": [choice], **rest}).encode()


def test_a_chat_is_sent_to_chat(recorded: Callable[[str], Any]) -> None:
    """Ollama's recorded request becomes OpenAI's; `stream` is the encoder's argument, not the caller's field."""
    upstream = INSTANCE.encode(CHAT, recorded("ollama/chat").request)
    assert upstream.path == "/v1/chat/completions"
    assert upstream.payload == {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 12,
        "seed": 7,
        "temperature": 0,
    }
    assert upstream.body() == json.dumps(upstream.payload, separators=(",", ":")).encode()


def test_a_stream_asks_for_its_counts() -> None:
    """Without `stream_options` most servers leave the token counts out of a stream."""
    payload = INSTANCE.encode(CHAT, {"model": "m", "messages": HI, "stream": False}, stream=True).payload
    assert (payload["stream"], payload["stream_options"]) == (True, {"include_usage": True})


def test_a_prompt_is_what_a_user_says() -> None:
    """Ollama puts a prompt into the model's template, so it goes to chat, behind the system's words."""
    upstream = INSTANCE.encode(GENERATE, {"model": "m", "prompt": "hi", "system": "be brief", "template": ""})
    assert upstream.path == "/v1/chat/completions"
    assert upstream.payload["messages"] == [{"role": "system", "content": "be brief"}, *HI]


def test_a_raw_prompt_is_sent_to_completions(recorded: Callable[[str], Any]) -> None:
    """Without a template the text itself is completed."""
    upstream = INSTANCE.encode(GENERATE, recorded("ollama/generate_raw").request, stream=True)
    assert upstream.path == "/v1/completions"
    assert upstream.payload["prompt"] == "2+2="
    assert "messages" not in upstream.payload


@pytest.mark.parametrize(("top", "sent"), [(None, 1), (0, 1), (3, 3)])
def test_logprobs_of_a_raw_prompt_are_a_number(top: object, sent: int) -> None:
    """There the number is the switch, and llama.cpp takes zero for off."""
    params = {"model": "m", "prompt": "x", "raw": True, "logprobs": True, "top_logprobs": top}
    assert INSTANCE.encode(GENERATE, params).payload["logprobs"] == sent


def test_top_logprobs_alone_ask_for_nothing() -> None:
    """OpenAI refuses them without `logprobs`, Ollama ignores them."""
    payload = INSTANCE.encode(CHAT, {"model": "m", "messages": HI, "top_logprobs": 2}).payload
    assert not {"logprobs", "top_logprobs"} & payload.keys()
    payload = INSTANCE.encode(CHAT, {"model": "m", "messages": HI, "logprobs": True, "top_logprobs": 0}).payload
    assert payload["logprobs"] is True
    assert "top_logprobs" not in payload


@pytest.mark.parametrize(("limit", "sent"), [(5, 5), (5.0, 5), (0, None), (-1, None), (-2, None)])
def test_limits(limit: float, sent: int | None) -> None:
    """Ollama's "no limit" is OpenAI's absent field."""
    payload = INSTANCE.encode(CHAT, {"model": "m", "messages": HI, "options": {"num_predict": limit}}).payload
    assert payload.get("max_tokens") == sent


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", None),
        ({}, None),
        ("json", {"type": "json_object"}),
        (
            {"type": "object"},
            {"type": "json_schema", "json_schema": {"name": "response", "schema": {"type": "object"}}},
        ),
    ],
)
def test_formats(given: object, sent: object) -> None:
    """`json`, a schema, or nothing."""
    payload = INSTANCE.encode(CHAT, {"model": "m", "messages": HI, "format": given}).payload
    assert payload.get("response_format") == sent


@pytest.mark.parametrize(
    ("think", "effort"), [(True, "medium"), (False, "none"), ("low", "low"), ("medium", "medium"), ("high", "high")]
)
def test_thinking(think: object, effort: str) -> None:
    """llama.cpp turns thinking off for `none`."""
    assert INSTANCE.encode(CHAT, {"model": "m", "messages": HI, "think": think}).payload["reasoning_effort"] == effort


@pytest.mark.parametrize(
    ("method", "fields", "param"),
    [
        (CHAT, {"messages": HI, "format": "yaml"}, "format"),
        (CHAT, {"messages": HI, "think": "deeply"}, "think"),
        (CHAT, {"messages": HI, "think": 1}, "think"),
        (CHAT, {"messages": HI, "logprobs": "yes"}, "logprobs"),
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": "two"}, "top_logprobs"),
        (CHAT, {"messages": HI, "options": "warm"}, "options"),
        (CHAT, {"messages": HI, "tools": [{"type": "custom"}]}, "tools[0]"),
        (CHAT, {"messages": HI, "options": {"stop": [1]}}, "options.stop[0]"),
        (CHAT, {"messages": HI, "options": {"temperature": float("inf"), "seed": float("inf")}}, "options.seed"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hi"}, "messages"),
        (GENERATE, {"prompt": 7}, "prompt"),
        (GENERATE, {"prompt": "x", "system": 7}, "system"),
        (GENERATE, {"prompt": "x", "raw": "yes"}, "raw"),
        (GENERATE, {"prompt": 7, "raw": True}, "prompt"),
        (EMBED, {}, "input"),
        (EMBED, {"input": ""}, "input"),
        (EMBED, {"input": [1]}, "input[0]"),
        (EMBED, {"input": "x", "dimensions": "8"}, "dimensions"),
    ],
)
def test_malformed_requests_are_refused(method: str, fields: dict[str, Any], param: str) -> None:
    """Whatever a caller of the library puts into its dict, the error names the field."""
    with pytest.raises(InvalidRequest) as caught:
        INSTANCE.encode(method, {"model": "m", **fields})
    assert caught.value.param == param


@pytest.mark.parametrize("value", [object(), "\ud800", {1, object()}])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    """A caller of the library may pass anything; the error says so before anything is sent."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": value}}]
    upstream = INSTANCE.encode(CHAT, {"model": "m", "messages": HI, "tools": tools})
    with pytest.raises(InvalidRequest, match="the request cannot be written as JSON"):
        upstream.body()
    calls = [{"function": {"name": "f", "arguments": {"a": value}}}]
    with pytest.raises(InvalidRequest, match=r"'messages\[0\].*arguments' cannot be written as JSON"):
        INSTANCE.encode(CHAT, {"model": "m", "messages": [{"role": "assistant", "tool_calls": calls}]})


@pytest.mark.parametrize("method", [CHAT, GENERATE, EMBED])
def test_a_request_names_its_model(method: str) -> None:
    """Without one nothing is sent."""
    with pytest.raises(InvalidRequest, match="model is required"):
        INSTANCE.encode(method, {"input": "x", "prompt": "x", "messages": HI})


def test_a_plain_answer_becomes_canonical(recorded: Callable[[str], Any]) -> None:
    """The words, the reason, the counts, llama.cpp's measurements in nanoseconds, and the name the caller used."""
    answer = INSTANCE.decode_answer(CHAT, PARAMS, recorded("llamacpp/chat").body, elapsed_s=0.25)
    assert answer == {
        "model": "mine",
        "created_at": STAMP,
        "message": {"role": "assistant", "content": "L'Étoile,"},
        "done": True,
        "done_reason": "length",
        "total_duration": 250_000_000,
        "prompt_eval_count": 37,
        "prompt_eval_duration": 112_454_000,
        "eval_count": 6,
        "eval_duration": 32_238_000,
    }
    assert [key for key in recorded("ollama/chat").answer if key in answer] == list(answer)


def test_what_is_not_known_is_left_out() -> None:
    """A server without timings and a caller without a watch give no durations."""
    body = _answer({"message": {"content": "x"}, "finish_reason": "stop"}, usage={"prompt_tokens": 3})
    answer = INSTANCE.decode_answer(CHAT, PARAMS, body)
    assert [key for key in answer if key.endswith(("_count", "_duration"))] == ["prompt_eval_count"]


def test_a_completion_becomes_canonical(recorded: Callable[[str], Any]) -> None:
    """The text of a raw prompt is its response."""
    answer = INSTANCE.decode_answer(GENERATE, PARAMS, recorded("llamacpp/completions").body)
    assert (answer["response"], answer["done_reason"], answer["eval_count"]) == ("11, so the", "length", 5)


def test_a_chat_can_answer_a_prompt(recorded: Callable[[str], Any]) -> None:
    """`llm/generate` goes to chat, and its thoughts have their own place."""
    answer = INSTANCE.decode_answer(GENERATE, PARAMS, recorded("llamacpp/chat_reasoning").body)
    assert (answer["response"], answer["thinking"]) == ("Catalonia.", "Spain is a country.\n")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_have_two_names(name: str) -> None:
    """Ollama and newer vLLM say `reasoning`, llama.cpp and older vLLM `reasoning_content`."""
    body = _answer({"message": {"content": "a", name: "b"}})
    assert INSTANCE.decode_answer(CHAT, PARAMS, body)["message"] == {
        "role": "assistant",
        "content": "a",
        "thinking": "b",
    }


def test_a_refusal_is_said_in_words() -> None:
    """OpenAI puts a refusal beside the content; for Ollama's callers it is what the model said."""
    body = _answer({"message": {"content": None, "refusal": "I cannot."}})
    assert INSTANCE.decode_answer(CHAT, PARAMS, body)["message"]["content"] == "I cannot."


def test_a_tool_call_becomes_canonical(recorded: Callable[[str], Any]) -> None:
    """Its arguments are an object; the reason is Ollama's."""
    answer = INSTANCE.decode_answer(CHAT, PARAMS, recorded("llamacpp/chat_tool_call").body)
    (call,) = answer["message"]["tool_calls"]
    assert call["id"]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
    assert answer["done_reason"] == "stop"


def test_half_a_tool_call_is_left_out(recorded: Callable[[str], Any]) -> None:
    """An answer that grew too long may end inside a call; the reason says so."""
    answer = INSTANCE.decode_answer(CHAT, PARAMS, recorded("llamacpp/chat_tool_call_cut").body)
    assert "tool_calls" not in answer["message"]
    assert answer["done_reason"] == "length"


@pytest.mark.parametrize("arguments", ["[1]", "{", "x"])
def test_a_call_with_broken_arguments_raises(arguments: str) -> None:
    """A complete call that cannot be understood is not passed on as one without arguments."""
    call = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    body = _answer({"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"})
    with pytest.raises(UpstreamError, match="called 'f' with arguments that are not a JSON object"):
        INSTANCE.decode_answer(CHAT, PARAMS, body)


@pytest.mark.parametrize(
    ("arguments", "expected"), [("", {}), (None, {}), ({"a": 1}, {"a": 1}), (' {"a": 1}', {"a": 1})]
)
def test_the_forms_of_arguments(arguments: object, expected: object) -> None:
    """None at all are an empty object, and some servers have the object itself."""
    call = {"function": {"name": "f", "arguments": arguments}}
    answer = INSTANCE.decode_answer(CHAT, PARAMS, _answer({"message": {"tool_calls": [call]}}))
    assert answer["message"]["tool_calls"] == [{"function": {"index": 0, "name": "f", "arguments": expected}}]


def test_a_call_without_a_function_has_no_name() -> None:
    """A server that leaves it out does not break the answer."""
    answer = INSTANCE.decode_answer(CHAT, PARAMS, _answer({"message": {"tool_calls": [{"id": "a"}]}}))
    assert answer["message"]["tool_calls"] == [{"id": "a", "function": {"index": 0, "name": "", "arguments": {}}}]


def test_arguments_may_not_grow_without_bound() -> None:
    """A server that never ends a call is given up."""
    calls = tool_calls.ToolCalls()
    calls.add([ToolCall(index=0, function=Function(arguments="x" * tool_calls.MAX_ARGUMENT_CHARACTERS))])
    with pytest.raises(UpstreamError, match=f"over {tool_calls.MAX_ARGUMENT_CHARACTERS} characters"):
        calls.add([ToolCall(index=0, function=Function(arguments="x"))])


def test_logprobs_become_canonical(recorded: Callable[[str], Any]) -> None:
    """They have Ollama's keys, alternatives included."""
    answer = INSTANCE.decode_answer(CHAT, PARAMS, recorded("llamacpp/chat_logprobs").body)
    expected = recorded("ollama/chat_logprobs").answer["logprobs"]
    assert [item["token"] for item in answer["logprobs"]] == ["L", "'"]
    assert answer["logprobs"][0].keys() == expected[0].keys()
    assert answer["logprobs"][0]["top_logprobs"][0].keys() == expected[0]["top_logprobs"][0].keys()


@pytest.mark.parametrize(
    ("finish", "done"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "stop"),
        ("function_call", "stop"),
        (None, "stop"),
        ("content_filter", "content_filter"),
    ],
)
def test_reasons(finish: object, done: str) -> None:
    """Ollama says `stop` where OpenAI says what for; other reasons keep their word."""
    body = _answer({"message": {"content": "x"}, "finish_reason": finish})
    assert INSTANCE.decode_answer(CHAT, PARAMS, body)["done_reason"] == done


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>", "no answer of an OpenAI server but '<html>'"),
        (b"", "no answer"),
        (b"[]", "no answer"),
        (b"{}", "no answer"),
        (b'{"choices":"x"}', "no answer"),
        (b'{"choices":[{"message":{"content":[1]}}]}', "no answer"),
        (b"[" * 100_000, "no answer"),
        (b'{"choices":[]}', "has no choice"),
        (b'{"choices":[{"index":1}]}', "has no choice"),
        (b'{"choices":null,"usage":{}}', "has no choice"),
    ],
)
def test_an_answer_that_makes_no_sense_raises(body: bytes, text: str) -> None:
    """Garbage and half an answer are told from an answer."""
    with pytest.raises(UpstreamError, match=text) as caught:
        INSTANCE.decode_answer(CHAT, PARAMS, body)
    assert not caught.value.reported


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"out of memory","code":500}}', "out of memory"),
        (b'{"error":"out of memory"}', "out of memory"),
        (b'{"object":"error","message":"out of memory","code":500}', "out of memory"),
        (b'{"error":{"code":500}}', "an error without a text"),
    ],
)
def test_an_error_with_status_200_is_reported(body: bytes, text: str) -> None:
    """Every known form of error is one, for embeddings as well."""
    for method in (CHAT, EMBED):
        with pytest.raises(UpstreamError, match=text) as caught:
            INSTANCE.decode_answer(method, PARAMS, body)
        assert caught.value.reported


def test_embeddings_are_asked_for_as_numbers() -> None:
    """OpenAI's default, said aloud, and nothing that does not matter to an embedding."""
    params = {"model": "m", "input": ["a", "b"], "dimensions": 8, "truncate": True, "options": {"num_ctx": 9}}
    upstream = INSTANCE.encode(EMBED, params)
    assert upstream.path == "/v1/embeddings"
    assert upstream.payload == {"model": "m", "input": ["a", "b"], "dimensions": 8, "encoding_format": "float"}


def test_embeddings_become_canonical(recorded: Callable[[str], Any]) -> None:
    """One vector for each input, with Ollama's counts."""
    exchange = recorded("llamacpp/embeddings")
    answer = INSTANCE.decode_answer(EMBED, {"model": "mine", "input": ["hello", "world"]}, exchange.body, elapsed_s=0.5)
    assert answer == {
        "model": "mine",
        "embeddings": [item["embedding"] for item in exchange.answer["data"]],
        "total_duration": 500_000_000,
        "prompt_eval_count": 2,
    }


def test_base64_embeddings_are_unpacked(recorded: Callable[[str], Any]) -> None:
    """A server may answer base64 though it was asked for numbers."""
    plain = recorded("llamacpp/embeddings").answer["data"][0]["embedding"]
    packed = INSTANCE.decode_answer(EMBED, {**PARAMS, "input": "hello"}, recorded("llamacpp/embeddings_base64").body)
    assert packed["embeddings"][0][:8] == plain


def test_embeddings_come_in_the_order_of_the_inputs() -> None:
    """A server may answer in another order."""
    data = [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [0.0]}]
    answer = INSTANCE.decode_answer(EMBED, {**PARAMS, "input": ["a", "b"]}, json.dumps({"data": data}).encode())
    assert answer["embeddings"] == [[0.0], [1.0]]


def test_ignored_dimensions_are_made_up_for(recorded: Callable[[str], Any]) -> None:
    """llama.cpp takes `dimensions` and answers all of them; the caller gets what was asked for."""
    exchange = recorded("llamacpp/embeddings_dimensions")
    answer = INSTANCE.decode_answer(EMBED, {**PARAMS, "input": ["hello"], "dimensions": 4}, exchange.body)
    assert len(answer["embeddings"][0]) == 4
    assert sum(value * value for value in answer["embeddings"][0]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[]}',
        b"{}",
        b'{"data":[{"embedding":[1]},{"embedding":[1]}]}',
        b'{"data":[{"embedding":"?"}]}',
        b'{"data":[{"embedding":[null]}]}',
        b"<html>",
    ],
)
def test_embeddings_that_do_not_fit_raise(body: bytes) -> None:
    """Too few, too many, broken: never a silent gap."""
    with pytest.raises(UpstreamError) as caught:
        INSTANCE.decode_answer(EMBED, {**PARAMS, "input": "x"}, body)
    assert not caught.value.reported


def test_embeddings_do_not_stream() -> None:
    """Asking for it is the caller's mistake."""
    with pytest.raises(InvalidRequest, match="llm/embed does not stream"):
        INSTANCE.stream_decoder(EMBED, PARAMS)
