"""The client API `anthropic`: what callers send becomes canonical, and what they get is a message or its events."""

from __future__ import annotations

import contextlib
import json
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import CLIENTS, DIALECTS
from gleitzeit_llm.dialects.anthropic_client import AnthropicClient
from gleitzeit_llm.protocol import CHAT, COUNT_TOKENS, final, part

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_llm.protocol import Json

pytestmark = pytest.mark.fidelity

CLIENT = AnthropicClient(new_id=lambda: "7")
MESSAGES = CLIENT.endpoints["/v1/messages"]
COUNT = CLIENT.endpoints["/v1/messages/count_tokens"]
HI = [{"role": "user", "content": "hi"}]
BASE = {"model": "m", "max_tokens": 9, "messages": HI}
# What Anthropic's API does without being told, and Ollama's models may not.
DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "num_predict": 9}
NOW = "2026-11-21T04:00:00.000000Z"
TOOL = {"name": "f", "description": "does", "input_schema": {"type": "object"}}
OTHER = {"name": "g", "input_schema": {"type": "object"}, "type": "custom"}
FUNCTION = {"name": "f", "description": "does", "parameters": {"type": "object"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
CALL = {"id": "toolu_1", "function": {"name": "f", "arguments": {"a": 1}}}
PIXEL = "iVBORw0KGgo="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}


def _params(**fields: object) -> Json:
    return CLIENT.parse(MESSAGES, json.dumps({**BASE, **fields}).encode()).params


def _messages(*messages: object, **fields: object) -> list[Json]:
    found: list[Json] = _params(messages=messages, **fields)["messages"]
    return found


def _refused(**fields: object) -> str:
    """The place that an error names."""
    with pytest.raises(InvalidRequest) as caught:
        _params(**fields)
    assert caught.value.param is not None
    assert caught.value.param in caught.value.message
    return caught.value.param


def _events(data: bytes) -> list[Any]:
    """The events of a stream written here; each is named by its type."""
    *blocks, rest = data.decode().split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        name, line = block.split("\n")
        found.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def _streamed(*parts: Json) -> list[Any]:
    encoder = CLIENT.stream_encoder(CLIENT.parse(MESSAGES, json.dumps({**BASE, "stream": True}).encode()))
    return _events(b"".join(map(encoder.part, parts)) + encoder.finish())


def _whole(answer: Json) -> Any:  # noqa: ANN401 - any JSON
    return json.loads(CLIENT.answer(CLIENT.parse(MESSAGES, json.dumps(BASE).encode()), answer))


# -- requests ------------------------------------------------------------------------------------------------------


def test_it_is_a_client_api_only() -> None:
    """Callers may speak it; no instance is spoken to in it."""
    assert CLIENTS["anthropic"].name == "anthropic"
    assert set(CLIENTS) - set(DIALECTS) == {"anthropic", "openai-responses"}
    assert {name: CLIENTS[name] for name in DIALECTS} == {name: one.client for name, one in DIALECTS.items()}


def test_a_request_becomes_canonical() -> None:
    """Everything in its place, and what is absent has Anthropic's meaning."""
    parsed = CLIENT.parse(MESSAGES, json.dumps(BASE).encode())
    assert (parsed.method, parsed.stream) == (CHAT, False)
    assert parsed.params == {"model": "m", "messages": HI, "options": DEFAULTS}
    sampled = _params(temperature=0.5, top_p=0.25, top_k=5, stop_sequences=["x", "y"], stream=True)
    options = {"temperature": 0.5, "top_p": 0.25, "top_k": 5, "stop": ["x", "y"], "num_predict": 9}
    assert sampled == {"model": "m", "stream": True, "messages": HI, "options": options}


def test_the_face_of_a_request() -> None:
    """The gateway reads the model, whether it streams, and the limit."""
    peek = CLIENT.peek(MESSAGES, json.dumps({**BASE, "stream": True}).encode())
    assert (peek.model, peek.stream, peek.max_output) == ("m", True, 9)
    assert not MESSAGES.streams(None)


@pytest.mark.parametrize("system", ["one\ntwo", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]])
def test_a_system_prompt_is_the_first_message(system: object) -> None:
    """As a string or as blocks; one that is empty is none."""
    assert _messages(*HI, system=system) == [{"role": "system", "content": "one\ntwo"}, *HI]
    assert _messages(*HI, system="") == _messages(*HI, system=[]) == HI
    assert _messages({"role": "system", "content": system}, *HI)[0] == {"role": "system", "content": "one\ntwo"}


def test_blocks_of_a_user() -> None:
    """Texts become lines, images base64, and hints for a cache nothing."""
    text = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    (message,) = _messages({"role": "user", "content": [text, IMAGE, {"type": "text", "text": "b"}]})
    assert message == {"role": "user", "content": "a\nb", "images": [PIXEL]}


def test_blocks_of_an_assistant() -> None:
    """Thoughts, words and calls are parts of one message; a signature proves something to Anthropic only."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    (message,) = _messages({"role": "assistant", "content": [thought, {"type": "text", "text": "so"}, USE]})
    assert message == {"role": "assistant", "content": "so", "thinking": "hm", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"content": "x"}, {"content": "x"}),
        ({}, {"content": ""}),
        ({"content": None}, {"content": ""}),
        ({"content": [{"type": "text", "text": "x"}, IMAGE]}, {"content": "x", "images": [PIXEL]}),
        ({"content": "x", "is_error": False}, {"content": "x"}),
        ({"content": "x", "is_error": True}, {"content": "Error:\nx"}),
        ({"is_error": True}, {"content": "Error:"}),
    ],
)
def test_a_result_is_a_message_of_its_own(more: Json, message: Json) -> None:
    """With the tool's name, which Ollama wants, and the call's id, which OpenAI wants; an error says that it is one."""
    result = {"type": "tool_result", "tool_use_id": "toolu_1", **more}
    found = _messages({"role": "assistant", "content": [USE]}, {"role": "user", "content": [result]})
    assert found[1:] == [{"role": "tool", **message, "tool_call_id": "toolu_1", "tool_name": "f"}]


def test_results_come_before_what_the_user_adds() -> None:
    """They belong to the calls before them, wherever the blocks stand."""
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
    content = [{"type": "text", "text": "and?"}, result]
    found = _messages({"role": "assistant", "content": [USE]}, {"role": "user", "content": content})
    assert [message["role"] for message in found] == ["assistant", "tool", "user"]
    assert _messages({"role": "user", "content": []}) == [{"role": "user", "content": ""}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "document", "source": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [USE]}, "messages[0].content[0].type"),
        ({"role": "system", "content": [IMAGE]}, "messages[0].content[0].type"),
        ({"role": "assistant", "content": [IMAGE]}, "messages[0].content[0].type"),
        ({"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}, "messages[0].content[0].type"),
        ({"role": "assistant", "content": [{"type": "server_tool_use"}]}, "messages[0].content[0].type"),
        ({"role": "assistant", "content": [{**USE, "input": "x"}]}, "messages[0].content[0].input"),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "input": {}}]},
            "messages[0].content[0].name",
        ),
        ({"role": "user", "content": [{"type": "image"}]}, "messages[0].content[0].source"),
        (
            {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]},
            "messages[0].content[0].source.type",
        ),
        (
            {"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]},
            "messages[0].content[0].source.data",
        ),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "?"}]},
            "messages[0].content[0].tool_use_id",
        ),
        ({"role": "user", "content": "x", "name": "y"}, "messages[0].name"),
        ("hi", "messages[0]"),
    ],
)
def test_what_is_wrong_in_a_message_is_named(message: object, param: str) -> None:
    """The error says where it stands."""
    assert _refused(messages=[message]) == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"system": 5}, "system"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"tools": {"a": 1}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "type": "web_search_20250305"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "must"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": ["enabled"]}}, "thinking.type"),
        ({"output_config": 5}, "output_config"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"effort": ["low"]}}, "output_config.effort"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"effort": "max"}, "thinking": {"type": "disabled"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": {"type": "grammar", "schema": {"a": 1}}}}, "output_config.format.type"),
    ],
)
def test_what_is_wrong_in_a_request_is_named(fields: Json, param: str) -> None:
    """The error says which field it is."""
    assert _refused(**fields) == param


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"model": 5}', b'{"model": "m", "stream": 1}', b"{"])
def test_bodies_that_make_no_sense(body: bytes) -> None:
    """They are the caller's fault."""
    with pytest.raises(InvalidRequest):
        CLIENT.parse(MESSAGES, body)


_WORDS = [
    "type",
    "role",
    "content",
    "text",
    "name",
    "input",
    "id",
    "source",
    "tool_use",
    "tool_result",
    "user",
    "image",
]
_ATOMS = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(_WORDS)
_ANYTHING = st.recursive(
    _ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=3),
    max_leaves=8,
)
_BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "thinking", "tool_use", "tool_result"])},
    optional=dict.fromkeys(("text", "source", "thinking", "id", "name", "input", "tool_use_id", "content"), _ANYTHING),
)
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.lists(_BLOCK, max_size=3) | _ANYTHING}
)
_FIELDS = st.fixed_dictionaries(
    {"messages": st.lists(_MESSAGE, max_size=3) | _ANYTHING},
    optional=dict.fromkeys(
        ("system", "tools", "tool_choice", "thinking", "output_config", "max_tokens", "stop_sequences"), _ANYTHING
    ),
)


@given(_FIELDS)
def test_whatever_comes_is_understood_or_refused(fields: Json) -> None:
    """No body makes the translation itself fail; what is understood can be put to servers of either API, or is refused."""
    body = json.dumps({**BASE, **fields}).encode()
    with contextlib.suppress(InvalidRequest):
        parsed = CLIENT.parse(MESSAGES, body)
        for dialect in DIALECTS.values():
            with contextlib.suppress(InvalidRequest):
                dialect.instance.encode(CHAT, parsed.params).body()


def test_tools() -> None:
    """A tool is a function with the schema under another name; one without parameters has an empty one."""
    assert _params(tools=[TOOL])["tools"] == [{"type": "function", "function": FUNCTION}]
    empty = {"name": "f", "input_schema": {}}
    assert _params(tools=[empty])["tools"][0]["function"] == {"name": "f", "parameters": {}}


@pytest.mark.parametrize(
    ("choice", "names", "forced"),
    [
        (None, ["f", "g"], None),
        ({"type": "auto"}, ["f", "g"], None),
        ({"type": "auto", "disable_parallel_tool_use": False}, ["f", "g"], None),
        ({"type": "any"}, ["f", "g"], "required"),
        ({"type": "tool", "name": "g"}, ["g"], "required"),
        ({"type": "none"}, [], None),
    ],
)
def test_tool_choices(choice: object, names: list[str], forced: str | None) -> None:
    """None is the same as no tools, and one tool that must be called the same as no other and a call that must be."""
    params = _params(tools=[TOOL, OTHER], tool_choice=choice)
    assert [tool["function"]["name"] for tool in params.get("tools", ())] == names
    assert params.get("tool_choice") == forced


def test_a_forced_call_reaches_an_openai_server_and_is_refused_by_ollama() -> None:
    """Ollama would skip the field without a word."""
    params = _params(tools=[TOOL], tool_choice={"type": "any"})
    assert DIALECTS["openai"].instance.encode(CHAT, params).payload["tool_choice"] == "required"
    with pytest.raises(InvalidRequest, match="Ollama") as caught:
        DIALECTS["ollama"].instance.encode(CHAT, params)
    assert caught.value.param == "tool_choice"
    with pytest.raises(InvalidRequest, match="'auto', 'none' or 'required'"):
        DIALECTS["openai"].instance.encode(CHAT, {**params, "tool_choice": {"type": "function"}})


@pytest.mark.parametrize(
    ("thinking", "effort", "think"),
    [
        (None, None, None),
        (None, "high", None),
        ({"type": "disabled"}, None, False),
        ({"type": "enabled", "budget_tokens": 2048}, None, True),
        ({"type": "enabled", "budget_tokens": 2048}, "low", "low"),
        ({"type": "enabled", "budget_tokens": 2048, "display": "summarized"}, "high", "high"),
        ({"type": "adaptive"}, None, None),
        ({"type": "adaptive"}, "high", None),
        ({"type": "adaptive"}, "medium", "medium"),
        ({"type": "adaptive"}, "max", "high"),
    ],
)
def test_thinking(thinking: object, effort: str | None, think: object) -> None:
    """Whether a model thinks, and how much; what leaves it to the model leaves it out."""
    assert _params(thinking=thinking, output_config={"effort": effort}).get("think") == think


def test_an_output_format() -> None:
    """A schema stands for itself."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert _params(output_config={"format": {"type": "json_schema", "schema": schema}})["format"] == schema


def test_counting_takes_the_same_conversation() -> None:
    """All but what belongs to the answer, which is refused there as in Anthropic's own API."""
    body = {"model": "m", "messages": HI, "system": "s", "tools": [TOOL], "thinking": {"type": "disabled"}}
    parsed = CLIENT.parse(COUNT, json.dumps(body).encode())
    assert (parsed.method, parsed.stream) == (COUNT_TOKENS, False)
    assert parsed.params == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, *HI],
        "tools": [{"type": "function", "function": FUNCTION}],
        "think": False,
    }
    assert CLIENT.answer(parsed, {"model": "m", "input_tokens": 5}) == b'{"input_tokens":5}'
    with pytest.raises(InvalidRequest, match="unknown field 'max_tokens'"):
        CLIENT.parse(COUNT, json.dumps({**body, "max_tokens": 5}).encode())


# -- answers -------------------------------------------------------------------------------------------------------


def test_a_whole_answer() -> None:
    """Thoughts, words and calls are blocks, and the counts are Anthropic's."""
    calls = [CALL, {"function": {"name": "g"}}]
    counts = {"prompt_eval_count": 3, "eval_count": 4}
    answer = final(CHAT, "m", NOW, reason="stop", text="so", thinking="hm", tool_calls=calls, counts=counts)
    assert _whole(answer) == {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "so"},
            USE,
            {"type": "tool_use", "id": "toolu_7", "name": "g", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 4,
        },
    }


@pytest.mark.parametrize(
    ("reason", "calls", "expected"),
    [
        ("stop", [], "end_turn"),
        ("", [], "end_turn"),
        ("stop", [CALL], "tool_use"),
        ("length", [], "max_tokens"),
        ("length", [CALL], "max_tokens"),
        ("content_filter", [], "refusal"),
    ],
)
def test_stop_reasons(reason: str, calls: list[Json], expected: str) -> None:
    """In Anthropic's words, whole and in parts."""
    assert _whole(final(CHAT, "m", NOW, reason=reason, tool_calls=calls))["stop_reason"] == expected
    parts = [part(CHAT, "m", NOW, tool_calls=calls)] if calls else []
    assert _streamed(*parts, final(CHAT, "m", NOW, reason=reason))[-2]["delta"]["stop_reason"] == expected


@pytest.mark.parametrize("name", ["stop_reason", "matched_stop"])
def test_the_stop_sequence_is_told_where_it_is_known(name: str) -> None:
    """Both vLLM and SGLang tell the text that ended an answer, and a number where it was a token of the model's own."""
    instance, params = DIALECTS["openai"].instance, {"model": "m", "messages": [], "options": {"stop": ["END"]}}
    for found, reason, sequence in (("END", "stop_sequence", "END"), (2, "end_turn", None), (None, "end_turn", None)):
        choice = {"index": 0, "finish_reason": "stop", name: found}
        body = json.dumps({"choices": [{**choice, "message": {"content": "x"}}]}).encode()
        answer = instance.decode_answer(CHAT, params, body)
        whole = _whole(answer)
        assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
        decoder = instance.stream_decoder(CHAT, params)
        chunk = json.dumps({"choices": [{**choice, "delta": {"content": "x"}}]})
        parts = decoder.feed(f"data: {chunk}\n\ndata: [DONE]\n\n".encode())
        assert _streamed(*parts)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
        # Ollama tells nothing of it.
        client = DIALECTS["ollama"].client
        asked = client.parse(client.endpoints["/api/chat"], b'{"model":"m"}')
        told = [json.loads(client.answer(asked, answer)), json.loads(client.stream_encoder(asked).part(parts[-1]))]
        assert not any("stop_sequence" in one for one in told)
    called = {**final(CHAT, "m", NOW, reason="stop", tool_calls=[CALL]), "stop_sequence": "END"}
    assert (_whole(called)["stop_reason"], _whole(called)["stop_sequence"]) == ("tool_use", None)


def test_an_answer_without_words_has_no_block() -> None:
    """Whole and in parts; a ping needs a block to come after."""
    nothing = final(CHAT, "m", NOW, reason="stop")
    assert _whole(nothing)["content"] == []
    assert [event["type"] for event in _streamed(nothing)] == ["message_start", "message_delta", "message_stop"]


def test_the_events_of_a_stream() -> None:
    """Each block is opened, filled and closed before the next; a ping follows the first opening; counts come last."""
    events = _streamed(
        part(CHAT, "m", NOW, thinking="h"),
        part(CHAT, "m", NOW, thinking="m"),
        part(CHAT, "m", NOW, text="s"),
        part(CHAT, "m", NOW, text="o", tool_calls=[CALL, {"function": {"name": "g", "arguments": {}}}]),
        part(CHAT, "m", NOW),
        final(CHAT, "m", NOW, reason="stop", counts={"prompt_eval_count": 3, "eval_count": 4}),
    )
    assert events.pop(0)["message"]["usage"]["output_tokens"] == 0

    def opened(index: int, block: Json) -> Json:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, kind: str, name: str, value: str) -> Json:
        return {"type": "content_block_delta", "index": index, "delta": {"type": f"{kind}_delta", name: value}}

    usage = {"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 4}
    assert events == [
        opened(0, {"type": "thinking", "thinking": "", "signature": ""}),
        {"type": "ping"},
        delta(0, "thinking", "thinking", "h"),
        delta(0, "thinking", "thinking", "m"),
        {"type": "content_block_stop", "index": 0},
        opened(1, {"type": "text", "text": ""}),
        delta(1, "text", "text", "s"),
        delta(1, "text", "text", "o"),
        {"type": "content_block_stop", "index": 1},
        opened(2, {**USE, "input": {}}),
        delta(2, "input_json", "partial_json", '{"a":1}'),
        {"type": "content_block_stop", "index": 2},
        opened(3, {"type": "tool_use", "id": "toolu_7", "name": "g", "input": {}}),
        delta(3, "input_json", "partial_json", "{}"),
        {"type": "content_block_stop", "index": 3},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]


def _put_together(events: list[Any]) -> list[Json]:
    """The blocks that a client makes of a stream; each event must fit to those before it."""
    blocks: list[Json] = []
    pieces: list[str] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
            pieces = []
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            pieces.append(next(value for name, value in event["delta"].items() if name != "type"))
        elif event["type"] == "content_block_stop":
            assert event["index"] == len(blocks) - 1
            name = {"text": "text", "thinking": "thinking", "tool_use": "input"}[blocks[-1]["type"]]
            blocks[-1][name] = json.loads("".join(pieces)) if name == "input" else "".join(pieces)
    return blocks


@pytest.mark.parametrize(
    ("api", "whole", "stream"),
    [
        ("openai", "llamacpp/chat", "llamacpp/chat_stream"),
        ("openai", "llamacpp/chat_reasoning", "llamacpp/chat_reasoning_stream"),
        ("openai", "llamacpp/chat_tool_call", "llamacpp/chat_tool_call_stream"),
        ("ollama", "ollama/chat", "ollama/chat_stream"),
        ("ollama", "ollama/chat_thinking", "ollama/chat_thinking_stream"),
        ("ollama", "ollama/chat_tool_call", "ollama/chat_tool_call_stream"),
    ],
)
def test_what_servers_answer(recorded: Callable[[str], Any], api: str, whole: str, stream: str) -> None:
    """Recorded answers of real servers give the same kinds of blocks, and the same reason, whole and in parts."""
    params, instance = {"model": "m", "messages": HI}, DIALECTS[api].instance
    message = _whole(instance.decode_answer(CHAT, params, recorded(whole).body))
    decoder = instance.stream_decoder(CHAT, params)
    events = _streamed(*decoder.feed(recorded(stream).body + b"\n\n"), *decoder.close())
    assert decoder.finished
    blocks = _put_together(events)
    assert [block["type"] for block in blocks] == [block["type"] for block in message["content"]] != []
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"]
    assert events[-2]["usage"]["output_tokens"] > 0
    for found, expected in zip(blocks, message["content"], strict=True):
        assert found.keys() == expected.keys()
        assert found.get("name") == expected.get("name")
        assert found.get("text") or found.get("thinking") or isinstance(found.get("input"), dict)


def test_a_stream_that_breaks_has_no_clean_end() -> None:
    """Without a final part nothing says that the message is complete; the error is an event of its own."""
    encoder = CLIENT.stream_encoder(CLIENT.parse(MESSAGES, json.dumps(BASE).encode()))
    encoder.part(part(CHAT, "m", NOW, text="s"))
    assert encoder.finish() == b""
    assert _events(encoder.error("gone", "lost")) == [
        {"type": "error", "error": {"type": "api_error", "message": "gone"}}
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_errors(status: int, kind: str) -> None:
    """Anthropic's envelope, with the type that goes with the status."""
    body = json.loads(CLIENT.error_body(status, "no", "code", "param"))
    assert body == {"type": "error", "error": {"type": kind, "message": "no"}}


def test_ids_are_random() -> None:
    """Of a message and of its calls; what a server has given an id keeps it."""
    ids = count()
    client = AnthropicClient(new_id=lambda: str(next(ids)))
    parsed = client.parse(MESSAGES, json.dumps(BASE).encode())
    answer = final(CHAT, "m", NOW, reason="stop", tool_calls=[{"function": {"name": "g"}}, CALL])
    found = json.loads(client.answer(parsed, answer))
    assert (found["id"], [block["id"] for block in found["content"]]) == ("msg_0", ["toolu_1", "toolu_1"])
    plain = AnthropicClient()
    assert json.loads(plain.answer(parsed, answer))["id"] != json.loads(plain.answer(parsed, answer))["id"]
