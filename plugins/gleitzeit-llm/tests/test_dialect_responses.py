"""The dialect of OpenAI's Responses API: what clients ask."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import CLIENTS, fields_from_responses, messages_from_responses
from gleitzeit_llm.dialects.fields import Fate

from .tables import check_complete, check_refused, has

if TYPE_CHECKING:
    from gleitzeit_llm.dialects.fields import Table

pytestmark = pytest.mark.fidelity
CLIENT = CLIENTS["openai-responses"]
ENDPOINT = CLIENT.endpoints["/v1/responses"]
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
SCHEMA = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "x"}
PNG = "data:image/png;base64,iVBORw0KGgo="
GIF = "data:image/gif;base64,R0lGODlh"
# A value for each field of a request, and what else it needs to mean anything.
FIELDS: dict[str, Any] = {
    "model": "other",
    "stream": True,
    "input": "other",
    "instructions": "be brief",
    "tools": [TOOL],
    "tool_choice": "required",
    "max_output_tokens": 3,
    "temperature": 0.25,
    "top_p": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "reasoning": {"effort": "low"},
    "text": {"format": SCHEMA},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "truncation": "auto",
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "store": True,
    "background": True,
    "background_options": {"x": 1},
    "prompt": {"id": "p"},
    "context_management": [{"type": "compaction"}],
    "moderation": {"model": "x"},
    "image": {"context_compression": "enabled"},
    "access_programs": {"cyber": "standard"},
    "max_tool_calls": 3,
    "stream_options": {"include_obfuscation": False},
    "user": "u",
    "service_tier": "flex",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_options": {"a": 1},
    "prompt_cache_retention": "24h",
}
NEEDS: dict[str, dict[str, Any]] = {
    "tool_choice": {"tools": [TOOL]},
    "top_logprobs": {"include": ["message.output_text.logprobs"]},
}
# Where the fields of the other tables stand: the place, and an object without anything extra.
INNER: dict[str, tuple[Table, str, dict[str, Any]]] = {
    "tool": (fields_from_responses.TOOL, "tools[0].", TOOL),
    "reasoning": (fields_from_responses.REASONING, "reasoning.", {}),
    "text": (fields_from_responses.TEXT, "text.", {}),
    "format": (fields_from_responses.FORMAT, "text.format.", SCHEMA),
    "message": (messages_from_responses.MESSAGE, "input[0].", {"role": "user", "content": "hi"}),
    "call": (messages_from_responses.CALL, "input[0].", CALL),
    "output": (messages_from_responses.OUTPUT, "input[2].", OUTPUT),
    "thoughts": (messages_from_responses.REASONING, "input[0].", {"type": "reasoning", "id": "r", "summary": []}),
    "words": (messages_from_responses.TEXT, "input[0].content[0].", {"type": "input_text", "text": "x"}),
    "refusal": (messages_from_responses.REFUSAL, "input[0].content[0].", {"type": "refusal", "refusal": "x"}),
    "picture": (messages_from_responses.IMAGE, "input[0].content[0].", {"type": "input_image", "image_url": PNG}),
}
VALUES: dict[tuple[str, str], Any] = {
    ("tool", "type"): "web_search",
    ("tool", "name"): "g",
    ("tool", "description"): "d",
    ("tool", "parameters"): {"type": "object", "properties": {"a": {}}},
    ("tool", "strict"): False,
    ("tool", "defer_loading"): True,
    ("tool", "allowed_callers"): ["programmatic"],
    ("tool", "output_schema"): {"type": "object"},
    ("reasoning", "effort"): "minimal",
    ("reasoning", "summary"): "auto",
    ("reasoning", "generate_summary"): "auto",
    ("reasoning", "context"): "all_turns",
    ("reasoning", "mode"): "pro",
    ("text", "format"): {"type": "json_object"},
    ("text", "verbosity"): "low",
    ("format", "type"): "json_object",
    ("format", "schema"): {"type": "array"},
    ("format", "name"): "y",
    ("format", "description"): "d",
    ("format", "strict"): True,
    ("message", "role"): "developer",
    ("message", "content"): "other",
    ("message", "phase"): "commentary",
    ("call", "call_id"): "2",
    ("call", "name"): "g",
    ("call", "arguments"): '{"a":1}',
    ("call", "namespace"): "n",
    ("output", "call_id"): "2",
    ("output", "output"): "other",
    ("thoughts", "content"): [{"type": "reasoning_text", "text": "hm"}],
    ("thoughts", "summary"): [{"type": "summary_text", "text": "hm"}],
    ("thoughts", "encrypted_content"): "x",
    ("words", "text"): "other",
    ("words", "annotations"): [{"type": "url_citation"}],
    ("words", "logprobs"): [{"token": "x", "logprob": -1}],
    ("refusal", "refusal"): "other",
    ("picture", "image_url"): GIF,
    ("picture", "file_id"): "file-1",
    ("picture", "detail"): "high",
    **{(kind, "id"): "x" for kind in ("message", "call", "output", "thoughts")},
    **{(kind, "status"): "completed" for kind in ("message", "call", "output", "thoughts")},
    **{(kind, "caller"): {"type": "program", "caller_id": "x"} for kind in ("call", "output")},
    **{(kind, "prompt_cache_breakpoint"): {"mode": "explicit"} for kind in ("words", "picture")},
}


def _parsed(extra: dict[str, Any]) -> Any:  # noqa: ANN401 - a Parsed
    return CLIENT.parse(ENDPOINT, json.dumps({"model": "m", "input": "hi", **extra}).encode())


def _with(name: str) -> tuple[Any, Any]:
    needed = NEEDS.get(name, {})
    return _parsed(needed), _parsed({**needed, name: FIELDS[name]})


def _rows(fate: Fate) -> list[str]:
    return [name for name, row in fields_from_responses.RESPONSES.rows.items() if row.fate is fate]


# -- the tables ----------------------------------------------------------------------------------------------------


def test_the_table_knows_all_that_the_official_client_sends() -> None:
    """Each parameter of the official client has a row, or is refused by its name: there are newer clients each week."""
    sent = {*get_type_hints(ResponseCreateParamsBase), "stream"}
    rows = fields_from_responses.RESPONSES.rows.keys()
    assert len(rows & sent) > 20
    for name in sent - rows:
        with pytest.raises(InvalidRequest, match=name):
            _parsed({name: {"x": 1}})


@pytest.mark.parametrize("name", _rows(Fate.MAPPED))
def test_mapped_fields_reach_the_protocol(name: str) -> None:
    """A mapped field changes the canonical request, or its answer, at the places its row names."""
    places = fields_from_responses.RESPONSES.rows[name].to
    without, found = _with(name)
    assert found != without
    assert all(has({**found.params, "echo": found.echo}, place) for place in places)


@pytest.mark.parametrize("name", _rows(Fate.IGNORED))
def test_ignored_fields_change_nothing(name: str) -> None:
    """An ignored field is let through without a trace in what a server is sent."""
    without, found = _with(name)
    assert found.params == without.params


@pytest.mark.parametrize("name", _rows(Fate.REFUSED))
def test_refused_fields_are_named(name: str) -> None:
    """A refused field raises, with its name and the reason; its neutral values go through."""
    row = fields_from_responses.RESPONSES.rows[name]
    check_refused(row, name, lambda: _with(name))
    for value in row.neutral:
        assert _parsed({name: value}).params == _parsed({}).params


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "store", "background", "prompt"])
def test_state_is_refused_on_sight(name: str) -> None:
    """What needs a stored response is refused before a request is put anywhere, also where bytes would pass."""
    body = {"model": "m", "input": "hi", name: FIELDS[name]}
    with pytest.raises(InvalidRequest, match="stored here") as caught:
        CLIENT.peek(ENDPOINT, json.dumps(body).encode())
    assert caught.value.param == name
    seen = CLIENT.peek(ENDPOINT, json.dumps({**body, name: None, "store": False, "max_output_tokens": 7}).encode())
    assert (seen.model, seen.stream, seen.max_output) == ("m", None, 7)


def _request_with(kind: str, inner: dict[str, Any]) -> dict[str, Any]:
    """A request that has this object in its place."""
    return {
        "tool": {"tools": [inner]},
        "reasoning": {"reasoning": inner},
        "text": {"text": inner},
        "format": {"text": {"format": inner}},
        "message": {"input": [inner]},
        "call": {"input": [inner]},
        "output": {"input": [CALL, {**CALL, "call_id": "2", "name": "g"}, inner]},
        "thoughts": {"input": [inner, {"role": "user", "content": "x"}]},
    }.get(kind, {"input": [{"role": "user", "content": [inner]}]})


def _inner_rows() -> list[Any]:
    kinds = (*messages_from_responses.ITEMS.values(), *messages_from_responses.PARTS.values())
    return [
        pytest.param(kind, name, id=f"{kind} {name}")
        for kind, (rules, _, _) in INNER.items()
        for name in rules.rows
        if not (name == "type" and rules in kinds)  # It chooses the table.
    ]


@pytest.mark.parametrize(("kind", "name"), _inner_rows())
def test_fields_inside_keep_to_their_table(kind: str, name: str) -> None:
    """Each row of what is inside a request is mapped, ignored or refused as it says."""
    rules, at, base = INNER[kind]
    row = rules.rows[name]
    without = _parsed(_request_with(kind, base)).params
    changed = _request_with(kind, {**base, name: VALUES[kind, name]})
    if row.fate is Fate.REFUSED:
        with pytest.raises(InvalidRequest) as caught:
            _parsed(changed)
        assert caught.value.param == f"{at}{name}"
        assert row.why in caught.value.message
        for neutral in row.neutral:
            assert _parsed(_request_with(kind, {**base, name: neutral})).params == without
    else:
        assert (_parsed(changed).params == without) is (row.fate is Fate.IGNORED)


@pytest.mark.parametrize("kind", INNER)
def test_unknown_fields_inside_are_named(kind: str) -> None:
    """The error names the place."""
    _, at, base = INNER[kind]
    with pytest.raises(InvalidRequest, match="unknown field") as caught:
        _parsed(_request_with(kind, {**base, "wings": 2}))
    assert caught.value.param == f"{at}wings"


def test_every_row_is_complete() -> None:
    """A refused or ignored row has a reason, a mapped one a place, and each has its own name as key."""
    check_complete((fields_from_responses.RESPONSES, *(rules for rules, _, _ in INNER.values())))


# -- items ---------------------------------------------------------------------------------------------------------


def test_items_of_one_turn_are_one_message() -> None:
    """Thoughts, words and calls that follow one another are what the model said at once; what is out of order is not."""
    thoughts = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    words = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look"}]}
    second = {**CALL, "call_id": "2"}
    results = [OUTPUT, {**OUTPUT, "call_id": "2", "output": [{"type": "input_text", "text": "y"}]}]
    found = _parsed({"input": [thoughts, words, CALL, second, *results, words, words]}).params["messages"]
    calls = [{"id": one, "function": {"name": "f", "arguments": {}}} for one in ("1", "2")]
    assert found == [
        {"role": "assistant", "content": "I look", "thinking": "hm", "tool_calls": calls},
        {"role": "tool", "content": "x", "tool_call_id": "1", "tool_name": "f"},
        {"role": "tool", "content": "y", "tool_call_id": "2", "tool_name": "f"},
        {"role": "assistant", "content": "I look"},
        {"role": "assistant", "content": "I look"},
    ]


def test_images_come_with_a_message_and_with_a_result() -> None:
    """Their base64 stands where the protocol has images."""
    picture = {"type": "input_image", "image_url": PNG}
    asked = {
        "role": "user",
        "content": [{"type": "input_text", "text": "a"}, picture, {"type": "input_text", "text": "b"}],
    }
    found = _parsed({"input": [asked, CALL, {**OUTPUT, "output": [picture]}]}).params["messages"]
    assert found[0] == {"role": "user", "content": "a\nb", "images": ["iVBORw0KGgo="]}
    assert (found[2]["content"], found[2]["images"]) == ("", ["iVBORw0KGgo="])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"id": "x"}]}, "input[0].id"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [OUTPUT]}, "input[0].call_id"),
        ({"input": [CALL, {"type": "function_call_output", "call_id": "1"}]}, "input[1].output"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{**CALL, "arguments": "[1]"}]}, "input[0].arguments"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"instructions": 5}, "instructions"),
        ({"metadata": 5}, "metadata"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"include": ["wings"]}, "include"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "x", "tools": []}}, "tool_choice.mode"),
    ],
)
def test_what_is_malformed_is_named(more: dict[str, Any], param: str) -> None:
    """The error names the place."""
    with pytest.raises(InvalidRequest) as caught:
        _parsed(more)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("choice", "tools", "wanted"),
    [
        (None, ["f", "g"], None),
        ("auto", ["f", "g"], None),
        ("none", None, None),
        ("required", ["f", "g"], "required"),
        ({"type": "function", "name": "g"}, ["g"], "required"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, ["f"], None),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"name": "f"}]}, ["f"], "required"),
    ],
)
def test_the_choice_of_tools(choice: object, tools: list[str] | None, wanted: str | None) -> None:
    """Tools that may not be called are not sent, and one that must be called is a call that must be made."""
    params = _parsed({"tools": [TOOL, {**TOOL, "name": "g"}], "tool_choice": choice}).params
    found = params.get("tools")
    assert (found and [tool["function"]["name"] for tool in found]) == tools
    assert params.get("tool_choice") == wanted


# -- anything ------------------------------------------------------------------------------------------------------

_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_KINDS = st.sampled_from([*messages_from_responses.ITEMS, *messages_from_responses.PARTS, "item_reference", "x"])
_PARTS = st.lists(
    st.fixed_dictionaries({"type": _KINDS | _ANYTHING}, optional={"text": _ANYTHING, "image_url": _ANYTHING}),
    max_size=3,
)
_ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": _KINDS | _ANYTHING,
        "role": st.sampled_from(["user", "assistant", "developer", "tool"]) | _ANYTHING,
        "content": _PARTS | _ANYTHING,
        "summary": _PARTS | _ANYTHING,
        "output": _PARTS | _ANYTHING,
        "call_id": st.sampled_from(["1", "2"]) | _ANYTHING,
        "name": st.sampled_from(["f", "g"]) | _ANYTHING,
        "arguments": st.sampled_from(["{}", "[]", "x"]) | _ANYTHING,
    },
)
_FIELDS = st.fixed_dictionaries(
    {"input": st.lists(_ITEM, max_size=4) | _ANYTHING},
    optional={
        **dict.fromkeys(fields_from_responses.RESPONSES.rows.keys() - {"model", "stream", "input", "tools"}, _ANYTHING),
        "tools": st.lists(st.dictionaries(st.sampled_from([*fields_from_responses.TOOL.rows]), _ANYTHING), max_size=2),
    },
)


@given(_FIELDS)
def test_whatever_is_sent_is_understood_or_refused(fields: dict[str, Any]) -> None:
    """There is a canonical request, which has a form in JSON, or an error that is the caller's."""
    try:
        parsed = _parsed(fields)
    except InvalidRequest as error:
        assert error.message
        return
    assert json.loads(json.dumps(parsed.params)) == parsed.params
    answer = {"model": "m", "message": {"content": "x"}, "done": True, "done_reason": "stop"}
    assert json.loads(CLIENT.answer(parsed, answer))["output"]
    assert CLIENT.stream_encoder(parsed).part(answer).count(b"event: ") == 9
