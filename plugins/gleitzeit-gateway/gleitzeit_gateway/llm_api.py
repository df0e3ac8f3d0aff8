"""The Ollama and OpenAI client APIs: HTTP on the outside, the protocol `llm` on the inside."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from gleitzeit_core.errors import NoCapableInstance, RequestError
from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import Refused, message_of, renderer, status_of
from gleitzeit_llm import models
from gleitzeit_llm.dialects import DIALECTS
from gleitzeit_llm.provider import LLMProvider, RawAnswer

if TYPE_CHECKING:
    from gleitzeit_core.requests import Request, Served
    from gleitzeit_core.runs import Stream
    from gleitzeit_gateway.endpoints import Call

# What clients are told where no Ollama is in the pool: the version whose API the gateway follows.
OLLAMA_VERSION: Final = "0.24.0"
_EMBED_PATHS: Final = frozenset(("/api/embed", "/api/embeddings"))
_NOT_YET: Final = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/*")


def ollama_endpoints() -> list[Endpoint]:
    """The Ollama client API."""
    error = renderer("ollama")
    make = partial(Endpoint, error=error)
    calls = [*DIALECTS["ollama"].client.endpoints, "/api/show"]
    return [
        make(method="GET", path="/", handler=_root, public=True),
        make(method="GET", path="/api/version", handler=_version),
        make(method="GET", path="/api/tags", handler=_tags),
        make(method="GET", path="/api/ps", handler=_loaded),
        *(make(method="POST", path=path, handler=partial(_answer, "ollama", path)) for path in calls),
        *(make(method=verb, path=path, handler=_not_yet) for path in _NOT_YET for verb in ("POST", "DELETE")),
    ]


def openai_endpoints() -> list[Endpoint]:
    """The OpenAI client API."""
    make = partial(Endpoint, error=renderer("openai"))
    calls = DIALECTS["openai"].client.endpoints
    return [
        make(method="GET", path="/v1/models", handler=_models),
        make(method="GET", path="/v1/models/*", handler=_model),
        *(make(method="POST", path=path, handler=partial(_answer, "openai", path)) for path in calls),
    ]


def _provider(call: Call) -> LLMProvider:
    return cast("LLMProvider", call.manager.provider("llm/chat"))


# -- requests to a model -------------------------------------------------------------------------------------------


async def read_body(call: Call) -> bytes:
    """The whole body.

    Raises:
        Refused: It is too large, or does not arrive in time.
    """
    limit = call.options.max_body_bytes
    try:
        async with asyncio.timeout(call.options.body_timeout_s):
            return await call.request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, f"the request is larger than {limit} bytes", "too_large") from None
    except TimeoutError:
        limit_s = call.options.body_timeout_s
        raise Refused(408, f"the request did not arrive within {limit_s:g} s", "slow_request") from None


async def _answer(api: str, path: str, call: Call) -> web.StreamResponse:
    provider = _provider(call)
    body = await read_body(call)
    request = provider.raw_request(api, path, body, tenant=call.tenant, priority=call.priority).changed(id=call.id)
    call.model = request.params["model"]
    try:
        if request.stream:
            return await _streamed(api, call, provider, request)
        answer = await call.manager.dispatcher.one(provider, request)
    except NoCapableInstance as error:
        # Each API has its own words for this, and clients look for them.
        raise _unknown_model(api, path, call.model, error) from error
    return _whole(call, answer.value, answer.served)


def _unknown_model(api: str, path: str, model: str, error: NoCapableInstance) -> NoCapableInstance:
    if api == "ollama" and path in _EMBED_PATHS:
        return NoCapableInstance(f'model "{model}" not found, try pulling it first', needed=error.needed)
    return NoCapableInstance(f"model '{model}' not found", needed=error.needed)


def _whole(call: Call, raw: RawAnswer, served: Served) -> web.Response:
    call.served = served
    return web.Response(
        body=raw.body, status=raw.status, headers={"Content-Type": raw.content_type, **served_headers(served)}
    )


def served_headers(served: Served) -> dict[str, str]:
    """Who served, and how long it waited."""
    return {
        "X-Gleitzeit-Instance": served.instance_id,
        "X-Gleitzeit-Queue-Ms": f"{served.queued_s * 1000:.0f}",
        "X-Gleitzeit-Tries": str(served.tries),
    }


async def _streamed(api: str, call: Call, provider: LLMProvider, request: Request) -> web.StreamResponse:
    async with call.manager.dispatcher.stream(provider, request) as parts:
        # Until here everything can still become an ordinary error, or another instance's answer.
        first = await anext(parts)
        if isinstance(first, RawAnswer):
            return _whole(call, first, parts.served)
        call.served = parts.served
        headers = {"Content-Type": DIALECTS[api].client.stream_type, **call.headers, **served_headers(parts.served)}
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(call.request)
        await response.write(first)
        await _pump(api, call, parts, response)
        return response


async def _pump(api: str, call: Call, parts: Stream, response: web.StreamResponse) -> None:
    try:
        async for part in parts:
            await response.write(part)
    except RequestError as error:
        call.error = error.code
        await response.write(_in_band(api, error))
        # An answer that broke off must not look complete: its last chunk is missing too.
        if call.request.transport is not None:
            call.request.transport.close()


def _in_band(api: str, error: RequestError) -> bytes:
    """An error inside a stream that has begun."""
    client = DIALECTS[api].client
    body = client.error_body(status_of(error, api), message_of(error, api), error.code).strip()
    return body + b"\n" if api == "ollama" else b"data: " + body + b"\n\n"


# -- listings ------------------------------------------------------------------------------------------------------


async def _root(call: Call) -> web.Response:
    del call
    return web.Response(text="Ollama is running", content_type="text/plain", charset="utf-8")


async def _version(call: Call) -> web.Response:
    """The lowest version in the pool, because any instance may get the next request."""
    reports = call.manager.instances()
    found = [str(r.instance.details["version"]) for r in reports if r.instance.details.get("version")]
    return _ollama_json({"version": min(found, key=_version_key, default=OLLAMA_VERSION)})


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("-", maxsplit=1)[0].split("."))


async def _tags(call: Call) -> web.Response:
    return _ollama_json(await call.manager.execute("llm/models"))


async def _loaded(call: Call) -> web.Response:
    return _ollama_json(await call.manager.execute("llm/loaded"))


async def _models(call: Call) -> web.Response:
    found = (await call.manager.execute("llm/models"))["models"]
    return json_response({"object": "list", "data": [_openai_model(entry["name"], entry) for entry in found]})


async def _model(call: Call) -> web.Response:
    found = (await call.manager.execute("llm/models"))["models"]
    for entry in found:
        if models.canonical(entry["name"]) == models.canonical(call.rest):
            return json_response(_openai_model(call.rest, entry))
    raise NoCapableInstance(f"model '{call.rest}' not found")


def _openai_model(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    created = 0
    with contextlib.suppress(ValueError, KeyError, OverflowError):
        created = max(0, int(datetime.fromisoformat(entry["modified_at"]).timestamp()))
    return {"id": name, "object": "model", "created": created or int(time.time()), "owned_by": "library"}


def _ollama_json(data: Any) -> web.Response:  # noqa: ANN401 - anything JSON
    response = json_response(data)
    response.headers["Content-Type"] = DIALECTS["ollama"].client.plain_type
    return response


async def _not_yet(call: Call) -> web.Response:
    text = f"{call.request.path} is not served by this gateway yet: use the instance's own address"
    raise Refused(501, text, "not_implemented")
