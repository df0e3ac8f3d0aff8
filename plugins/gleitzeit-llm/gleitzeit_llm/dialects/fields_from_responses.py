"""Requests of OpenAI's Responses API on their way to canonical parameters: what becomes of each field.

The known fields are those that OpenAI's official Python client has, and the two penalties that Ollama's own
``/v1/responses`` tells of. Nothing is kept here between two requests, so what needs an answer to be stored is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import values
from gleitzeit_llm.dialects.fields import Table, ignored, mapped, refused, table, together, translate

if TYPE_CHECKING:
    from gleitzeit_llm.protocol import Json

TARGET = "a server of Ollama's or OpenAI's API"

_BOOKKEEPING = "it serves the bookkeeping of OpenAI's own platform"
_CACHING = "it tunes OpenAI's own cache; the answer is the same"
_ON_PLATFORM = "it is carried out on OpenAI's own platform"
_CALLER_DECIDES = "what a model sees of its tools is what the caller sends"
NO_STATE = "no response is stored here; send the whole conversation as 'input'"
"""Why everything that needs an earlier response is refused."""

LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = frozenset(
    (
        LOGPROBS,
        # Thoughts are told in the clear, there too.
        "reasoning.encrypted_content",
        # Of tools that are refused, and of what the caller has anyway.
        *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
        *("computer_call_output.output.image_url", "code_interpreter_call.outputs", "message.input_image.image_url"),
    )
)
# What OpenAI's levels are called elsewhere.
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def limit(value: object, param: str) -> int:
    """`max_output_tokens`. Zero would mean no limit elsewhere."""
    tokens = values.integer(value, param)
    if tokens < 1:
        raise InvalidRequest(f"{param!r} must be at least 1", param=param)
    return tokens


def included(value: object, param: str) -> bool | None:
    """`include`, of which only the log probabilities say something to a server."""
    wanted = values.texts(value, param)
    unknown = sorted({*wanted} - _INCLUDABLE)
    if unknown:
        raise InvalidRequest(f"{param!r} cannot have {unknown[0]!r}: it is unknown", param=param)
    return LOGPROBS in wanted or None


def think(value: object, param: str) -> bool | str | None:
    """`reasoning` as `think`."""
    found: Json = {}
    translate(REASONING, values.mapping(value, param), found, f"{param}.")
    return found.get("think")


def effort(value: object, param: str) -> bool | str:
    """`reasoning.effort`: the levels that exist elsewhere."""
    if value == "none":
        return False
    if not isinstance(value, str) or value not in _LEVELS:
        raise InvalidRequest(f"{param!r} must be one of none, {', '.join(_LEVELS)}", param=param)
    return _LEVELS[value]


def text_format(value: object, param: str) -> str | Json | None:
    """`text` as `format`."""
    found: Json = {}
    translate(TEXT, values.mapping(value, param), found, f"{param}.")
    return found.get("format")


def json_format(value: object, param: str) -> str | Json | None:
    """`text.format` as `format`."""
    given = values.mapping(value, param)
    kind = given.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidRequest(f"'{param}.type' must be 'text', 'json_object' or 'json_schema'", param=f"{param}.type")
    found: Json = {}
    translate(FORMAT, given, found, f"{param}.")
    if kind == "json_schema" and "schema" not in found:
        raise InvalidRequest(f"'{param}.schema' is required", param=f"{param}.schema")
    return {"text": None, "json_object": "json", "json_schema": found.get("schema")}[kind]


RESPONSES = table(
    TARGET,
    mapped("model", "model", convert=values.text),
    mapped("stream", "stream", convert=values.boolean),
    together("input", "messages"),
    together("instructions", "messages"),
    together("tools", "tools"),
    together("tool_choice", "tools", "tool_choice"),
    mapped("max_output_tokens", "options.num_predict", convert=limit),
    mapped("temperature", "options.temperature", convert=values.number),
    mapped("top_p", "options.top_p", convert=values.number),
    mapped("frequency_penalty", "options.frequency_penalty", convert=values.number),
    mapped("presence_penalty", "options.presence_penalty", convert=values.number),
    mapped("reasoning", "think", convert=think),
    mapped("text", "format", convert=text_format),
    mapped("include", "logprobs", convert=included),
    mapped("top_logprobs", "top_logprobs", convert=values.integer),
    together("metadata", "echo"),
    refused("parallel_tool_calls", "a model there decides how many calls it makes", (True,)),
    refused("truncation", "an input that is too long is not shortened here", ("disabled",)),
    refused("previous_response_id", NO_STATE),
    refused("conversation", NO_STATE),
    refused("store", NO_STATE, (False,)),
    refused("background", f"a response is given to who asked for it, and {NO_STATE}", (False,)),
    refused("background_options", f"a response is given to who asked for it, and {NO_STATE}"),
    refused("prompt", "prompts are not stored here; send it as 'instructions' and 'input'"),
    refused("context_management", "it does not edit the conversation; send what the model shall see"),
    refused("moderation", "it does not judge its input"),
    refused("image", _ON_PLATFORM),
    refused("access_programs", _ON_PLATFORM),
    ignored("max_tool_calls", "it bounds calls of tools that OpenAI's own platform carries out; there are none here"),
    ignored("stream_options", "padding against who watches the network is no part of the answer"),
    ignored("user", _BOOKKEEPING),
    ignored("service_tier", _BOOKKEEPING),
    ignored("safety_identifier", _BOOKKEEPING),
    *(ignored(f"prompt_cache_{name}", _CACHING) for name in ("key", "options", "retention")),
)
REASONING = table(
    TARGET,
    mapped("effort", "think", convert=effort),
    ignored("summary", "thoughts are told as the model has them"),
    ignored("generate_summary", "thoughts are told as the model has them"),
    refused("context", "what a model sees of earlier thoughts is what the caller sends", ("auto",)),
    refused("mode", "a model there has one way to think", ("standard",)),
)
TEXT = table(
    TARGET,
    mapped("format", "format", convert=json_format),
    refused("verbosity", "it has no such setting", ("medium",)),
)
FORMAT = table(
    TARGET,
    together("type", "format"),
    mapped("schema", "schema", convert=values.mapping),
    ignored("name", "a schema's name is a label"),
    ignored("description", "it is put into the prompt by OpenAI's own models only"),
    ignored("strict", "an answer follows its schema either way, as far as the server sees to it"),
)
TOOL = table(
    TARGET,
    refused("type", "only tools that the caller carries out, of type 'function', exist there", ("function",)),
    mapped("name", "name", convert=values.text),
    mapped("description", "description", convert=values.text),
    mapped("parameters", "parameters", convert=values.mapping),
    mapped("strict", "strict", convert=values.boolean),
    refused("defer_loading", _CALLER_DECIDES, (False,)),
    refused("allowed_callers", "tools are called by the model only", (["direct"],)),
    ignored("output_schema", "it says what a tool answers to who carries it out"),
)

TABLES: dict[str, Table] = {"/v1/responses": RESPONSES}
