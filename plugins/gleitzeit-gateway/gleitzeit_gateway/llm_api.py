"""The Ollama, OpenAI and Anthropic client APIs: HTTP on the outside, the protocol `llm` on the inside."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from gleitzeit_core.errors import InstanceFailure, NoCapableInstance, Unavailable
from gleitzeit_gateway import responses_api
from gleitzeit_gateway.answers import Whole
from gleitzeit_gateway.endpoints import Endpoint
from gleitzeit_gateway.errors import REQUEST_ID, Refused, envelope, renderer
from gleitzeit_gateway.keepalive import SIGNS, first_part
from gleitzeit_gateway.listings import listed_model, listed_models, loaded, root, tags, version
from gleitzeit_llm.dialects import CLIENTS
from gleitzeit_llm.dialects.sse import event
from gleitzeit_llm.provider import LLMProvider, RawAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_core.requests import Request
    from gleitzeit_gateway.answers import Reply
    from gleitzeit_gateway.call import Call

MODEL: Final = "X-Gleitzeit-Model"
"""The model that served, where it may be another than the one that was asked for."""
# Ollama has two sentences for a model it does not know, and clients look for them.
_EMBED_PATHS: Final = frozenset(("/api/embed", "/api/embeddings", "/v1/embeddings"))
_OF_PLUGINS: Final = (
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
    calls = [*CLIENTS["ollama"].endpoints, "/api/show"]
    return [
        make(method="GET", path="/", handler=root, public=True),
        make(method="GET", path="/api/version", handler=version),
        make(method="GET", path="/api/tags", handler=tags),
        make(method="GET", path="/api/ps", handler=loaded),
        *(make(method="POST", path=path, handler=partial(_answer, "ollama", path)) for path in calls),
    ]


def unserved_endpoints() -> list[Endpoint]:
    """Calls of Ollama's that manage models, where no plugin serves them."""
    make = partial(Endpoint, error=renderer("ollama"))
    return [make(method=verb, path=path, handler=_unserved) for verb, path in _OF_PLUGINS]


def openai_endpoints() -> list[Endpoint]:
    """The OpenAI client API."""
    make = partial(Endpoint, error=renderer("openai"))
    calls = [(api, path) for api in ("openai", responses_api.API) for path in CLIENTS[api].endpoints]
    return [
        make(method="GET", path="/v1/models", handler=listed_models),
        make(method="GET", path="/v1/models/*", handler=listed_model),
        *(make(method="POST", path=path, handler=partial(_answer, api, path)) for api, path in calls),
        make(method="GET", path="/v1/responses/*", handler=responses_api.stored),
        make(method="DELETE", path="/v1/responses/*", handler=responses_api.stored),
        make(method="POST", path="/v1/responses/*", handler=responses_api.unserved),
    ]


def anthropic_endpoints() -> list[Endpoint]:
    """The Anthropic client API. Its header ``anthropic-version`` may say anything: there is one version."""
    make = partial(Endpoint, error=renderer("anthropic"))
    calls = CLIENTS["anthropic"].endpoints
    return [make(method="POST", path=path, handler=partial(_answer, "anthropic", path)) for path in calls]


async def _answer(api: str, path: str, call: Call) -> Reply:
    provider = cast("LLMProvider", call.manager.provider("llm/chat"))
    if api == "anthropic":
        call.headers[REQUEST_ID] = call.id
    body = call.body_now()
    if body is None:
        body = await call.body()
    stands_in = False
    while True:
        request = _request(api, path, call, provider, body)
        try:
            if request.stream:
                return await _in_parts(api, call, provider, request)
            answer = await call.manager.dispatcher.one(provider, request)
        except NoCapableInstance as error:
            raise _unknown_model(path, call.model, error) from error
        except (InstanceFailure, Unavailable):
            # The last instance with its model may have been lost just now: once more then, with what stands in for it.
            if stands_in or call.begun or not provider.has_stand_in(request):
                raise
            stands_in = True
        else:
            call.note_served(answer.served)
            return _whole(answer.value)


def _request(api: str, path: str, call: Call, provider: LLMProvider, body: bytes) -> Request:
    caller = call.caller
    request = provider.raw_request(
        api,
        path,
        body,
        request_id=call.unique_id,
        tenant=caller.name,
        priority=caller.priority,
        affinity=call.passage.affinity,
    )
    call.model = request.params["model"]
    if provider.renames:
        call.headers[MODEL] = call.model
    caller.check(provider.method(request.method), call.model)
    caller.check_body(body)
    return request


async def _in_parts(api: str, call: Call, provider: LLMProvider, request: Request) -> Reply:
    async with call.manager.dispatcher.stream(provider, request) as parts:
        # Until the first part is there, everything can still be another instance's answer; and become an ordinary
        # error, unless it takes so long that the caller was told to wait.
        form = _FORMS[api]
        call.headers.update(form.headers)
        first, response = await first_part(call, parts, form.content_type, form.sign, form.in_band)
        if response is not None and call.broken_off:
            return response
        call.note_served(parts.served)
        if isinstance(first, RawAnswer):
            if response is None:
                await anext(parts, None)  # Nothing comes after it, and who does not read on has left.
                return _whole(first)
            first = _in_stream(api, first)
        response = response or call.in_parts(form.content_type)
        if api == responses_api.API:
            numbered = responses_api.Numbered(first)
            await response.write(first)
            await call.send(response, numbered.watch(parts), numbered.error)
        else:
            if response.put(first, last=parts.at_end):
                await response.drained()
            await call.send(response, parts, form.in_band)
        return response


class _Form(NamedTuple):
    """How an API has its answers in parts.

    Args:
        content_type: Of them.
        sign: See `SIGNS`.
        in_band: An error inside one that has begun.
        headers: Further ones, as recorded.
    """

    content_type: str
    sign: bytes
    in_band: Callable[[Exception], bytes]
    headers: Mapping[str, str]


def _whole(raw: RawAnswer) -> Whole:
    return Whole(raw.body, status=raw.status, content_type=raw.content_type)


def _in_stream(api: str, raw: RawAnswer) -> bytes:
    """A whole answer where the head of a stream has been sent already."""
    if api == responses_api.API:
        return responses_api.whole(raw.body)
    return raw.body.strip() + b"\n" if api == "ollama" else event(raw.body.strip()) + event(b"[DONE]")


def _in_band(api: str, error: Exception) -> bytes:
    """An error inside a stream that has begun."""
    if api == responses_api.API:
        return responses_api.Numbered().error(error)
    body = envelope(error, api).strip()
    if api == "ollama":
        return body + b"\n"
    return event(body, b"error" if api == "anthropic" else b"")


_NO_CACHE: Final = {"Cache-Control": "no-cache"}
_HEADERS: Final = {"anthropic": _NO_CACHE, responses_api.API: _NO_CACHE}
_FORMS: Final = {
    api: _Form(client.stream_type, SIGNS[api], partial(_in_band, api), _HEADERS.get(api, {}))
    for api, client in CLIENTS.items()
}


def _unknown_model(path: str, model: str, error: NoCapableInstance) -> NoCapableInstance:
    text = f'model "{model}" not found, try pulling it first' if path in _EMBED_PATHS else f"model '{model}' not found"
    return NoCapableInstance(text, needed=error.needed)


async def _unserved(call: Call) -> Whole:
    text = f"{call.request.path} is not served here: the plugin 'ollama' (gleitzeit-ollama) is missing or disabled"
    raise Refused(501, text, "not_implemented")
