"""The tables: each mapped field arrives, each refused one is refused by name, each ignored one changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import (
    DIALECTS,
    fields_from_openai,
    fields_to_openai,
    messages_from_openai,
    messages_to_openai,
)
from gleitzeit_llm.dialects.fields import Fate, mapped, refused, table, translate
from gleitzeit_llm.dialects.messages_from_openai import from_openai
from gleitzeit_llm.dialects.messages_to_openai import to_openai
from gleitzeit_llm.dialects.values import text
from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE

from .tables import check_complete, check_refused, has, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_llm.dialects.fields import Table

pytestmark = pytest.mark.fidelity

INSTANCE = DIALECTS["openai"].instance
CLIENT = DIALECTS["openai"].client
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
URL = f"data:image/png;base64,{PNG}"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
HI = [{"role": "user", "content": "hi"}]

# A value for each field of each table, and a request into which it is put.
TALK = {
    "model": "other",
    "stream": True,
    "keep_alive": 5,
    "truncate": True,
    "shift": True,
    "options": {"seed": 3},
    "format": SCHEMA,
    "think": "low",
    "logprobs": True,
    "top_logprobs": 2,
    "_debug_render_only": True,
    "width": 64,
    "height": 64,
    "steps": 3,
    "raw": True,
    "prompt": "other",
    "system": "be brief",
    "images": [PNG],
    "template": "{{ .Prompt }}",
    "context": [1, 2],
    "suffix": "end",
    "messages": [*HI, *HI],
    "tools": [TOOL],
    "tool_choice": "required",
    "input": ["a", "b"],
    "dimensions": 8,
}
OPTIONS = {
    **dict.fromkeys(fields_to_openai.OPTIONS.rows, 3),
    "stop": ["a", "b"],
    "temperature": 0.25,
    "use_mmap": True,
}
TO_OPENAI: dict[str, tuple[str, dict[str, Any]]] = {
    "llm/chat": (CHAT, {"model": "m", "messages": HI}),
    "llm/generate": (GENERATE, {"model": "m", "prompt": "hi"}),
    "llm/generate raw": (GENERATE, {"model": "m", "prompt": "hi", "raw": True}),
    "llm/embed": (EMBED, {"model": "m", "input": "hi"}),
    "options": (CHAT, {"model": "m", "messages": HI}),
}
# These depend on another field to mean anything.
NEEDS = {"top_logprobs": {"logprobs": True}, "tool_choice": {"tools": [TOOL]}}
FROM_OPENAI_BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": HI},
    "/v1/completions": {"model": "m", "prompt": "hi"},
    "/v1/embeddings": {"model": "m", "input": "hi"},
}
FROM_OPENAI = {
    "model": "other",
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "temperature": 0.25,
    "top_p": 0.5,
    "seed": 3,
    "stop": "end",
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "repeat_penalty": 1.1,
    "repetition_penalty": 1.1,
    "n": 2,
    "logit_bias": {"1": 5},
    "user": "u",
    "messages": [*HI, *HI],
    "tools": [TOOL],
    "tool_choice": "none",
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
    "reasoning": {"effort": "high"},
    "logprobs": True,
    "top_logprobs": 2,
    "parallel_tool_calls": False,
    "functions": [{}],
    "function_call": "auto",
    "modalities": ["audio"],
    "audio": {"voice": "x"},
    "web_search_options": {"a": 1},
    "moderation": {"a": 1},
    "verbosity": "low",
    "store": True,
    "prediction": {"type": "content", "content": "x"},
    "service_tier": "flex",
    "metadata": {"a": "b"},
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_options": {"a": 1},
    "prompt_cache_retention": "24h",
    "prompt": "other",
    "suffix": "end",
    "echo": True,
    "best_of": 2,
    "input": ["a", "b"],
    "dimensions": 8,
    "encoding_format": "base64",
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
OPENAI_CALL = {**CALL, "function": {"name": "f", "arguments": '{"a":1}'}}
MESSAGE = {
    "role": "assistant",
    "content": "other",
    "images": [PNG],
    "thinking": "hm",
    "reasoning": "hm",
    "reasoning_content": "hm",
    "refusal": "no",
    "function_call": {"name": "f"},
    "audio": {"id": "x"},
    "annotations": [{"type": "url_citation"}],
}


def _encoded(where: str, extra: dict[str, Any]) -> dict[str, Any]:
    """What an OpenAI server is sent for the base request of a table with one more field."""
    method, base = TO_OPENAI[where]
    params = {**base, "options": extra} if where == "options" else {**base, **extra}
    return INSTANCE.encode(method, params, stream=params.get("stream", False)).payload


def _to_openai(where: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    value = OPTIONS[name] if where == "options" else TALK[name]
    needed = NEEDS.get(name, {})
    return _encoded(where, needed), _encoded(where, {**needed, name: value})


def _parsed(where: str, extra: dict[str, Any]) -> Any:  # noqa: ANN401 - compared as a whole
    body = json.dumps({**FROM_OPENAI_BASE[where], **extra}).encode()
    return CLIENT.parse(CLIENT.endpoints[where], body)


def _from_openai(where: str, name: str) -> tuple[Any, Any]:
    value = 2 if (where, name) == ("/v1/completions", "logprobs") else FROM_OPENAI[name]
    needed = NEEDS.get(name, {})
    return _parsed(where, needed), _parsed(where, {**needed, name: value})


@pytest.mark.parametrize(("where", "name"), rows(fields_to_openai.TABLES, Fate.MAPPED))
def test_mapped_fields_reach_an_openai_server(where: str, name: str) -> None:
    """A mapped field changes what is sent, at the places its row names."""
    places = fields_to_openai.TABLES[where].rows[name].to
    assert places
    without, sent = _to_openai(where, name)
    # What every raw request says can make no difference between two of them.
    assert (sent != without) is ((where, name) != ("llm/generate raw", "raw"))
    assert all(has(sent, place) for place in places if not place.endswith("*"))


@pytest.mark.parametrize(("where", "name"), rows(fields_to_openai.TABLES, Fate.IGNORED))
def test_ignored_fields_change_nothing_there(where: str, name: str) -> None:
    """An ignored field is let through without a trace, and its row says why that is right."""
    assert fields_to_openai.TABLES[where].rows[name].why
    without, sent = _to_openai(where, name)
    assert sent == without


@pytest.mark.parametrize(("where", "name"), rows(fields_to_openai.TABLES, Fate.REFUSED))
def test_refused_fields_are_named_there(where: str, name: str) -> None:
    """A refused field raises, with its name and the reason; its neutral values go through."""
    row = fields_to_openai.TABLES[where].rows[name]
    param = f"options.{name}" if where == "options" else name
    check_refused(row, param, lambda: _to_openai(where, name))
    for value in row.neutral:
        assert _encoded(where, {name: value}) == _encoded(where, {})


@pytest.mark.parametrize(("where", "name"), rows(fields_from_openai.TABLES, Fate.MAPPED))
def test_mapped_fields_reach_the_protocol(where: str, name: str) -> None:
    """A mapped field of a caller changes the canonical request, at the places its row names."""
    places = fields_from_openai.TABLES[where].rows[name].to
    assert places
    without, found = _from_openai(where, name)
    assert found != without
    flags = {"include_usage": found.include_usage, "base64_vectors": found.base64_vectors}
    arrived = [place for place in places if has(found.params, place) or flags.get(place)]
    assert arrived == ([] if name == "tool_choice" else list(places))


@pytest.mark.parametrize(("where", "name"), rows(fields_from_openai.TABLES, Fate.IGNORED))
def test_ignored_fields_change_nothing_here(where: str, name: str) -> None:
    """An ignored field of a caller is let through without a trace, and its row says why that is right."""
    assert fields_from_openai.TABLES[where].rows[name].why
    without, found = _from_openai(where, name)
    assert found == without


@pytest.mark.parametrize(("where", "name"), rows(fields_from_openai.TABLES, Fate.REFUSED))
def test_refused_fields_are_named_here(where: str, name: str) -> None:
    """A refused field of a caller raises, with its name and the reason; its neutral values go through."""
    row = fields_from_openai.TABLES[where].rows[name]
    check_refused(row, name, lambda: _from_openai(where, name))
    for value in row.neutral:
        assert _parsed(where, {name: value}) == _parsed(where, {})


@pytest.mark.parametrize("where", TO_OPENAI)
def test_unknown_fields_are_named_on_the_way_out(where: str) -> None:
    """A field no table knows is refused by name, with the name of the other API."""
    with pytest.raises(InvalidRequest, match=r"unknown field '(options\.)?wings'.* an OpenAI server"):
        _encoded(where, {"wings": 2})


@pytest.mark.parametrize("where", FROM_OPENAI_BASE)
def test_unknown_fields_are_named_on_the_way_in(where: str) -> None:
    """The same for a caller's field."""
    with pytest.raises(InvalidRequest, match=r"unknown field 'wings'.* an Ollama server") as caught:
        _parsed(where, {"wings": 2})
    assert caught.value.param == "wings"


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_absent_values_are_let_through(nothing: object) -> None:
    """Null and empty lists and objects count as absent, for known, refused and unknown fields alike."""
    extra = {"tools": nothing, "template": nothing, "wings": nothing, "options": nothing}
    assert _encoded("llm/chat", extra) == _encoded("llm/chat", {})
    extra = {"logit_bias": nothing, "tools": nothing, "audio": nothing, "wings": nothing, "stop": nothing}
    assert _parsed("/v1/chat/completions", extra) == _parsed("/v1/chat/completions", {})


@pytest.mark.parametrize("wrong", [True, [1], {"a": 1}])
@pytest.mark.parametrize("name", [name for name, row in fields_to_openai.OPTIONS.rows.items() if row.convert])
def test_options_of_a_wrong_type_are_named(name: str, wrong: object) -> None:
    """An option that is no number (or, for `stop`, no strings) is refused by its full name."""
    with pytest.raises(InvalidRequest, match=rf"'options\.{name}") as caught:
        _encoded("options", {name: wrong})
    assert caught.value.param is not None
    assert caught.value.param.startswith(f"options.{name}")


@pytest.mark.parametrize("name", [name for name, row in fields_from_openai.CHAT.rows.items() if row.convert])
def test_fields_of_a_wrong_type_are_named(name: str) -> None:
    """A caller's field of a wrong type is refused by name."""
    wrong: object = [{"a": [1]}] if name != "model" else {"a": 1}
    with pytest.raises(InvalidRequest) as caught:
        _parsed("/v1/chat/completions", {name: wrong})
    assert caught.value.param is not None
    assert caught.value.param.startswith(name)


def _message_tables() -> list[Any]:
    out: dict[str, tuple[Table, Callable[[Any], Any]]] = {
        "to": (messages_to_openai.MESSAGE, to_openai),
        "from": (messages_from_openai.MESSAGE, from_openai),
    }
    return [pytest.param(*pair, id=name) for name, pair in out.items()]


@pytest.mark.parametrize(("rules", "convert"), _message_tables())
def test_the_fields_of_messages_keep_to_their_table(rules: Table, convert: Callable[[Any], Any]) -> None:
    """Each row of a message is mapped, ignored or refused as it says; the ones about tools have tests of their own."""
    base = {"role": "user", "content": "hi"}
    for name, row in rules.rows.items():
        if name not in MESSAGE:
            assert name in {"tool_calls", "tool_name", "tool_call_id", "name"}
            continue
        messages = [{**base, name: MESSAGE[name]}]
        if row.fate is Fate.REFUSED:
            with pytest.raises(InvalidRequest, match=name) as caught:
                convert(messages)
            assert caught.value.param == f"messages[0].{name}"
        else:
            assert (convert(messages) == convert([base])) is (row.fate is Fate.IGNORED)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": "x", "wings": 2}], "messages[0].wings"),
        ([{"role": "assistant", "tool_calls": [{**CALL, "wings": 2}]}], "messages[0].tool_calls[0].wings"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "wings": 2}}]}],
            "messages[0].tool_calls[0].function.wings",
        ),
    ],
)
def test_unknown_fields_inside_messages_are_named(messages: list[Any], param: str) -> None:
    """The error names the place, in both directions."""
    for convert in (to_openai, from_openai):
        with pytest.raises(InvalidRequest, match="unknown field") as caught:
            convert(messages)
        assert caught.value.param == param


def test_every_row_is_complete() -> None:
    """A refused or ignored row has a reason, a mapped one a place, and each has its own name as key."""
    tables = [*fields_to_openai.TABLES.values(), *fields_from_openai.TABLES.values()]
    for module in (messages_to_openai, messages_from_openai):
        tables += [module.MESSAGE, module.CALL, module.FUNCTION]
    check_complete(tables)


def test_a_row_may_name_two_places() -> None:
    """One field may go to several, and to places inside objects that are made on the way."""
    rules = table("x", mapped("a", "b.c", "b.d.e", convert=text), refused("z", "no"))
    target: dict[str, Any] = {}
    translate(rules, {"a": "v", "z": None}, target)
    assert target == {"b": {"c": "v", "d": {"e": "v"}}}
