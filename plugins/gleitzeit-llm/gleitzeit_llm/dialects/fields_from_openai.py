"""OpenAI requests on their way to canonical parameters: what becomes of each field.

The known fields are those of OpenAI's API as its official Python client has them, and the extensions of llama.cpp
and vLLM that Ollama has under the same meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import values
from gleitzeit_llm.dialects.fields import Table, ignored, mapped, refused, table, together

if TYPE_CHECKING:
    from gleitzeit_llm.protocol import Json

TARGET = "an Ollama server"

_BOOKKEEPING = "it serves the bookkeeping of OpenAI's own platform"
_CACHING = "it tunes OpenAI's own cache; the answer is the same"
_NO_FORCING = "a model there cannot be made to call, or kept from calling, a tool"
_ONE_CHOICE = "it makes one answer per request"
_NO_BIAS = "it cannot weigh single tokens"
_TEXT_ONLY = "it answers in text"
_OLD_TOOLS = "this is the old form of 'tools'"


def json_format(value: object, param: str) -> str | Json | None:
    """`response_format` as `format`."""
    found = values.mapping(value, param)
    kind = found.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    if kind != "json_schema":
        raise InvalidRequest(f"'{param}.type' must be 'text', 'json_object' or 'json_schema'", param=f"{param}.type")
    outer = values.mapping(found.get("json_schema"), f"{param}.json_schema")
    return values.mapping(outer.get("schema"), f"{param}.json_schema.schema")


def think(value: object, param: str) -> bool | str:
    """`reasoning_effort` as `think`; the sentence is Ollama's own."""
    if value == "none":
        return False
    if value not in ("high", "medium", "low"):
        raise InvalidRequest(
            f'invalid reasoning value: \'{value}\' (must be "high", "medium", "low", or "none")', param=param
        )
    return str(value)


def nested_think(value: object, param: str) -> bool | str | None:
    """`reasoning`, an object with `effort`, which Ollama takes as well."""
    effort = values.mapping(value, param).get("effort")
    return None if effort in (None, "") else think(effort, f"{param}.effort")


def embed_input(value: object, param: str) -> str | list[str]:
    """`input` of embeddings: text only, as tokens mean nothing to another tokenizer."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, int | list) and not isinstance(first, bool):
        raise InvalidRequest(f"{param!r} cannot be carried over to {TARGET} as tokens; send text", param=param)
    found = values.one_or_more_texts(value, param)
    # As Ollama's own /v1/embeddings: its /api/embed would take an empty string for "load the model".
    return found or [""]


def prompt(value: object, param: str) -> str:
    """`prompt` of completions: one text, as Ollama answers one prompt at a time."""
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(one, str):
        raise InvalidRequest(
            f"{param!r} cannot be carried over to {TARGET} as tokens or as several prompts; send one text", param=param
        )
    return one


_SAMPLING = (
    mapped("model", "model", convert=values.text),
    mapped("stream", "stream", convert=values.boolean),
    together("stream_options", "include_usage"),
    mapped("max_tokens", "options.num_predict", convert=values.integer),
    mapped("temperature", "options.temperature", convert=values.number),
    mapped("top_p", "options.top_p", convert=values.number),
    mapped("seed", "options.seed", convert=values.integer),
    mapped("stop", "options.stop", convert=values.texts),
    mapped("frequency_penalty", "options.frequency_penalty", convert=values.number),
    mapped("presence_penalty", "options.presence_penalty", convert=values.number),
    # extensions
    mapped("top_k", "options.top_k", convert=values.integer),
    mapped("min_p", "options.min_p", convert=values.number),
    mapped("repeat_penalty", "options.repeat_penalty", convert=values.number),
    mapped("repetition_penalty", "options.repeat_penalty", convert=values.number),
    refused("n", _ONE_CHOICE, (1,)),
    refused("logit_bias", _NO_BIAS),
    ignored("user", _BOOKKEEPING),
)

CHAT = table(
    TARGET,
    *_SAMPLING,
    together("messages", "messages"),
    together("max_completion_tokens", "options.num_predict"),
    mapped("tools", "tools", convert=values.tools),
    together("tool_choice", "tools"),
    mapped("response_format", "format", convert=json_format),
    mapped("reasoning_effort", "think", convert=think),
    mapped("reasoning", "think", convert=nested_think),
    mapped("logprobs", "logprobs", convert=values.boolean),
    mapped("top_logprobs", "top_logprobs", convert=values.integer),
    refused("parallel_tool_calls", _NO_FORCING, (True,)),
    refused("functions", _OLD_TOOLS),
    refused("function_call", _OLD_TOOLS),
    refused("modalities", _TEXT_ONLY, (["text"],)),
    refused("audio", _TEXT_ONLY),
    refused("web_search_options", "it does not search the web"),
    refused("moderation", "it does not judge its input"),
    refused("verbosity", "it has no such setting", ("medium",)),
    refused("store", "it stores no answers", (False,)),
    ignored("prediction", "a predicted answer makes the work faster, not different"),
    ignored("service_tier", _BOOKKEEPING),
    ignored("metadata", _BOOKKEEPING),
    ignored("safety_identifier", _BOOKKEEPING),
    *(ignored(f"prompt_cache_{name}", _CACHING) for name in ("key", "options", "retention")),
)
COMPLETIONS = table(
    TARGET,
    *_SAMPLING,
    mapped("prompt", "prompt", convert=prompt),
    mapped("suffix", "suffix", convert=values.text),
    together("logprobs", "logprobs", "top_logprobs"),
    refused("echo", "it does not repeat the prompt", (False,)),
    refused("best_of", _ONE_CHOICE, (1,)),
)
EMBEDDINGS = table(
    TARGET,
    mapped("model", "model", convert=values.text),
    mapped("input", "input", convert=embed_input),
    mapped("dimensions", "dimensions", convert=values.integer),
    together("encoding_format", "base64_vectors"),
    ignored("user", _BOOKKEEPING),
)

TABLES: dict[str, Table] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
}
