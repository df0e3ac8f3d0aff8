"""The provider of the protocol `llm`: chat, generate and embed on whatever speaks a dialect over HTTP.

A request comes as canonical parameters (from the library) or as the bytes of a client API (from the gateway). Where caller
and instance speak the same API the bytes pass; elsewhere they are translated through the canonical shapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.pool import State
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method, Request
from gleitzeit_core.resources import ChannelKind, HttpChannel, Requirements, Speaks
from gleitzeit_llm import models
from gleitzeit_llm.dialects import DIALECTS, error_text
from gleitzeit_llm.dialects.base import Endpoint
from gleitzeit_llm.options import LLMOptions
from gleitzeit_llm.passthrough import PassThrough
from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE, UpstreamError, load_answer
from gleitzeit_llm.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import Unpack

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.provider import RequestOptions
    from gleitzeit_core.resources import Channel, ResourceInstance
    from gleitzeit_core.runs import InstanceReport
    from gleitzeit_llm.dialects.base import Parsed

MODELS, SHOW, LOADED = "llm/models", "llm/show", "llm/loaded"
_OLLAMA, _OPENAI = (Speaks(name, ChannelKind.HTTP) for name in ("ollama", "openai"))
_ORDER = {"": (_OLLAMA, _OPENAI), "ollama": (_OLLAMA, _OPENAI), "openai": (_OPENAI, _OLLAMA)}
_LISTING_S = 2.0
_SHOW_PATH = "/api/show"
_SHOW_POINT = Endpoint(_SHOW_PATH, SHOW, streams_by_default=False, request_type="api.ShowRequest")


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """A whole answer in the caller's API."""

    status: int
    content_type: str
    body: bytes


class LLMProvider(Provider[LLMOptions]):
    """See the module's text."""

    protocol = "llm"
    options_type = LLMOptions
    accepts = (_OLLAMA, _OPENAI)
    methods = (
        Method(name=CHAT, summary="the next message of a conversation", replayable=True, streams=True),
        Method(name=GENERATE, summary="a continuation of a prompt", replayable=True, streams=True),
        Method(name=EMBED, summary="vectors for texts", replayable=True),
        Method(name=MODELS, summary="the models there are", replayable=True, local=True),
        Method(name=SHOW, summary="what is known about a model", replayable=True),
        Method(name=LOADED, summary="the models in memory", replayable=True, local=True),
    )

    def __init__(self, options: LLMOptions | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        self._upstream = Upstream(connect_timeout_s=self.options.connect_timeout_s)

    async def open(self) -> None:
        """Open the HTTP client."""
        await self._upstream.open()

    async def close(self) -> None:
        """Close it."""
        await self._upstream.close()

    # -- requests ----------------------------------------------------------------------------------------------

    def raw_request(self, dialect: str, endpoint: str, body: bytes, **options: Unpack[RequestOptions]) -> Request:
        """A request in the bytes of a client API.

        Args:
            dialect: ``ollama`` or ``openai``.
            endpoint: The path it was sent to.
            body: As it was sent.
            options: As for every request.

        Raises:
            InvalidRequest: No model can be read from it; in the API's own words.
        """
        point = _SHOW_POINT if endpoint == _SHOW_PATH else DIALECTS[dialect].client.endpoints[endpoint]
        peek = DIALECTS[dialect].client.peek(point, body)
        request = self.request(point.method, {"model": peek.model}, **options)
        stream = point.method in (CHAT, GENERATE) and point.streams(peek.stream)
        needs = Requirements(
            accepts=_ORDER[dialect],
            capabilities=request.requirements.capabilities,
            tags=request.requirements.tags,
            instances=request.requirements.instances,
        )
        return request.changed(body=body, dialect=dialect, endpoint=endpoint, stream=stream, requirements=needs)

    def requirements(self, request: Request) -> Requirements:
        """The model, for the methods that take one.

        Raises:
            InvalidRequest: There is none, or it is no name.
        """
        if request.method in (MODELS, LOADED):
            return Requirements(accepts=self.accepts)
        model = request.params.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidRequest("model is required", param="model")
        return Requirements(accepts=self.accepts, capabilities=frozenset((models.capability(model),)))

    # -- on an instance ----------------------------------------------------------------------------------------

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - dicts, or a RawAnswer for bytes
        """Carry a method out: a canonical answer for parameters, a `RawAnswer` for bytes.

        Raises:
            InstanceFailure: The instance failed.
            InvalidRequest: The request cannot be put to this api.
        """
        http = _http(channel)
        if request.method == SHOW:
            return await self._show(instance, api, http, request)
        if request.body is None:
            return await self._canonical(instance, api, http, request.method, request.params)
        if api == request.dialect:
            return await self._pass(instance, api, http, request)
        parsed = _parsed(request)
        answer = await self._canonical(instance, api, http, parsed.method, parsed.params)
        return _rendered(request, parsed, answer)

    async def _pass(self, instance: ResourceInstance, api: str, http: HttpChannel, request: Request) -> RawAnswer:
        try:
            reply = await self._upstream.request(http, "POST", request.endpoint, _own_body(instance, request))
        except InstanceFailure as failure:
            raise _explained(api, failure, same_api=True) from failure
        if not reply.content_type.endswith("json"):
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"{http.url} answered {reply.content_type}, not JSON")
        return RawAnswer(reply.status, DIALECTS[api].client.plain_type, reply.body)

    async def _canonical(
        self, instance: ResourceInstance, api: str, http: HttpChannel, method: str, params: Mapping[str, Any]
    ) -> dict[str, Any]:
        loaded = load_answer(method, params, datetime.now(UTC)) if api != "ollama" else None
        if loaded is not None:
            return loaded
        dialect, began = DIALECTS[api].instance, time.monotonic()
        upstream = dialect.encode(method, _own_params(instance, params))
        try:
            reply = await self._upstream.request(http, "POST", upstream.path, upstream.body())
            return dialect.decode_answer(method, params, reply.body, elapsed_s=time.monotonic() - began)
        except InstanceFailure as failure:
            raise _explained(api, failure) from failure
        except UpstreamError as error:
            raise _failure(error) from error

    async def _show(self, instance: ResourceInstance, api: str, http: HttpChannel, request: Request) -> Any:  # noqa: ANN401 - as execute_on
        model = request.params["model"]
        if api == "ollama":
            body = request.body if request.body is not None else msgspec.json.encode(dict(request.params))
            try:
                reply = await self._upstream.request(http, "POST", _SHOW_PATH, body)
            except InstanceFailure as failure:
                raise _explained(api, failure, same_api=True) from failure
            answer = reply.body
        else:
            answer = msgspec.json.encode(_described(instance, model))
        if request.body is None:
            return msgspec.json.decode(answer)
        return RawAnswer(200, DIALECTS["ollama"].client.plain_type, answer)

    # -- in parts ----------------------------------------------------------------------------------------------

    async def stream_on(
        self, instance: ResourceInstance, api: str, channel: Channel, request: Request
    ) -> AsyncIterator[Any]:
        """The same in parts: canonical parts, or whole lines and events in the caller's API.

        What an API answers as a whole although a stream was asked for is one `RawAnswer`.

        Raises:
            InstanceFailure: The instance failed; also when its answer ends without the final marker.
        """
        http = _http(channel)
        if request.body is None:
            source = self._canonical_parts(instance, api, http, request.method, request.params)
        elif api == request.dialect:
            source = self._pass_parts(instance, api, http, request)
        else:
            source = self._translated_parts(instance, api, http, request)
        try:
            async for part in source:
                yield part
        except InstanceFailure as failure:
            raise _explained(api, failure, same_api=api == request.dialect) from failure
        except UpstreamError as error:
            raise _failure(error) from error
        finally:
            await source.aclose()  # type: ignore[attr-defined]

    async def _pass_parts(
        self, instance: ResourceInstance, api: str, http: HttpChannel, request: Request
    ) -> AsyncIterator[Any]:
        body = _own_body(instance, request)
        async with self._upstream.stream(http, "POST", request.endpoint, body) as response:
            if response.content_type == "application/json":
                yield RawAnswer(200, DIALECTS[api].client.plain_type, await response.read())
                return
            if response.content_type != DIALECTS[api].client.stream_type:
                raise InstanceFailure(FailureKind.SERVER_ERROR, f"{http.url} answered {response.content_type}")
            watched = PassThrough(api)
            async for data in response.content.iter_any():
                whole = watched.feed(data)
                if whole:
                    yield whole
            rest = watched.close()
            if rest:
                yield rest

    async def _canonical_parts(
        self, instance: ResourceInstance, api: str, http: HttpChannel, method: str, params: Mapping[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        loaded = load_answer(method, params, datetime.now(UTC)) if api != "ollama" else None
        if loaded is not None:
            yield loaded
            return
        dialect = DIALECTS[api].instance
        decoder = dialect.stream_decoder(method, params)
        upstream = dialect.encode(method, _own_params(instance, params), stream=True)
        async with self._upstream.stream(http, "POST", upstream.path, upstream.body()) as response:
            async for data in response.content.iter_any():
                try:
                    parts = decoder.feed(data)
                except UpstreamError as error:
                    for part in error.parts:
                        yield part
                    raise
                for part in parts:
                    yield part
            for part in decoder.close():
                yield part
        if not decoder.finished:
            raise InstanceFailure(FailureKind.LOST, "the answer ended without its final marker: it is incomplete")

    async def _translated_parts(
        self, instance: ResourceInstance, api: str, http: HttpChannel, request: Request
    ) -> AsyncIterator[Any]:
        parsed = _parsed(request)
        loaded = load_answer(parsed.method, parsed.params, datetime.now(UTC))
        if loaded is not None:
            answer = loaded
            if api == "ollama":
                answer = await self._canonical(instance, api, http, parsed.method, parsed.params)
            yield _rendered(request, parsed, answer)
            return
        encoder = DIALECTS[request.dialect].client.stream_encoder(parsed)
        async for part in self._canonical_parts(instance, api, http, parsed.method, parsed.params):
            data = encoder.part(part)
            if data:
                yield data
        end = encoder.finish()
        if end:
            yield end

    # -- without an instance -----------------------------------------------------------------------------------

    async def answer(self, request: Request, instances: tuple[InstanceReport, ...]) -> dict[str, Any]:
        """``llm/models`` and ``llm/loaded``, over all instances.

        An instance that is down or slow never slows the list: what was last seen of it is shown.
        """
        if request.method == MODELS:
            return {"models": _merged(instances)}
        found = await asyncio.gather(*(self._loaded_on(report) for report in instances))
        return {"models": [entry for some in found for entry in some]}

    async def _loaded_on(self, report: InstanceReport) -> list[Mapping[str, Any]]:
        """What an instance has in memory: asked where it can say so itself, else as last seen."""
        reached = report.instance.channel_for((_OLLAMA,))
        if reached is not None and report.instance.probe and report.state == State.READY:
            with contextlib.suppress(InstanceFailure, TimeoutError, KeyError, TypeError):
                async with asyncio.timeout(_LISTING_S):
                    reply = await self._upstream.request(_http(reached[1]), "GET", "/api/ps")
                found: list[Mapping[str, Any]] = reply.json()["models"]
                return found
        known = models.entries(report.instance)
        warm = (known[name] for name in known if models.capability(name) in report.instance.warm)
        return [{**entry, "size_vram": 0, "expires_at": "0001-01-01T00:00:00Z"} for entry in warm]


def _merged(instances: tuple[InstanceReport, ...]) -> list[Mapping[str, Any]]:
    """The models of all; what is up goes before what is not, so that its description wins."""
    merged: dict[str, Mapping[str, Any]] = {}
    for report in sorted(instances, key=lambda r: (r.state != State.READY, r.instance.id)):
        for name, entry in models.entries(report.instance).items():
            merged.setdefault(name, entry)
    return [merged[name] for name in sorted(merged)]


def _http(channel: Channel) -> HttpChannel:
    if not isinstance(channel, HttpChannel):
        raise InstanceFailure(FailureKind.SERVER_ERROR, f"cannot drive a {channel.kind} channel", started=False)
    return channel


def _parsed(request: Request) -> Parsed:
    client = DIALECTS[request.dialect].client
    return client.parse(client.endpoints[request.endpoint], request.body or b"")


def _rendered(request: Request, parsed: Parsed, answer: Mapping[str, Any]) -> RawAnswer:
    client = DIALECTS[request.dialect].client
    return RawAnswer(200, client.plain_type, client.answer(parsed, answer))


def _own_params(instance: ResourceInstance, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """`params` with the name that the instance itself has for the model."""
    own = models.own_name(instance, params["model"])
    return params if models.canonical(own) == models.canonical(params["model"]) else {**params, "model": own}


def _own_body(instance: ResourceInstance, request: Request) -> bytes:
    """The caller's bytes; written anew only where the instance does not know the model by the name the caller used."""
    body, asked = request.body or b"", request.params["model"]
    entry = models.entries(instance).get(models.canonical(asked))
    own = models.own_name(instance, asked)
    if entry is None or own == asked or instance.kind == "ollama":
        return body
    payload = msgspec.json.decode(body)
    payload["model"] = own
    return msgspec.json.encode(payload)


def _failure(error: UpstreamError) -> InstanceFailure:
    return InstanceFailure(FailureKind.SERVER_ERROR, error.message)


def _explained(api: str, failure: InstanceFailure, *, same_api: bool = False) -> InstanceFailure:
    """A failure with the server's own words, and its body only where the caller speaks the same API."""
    if failure.status is None or failure.body is None:
        return failure
    text = error_text(failure.status, failure.body)
    kind = failure.kind
    if api == "ollama" and kind is FailureKind.SERVER_ERROR and text.startswith('option "'):
        # Ollama answers 500 to an option of the wrong type, which is the caller's fault and would be everywhere.
        kind = FailureKind.REJECTED
    return InstanceFailure(
        kind,
        text or failure.message,
        started=failure.started,
        retry_after_s=failure.retry_after_s,
        status=failure.status,
        body=failure.body if same_api and kind is not FailureKind.UNAUTHORIZED else None,
    )


def _described(instance: ResourceInstance, model: str) -> dict[str, Any]:
    """What ``/api/show`` says of a model whose server has no such call."""
    entry = models.entries(instance).get(models.canonical(model), models.entry(model))
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": entry["details"],
        "model_info": {},
        "capabilities": ["completion"],
        "modified_at": entry["modified_at"],
    }
