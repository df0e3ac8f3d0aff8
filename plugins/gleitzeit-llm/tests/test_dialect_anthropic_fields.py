"""The tables of Anthropic's API: each field is mapped, refused by name, or ignored for a reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import CLIENTS, fields_from_anthropic, messages_from_anthropic
from gleitzeit_llm.dialects.fields import Fate

from .tables import check_complete, check_refused, has, rows

if TYPE_CHECKING:
    from gleitzeit_llm.dialects.fields import Table

pytestmark = pytest.mark.fidelity

CLIENT = CLIENTS["anthropic"]
HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}
IMAGE = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
USE = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
CACHE = {"type": "ephemeral"}
ADAPTIVE = {"thinking": {"type": "adaptive"}}

# A value for each field of a request, and what else it needs to mean anything.
FIELDS: dict[str, Any] = {
    "model": "other",
    "messages": [*HI, *HI],
    "system": "s",
    "tools": [TOOL],
    "tool_choice": {"type": "any"},
    "thinking": {"type": "disabled"},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"},
    "cache_control": CACHE,
    "user_profile_id": "x",
    "workspace_id": "x",
    "speed": "fast",
    "context_management": {"edits": [{"type": "x"}]},
    "mcp_servers": [{"url": "x"}],
    "stream": True,
    "max_tokens": 3,
    "temperature": 0.25,
    "top_p": 0.5,
    "top_k": 3,
    "stop_sequences": ["x"],
    "container": "x",
    "inference_geo": "eu",
    "metadata": {"user_id": "x"},
    "service_tier": "auto",
    "diagnostics": {"previous_message_id": "x"},
}
NEEDS: dict[str, dict[str, Any]] = {"tool_choice": {"tools": [TOOL]}, "output_config": ADAPTIVE}
# Where the fields of the other tables stand: how a request is made of such an object, and one without anything extra.
INNER: dict[str, tuple[Table, str, dict[str, Any]]] = {
    "tool": (fields_from_anthropic.TOOL, "tools[0].", TOOL),
    "tool_choice": (fields_from_anthropic.TOOL_CHOICE, "tool_choice.", {"type": "auto"}),
    "thinking": (fields_from_anthropic.THINKING, "thinking.", {"type": "enabled"}),
    "output_config": (fields_from_anthropic.OUTPUT_CONFIG, "output_config.", {}),
    "format": (
        fields_from_anthropic.FORMAT,
        "output_config.format.",
        {"type": "json_schema", "schema": {"type": "object"}},
    ),
    "message": (messages_from_anthropic.MESSAGE, "messages[0].", HI[0]),
    "text": (messages_from_anthropic.TEXT, "messages[0].content[0].", {"type": "text", "text": "x"}),
    "image": (messages_from_anthropic.IMAGE, "messages[0].content[0].", {"type": "image", "source": IMAGE}),
    "source": (messages_from_anthropic.SOURCE, "messages[0].content[0].source.", IMAGE),
    "thoughts": (
        messages_from_anthropic.THINKING,
        "messages[0].content[0].",
        {"type": "thinking", "thinking": "x", "signature": "s"},
    ),
    "tool_use": (messages_from_anthropic.TOOL_USE, "messages[0].content[0].", USE),
    "tool_result": (
        messages_from_anthropic.TOOL_RESULT,
        "messages[1].content[0].",
        {"type": "tool_result", "tool_use_id": "1", "content": "x"},
    ),
}
VALUES: dict[tuple[str, str], Any] = {
    ("tool", "name"): "g",
    ("tool", "description"): "d",
    ("tool", "input_schema"): {"type": "object", "properties": {"a": {}}},
    ("tool", "type"): "bash_20250124",
    ("tool", "strict"): True,
    ("tool", "defer_loading"): True,
    ("tool", "input_examples"): [{"a": 1}],
    ("tool", "allowed_callers"): ["code_execution_20250825"],
    ("tool", "eager_input_streaming"): True,
    ("tool_choice", "type"): "none",
    ("tool_choice", "disable_parallel_tool_use"): True,
    ("thinking", "type"): "disabled",
    ("thinking", "display"): "omitted",
    ("thinking", "budget_tokens"): 2048,
    ("output_config", "format"): {"type": "json_schema", "schema": {"type": "object"}},
    ("output_config", "effort"): "low",
    ("format", "schema"): {"type": "array"},
    ("format", "type"): "grammar",
    ("message", "role"): "assistant",
    ("message", "content"): "other",
    ("text", "text"): "other",
    ("text", "citations"): [{"type": "char_location"}],
    ("image", "source"): {**IMAGE, "data": "R0lGODlh"},
    ("image", "transformations"): [{"type": "crop"}],
    ("source", "type"): "url",
    ("source", "data"): "R0lGODlh",
    ("source", "media_type"): "image/gif",
    ("thoughts", "thinking"): "other",
    ("thoughts", "signature"): "other",
    ("tool_use", "id"): "2",
    ("tool_use", "name"): "g",
    ("tool_use", "input"): {"a": 1},
    ("tool_use", "caller"): {"type": "code_execution_20250825"},
    ("tool_use", "toolset_name"): "browser",
    ("tool_result", "tool_use_id"): "2",
    ("tool_result", "content"): "other",
    ("tool_result", "is_error"): True,
    ("tool_result", "toolset_name"): "browser",
}


def _parsed(where: str, extra: dict[str, Any]) -> Any:  # noqa: ANN401 - compared as a whole
    base = {"model": "m", "messages": HI} | ({} if where.endswith("count_tokens") else {"max_tokens": 9})
    return CLIENT.parse(CLIENT.endpoints[where], json.dumps({**base, **extra}).encode())


def _with(where: str, name: str) -> tuple[Any, Any]:
    needed = NEEDS.get(name, {})
    return _parsed(where, needed), _parsed(where, {**needed, name: FIELDS[name]})


@pytest.mark.parametrize(("where", "name"), rows(fields_from_anthropic.TABLES, Fate.MAPPED))
def test_mapped_fields_reach_the_protocol(where: str, name: str) -> None:
    """A mapped field changes the canonical request, at the places its row names."""
    places = fields_from_anthropic.TABLES[where].rows[name].to
    assert places
    without, found = _with(where, name)
    assert found != without
    assert all(has(found.params, place) for place in places)


@pytest.mark.parametrize(("where", "name"), rows(fields_from_anthropic.TABLES, Fate.IGNORED))
def test_ignored_fields_change_nothing(where: str, name: str) -> None:
    """An ignored field is let through without a trace, and its row says why that is right."""
    assert fields_from_anthropic.TABLES[where].rows[name].why
    without, found = _with(where, name)
    assert found == without


@pytest.mark.parametrize(("where", "name"), rows(fields_from_anthropic.TABLES, Fate.REFUSED))
def test_refused_fields_are_named(where: str, name: str) -> None:
    """A refused field raises, with its name and the reason; its neutral values go through."""
    row = fields_from_anthropic.TABLES[where].rows[name]
    check_refused(row, name, lambda: _with(where, name))
    for value in row.neutral:
        assert _parsed(where, {name: value}) == _parsed(where, {})


@pytest.mark.parametrize("where", fields_from_anthropic.TABLES)
def test_unknown_fields_are_named(where: str) -> None:
    """A field no table knows is refused by name; null and empty ones count as absent."""
    with pytest.raises(InvalidRequest, match="unknown field 'wings'") as caught:
        _parsed(where, {"wings": 2})
    assert caught.value.param == "wings"
    nothing = {"wings": None, "container": {}, "tools": [], "tool_choice": None, "thinking": None, "system": None}
    assert _parsed(where, nothing) == _parsed(where, {})


def _request_with(kind: str, inner: dict[str, Any]) -> dict[str, Any]:
    """A request that has this object in its place."""
    both = {"role": "assistant", "content": [{**USE, "id": "1"}, {**USE, "id": "2", "name": "g"}]}
    return {
        "tool": {"tools": [inner]},
        "tool_choice": {"tools": [TOOL], "tool_choice": inner},
        "thinking": {"thinking": inner},
        "output_config": {"output_config": inner, **ADAPTIVE},
        "format": {"output_config": {"format": inner}},
        "message": {"messages": [inner]},
        "source": {"messages": [{"role": "user", "content": [{"type": "image", "source": inner}]}]},
        "tool_use": {"messages": [{"role": "assistant", "content": [inner]}]},
        "thoughts": {"messages": [{"role": "assistant", "content": [inner]}]},
        "tool_result": {"messages": [both, {"role": "user", "content": [inner]}]},
    }.get(kind, {"messages": [{"role": "user", "content": [inner]}]})


def _inner_rows() -> list[Any]:
    return [
        pytest.param(kind, name, id=f"{kind} {name}")
        for kind, (rules, _, _) in INNER.items()
        for name in rules.rows
        # The type of a block chooses its table; a name is part of the choice of a tool.
        if not (name == "type" and rules in messages_from_anthropic.BLOCKS.values())
        and (kind, name) != ("tool_choice", "name")
    ]


@pytest.mark.parametrize(("kind", "name"), _inner_rows())
def test_fields_inside_keep_to_their_table(kind: str, name: str) -> None:
    """Each row of what is inside a request is mapped, ignored or refused as it says."""
    rules, at, base = INNER[kind]
    row, value = rules.rows[name], CACHE if name == "cache_control" else VALUES[kind, name]
    without = _parsed("/v1/messages", _request_with(kind, base))
    changed = _request_with(kind, {**base, name: value})
    if row.fate is Fate.REFUSED:
        with pytest.raises(InvalidRequest) as caught:
            _parsed("/v1/messages", changed)
        assert caught.value.param == f"{at}{name}"
        assert row.why in caught.value.message
        for neutral in row.neutral:
            assert _parsed("/v1/messages", _request_with(kind, {**base, name: neutral})) == without
    else:
        assert (_parsed("/v1/messages", changed) == without) is (row.fate is Fate.IGNORED)


@pytest.mark.parametrize("kind", INNER)
def test_unknown_fields_inside_are_named(kind: str) -> None:
    """The error names the place."""
    _, at, base = INNER[kind]
    with pytest.raises(InvalidRequest, match="unknown field") as caught:
        _parsed("/v1/messages", _request_with(kind, {**base, "wings": 2}))
    assert caught.value.param == f"{at}wings"


def test_every_row_is_complete() -> None:
    """A refused or ignored row has a reason, a mapped one a place, and each has its own name as key."""
    check_complete([*fields_from_anthropic.TABLES.values(), *(rules for rules, _, _ in INNER.values())])
