"""Canonical messages as an OpenAI server takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import images, values
from gleitzeit_llm.dialects.fields import ignored, mapped, table, together, translate
from gleitzeit_llm.dialects.fields_to_openai import TARGET
from gleitzeit_llm.protocol import is_absent, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_llm.protocol import Json

MESSAGE = table(
    TARGET,
    mapped("role", "role", convert=values.text),
    together("content", "content"),
    together("images", "content"),
    # llama.cpp and vLLM read thoughts of earlier turns under this name.
    mapped("thinking", "reasoning_content", convert=values.text),
    together("tool_calls", "tool_calls"),
    together("tool_name", "tool_call_id"),
    together("tool_call_id", "tool_call_id"),
)
CALL = table(
    TARGET,
    together("id", "id"),
    mapped("type", "type", convert=values.text),
    together("function", "function"),
)
FUNCTION = table(
    TARGET,
    mapped("name", "name", convert=values.text),
    together("arguments", "arguments"),
    ignored("index", "the order of the calls says the same"),
)


class _OpenCalls:
    """Tool calls that wait for their result.

    OpenAI ties a result to its call by id. Ollama's callers may name only the tool, or nothing at all; then the
    first call that fits is meant.
    """

    def __init__(self) -> None:
        self._made = 0
        self._open: dict[str, str] = {}

    def add(self, given: str | None, name: str) -> str:
        """Note a call, and give its id."""
        call_id = given or f"call_{self._made}"
        self._made += 1
        self._open[call_id] = name
        return call_id

    def answer(self, given: str | None, name: str | None) -> str | None:
        """The id of the call that a result belongs to; None when there is none."""
        found = given or next((key for key, tool in self._open.items() if name in (None, tool)), None)
        if found is not None:
            self._open.pop(found, None)
        return found


def to_openai(messages: object, param: str = "messages") -> list[Json]:
    """All messages of a conversation.

    Raises:
        InvalidRequest: One is malformed, has an unknown field, or is the result of a tool that nobody called.
    """
    calls = _OpenCalls()
    return [
        _message(values.mapping(message, f"{param}[{index}]"), f"{param}[{index}].", calls)
        for index, message in enumerate(values.items(messages, param))
    ]


def user_message(prompt: object, pictures: object) -> Json:
    """A prompt of `llm/generate` as the one message of a conversation."""
    return {"role": "user", "content": _content(prompt, pictures, "")}


def _message(message: Mapping[str, Any], at: str, calls: _OpenCalls) -> Json:
    out: Json = {"role": "", "content": _content(message.get("content"), message.get("images"), at)}
    translate(MESSAGE, message, out, at)
    if not out["role"]:
        raise InvalidRequest(f"'{at}role' is required", param=f"{at}role")
    if not is_absent(message.get("tool_calls")):
        out["tool_calls"] = _calls(message["tool_calls"], f"{at}tool_calls", calls)
    if out["role"] == "tool":
        out["tool_call_id"] = _call_id(message, at, calls)
    return out


def _content(text: object, pictures: object, at: str) -> str | list[Json]:
    """The text alone, or the text and the images as parts."""
    content = "" if text is None else values.text(text, f"{at}content" if at else "prompt")
    if is_absent(pictures):
        return content
    parts: list[Json] = [{"type": "text", "text": content}] if content else []
    for index, picture in enumerate(values.items(pictures, f"{at}images")):
        url = images.to_url(picture, f"{at}images[{index}]")
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def _call_id(message: Mapping[str, Any], at: str, calls: _OpenCalls) -> str:
    found = calls.answer(_text_or_none(message, "tool_call_id", at), _text_or_none(message, "tool_name", at))
    if found is None:
        raise InvalidRequest(
            f"'{at}tool_name' names no tool that was called before and still waits for its result",
            param=f"{at}tool_name",
        )
    return found


def _text_or_none(source: Mapping[str, Any], key: str, at: str) -> str | None:
    value = source.get(key)
    return None if value in (None, "") else values.text(value, f"{at}{key}")


def _calls(given: object, param: str, calls: _OpenCalls) -> list[Json]:
    return [
        _call(values.mapping(call, f"{param}[{index}]"), f"{param}[{index}].", calls)
        for index, call in enumerate(values.items(given, param))
    ]


def _call(call: Mapping[str, Any], at: str, calls: _OpenCalls) -> Json:
    out: Json = {"id": "", "type": "function"}
    translate(CALL, call, out, at)
    given = values.mapping(call.get("function"), f"{at}function")
    function: Json = {}
    translate(FUNCTION, given, function, f"{at}function.")
    name = values.text(function.get("name"), f"{at}function.name")
    arguments = values.mapping(given.get("arguments") or {}, f"{at}function.arguments")
    function["arguments"] = write_json(arguments, f"'{at}function.arguments'").decode()
    out["id"] = calls.add(_text_or_none(call, "id", at), name)
    out["function"] = function
    return out
