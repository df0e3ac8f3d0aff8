"""The gateway's own endpoints: health, metrics, status and JSON-RPC."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from gleitzeit_core.errors import GleitzeitError, InvalidRequest, RequestError
from gleitzeit_core.pool import State
from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import headers_of, status_of
from gleitzeit_gateway.llm_api import read_body
from gleitzeit_gateway.metrics import exposition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_gateway.endpoints import Call

_PARSE_ERROR, _INVALID_REQUEST, _METHOD_NOT_FOUND, _INVALID_PARAMS, _FAILED = -32700, -32600, -32601, -32602, -32000


def admin_endpoints() -> list[Endpoint]:
    """Health, metrics, status and JSON-RPC."""
    make = partial(Endpoint, error=plain_error)
    return [
        make(method="GET", path="/health/live", handler=_live, public=True),
        make(method="GET", path="/health/ready", handler=_ready, public=True),
        make(method="GET", path="/metrics", handler=_metrics),
        make(method="GET", path="/admin/status", handler=_status),
        make(method="POST", path="/rpc", handler=_rpc),
    ]


def plain_error(error: Exception) -> web.Response:
    """Our own envelope."""
    data = error.as_dict() if isinstance(error, GleitzeitError) else {"code": "internal", "message": "internal error"}
    response = json_response({"error": data}, status=status_of(error, "ollama"))
    response.headers.update(headers_of(error))
    return response


async def _live(call: Call) -> web.Response:
    del call
    return json_response({"status": "ok"})


async def _ready(call: Call) -> web.Response:
    """Ready when an instance is: what sends traffic here should know that it can be served."""
    states = [report.state for report in call.manager.instances()]
    ready = sum(1 for state in states if state == State.READY)
    body = {"status": "ok" if ready else "no instance is ready", "ready": ready, "instances": len(states)}
    return json_response(body, status=200 if ready else 503)


async def _metrics(call: Call) -> web.Response:
    body, content_type = exposition(call.manager)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _status(call: Call) -> web.Response:
    return json_response(call.manager.status())


# -- JSON-RPC 2.0, one call at a time ------------------------------------------------------------------------------


async def _rpc(call: Call) -> web.StreamResponse:
    try:
        message = msgspec.json.decode(await read_body(call))
    except msgspec.DecodeError as error:
        return _rpc_error(None, _PARSE_ERROR, f"not JSON: {error}")
    problem = _problem(message)
    if problem:
        return _rpc_error(message.get("id") if isinstance(message, dict) else None, _INVALID_REQUEST, problem)
    options: dict[str, Any] = {"tenant": call.tenant, "priority": call.priority}
    try:
        if message.get("stream") is True:
            return await _rpc_stream(call, message, options)
        result = await call.manager.execute(message["method"], message.get("params") or {}, **options)
    except RequestError as error:
        return _rpc_error(message.get("id"), *_described(error))
    return json_response({"jsonrpc": "2.0", "id": message.get("id"), "result": result})


def _problem(message: object) -> str:
    if not isinstance(message, dict):
        return "expected one call, as an object"
    if message.get("jsonrpc") != "2.0":
        return "'jsonrpc' must be \"2.0\""
    if not isinstance(message.get("method"), str):
        return "'method' must be a string"
    return "" if isinstance(message.get("params", {}), dict | None) else "'params' must be an object"


async def _rpc_stream(call: Call, message: Mapping[str, Any], options: Mapping[str, Any]) -> web.StreamResponse:
    """Our extension: ``"stream": true`` answers lines of ``{"part": ...}`` and at the end ``{"done": true}``."""
    parts = call.manager.stream(message["method"], message.get("params") or {}, **options)
    async with parts:
        first = await anext(parts)
        call.served = parts.served
        response = web.StreamResponse(headers={**call.headers, "Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        await response.prepare(call.request)
        await response.write(_line({"part": first}))
        try:
            async for part in parts:
                await response.write(_line({"part": part}))
        except RequestError as error:
            call.error = error.code
            code, text, data = _described(error)
            await response.write(_line({"error": {"code": code, "message": text, "data": data}}))
        else:
            await response.write(_line({"done": True}))
    return response


def _line(data: object) -> bytes:
    return msgspec.json.encode(data) + b"\n"


def _described(error: RequestError) -> tuple[int, str, dict[str, Any]]:
    codes = {"unknown_method": _METHOD_NOT_FOUND, "invalid_request": _INVALID_PARAMS}
    data = error.as_dict()
    if isinstance(error, InvalidRequest) and error.param:
        data["param"] = error.param
    return codes.get(error.code, _FAILED), error.message, data


def _rpc_error(request_id: object, code: int, message: str, data: Mapping[str, Any] | None = None) -> web.Response:
    error = {"code": code, "message": message, **({"data": data} if data else {})}
    return json_response({"jsonrpc": "2.0", "id": request_id, "error": error})
