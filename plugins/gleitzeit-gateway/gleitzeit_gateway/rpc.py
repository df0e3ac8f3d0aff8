"""JSON-RPC 2.0: every method of every provider, one call or a batch of them in a request.

Two extensions: ``"timeout_s"`` bounds a call, and ``"stream": true`` answers lines of ``{"part": ...}``, the last of
which is ``{"done": true}``; ``{"error": ...}`` instead of it says that the answer broke off.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from gleitzeit_gateway.errors import headers_of
from gleitzeit_gateway.keepalive import SIGNS, first_part
from gleitzeit_gateway.limits import LimitReached
from gleitzeit_gateway.rpc_messages import (
    INVALID_REQUEST,
    PARSE_ERROR,
    NoCall,
    described,
    encoded,
    failure,
    params_of,
    parsed,
    result,
)
from gleitzeit_llm.listings import LOADED, MODELS
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gleitzeit_core.provider import Provider, RequestOptions
    from gleitzeit_core.requests import Request
    from gleitzeit_core.runs import Stream
    from gleitzeit_gateway.answers import Reply
    from gleitzeit_gateway.call import Call
    from gleitzeit_gateway.rpc_messages import RpcCall

# Of one batch: more than this go on one after the other, so that a batch takes its turn like other callers.
_AT_ONCE: Final = 8
_NDJSON: Final = "application/x-ndjson"


async def rpc(call: Call) -> Reply:
    """Answer what was sent to ``/rpc``."""
    body = await call.body()
    try:
        message = msgspec.json.decode(body)
    except UNREADABLE as error:
        return _refused(call, NoCall(PARSE_ERROR, f"not JSON: {error}"))
    return await (_batch(call, message) if isinstance(message, list) else _single(call, message))


# -- one call ------------------------------------------------------------------------------------------------------


async def _single(call: Call, message: object) -> Reply:
    try:
        asked = parsed(message)
    except NoCall as error:
        return _refused(call, error)
    try:
        call.hold()
        if asked.stream:
            return await _in_parts(call, asked)
        provider, request = _request(call, asked, call.unique_id)
        answer = await call.manager.dispatcher.one(provider, request)
        call.note_served(answer.served)
        return _answer(None if asked.notification else result(asked.id, _shown(call, asked, answer.value)))
    except Exception as error:
        if call.begun or call.gone:
            raise
        call.note_error(error)
        refused = _answer(None if asked.notification else failure(asked.id, error))
        if isinstance(error, LimitReached):
            # Programs that call too often look at the status, and few of them know JSON-RPC.
            refused.set_status(error.status)
            refused.headers.update(headers_of(error))
        return refused


def _request(call: Call, asked: RpcCall, request_id: str) -> tuple[Provider[Any], Request]:
    """What a call asks for.

    Raises:
        UnknownMethod: No provider has the method.
        InvalidRequest: Its parameters are wrong.
        Refused: Its caller may not call it, or not with this model.
    """
    provider = call.manager.provider(asked.method)
    method = provider.method(asked.method)
    call.caller.check(method)
    params, timeout_s = params_of(asked), asked.timeout_s
    options: RequestOptions = {"tenant": call.tenant, "priority": call.priority, "affinity": call.affinity}
    options["timeout_s"] = timeout_s
    request = provider.request(asked.method, params, **options).changed(id=request_id)
    call.model = str(request.params.get("model") or "")
    call.caller.check(method, call.model)
    call.caller.check_fields(request.params)
    return provider, request


def _shown(call: Call, asked: RpcCall, value: Any) -> Any:  # noqa: ANN401 - what a method answers is its own
    """The answer, without the models that its caller may not use where it is a list of them."""
    if asked.method in (MODELS, LOADED):
        return {**value, "models": call.caller.shown(value["models"])}
    return value


def _refused(call: Call, error: NoCall) -> web.Response:
    """What is no call; it is answered even without an id."""
    call.note_error(error)
    return _answer(failure(error.request_id, error))


def _answer(body: bytes | None) -> web.Response:
    if body is None:
        return web.Response(status=204)
    return web.Response(body=body, content_type="application/json")


# -- a batch -------------------------------------------------------------------------------------------------------


async def _batch(call: Call, messages: list[Any]) -> web.Response:
    """The answers to many calls, in their order; of those that are notifications there is none."""
    limit = call.options.max_batch
    if not messages:
        return _refused(call, NoCall(INVALID_REQUEST, "a batch holds at least one call"))
    if len(messages) > limit:
        return _refused(call, NoCall(INVALID_REQUEST, f"a batch of {len(messages)} calls: at most {limit} are taken"))
    # A batch alone does not run into its key's limit of what may run.
    limits = call.caller.limits
    turns = asyncio.Semaphore(min(_AT_ONCE, limits.max_concurrent or _AT_ONCE))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_one_of_many(call, turns, n, message)) for n, message in enumerate(messages)]
    call.headers.update(limits.headers())
    answers = [answer for answer in (task.result() for task in tasks) if answer is not None]
    return _answer(b"[" + b",".join(answers) + b"]" if answers else None)


async def _one_of_many(call: Call, turns: asyncio.Semaphore, number: int, message: object) -> bytes | None:
    """The answer to one call of a batch. Whatever goes wrong with it is no other's affair."""
    try:
        asked = _of_many(message)
    except NoCall as error:
        call.note_partial_error(error)
        return failure(error.request_id, error)
    try:
        async with turns:
            with call.caller.limits:
                provider, request = _request(call, asked, f"{call.unique_id}-{number}")
                answer = await call.manager.dispatcher.one(provider, request)
        return None if asked.notification else result(asked.id, _shown(call, asked, answer.value))
    except Exception as error:  # noqa: BLE001 - a provider of somebody else's may raise anything; it is logged
        call.note_partial_error(error)
        return None if asked.notification else failure(asked.id, error)


def _of_many(message: object) -> RpcCall:
    asked = parsed(message)
    if asked.stream:
        raise NoCall(INVALID_REQUEST, "a call in a batch cannot be answered in parts", asked.id)
    return asked


# -- in parts ------------------------------------------------------------------------------------------------------


async def _in_parts(call: Call, asked: RpcCall) -> Reply:
    provider, request = _request(call, asked, call.unique_id)
    async with call.manager.dispatcher.stream(provider, request.changed(stream=True)) as parts:
        lines = _lines(parts)
        async with contextlib.aclosing(lines):
            first, response = await first_part(call, lines, _NDJSON, SIGNS["rpc"], _in_band)
            if response is not None and call.broken_off:
                return response
            call.note_served(parts.served)
            response = response or await call.begin(_NDJSON)
            await response.write(first)
            await call.send(response, lines, _in_band)
            return response


def _in_band(error: Exception) -> bytes:
    return encoded({"error": described(error)}) + b"\n"


async def _lines(parts: Stream) -> AsyncGenerator[bytes, None]:
    async for part in parts:
        yield encoded({"part": part}) + b"\n"
    yield encoded({"done": True}) + b"\n"
