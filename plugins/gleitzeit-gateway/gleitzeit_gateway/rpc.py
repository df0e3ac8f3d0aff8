"""JSON-RPC 2.0: every method of every provider, one call per request.

Two extensions: ``"timeout_s"`` bounds a call, and ``"stream": true`` answers lines of ``{"part": ...}``, the last of
which is ``{"done": true}``; ``{"error": ...}`` instead of it says that the answer broke off.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from gleitzeit_core.errors import GleitzeitError, InvalidRequest
from gleitzeit_gateway.endpoints import json_response
from gleitzeit_gateway.errors import code_of, message_of
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from gleitzeit_core.provider import Provider
    from gleitzeit_core.requests import Request
    from gleitzeit_core.runs import Stream
    from gleitzeit_gateway.call import Call

_PARSE_ERROR: Final = -32700
_INVALID_REQUEST: Final = -32600
_INTERNAL: Final = -32603
_FAILED: Final = -32000
_CODES: Final = {"unknown_method": -32601, "invalid_request": -32602, "internal": _INTERNAL}


async def rpc(call: Call) -> web.StreamResponse:
    """Answer one call."""
    body = await call.body()
    try:
        message = msgspec.json.decode(body)
    except UNREADABLE as error:
        return _refused(call, None, _PARSE_ERROR, f"not JSON: {error}")
    problem = _problem(message)
    if problem:
        given = message.get("id") if isinstance(message, dict) else None
        return _refused(call, given if _is_id(given) else None, _INVALID_REQUEST, problem)
    try:
        return await _carried_out(call, message)
    except GleitzeitError as error:
        call.note_error(error)
        return json_response({"jsonrpc": "2.0", "id": message.get("id"), "error": _described(error)})


def _problem(message: object) -> str:
    """What is wrong with a call; empty when nothing is."""
    if not isinstance(message, dict):
        return "expected one call, as an object"
    timeout_s = message.get("timeout_s")
    checks = {
        "'jsonrpc' must be \"2.0\"": message.get("jsonrpc") == "2.0",
        "'method' must be a string": isinstance(message.get("method"), str),
        "'params' must be an object": isinstance(message.get("params", {}), dict),
        "'id' must be a string, a number or null": _is_id(message.get("id")),
        "'stream' must be true or false": isinstance(message.get("stream", False), bool),
        "'timeout_s' must be a number above 0": timeout_s is None or (_is_number(timeout_s) and timeout_s > 0),
    }
    return next((problem for problem, right in checks.items() if not right), "")


def _is_id(value: object) -> bool:
    return value is None or isinstance(value, str) or _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


async def _carried_out(call: Call, message: Mapping[str, Any]) -> web.StreamResponse:
    provider = call.manager.provider(message["method"])
    request = provider.request(
        message["method"],
        message.get("params", {}),
        tenant=call.tenant,
        priority=call.priority,
        timeout_s=message.get("timeout_s"),
    ).changed(id=call.unique_id)
    call.model = str(request.params.get("model") or "")
    if message.get("stream"):
        return await _in_parts(call, provider, request.changed(stream=True))
    answer = await call.manager.dispatcher.one(provider, request)
    call.note_served(answer.served)
    if "id" not in message:
        return web.Response(status=204)  # A notification: it gets no answer.
    return web.Response(
        body=_encoded({"jsonrpc": "2.0", "id": message["id"], "result": answer.value}), content_type="application/json"
    )


async def _in_parts(call: Call, provider: Provider[Any], request: Request) -> web.StreamResponse:
    async with call.manager.dispatcher.stream(provider, request) as parts:
        lines = _lines(parts)
        async with contextlib.aclosing(lines):
            first = await anext(lines)
            call.note_served(parts.served)
            response = await call.begin("application/x-ndjson")
            await response.write(first)
            await call.send(response, lines, lambda error: _encoded({"error": _described(error)}) + b"\n")
            return response


async def _lines(parts: Stream) -> AsyncGenerator[bytes, None]:
    async for part in parts:
        yield _encoded({"part": part}) + b"\n"
    yield _encoded({"done": True}) + b"\n"


class _NotJson(GleitzeitError):
    """A method answered something that JSON has no form for."""

    code = "internal"


def _encoded(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _NotJson(f"the method's answer has no form in JSON: {error}") from None


def _described(error: Exception) -> dict[str, Any]:
    """An error as JSON-RPC has it; ``data`` is our own shape, with the stable code."""
    data = error.as_dict() if isinstance(error, GleitzeitError) else {"code": "internal", "retryable": False}
    if isinstance(error, InvalidRequest) and error.param:
        data["param"] = error.param
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        data["retry_after_s"] = retry_after_s
    return {"code": _CODES.get(code_of(error), _FAILED), "message": message_of(error), "data": data}


def _refused(call: Call, request_id: object, code: int, message: str) -> web.Response:
    """A call that is none."""
    call.error = "invalid_request"
    data = {"code": call.error, "message": message, "retryable": False}
    error = {"code": code, "message": message, "data": data}
    return json_response({"jsonrpc": "2.0", "id": request_id, "error": error})
