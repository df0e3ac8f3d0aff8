"""The fields of request bodies and of `options`, with the complaints about wrong types."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from gleitzeit_ollama.testing.golang import BadBody, JsonObject, kind, loads, quote

if TYPE_CHECKING:
    from collections.abc import Mapping

_INT64 = 2**63
_KIND_OF_TYPE = {
    "string": "string",
    "bool": "bool",
    "int": "number",
    "api.Options": "object",
    "map[string]interface {}": "object",
    "[]api.Message": "array",
    "[]openai.Message": "array",
    "api.Tools": "array",
    "[]api.Tool": "array",
    "[]int": "array",
    "*openai.ResponseFormat": "object",
    "*openai.StreamOptions": "object",
}
_COMMON = {"model": "string", "name": "string", "stream": "bool", "options": "api.Options"}
_NATIVE = {**_COMMON, "logprobs": "bool", "top_logprobs": "int"}
_OPENAI = {
    "model": "string",
    "stream": "bool",
    "max_tokens": "int",
    "logprobs": "bool",
    "top_logprobs": "int",
    "tools": "[]api.Tool",
    "response_format": "*openai.ResponseFormat",
    "stream_options": "*openai.StreamOptions",
    "reasoning_effort": "string",
}
_FIELDS: dict[str, dict[str, str]] = {
    "ChatRequest": {**_NATIVE, "messages": "[]api.Message", "tools": "api.Tools"},
    "GenerateRequest": {
        **_NATIVE,
        **dict.fromkeys(("prompt", "suffix", "system", "template"), "string"),
        "context": "[]int",
        "raw": "bool",
    },
    "EmbedRequest": {**_COMMON, "dimensions": "int", "encoding_format": "string"},
    "EmbeddingRequest": {**_COMMON, "prompt": "string"},
    "ShowRequest": {**_COMMON, "system": "string", "verbose": "bool"},
    "CopyRequest": {"source": "string", "destination": "string"},
    "CreateRequest": {**_COMMON, "from": "string", "system": "string", "template": "string"},
    "ChatCompletionRequest": {**_OPENAI, "messages": "[]openai.Message"},
    "CompletionRequest": {**_OPENAI, "prompt": "string", "suffix": "string", "logprobs": "int"},
    "ResponsesRequest": {"model": "string", "stream": "bool", "instructions": "string", "max_output_tokens": "int"},
}
_OPTIONS = {
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "typical_p",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
        ),
        "float32",
    ),
    **dict.fromkeys(
        (
            "num_ctx",
            "num_keep",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "num_thread",
            "num_predict",
            "repeat_last_n",
            "seed",
            "top_k",
        ),
        "integer",
    ),
    "use_mmap": "boolean",
    "stop": "array",
}
_OPTION_KIND = {"float32": "number", "integer": "number", "boolean": "bool", "array": "array"}


def read(body: bytes, struct: str) -> JsonObject:
    """Return the body as an object whose known fields have the types of `struct`; null is absent.

    Raises:
        EmptyBody: there is no body.
        BadBody: it is no JSON object, or a field has another type.
    """
    value = loads(body)
    if not isinstance(value, dict):
        raise BadBody(f"json: cannot unmarshal {kind(value)} into Go value of type api.{struct}")
    fields = {key: item for key, item in value.items() if item is not None}
    wanted = _FIELDS.get(struct, _COMMON)
    for key, item in fields.items():
        if key in wanted:
            _check(item, wanted[key], f"{struct}.{key}")
    for message in array(fields, "messages"):
        _check_message(message, struct)
    return fields


def _check(value: object, go_type: str, field: str) -> None:
    if kind(value) != _KIND_OF_TYPE[go_type]:
        raise BadBody(f"json: cannot unmarshal {kind(value)} into Go struct field {field} of type {go_type}")


def _check_message(message: object, struct: str) -> None:
    if not isinstance(message, dict):
        raise BadBody(
            f"json: cannot unmarshal {kind(message)} into Go struct field {struct}.messages of type api.Message"
        )
    _check(message.get("role", ""), "string", f"{struct}.messages.role")
    if struct == "ChatRequest" and message.get("content") is not None:
        _check(message["content"], "string", f"{struct}.messages.content")


def check_options(options: Mapping[str, object]) -> str | None:
    """Return the complaint about the first option of a wrong type, or None; unknown ones pass."""
    for key, value in options.items():
        wanted = _OPTIONS.get(key)
        if wanted and value is not None and kind(value) != _OPTION_KIND[wanted]:
            return f"option {quote(key)} must be of type {wanted}"
    return None


def text(fields: Mapping[str, object], *keys: str) -> str:
    """Return the first of these fields that holds a text that is not empty, else the empty text."""
    for key in keys:
        value = fields.get(key)
        if isinstance(value, str) and value:
            return value
    return ""


def whole(fields: Mapping[str, object], key: str) -> int:
    """Return a field as a whole number; 0 if it is absent, something else or too large for one."""
    value = fields.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return 0
    return int(value) if abs(value) < _INT64 else 0


def table(fields: Mapping[str, object], key: str) -> JsonObject:
    """Return a field that is an object; empty if it is absent or something else."""
    value = fields.get(key)
    return cast("JsonObject", value) if isinstance(value, dict) else {}


def array(fields: Mapping[str, object], key: str) -> list[object]:
    """Return a field that is an array; empty if it is absent or something else."""
    value = fields.get(key)
    return value if isinstance(value, list) else []
