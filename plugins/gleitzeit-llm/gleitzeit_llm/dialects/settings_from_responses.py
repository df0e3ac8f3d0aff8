"""Tools and their choice in a request of OpenAI's Responses API, and what an answer repeats of its request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import values
from gleitzeit_llm.dialects.fields import translate
from gleitzeit_llm.dialects.fields_from_responses import TARGET, TOOL
from gleitzeit_llm.dialects.tool_choice import offer
from gleitzeit_llm.protocol import is_absent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_llm.protocol import Json

# What an answer says of its request, with what each means when it is absent: as Ollama was recorded.
_ECHOED: dict[str, object] = {
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "truncation": "disabled",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_logprobs": 0,
    "temperature": 1,
    "reasoning": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "safety_identifier": None,
    "prompt_cache_key": None,
}


def echo(request: Mapping[str, Any]) -> Json:
    """What the answer repeats of its request.

    Raises:
        InvalidRequest: `metadata` is no object.
    """
    values.mapping(request.get("metadata") or {}, "metadata")
    return {name: default if request.get(name) is None else request[name] for name, default in _ECHOED.items()}


def put_tools(request: Mapping[str, Any], params: Json) -> None:
    """`tools` and `tool_choice`.

    Some of the tools being allowed is the same as no others being there, and one tool that must be called is the same
    as no other and a call that must be made, which more servers can do.

    Raises:
        InvalidRequest: One is malformed or cannot be carried over.
    """
    given = [] if request.get("tools") is None else values.items(request["tools"], "tools")
    tools = [_tool(values.mapping(tool, f"tools[{index}]"), f"tools[{index}].") for index, tool in enumerate(given)]
    mode, names = _choice(request.get("tool_choice"))
    if mode == "none":
        return
    if names is not None:
        tools = [tool for tool in tools if tool["function"]["name"] in names]
    offer(params, tools, required=mode == "required")


def _tool(tool: Mapping[str, Any], at: str) -> Json:
    function: Json = {}
    translate(TOOL, tool, function, at)
    if "type" not in tool or "name" not in function:
        missing = f"{at}{'name' if 'type' in tool else 'type'}"
        raise InvalidRequest(f"{missing!r} is required", param=missing)
    return {"type": "function", "function": {"parameters": {}, **function}}


def _choice(choice: object) -> tuple[str, tuple[str, ...] | None]:
    """Whether a tool is called, and which ones may be; None for all."""
    if is_absent(choice):
        return "auto", None
    if isinstance(choice, str):
        return _mode(choice, "tool_choice"), None
    found = values.mapping(choice, "tool_choice")
    kind = found.get("type")
    if kind == "function":
        return "required", (values.text(found.get("name"), "tool_choice.name"),)
    if kind == "allowed_tools":
        return _mode(found.get("mode"), "tool_choice.mode"), _names(found.get("tools"), "tool_choice.tools")
    raise InvalidRequest(
        f"'tool_choice.type' {kind!r} cannot be carried over to {TARGET}: it must be 'function' or 'allowed_tools'",
        param="tool_choice.type",
    )


def _mode(value: object, param: str) -> str:
    if value not in ("none", "auto", "required"):
        raise InvalidRequest(f"{param!r} must be 'none', 'auto' or 'required'", param=param)
    return str(value)


def _names(value: object, param: str) -> tuple[str, ...]:
    tools = [values.mapping(tool, f"{param}[{index}]") for index, tool in enumerate(values.items(value, param))]
    return tuple(values.text(tool.get("name"), f"{param}[{index}].name") for index, tool in enumerate(tools))
