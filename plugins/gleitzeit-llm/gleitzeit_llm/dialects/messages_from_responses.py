"""The items of OpenAI's Responses API as canonical messages: what is one message there may be several items here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import images, values
from gleitzeit_llm.dialects.fields import Table, ignored, mapped, refused, table, together, translate
from gleitzeit_llm.dialects.fields_from_responses import NO_STATE, TARGET
from gleitzeit_llm.dialects.messages_from_openai import arguments, role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_llm.protocol import Json

_TEXT_AND_IMAGES = "a message is made of text and images"
_KIND = together("type", "content")
_ID = ignored("id", "items are not stored here")
_STATUS = ignored("status", "what is sent is what the model sees")
_HINT = ignored("prompt_cache_breakpoint", "a hint to OpenAI's own platform; the content is the same")
_FOR_READERS = "it is for a reader; a model does not see it"
_ONE_CALLER = refused("caller", "tools are called by the model only", ({"type": "direct"},))

MESSAGE = table(
    TARGET,
    _KIND,
    mapped("role", "role", convert=role),
    together("content", "content", "images"),
    ignored("phase", _FOR_READERS),
    _ID,
    _STATUS,
)
CALL = table(
    TARGET,
    _KIND,
    mapped("call_id", "id", convert=values.text),
    mapped("name", "name", convert=values.text),
    together("arguments", "tool_calls"),
    refused("namespace", "tools have one name there"),
    _ONE_CALLER,
    _ID,
    _STATUS,
)
OUTPUT = table(
    TARGET,
    _KIND,
    mapped("call_id", "tool_call_id", convert=values.text),
    together("output", "content", "images"),
    _ONE_CALLER,
    _ID,
    _STATUS,
)
REASONING = table(
    TARGET,
    _KIND,
    together("content", "thinking"),
    together("summary", "thinking"),
    ignored("encrypted_content", "only who encrypted it can read it"),
    _ID,
    _STATUS,
)
ITEMS: dict[str, Table] = {
    "message": MESSAGE,
    "function_call": CALL,
    "function_call_output": OUTPUT,
    "reasoning": REASONING,
}
"""By the type of the item. Items of other types are refused."""

TEXT = table(
    TARGET,
    _KIND,
    mapped("text", "text", convert=values.text),
    ignored("annotations", _FOR_READERS),
    ignored("logprobs", _FOR_READERS),
    _HINT,
)
REFUSAL = table(TARGET, _KIND, mapped("refusal", "text", convert=values.text))
IMAGE = table(
    TARGET,
    _KIND,
    mapped("image_url", "image", convert=images.from_url),
    refused("file_id", "no files are stored here; send the image as a data URL"),
    ignored("detail", "a model there looks at images in one resolution only"),
    _HINT,
)
PARTS: dict[str, Table] = {
    "input_text": TEXT,
    "output_text": TEXT,
    "reasoning_text": TEXT,
    "summary_text": TEXT,
    "text": TEXT,
    "refusal": REFUSAL,
    "input_image": IMAGE,
}
"""By the type of a part of a content. Parts of other types are refused."""

_SAID = ("input_text", "output_text", "text", "refusal")
_ALLOWED = {
    "message": (*_SAID, "input_image"),
    "output": ("input_text", "output_text", "text", "input_image"),
    "reasoning": ("reasoning_text", "summary_text", "text"),
}


# What a model says comes in this order; what comes out of order is another message.
_THOUGHTS, _WORDS, _CALLS = range(3)


@dataclass(slots=True)
class _Talk:
    """The conversation so far.

    Args:
        messages: Canonical ones.
        tools: Which tool each call's id stands for.
        turn: The last message, while the model is saying it.
        stage: How far it has come.
    """

    messages: list[Json] = field(default_factory=list)
    tools: dict[str, str] = field(default_factory=dict)
    turn: Json | None = None
    stage: int = _THOUGHTS

    def add(self, message: Json) -> None:
        """A message of somebody else."""
        self.messages.append(message)
        self.turn = None

    def said(self, stage: int) -> Json:
        """The model's message that its next item belongs to."""
        follows = stage > self.stage or stage == self.stage == _CALLS
        if self.turn is None or not follows:
            self.turn = {"role": "assistant", "content": ""}
            self.messages.append(self.turn)
        self.stage = stage
        return self.turn


def from_responses(instructions: object, given: object) -> list[Json]:
    """All messages of a conversation.

    Args:
        instructions: What stands before it; None for nothing.
        given: A text, which is what the user says, or a list of items.

    Raises:
        InvalidRequest: An item is malformed, has an unknown field, or something that cannot be carried over.
    """
    talk = _Talk()
    if instructions not in (None, ""):
        talk.add({"role": "system", "content": values.text(instructions, "instructions")})
    if isinstance(given, str):
        talk.add({"role": "user", "content": given})
        return talk.messages
    for index, item in enumerate(values.items(given, "input")):
        _take(values.mapping(item, f"input[{index}]"), f"input[{index}].", talk)
    return talk.messages


def _take(item: Mapping[str, Any], at: str, talk: _Talk) -> None:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    if kind == "item_reference":
        raise InvalidRequest(f"'{at}id' refers to another response: {NO_STATE}", param=f"{at}id")
    if not isinstance(kind, str) or kind not in ITEMS:
        raise InvalidRequest(
            f"'{at}type' {kind!r} cannot be carried over to {TARGET}: what can stand here is {', '.join(ITEMS)}",
            param=f"{at}type",
        )
    found: Json = {}
    translate(ITEMS[kind], item, found, at)
    _TAKE[kind](found, item, at, talk)


def _take_message(found: Json, item: Mapping[str, Any], at: str, talk: _Talk) -> None:
    speaker = _required(found, "role", at)
    if speaker not in ("system", "user", "assistant"):
        raise InvalidRequest(f"'{at}role' must be 'user', 'assistant', 'system' or 'developer'", param=f"{at}role")
    if "content" not in item:
        raise InvalidRequest(f"'{at}content' is required", param=f"{at}content")
    content = _content("message", item["content"], f"{at}content")
    if speaker == "assistant":
        talk.said(_WORDS).update(content)
    else:
        talk.add({"role": speaker, **content})


def _take_call(found: Json, item: Mapping[str, Any], at: str, talk: _Talk) -> None:
    name, call_id = _required(found, "name", at), _required({**found, "call_id": found.get("id")}, "call_id", at)
    function = {"name": name, "arguments": arguments(item.get("arguments"), f"{at}arguments")}
    talk.said(_CALLS).setdefault("tool_calls", []).append({"id": call_id, "function": function})
    talk.tools[call_id] = name


def _take_output(found: Json, item: Mapping[str, Any], at: str, talk: _Talk) -> None:
    call_id = _required({"call_id": found.get("tool_call_id")}, "call_id", at)
    if call_id not in talk.tools:
        raise InvalidRequest(f"'{at}call_id' {call_id!r} names no function_call before it", param=f"{at}call_id")
    if "output" not in item:
        raise InvalidRequest(f"'{at}output' is required", param=f"{at}output")
    content = _content("output", item["output"], f"{at}output")
    talk.add({"role": "tool", **content, "tool_call_id": call_id, "tool_name": talk.tools[call_id]})


def _take_thoughts(found: Json, item: Mapping[str, Any], at: str, talk: _Talk) -> None:
    """What the model thought, or else what was told of it."""
    del found
    for name in ("content", "summary"):
        thoughts = _content("reasoning", item.get(name) or [], f"{at}{name}")["content"]
        if thoughts:
            talk.said(_THOUGHTS)["thinking"] = thoughts
            return


_TAKE: dict[str, Callable[[Json, Mapping[str, Any], str, _Talk], None]] = {
    "message": _take_message,
    "function_call": _take_call,
    "function_call_output": _take_output,
    "reasoning": _take_thoughts,
}


def _content(where: str, content: object, param: str) -> Json:
    """A string, or parts of the types that may stand there; their texts become lines, as OpenAI servers have it."""
    if isinstance(content, str):
        return {"content": content}
    lines: list[str] = []
    pictures: list[str] = []
    for index, part in enumerate(values.items(content, param)):
        at = f"{param}[{index}]."
        found = _part(where, values.mapping(part, f"{param}[{index}]"), at)
        if "image" in found:
            pictures.append(found["image"])
        else:
            lines.append(_required(found, "text", at))
    text = {"content": "\n".join(lines)}
    return {**text, "images": pictures} if pictures else text


def _part(where: str, part: Mapping[str, Any], at: str) -> Json:
    kind = part.get("type")
    if kind not in _ALLOWED[where]:
        raise InvalidRequest(
            f"'{at}type' {kind!r} cannot be carried over to {TARGET}: {_TEXT_AND_IMAGES}", param=f"{at}type"
        )
    found: Json = {}
    translate(PARTS[kind], part, found, at)
    return found


def _required(found: Mapping[str, Any], name: str, at: str) -> str:
    if found.get(name) is None:
        raise InvalidRequest(f"'{at}{name}' is required", param=f"{at}{name}")
    return str(found[name])
