"""What the stand-in answers: made from the question, the same each time, or what a test says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_TOKENS = re.compile(r"\s*\S+|\s+$")
_EMPTY_BY_TYPE: dict[str, object] = {
    "string": "text",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "null": None,
    "array": [],
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says: it thinks first, then speaks, then calls tools.

    Args:
        tokens: the text, in the parts in which it is streamed.
        thinking: sent only when the request lets the model think.
        tool_calls: each arrives whole, before the end of the stream.
    """

    tokens: Sequence[str] = ()
    thinking: Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """What a reply is made from.

    Args:
        path: the endpoint.
        model: the name of the model, as the request has it.
        prompt: the prompt, or the text of the last message.
        messages: of a chat, as the request has them; else empty.
        tools: what the model may call.
        format: `json`, a JSON schema, or None.
        think: the model may think.
        body: the whole request.
    """

    path: str
    model: str
    prompt: str
    messages: Sequence[Mapping[str, object]] = ()
    tools: Sequence[Mapping[str, object]] = ()
    format: object = None
    think: bool = False
    body: Mapping[str, object] = field(default_factory=dict)

    @property
    def answers_tool(self) -> bool:
        """The last message is the result of a tool."""
        return bool(self.messages) and self.messages[-1].get("role") == "tool"


ReplyFunction = Callable[[Ask], Reply | Sequence[str]]


def tokens_of(text: str) -> list[str]:
    """Split a text into words with the blanks before them; joined, they are the text."""
    return _TOKENS.findall(text)


def fixed(text: str) -> ReplyFunction:
    """Return a reply function that always says `text`."""
    tokens = tokens_of(text)
    return lambda _ask: tokens


def echo(ask: Ask) -> Reply:
    """Say what was asked: JSON where a format is asked for, a tool call where tools are offered."""
    thinking = ["Let", " me", " think", "."]
    if ask.tools and not ask.answers_tool:
        return Reply(thinking=thinking, tool_calls=[_call_of(ask.tools[0])])
    if ask.format is not None:
        schema = ask.format if isinstance(ask.format, dict) else {}
        return Reply(tokens_of(json.dumps(example_of(schema))), thinking)
    return Reply(tokens_of(f"You said: {ask.prompt}"), thinking)


def as_reply(made: Reply | Sequence[str]) -> Reply:
    """Return what a reply function made as a `Reply`; a single text is split into words.

    Raises:
        TypeError: it is neither a reply nor a sequence of texts.
    """
    if isinstance(made, Reply):
        return made
    if isinstance(made, str):
        return Reply(tokens_of(made))
    if not all(isinstance(token, str) for token in made):
        raise TypeError(f"a reply function returns a Reply or a sequence of texts, got {made!r}")
    return Reply(made)


def _call_of(tool: Mapping[str, object]) -> ToolCall:
    function = tool.get("function")
    if not isinstance(function, dict):
        return ToolCall("unnamed")
    arguments = example_of(function.get("parameters", {}))
    name = function.get("name", "unnamed")
    return ToolCall(str(name), arguments if isinstance(arguments, dict) else {})


def example_of(schema: object) -> object:
    """Return a small value that fits a JSON schema made of the usual keywords."""
    if not isinstance(schema, dict):
        return {}
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    properties = schema.get("properties")
    if isinstance(properties, dict):
        return {key: example_of(value) for key, value in properties.items()}
    return _EMPTY_BY_TYPE.get(str(schema.get("type")), {})
