"""OpenAI messages as canonical ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import images, values
from gleitzeit_llm.dialects.fields import ignored, mapped, refused, table, together, translate
from gleitzeit_llm.dialects.fields_from_openai import TARGET
from gleitzeit_llm.protocol import UNREADABLE, is_absent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_llm.protocol import Json

_TEXT_AND_IMAGES = "a message is made of text and images"
_HINT = "a hint to OpenAI's own platform; the content is the same"


def role(value: object, param: str) -> str:
    """`role`. OpenAI renamed ``system`` to ``developer`` for its newer models; models elsewhere know the old name."""
    found = values.text(value, param)
    return "system" if found == "developer" else found


MESSAGE = table(
    TARGET,
    mapped("role", "role", convert=role),
    together("content", "content", "images"),
    mapped("reasoning", "thinking", convert=values.text),
    mapped("reasoning_content", "thinking", convert=values.text),
    together("tool_calls", "tool_calls"),
    mapped("tool_call_id", "tool_call_id", convert=values.text),
    together("name", "tool_name"),
    refused("refusal", "a model there has no other way to refuse than in words", ("",)),
    refused("function_call", "this is the old form of 'tool_calls'"),
    refused("audio", _TEXT_AND_IMAGES),
    ignored("annotations", "they point into the content for a reader; a model does not see them"),
)
CALL = table(
    TARGET,
    mapped("id", "id", convert=values.text),
    refused("type", "only calls of functions exist there", ("function",)),
    mapped("index", "function.index", convert=values.integer),
    together("function", "function"),
)
FUNCTION = table(
    TARGET,
    mapped("name", "name", convert=values.text),
    together("arguments", "arguments"),
)
PART = table(
    TARGET,
    together("type", "content", "images"),
    together("text", "content"),
    together("image_url", "images"),
    ignored("prompt_cache_breakpoint", _HINT),
    *(refused(name, _TEXT_AND_IMAGES) for name in ("input_audio", "file", "refusal")),
)
IMAGE = table(
    TARGET,
    mapped("url", "url", convert=images.from_url),
    ignored("detail", "a model there looks at images in one resolution only"),
)


def from_openai(messages: object, param: str = "messages") -> list[Json]:
    """All messages of a conversation.

    Raises:
        InvalidRequest: One is malformed, has an unknown field, or something that Ollama cannot take.
    """
    names: dict[str, str] = {}
    return [
        _message(values.mapping(message, f"{param}[{index}]"), f"{param}[{index}].", names)
        for index, message in enumerate(values.items(messages, param))
    ]


def _message(message: Mapping[str, Any], at: str, names: dict[str, str]) -> Json:
    """One message; `names` collects which tool each call's id stands for."""
    out: Json = {"role": "", "content": ""}
    translate(MESSAGE, message, out, at)
    if not out["role"]:
        raise InvalidRequest(f"'{at}role' is required", param=f"{at}role")
    _put_content(message.get("content"), f"{at}content", out)
    if not is_absent(message.get("tool_calls")):
        out["tool_calls"] = _calls(message["tool_calls"], f"{at}tool_calls", names)
    _put_tool_name(message, at, names, out)
    return out


def _put_tool_name(message: Mapping[str, Any], at: str, names: Mapping[str, str], out: Json) -> None:
    """Ollama's templates want the tool's name, where OpenAI has the call's id and sometimes `name`."""
    given = message.get("name")
    if out["role"] != "tool":
        if given is not None:
            raise InvalidRequest(
                f"'{at}name' cannot be carried over to {TARGET}: speakers have no names there", param=f"{at}name"
            )
        return
    name = given or names.get(out.get("tool_call_id", ""))
    if name is not None:
        out["tool_name"] = values.text(name, f"{at}name")


def _put_content(content: object, param: str, out: Json) -> None:
    """A string, or parts: their texts become lines of one text, as llama.cpp and vLLM have it."""
    if content is None or isinstance(content, str):
        out["content"] = content or ""
        return
    lines: list[str] = []
    pictures: list[str] = []
    for index, part in enumerate(values.items(content, param)):
        _take_part(values.mapping(part, f"{param}[{index}]"), f"{param}[{index}].", lines, pictures)
    out["content"] = "\n".join(lines)
    if pictures:
        out["images"] = pictures


def _take_part(part: Mapping[str, Any], at: str, lines: list[str], pictures: list[str]) -> None:
    translate(PART, part, {}, at)
    kind = part.get("type")
    if kind == "text":
        lines.append(values.text(part.get("text"), f"{at}text"))
    elif kind == "image_url":
        pictures.append(_image(part.get("image_url"), f"{at}image_url"))
    else:
        raise InvalidRequest(
            f"'{at}type' {kind!r} cannot be carried over to {TARGET}: {_TEXT_AND_IMAGES}", param=f"{at}type"
        )


def _image(value: object, param: str) -> str:
    """`image_url`: an object with `url`, or, as some clients have it, the URL itself."""
    if isinstance(value, str):
        return images.from_url(value, param)
    found: Json = {}
    translate(IMAGE, values.mapping(value, param), found, f"{param}.")
    return values.text(found.get("url"), f"{param}.url")


def _calls(given: object, param: str, names: dict[str, str]) -> list[Json]:
    return [
        _call(values.mapping(call, f"{param}[{index}]"), f"{param}[{index}].", names)
        for index, call in enumerate(values.items(given, param))
    ]


def _call(call: Mapping[str, Any], at: str, names: dict[str, str]) -> Json:
    out: Json = {}
    translate(CALL, call, out, at)
    given = values.mapping(call.get("function"), f"{at}function")
    function: Json = {**out.pop("function", {})}
    translate(FUNCTION, given, function, f"{at}function.")
    name = values.text(function.get("name"), f"{at}function.name")
    function["arguments"] = arguments(given.get("arguments"), f"{at}function.arguments")
    if "id" in out:
        names[out["id"]] = name
    return {**out, "function": function}


def arguments(value: object, param: str) -> Json:
    """Arguments of a call: OpenAI has them as JSON in a string; an empty one, or null, means none.

    Raises:
        InvalidRequest: They are not a JSON object.
    """
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value) if value.strip() else {}
        except UNREADABLE:
            raise InvalidRequest("invalid tool call arguments", param=param) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("invalid tool call arguments", param=param)
    return value
