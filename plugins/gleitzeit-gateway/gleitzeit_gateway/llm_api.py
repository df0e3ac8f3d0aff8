"""The Ollama and OpenAI client APIs: HTTP on the outside, the protocol `llm` on the inside."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

from gleitzeit_core.errors import NoCapableInstance
from gleitzeit_gateway.endpoints import Endpoint
from gleitzeit_gateway.errors import Refused, envelope, renderer
from gleitzeit_gateway.listings import listed_model, listed_models, loaded, root, tags, version
from gleitzeit_llm.dialects import DIALECTS
from gleitzeit_llm.provider import LLMProvider, RawAnswer

if TYPE_CHECKING:
    from gleitzeit_core.provider import RequestOptions
    from gleitzeit_core.requests import Request
    from gleitzeit_gateway.call import Call

# Ollama has two sentences for a model it does not know, and clients look for them.
_EMBED_PATHS: Final = frozenset(("/api/embed", "/api/embeddings", "/v1/embeddings"))
_NOT_YET: Final = (
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/*"),
    ("HEAD", "/api/blobs/*"),
)


def ollama_endpoints() -> list[Endpoint]:
    """The Ollama client API."""
    make = partial(Endpoint, error=renderer("ollama"))
    calls = [*DIALECTS["ollama"].client.endpoints, "/api/show"]
    return [
        make(method="GET", path="/", handler=root, public=True),
        make(method="GET", path="/api/version", handler=version),
        make(method="GET", path="/api/tags", handler=tags),
        make(method="GET", path="/api/ps", handler=loaded),
        *(make(method="POST", path=path, handler=partial(_answer, "ollama", path)) for path in calls),
        *(make(method=verb, path=path, handler=_not_yet) for verb, path in _NOT_YET),
    ]


def openai_endpoints() -> list[Endpoint]:
    """The OpenAI client API."""
    make = partial(Endpoint, error=renderer("openai"))
    calls = DIALECTS["openai"].client.endpoints
    return [
        make(method="GET", path="/v1/models", handler=listed_models),
        make(method="GET", path="/v1/models/*", handler=listed_model),
        *(make(method="POST", path=path, handler=partial(_answer, "openai", path)) for path in calls),
    ]


async def _answer(api: str, path: str, call: Call) -> web.StreamResponse:
    provider = cast("LLMProvider", call.manager.provider("llm/chat"))
    body = await call.body()
    options: RequestOptions = {"tenant": call.tenant, "priority": call.priority, "affinity": call.affinity}
    request = provider.raw_request(api, path, body, **options).changed(id=call.unique_id)
    call.model = request.params["model"]
    try:
        if request.stream:
            return await _in_parts(api, call, provider, request)
        answer = await call.manager.dispatcher.one(provider, request)
    except NoCapableInstance as error:
        raise _unknown_model(path, call.model, error) from error
    call.note_served(answer.served)
    return _whole(answer.value)


async def _in_parts(api: str, call: Call, provider: LLMProvider, request: Request) -> web.StreamResponse:
    async with call.manager.dispatcher.stream(provider, request) as parts:
        # Until the first part is there, everything can still become an ordinary error, or another instance's answer.
        first = await anext(parts)
        call.note_served(parts.served)
        if isinstance(first, RawAnswer):
            return _whole(first)
        response = await call.begin(DIALECTS[api].client.stream_type)
        await response.write(first)
        await call.send(response, parts, partial(_in_band, api))
        return response


def _whole(raw: RawAnswer) -> web.Response:
    return web.Response(body=raw.body, status=raw.status, headers={"Content-Type": raw.content_type})


def _in_band(api: str, error: Exception) -> bytes:
    """An error inside a stream that has begun."""
    body = envelope(error, api).strip()
    return body + b"\n" if api == "ollama" else b"data: " + body + b"\n\n"


def _unknown_model(path: str, model: str, error: NoCapableInstance) -> NoCapableInstance:
    text = f'model "{model}" not found, try pulling it first' if path in _EMBED_PATHS else f"model '{model}' not found"
    return NoCapableInstance(text, needed=error.needed)


async def _not_yet(call: Call) -> web.Response:
    text = f"{call.request.path} is not served by this gateway yet: use the instance's own address"
    raise Refused(501, text, "not_implemented")
