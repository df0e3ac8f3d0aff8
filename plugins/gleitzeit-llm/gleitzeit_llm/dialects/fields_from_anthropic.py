"""Anthropic requests on their way to canonical parameters: what becomes of each field.

The known fields are those of Anthropic's Messages API as its official Python client has them, with the sampling
settings that older clients send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import values
from gleitzeit_llm.dialects.fields import Table, ignored, mapped, refused, table, together, translate

if TYPE_CHECKING:
    from gleitzeit_llm.protocol import Json

TARGET = "a server of Ollama's or OpenAI's API"

_BOOKKEEPING = "it serves the bookkeeping of Anthropic's own platform"
_CACHING = "it tunes Anthropic's own cache; the answer is the same"
_ON_PLATFORM = "it is carried out on Anthropic's own platform"
_CALLER_DECIDES = "what a model sees of its tools is what the caller sends"

# What keeps the conversation as it is. Clients send it unasked.
_NO_EDITS: tuple[Json, ...] = ({"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]})

CACHE_CONTROL = ignored("cache_control", _CACHING)


def limit(value: object, param: str) -> int:
    """`max_tokens`. Zero, which fills Anthropic's cache without an answer, would mean no limit elsewhere."""
    tokens = values.integer(value, param)
    if tokens < 1:
        raise InvalidRequest(f"{param!r} must be at least 1", param=param)
    return tokens


def schema(value: object, param: str) -> Json:
    """`output_config.format` as `format`."""
    found: Json = {}
    translate(FORMAT, values.mapping(value, param), found, f"{param}.")
    if "schema" not in found:
        raise InvalidRequest(f"'{param}.schema' is required", param=f"{param}.schema")
    wanted: Json = found["schema"]
    return wanted


_ALWAYS = (
    mapped("model", "model", convert=values.text),
    together("messages", "messages"),
    together("system", "messages"),
    together("tools", "tools"),
    together("tool_choice", "tools", "tool_choice"),
    together("thinking", "think"),
    together("output_config", "format", "think"),
    CACHE_CONTROL,
    ignored("user_profile_id", _BOOKKEEPING),
    ignored("workspace_id", _BOOKKEEPING),
    refused("speed", "its models have one speed", ("standard",)),
    refused("context_management", "it does not edit the conversation; send what the model shall see", _NO_EDITS),
    refused("mcp_servers", _ON_PLATFORM),
)
MESSAGES = table(
    TARGET,
    *_ALWAYS,
    mapped("stream", "stream", convert=values.boolean),
    mapped("max_tokens", "options.num_predict", convert=limit),
    mapped("temperature", "options.temperature", convert=values.number),
    mapped("top_p", "options.top_p", convert=values.number),
    mapped("top_k", "options.top_k", convert=values.integer),
    mapped("stop_sequences", "options.stop", convert=values.texts),
    refused("container", _ON_PLATFORM),
    refused("inference_geo", "where a request is carried out is decided by the routes"),
    ignored("metadata", _BOOKKEEPING),
    ignored("service_tier", _BOOKKEEPING),
    ignored("diagnostics", _CACHING),
)
COUNT_TOKENS = table(TARGET, *_ALWAYS)
TOOL = table(
    TARGET,
    mapped("name", "name", convert=values.text),
    mapped("description", "description", convert=values.text),
    mapped("input_schema", "parameters", convert=values.mapping),
    refused("type", "only tools that the caller carries out exist there", ("custom",)),
    refused("strict", "it does not promise to keep to a tool's schema", (False,)),
    refused("defer_loading", _CALLER_DECIDES, (False,)),
    refused("input_examples", f"{_CALLER_DECIDES}; put examples into the description"),
    refused("allowed_callers", "tools are called by the model only", (["direct"],)),
    ignored("eager_input_streaming", "in which parts the input comes does not change it"),
    CACHE_CONTROL,
)
TOOL_CHOICE = table(
    TARGET,
    together("type", "tools", "tool_choice"),
    together("name", "tools"),
    refused("disable_parallel_tool_use", "a model there decides how many calls it makes", (False,)),
)
THINKING = table(
    TARGET,
    together("type", "think"),
    refused("display", "thoughts are given as the model has them", ("summarized",)),
    ignored("budget_tokens", "it is a target for the model, not a limit; 'max_tokens' bounds thoughts and answer"),
)
OUTPUT_CONFIG = table(
    TARGET,
    mapped("format", "format", convert=schema),
    together("effort", "think"),
)
FORMAT = table(
    TARGET,
    mapped("schema", "schema", convert=values.mapping),
    refused("type", "an answer there follows a JSON schema or nothing", ("json_schema",)),
)

TABLES: dict[str, Table] = {
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
}
