"""The fields of an Anthropic request that mean something together: tools and their choice, thinking and effort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import values
from gleitzeit_llm.dialects.fields import translate
from gleitzeit_llm.dialects.fields_from_anthropic import OUTPUT_CONFIG, TARGET, THINKING, TOOL, TOOL_CHOICE
from gleitzeit_llm.dialects.tool_choice import offer
from gleitzeit_llm.protocol import is_absent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_llm.protocol import Json

# What Anthropic's levels are called elsewhere; `high` is its default.
_LEVELS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def put_tools(request: Mapping[str, Any], params: Json) -> None:
    """`tools` and `tool_choice`.

    One tool that must be called is the same as no other tool and a call that must be made, which more servers can do.

    Raises:
        InvalidRequest: One is malformed or cannot be carried over.
    """
    given = [] if request.get("tools") is None else values.items(request["tools"], "tools")
    tools = [_tool(values.mapping(tool, f"tools[{index}]"), f"tools[{index}].") for index, tool in enumerate(given)]
    kind, name = _choice(request)
    if kind == "none":
        return
    if kind == "tool":
        tools = [tool for tool in tools if tool["function"]["name"] == name]
    offer(params, tools, required=kind in ("any", "tool"))


def _tool(tool: Mapping[str, Any], at: str) -> Json:
    function: Json = {}
    translate(TOOL, tool, function, at)
    for name, here in (("name", "name"), ("parameters", "input_schema")):
        # An empty schema counts as absent, and says that anything goes.
        if name not in function and here not in tool:
            raise InvalidRequest(f"'{at}{here}' is required", param=f"{at}{here}")
    return {"type": "function", "function": {"parameters": {}, **function}}


def _choice(request: Mapping[str, Any]) -> tuple[str, str]:
    """The type of `tool_choice`, and the tool it names."""
    given = request.get("tool_choice")
    if is_absent(given):
        return "auto", ""
    choice = values.mapping(given, "tool_choice")
    translate(TOOL_CHOICE, choice, {}, "tool_choice.")
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise InvalidRequest("'tool_choice.type' must be 'auto', 'any', 'tool' or 'none'", param="tool_choice.type")
    return kind, values.text(choice.get("name"), "tool_choice.name") if kind == "tool" else ""


def put_thinking(request: Mapping[str, Any], params: Json) -> None:
    """`thinking` and `output_config`.

    A model that decides by itself (``adaptive``, with the default effort) is left to its own settings, as one that
    is told nothing.

    Raises:
        InvalidRequest: One is malformed or cannot be carried over.
    """
    effort = _effort(request, params)
    kind = _thinking(request)
    if kind == "enabled":
        params["think"] = _LEVELS[effort] if effort else True
    elif kind == "adaptive" and effort not in ("", "high"):
        params["think"] = _LEVELS[effort]
    elif kind in ("", "disabled"):
        if effort not in ("", "high"):
            raise InvalidRequest(
                f"'output_config.effort' cannot be carried over to {TARGET}: only thinking has levels there, "
                "and 'thinking' does not ask for it",
                param="output_config.effort",
            )
        if kind:
            params["think"] = False


def _effort(request: Mapping[str, Any], params: Json) -> str:
    given = request.get("output_config")
    config = {} if given is None else values.mapping(given, "output_config")
    translate(OUTPUT_CONFIG, config, params, "output_config.")
    effort = config.get("effort")
    if effort is not None and effort not in tuple(_LEVELS):
        raise InvalidRequest(
            f"'output_config.effort' must be one of {', '.join(_LEVELS)}", param="output_config.effort"
        )
    return effort or ""


def _thinking(request: Mapping[str, Any]) -> str:
    given = request.get("thinking")
    if is_absent(given):
        return ""
    config = values.mapping(given, "thinking")
    translate(THINKING, config, {}, "thinking.")
    kind = config.get("type")
    if kind not in ("enabled", "adaptive", "disabled"):
        raise InvalidRequest(
            f"'thinking.type' {kind!r} cannot be carried over to {TARGET}: it must be 'enabled', 'adaptive' or "
            "'disabled'",
            param="thinking.type",
        )
    return str(kind)
