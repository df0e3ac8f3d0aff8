"""The messages of JSON-RPC 2.0: calls as they come, answers and errors as they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gleitzeit_core.errors import GleitzeitError, InvalidRequest
from gleitzeit_gateway.errors import code_of, message_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Id = str | int | float | None

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
_FAILED: Final = -32000
_CODES: Final = {"unknown_method": -32601, "invalid_request": -32602, "internal": -32603}
# How deep an answer may be, and how large its numbers, is the method's affair: what JSON cannot say is its mistake.
_UNWRITABLE: Final = (TypeError, ValueError, OverflowError, RecursionError)


class NoCall(GleitzeitError):
    """What came is no call of JSON-RPC.

    Args:
        number: JSON-RPC's own, such as `PARSE_ERROR`.
        message: A sentence for a person.
        request_id: Its id, where that can be told.
    """

    code = "invalid_request"

    def __init__(self, number: int, message: str, request_id: Id = None) -> None:
        super().__init__(message)
        self.number, self.request_id = number, request_id


class NotJson(GleitzeitError):
    """A method answered something that JSON has no form for."""

    code = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcCall:
    """One call.

    Args:
        method: ``protocol/method``.
        params: By name; not checked yet.
        id: Comes back with the answer.
        notification: Whether it has no id, and so gets no answer, not even an error.
        stream: Whether its answer is wanted in parts.
        timeout_s: Its time limit, above 0; None for that of its route.
    """

    method: str
    params: Mapping[str, Any]
    id: Id = None
    notification: bool = False
    stream: bool = False
    timeout_s: float | None = None


def parsed(message: object) -> RpcCall:
    """`message` as a call.

    Raises:
        NoCall: It is none; says which part of it is wrong.
        InvalidRequest: It is one, but has its parameters by position.
    """
    if not isinstance(message, dict):
        raise NoCall(INVALID_REQUEST, "expected a call, as an object")
    problem = next((text for text, is_right in _RULES.items() if not is_right(message)), "")
    if problem:
        given = message.get("id")
        raise NoCall(INVALID_REQUEST, problem, given if _is_id(given) else None)
    return RpcCall(
        method=message["method"],
        params=message.get("params", {}),
        id=message.get("id"),
        notification="id" not in message,
        stream=message.get("stream", False),
        timeout_s=message.get("timeout_s"),
    )


def _is_id(value: object) -> bool:
    return value is None or isinstance(value, str) or _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return value is None or (_is_number(value) and value > 0)


_RULES: Final[dict[str, Callable[[dict[str, Any]], bool]]] = {
    "'jsonrpc' must be \"2.0\"": lambda it: it.get("jsonrpc") == "2.0",
    "'method' must be a string": lambda it: isinstance(it.get("method"), str),
    "'params' must be an object": lambda it: isinstance(it.get("params", {}), dict | list),
    "'id' must be a string, a number or null": lambda it: _is_id(it.get("id")),
    "'stream' must be true or false": lambda it: isinstance(it.get("stream", False), bool),
    "'stream' needs an 'id': a call without one gets no answer": lambda it: "id" in it or not it.get("stream"),
    "'timeout_s' must be a number above 0": lambda it: _is_time(it.get("timeout_s")),
}


def params_of(asked: RpcCall) -> Mapping[str, Any]:
    """Its parameters, by name.

    Raises:
        InvalidRequest: They are given by position, which JSON-RPC allows and the methods here do not.
    """
    if isinstance(asked.params, list):
        raise InvalidRequest("'params' must be an object: methods take their parameters by name", param="params")
    return asked.params


def result(request_id: Id, value: object) -> bytes:
    """The answer to a call.

    Raises:
        NotJson: `value` has no form in JSON.
    """
    return encoded({"jsonrpc": "2.0", "id": request_id, "result": value})


def failure(request_id: Id, error: Exception) -> bytes:
    """The error of a call."""
    return encoded({"jsonrpc": "2.0", "id": request_id, "error": described(error)})


def described(error: Exception) -> dict[str, Any]:
    """An error as JSON-RPC has it; ``data`` is our own shape, with the stable code."""
    data = error.as_dict() if isinstance(error, GleitzeitError) else {"code": "internal", "retryable": False}
    data["message"] = message_of(error)
    if isinstance(error, InvalidRequest) and error.param:
        data["param"] = error.param
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        data["retry_after_s"] = retry_after_s
    number = error.number if isinstance(error, NoCall) else _CODES.get(code_of(error), _FAILED)
    return {"code": number, "message": data["message"], "data": data}


def encoded(value: object) -> bytes:
    """`value` as compact JSON.

    Raises:
        NotJson: It has something in it that JSON has no form for.
    """
    try:
        return msgspec.json.encode(value)
    except _UNWRITABLE as error:
        raise NotJson(f"the method's answer has no form in JSON: {error}") from None
