"""The dialect of Anthropic's Messages API: what clients ask."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import CLIENTS, DIALECTS
from gleitzeit_llm.protocol import CHAT, COUNT_TOKENS

from .anthropic_samples import BASE, CALL, CLIENT, HI, MESSAGES, USE

if TYPE_CHECKING:
    from gleitzeit_llm.protocol import Json

pytestmark = pytest.mark.fidelity
COUNT = CLIENT.endpoints["/v1/messages/count_tokens"]
# What Anthropic's API does without being told, and Ollama's models may not.
DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "num_predict": 9}
TOOL = {"name": "f", "description": "does", "input_schema": {"type": "object"}}
OTHER = {"name": "g", "input_schema": {"type": "object"}, "type": "custom"}
FUNCTION = {"name": "f", "description": "does", "parameters": {"type": "object"}}
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
