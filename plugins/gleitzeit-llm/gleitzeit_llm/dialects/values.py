"""Checks of single values. Each takes a value and the field's dotted name, and gives the value to carry over.

A result of None means: this value says nothing that must be carried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest

if TYPE_CHECKING:
    from gleitzeit_llm.protocol import Json


def number(value: object, param: str) -> int | float:
    """A number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{param!r} must be a number", param=param)
    return value


def integer(value: object, param: str) -> int:
    """A whole number; 3.0 counts, as JSON does not tell it from 3."""
    found = number(value, param)
    if isinstance(found, float) and not found.is_integer():
        raise InvalidRequest(f"{param!r} must be a whole number", param=param)
    return int(found)


def boolean(value: object, param: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{param!r} must be true or false", param=param)
    return value


def text(value: object, param: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{param!r} must be a string", param=param)
    return value


def texts(value: object, param: str) -> list[str]:
    """A list of strings; one string stands for a list of one."""
    if isinstance(value, str):
        return [value]
    return [text(item, f"{param}[{index}]") for index, item in enumerate(items(value, param))]


def one_or_more_texts(value: object, param: str) -> str | list[str]:
    """A string or a list of strings, kept as it is."""
    return value if isinstance(value, str) else texts(value, param)


def items(value: object, param: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"{param!r} must be a list", param=param)
    return list(value)


def mapping(value: object, param: str) -> Json:
    """An object."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param!r} must be an object", param=param)
    return value


def tools(value: object, param: str) -> list[Json]:
    """Tool definitions, which both APIs write in the same way; only functions exist in both."""
    return [_tool(item, f"{param}[{index}]") for index, item in enumerate(items(value, param))]


def _tool(value: object, param: str) -> Json:
    tool = mapping(value, param)
    kind = tool.get("type") or "function"
    if kind != "function":
        raise InvalidRequest(f"{param!r}: only tools of type 'function' can be carried over, not {kind!r}", param=param)
    mapping(tool.get("function"), f"{param}.function")
    return {**tool, "type": kind}
