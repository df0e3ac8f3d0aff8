"""Anthropic messages as canonical ones. What is one message there may be several here: each tool result is its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import values
from gleitzeit_llm.dialects.fields import Table, ignored, mapped, refused, table, together, translate
from gleitzeit_llm.dialects.fields_from_anthropic import CACHE_CONTROL, TARGET
from gleitzeit_llm.protocol import is_absent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_llm.protocol import Json

_NO_TOOLSETS = "only tools that the caller carries out exist there"
_SCALED = "a model there looks at an image as it is"
_KIND = together("type", "content")

MESSAGE = table(
    TARGET,
    together("role", "role"),
    together("content", "content", "images", "thinking", "tool_calls"),
)
TEXT = table(
    TARGET,
    _KIND,
    mapped("text", "text", convert=values.text),
    ignored("citations", "they point into documents for a reader; a model does not see them"),
    CACHE_CONTROL,
)
IMAGE = table(
    TARGET,
    _KIND,
    together("source", "images"),
    refused("transformations", _SCALED),
    CACHE_CONTROL,
)
SOURCE = table(
    TARGET,
    refused("type", "images are not fetched from elsewhere; send them in base64", ("base64",)),
    mapped("data", "data", convert=values.text),
    ignored("media_type", "servers see by the content what kind of image it is"),
)
THINKING = table(
    TARGET,
    _KIND,
    mapped("thinking", "thinking", convert=values.text),
    ignored("signature", "it proves to Anthropic's own servers that the thoughts are theirs"),
)
TOOL_USE = table(
    TARGET,
    _KIND,
    mapped("id", "id", convert=values.text),
    mapped("name", "name", convert=values.text),
    together("input", "tool_calls"),
    refused("caller", "tools are called by the model only", ({"type": "direct"},)),
    refused("toolset_name", _NO_TOOLSETS),
    CACHE_CONTROL,
)
TOOL_RESULT = table(
    TARGET,
    _KIND,
    mapped("tool_use_id", "tool_use_id", convert=values.text),
    together("content", "content", "images"),
    together("is_error", "content"),
    refused("toolset_name", _NO_TOOLSETS),
    CACHE_CONTROL,
)
BLOCKS: dict[str, Table] = {
    "text": TEXT,
    "image": IMAGE,
    "thinking": THINKING,
    "tool_use": TOOL_USE,
    "tool_result": TOOL_RESULT,
}
"""By the type of the block. Blocks of other types are refused."""

_ALLOWED = {
    "system": ("text",),
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "tool_use"),
    "result": ("text", "image"),
}


@dataclass(slots=True)
class _Said:
    """What the blocks of one message, or of one tool result, say.

    Args:
        tools: Which tool each call's id stands for, over the whole conversation.
    """

    tools: dict[str, str]
    lines: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Json] = field(default_factory=list)
    results: list[Json] = field(default_factory=list)

    def message(self, role: str) -> Json:
        """One canonical message; texts become its lines, as OpenAI servers have it."""
        out: Json = {"role": role, "content": "\n".join(self.lines)}
        if self.thoughts:
            out["thinking"] = "\n".join(self.thoughts)
        if self.images:
            out["images"] = self.images
        if self.calls:
            out["tool_calls"] = self.calls
        return out

    def messages(self, role: str) -> list[Json]:
        """All of them: results come before what the user adds, as they belong to what was said before."""
        alone = self.results and not (self.lines or self.images)
        return self.results if alone else [*self.results, self.message(role)]


def from_anthropic(system: object, messages: object) -> list[Json]:
    """All messages of a conversation.

    Raises:
        InvalidRequest: One is malformed, has an unknown field, or something that cannot be carried over.
    """
    tools: dict[str, str] = {}
    out: list[Json] = []
    if not is_absent(system) and system != "":
        out.append(_said("system", system, "system", tools).message("system"))
    for index, message in enumerate(values.items(messages, "messages")):
        at = f"messages[{index}]"
        out += _messages(values.mapping(message, at), f"{at}.", tools)
    return out


def _messages(message: Mapping[str, Any], at: str, tools: dict[str, str]) -> list[Json]:
    translate(MESSAGE, message, {}, at)
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise InvalidRequest(f"'{at}role' must be 'user', 'assistant' or 'system'", param=f"{at}role")
    if "content" not in message:
        raise InvalidRequest(f"'{at}content' is required", param=f"{at}content")
    return _said(role, message["content"], f"{at}content", tools).messages(role)


def _said(role: str, content: object, param: str, tools: dict[str, str]) -> _Said:
    """A string, or blocks of the types that the role may have."""
    said = _Said(tools)
    if isinstance(content, str):
        said.lines.append(content)
        return said
    for index, block in enumerate(values.items(content, param)):
        at = f"{param}[{index}]"
        _take_block(role, values.mapping(block, at), f"{at}.", said)
    return said


def _take_block(role: str, block: Mapping[str, Any], at: str, said: _Said) -> None:
    kind = block.get("type")
    if kind not in _ALLOWED[role]:
        allowed = ", ".join(_ALLOWED[role])
        raise InvalidRequest(
            f"'{at}type' {kind!r} cannot be carried over to {TARGET}: what can stand here is {allowed}",
            param=f"{at}type",
        )
    found: Json = {}
    translate(BLOCKS[kind], block, found, at)
    _TAKE[kind](found, block, at, said)


def _take_text(found: Json, block: Mapping[str, Any], at: str, said: _Said) -> None:
    del block
    said.lines.append(_required(found, "text", at))


def _take_image(found: Json, block: Mapping[str, Any], at: str, said: _Said) -> None:
    translate(SOURCE, values.mapping(block.get("source"), f"{at}source"), found, f"{at}source.")
    said.images.append(_required(found, "data", f"{at}source."))


def _take_thinking(found: Json, block: Mapping[str, Any], at: str, said: _Said) -> None:
    del block
    said.thoughts.append(_required(found, "thinking", at))


def _take_tool_use(found: Json, block: Mapping[str, Any], at: str, said: _Said) -> None:
    name, call_id = _required(found, "name", at), _required(found, "id", at)
    said.tools[call_id] = name
    arguments = values.mapping(block.get("input"), f"{at}input")
    said.calls.append({"id": call_id, "function": {"name": name, "arguments": arguments}})


def _take_tool_result(found: Json, block: Mapping[str, Any], at: str, said: _Said) -> None:
    call_id = _required(found, "tool_use_id", at)
    if call_id not in said.tools:
        raise InvalidRequest(f"'{at}tool_use_id' {call_id!r} names no tool_use before it", param=f"{at}tool_use_id")
    given = block.get("content")
    result = _said("result", [] if given is None else given, f"{at}content", said.tools)
    if values.boolean(block.get("is_error") or False, f"{at}is_error"):
        # There is no other place that says so.
        result.lines.insert(0, "Error:")
    said.results.append({**result.message("tool"), "tool_call_id": call_id, "tool_name": said.tools[call_id]})


_TAKE: dict[str, Callable[[Json, Mapping[str, Any], str, _Said], None]] = {
    "text": _take_text,
    "image": _take_image,
    "thinking": _take_thinking,
    "tool_use": _take_tool_use,
    "tool_result": _take_tool_result,
}


def _required(found: Mapping[str, Any], name: str, at: str) -> str:
    if name not in found:
        raise InvalidRequest(f"'{at}{name}' is required", param=f"{at}{name}")
    return str(found[name])
