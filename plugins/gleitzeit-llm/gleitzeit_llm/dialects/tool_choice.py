"""The tools that a request offers, and whether one of them must be called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.errors import InvalidRequest

if TYPE_CHECKING:
    from gleitzeit_llm.protocol import Json


def offer(params: Json, tools: list[Json], *, required: bool) -> None:
    """Put the `tools` that may be called into `params`, and whether one of them must be.

    Raises:
        InvalidRequest: One must be, and there is none.
    """
    if tools:
        params["tools"] = tools
    if required:
        if not tools:
            raise InvalidRequest("'tool_choice' wants a call of a tool that is not in 'tools'", param="tool_choice")
        params["tool_choice"] = "required"
