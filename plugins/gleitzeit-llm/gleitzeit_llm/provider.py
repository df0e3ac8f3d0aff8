"""The provider of the protocol `llm`: chat, generate and embed on whatever speaks a dialect over HTTP.

A request comes as canonical parameters (from the library) or as the bytes of a client API (from the gateway). Where
caller and instance speak the same API the bytes pass; elsewhere they are translated through the canonical shapes.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.provider import checked_cost
from gleitzeit_core.requests import Method, new_request, new_request_id
from gleitzeit_core.resources import HttpChannel, Requirements
from gleitzeit_llm import costs, listings, models, raw, schemas, tokens
from gleitzeit_llm.apart import apart
from gleitzeit_llm.dialects import CLIENTS, DIALECTS
from gleitzeit_llm.failures import explained, explaining
from gleitzeit_llm.listings import LOADED, MODELS, SHOW, SHOW_POINT
from gleitzeit_llm.loading import Downs, Loads
from gleitzeit_llm.names import Renaming
from gleitzeit_llm.options import LLMOptions
from gleitzeit_llm.passed import Passed
from gleitzeit_llm.passthrough import is_final
from gleitzeit_llm.protocol import (
    CHAT,
    COUNT_TOKENS,
    EMBED,
    GENERATE,
    UpstreamError,
    load_answer,
    model_of,
    utc_now,
    write_json,
)
from gleitzeit_llm.raw import RawAnswer
from gleitzeit_llm.upstream import Upstream
from gleitzeit_llm.usage import counted, of_canonical

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
    from typing import Unpack

    from gleitzeit_core.dispatch import Dispatcher
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.provider import RequestOptions
    from gleitzeit_core.requests import Request, Usage
    from gleitzeit_core.resources import Channel, ResourceInstance
    from gleitzeit_core.runs import InstanceReport
    from gleitzeit_llm.dialects.base import StreamDecoder
    from gleitzeit_llm.loading import Waiting
    from gleitzeit_llm.protocol import Json

__all__ = ["LLMProvider", "RawAnswer"]


class LLMProvider(Renaming):
    """See the module's text.

    Args:
        options: None for the defaults.
        hub: Drive this hub's instances, without a manager.
    """

    protocol = "llm"
    options_type = LLMOptions
    parts_apart = True
    accepts = (raw.OLLAMA, raw.OPENAI)
    methods = (
        Method(
            name=CHAT,
            summary="the next message of a conversation",
            replayable=True,
            streams=True,
            schema=schemas.CHAT_PARAMS,
        ),
        Method(
            name=GENERATE,
            summary="a continuation of a prompt",
            replayable=True,
            streams=True,
            schema=schemas.GENERATE_PARAMS,
        ),
        Method(name=EMBED, summary="vectors for texts", replayable=True, schema=schemas.EMBED_PARAMS),
        Method(
            name=COUNT_TOKENS,
            summary="how many tokens a conversation takes",
            replayable=True,
            local=True,
            schema=schemas.COUNT_PARAMS,
        ),
        Method(name=MODELS, summary="the models there are", replayable=True, local=True, schema=schemas.NO_PARAMS),
        Method(name=SHOW, summary="what is known about a model", replayable=True, schema=schemas.SHOW_PARAMS),
        Method(name=LOADED, summary="the models in memory", replayable=True, local=True, schema=schemas.NO_PARAMS),
    )

    def __init__(self, options: LLMOptions | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        self._upstream = Upstream(
            connect_timeout_s=self.options.connect_timeout_s, stall_timeout_s=self.options.stall_timeout_s
        )
        self._streaming = frozenset(method.name for method in self.methods if method.streams)
        self._loads = Loads()
        self._loaded = listings.Loaded(self._upstream)

    async def open(self) -> None:
        """Open the HTTP client."""
        await self._upstream.open()

    async def close(self) -> None:
        """Close it."""
        await self._loads.aclose()
        await self._upstream.close()

    def bind(self, dispatcher: Dispatcher) -> None:
        """Send requests through `dispatcher`, and hear of it when an instance goes down."""
        super().bind(dispatcher)
        dispatcher.shell.listen(Downs(dispatcher.shell, self._upstream).heard)

    # -- requests ----------------------------------------------------------------------------------------------

    def raw_request(
        self,
        dialect: str,
        endpoint: str,
        body: bytes,
        *,
        request_id: str = "",
        tenant: str = "",
        priority: int = 0,
        affinity: str = "",
        **options: Unpack[raw.RareOptions],
    ) -> Request:
        """A request in the bytes of a client API. Its ``stream`` says whether its answer is wanted in parts.

        Args:
            dialect: ``ollama``, ``openai`` or ``anthropic``.
            endpoint: The path it was sent to.
            body: As it was sent.
            request_id: Unique; made up when it is empty.
            tenant: As for every request, and so are the next ones.
            priority: Higher goes first.
            affinity: What prefers the same instance.
            options: What hardly anybody says.

        Raises:
            InvalidRequest: No model can be read from it, in the API's own words; or its name is too long.
            UnknownName: There is no such dialect, or no such endpoint in it.
        """
        point, peek = raw.point(dialect, endpoint)
        face, method = peek(body), point.method
        model = face.model
        if self.renames:
            model = self.served(method, model, cast("RequestOptions", options))
            body = body if model == face.model else models.renamed(body, model)
        request = new_request(
            method=method,
            params={"model": model},
            id=request_id or new_request_id(),
            body=body,
            dialect=dialect,
            endpoint=endpoint,
            stream=method in self._streaming and point.streams(face.stream),
            requirements=raw.needs_of(dialect, model),
            cost=costs.of_size(method, len(body), face.max_output),
            tenant=tenant,
            priority=priority,
            affinity=affinity,
        )
        return self._particular(request, cast("RequestOptions", options)) if options else request

    def _particular(self, request: Request, options: RequestOptions) -> Request:
        """`request` with what its caller says besides."""
        tags, instances = frozenset(options.pop("tags", ())), frozenset(options.pop("instances", ()))
        if tags or instances:
            request = request.changed(requirements=request.requirements.narrowed(tags=tags, instances=instances))
        cost = options.pop("cost", None)
        if cost is not None:
            options["cost"] = checked_cost(cost)
        return request.changed(**self.timed(options))

    def requirements(self, request: Request) -> Requirements:
        """The model, for the methods that take one.

        Raises:
            InvalidRequest: There is none, or it is not a string, or too long.
        """
        if request.method in (MODELS, LOADED):
            return Requirements(accepts=self.accepts)
        return Requirements(accepts=self.accepts, capabilities=models.wanted(model_of(request.params)))

    def cost(self, request: Request) -> float:
        """An estimate from the length of the prompt and the limit on the output; an average chat is 1."""
        return costs.of_params(request.method, request.params)

    def usage(self, request: Request, part: Any) -> Usage | None:  # noqa: ANN401, ARG002 - dicts, bytes or a RawAnswer
        """The tokens that an answer, or its last part, says it took."""
        found: Usage | None = of_canonical(part) if isinstance(part, dict) else getattr(part, "usage", None)
        return found

    async def answer(self, request: Request, instances: tuple[InstanceReport, ...]) -> Json | RawAnswer:
        """``llm/models`` and ``llm/loaded``, over all instances, those that are down or slow as they were last seen.

        ``llm/count_tokens`` is told by the first that can.

        Raises:
            RequestError: The tokens cannot be counted; see `tokens.count`.
        """
        if request.method == COUNT_TOKENS:
            return await self._counted(request, instances)
        if request.method == MODELS:
            found = listings.merged(instances)
            return {**found, "models": self.listed(found["models"])}
        return await self._loaded.of(instances)

    async def _counted(self, request: Request, instances: tuple[InstanceReport, ...]) -> Json | RawAnswer:
        if request.body is None:
            return await tokens.count(self._upstream, request.params, instances)
        parsed = raw.parsed(request)
        return raw.rendered(request, parsed, await tokens.count(self._upstream, parsed.params, instances))

    def lingering(self, instance: ResourceInstance, request: Request) -> asyncio.Task[None] | None:
        """What is kept of a request whose caller has left: it cannot be cancelled, or others wait for its load."""
        return self._loads.kept(instance, request)

    def is_last(self, request: Request, part: Any) -> bool:  # noqa: ANN401 - dicts, bytes or a RawAnswer
        """Whether it is one with the final marker of its API."""
        return is_final(request.dialect, part)

    # -- whole answers -----------------------------------------------------------------------------------------

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - dicts, or a RawAnswer for bytes
        """Carry a method out: a canonical answer for parameters, a `RawAnswer` for bytes.

        Raises:
            InstanceFailure: The instance failed.
            InvalidRequest: The request cannot be put to this api.
        """
        waiting = self._waiting(instance, request)
        if request.body is None or request.dialect != api:
            return await self._translated(_At(instance, api, channel, waiting), request)
        server = _http(channel)
        body = models.own_body(instance, request.body, request.params["model"])
        try:
            reply = await self._upstream.request(server, "POST", request.endpoint, body, waiting)
            return raw.passed(api, server.url, reply)
        except InstanceFailure as failure:
            raise explained(api, failure, same_api=True) from None

    async def _translated(self, at: _At, request: Request) -> Json | RawAnswer:
        with explaining(at.api, same_api=False):
            if request.body is None:
                return await self._canonical(at, request.method, request.params)
            if request.method == SHOW:
                shown = listings.described(at.instance, request.params["model"])
                return raw.answer(request.dialect, write_json(shown, "the answer"))
            parsed = raw.parsed(request)
            return raw.rendered(request, parsed, await self._canonical(at, parsed.method, parsed.params))

    def _waiting(self, instance: ResourceInstance, request: Request) -> Waiting | None:
        """With what to wait for an answer for which a model may have to be loaded."""
        return None if request.method == SHOW else self._loads.waiting(instance, request)

    async def _canonical(self, at: _At, method: str, params: Mapping[str, Any]) -> Json:
        if method == SHOW:
            return await self._shown(at, params)
        loaded = _loaded(at, method, params)
        if loaded is not None:
            return loaded
        dialect, began_s = DIALECTS[at.api].instance, time.monotonic()
        upstream = dialect.encode(method, models.own_params(at.instance, params))
        reply = await self._upstream.request(at.http, "POST", upstream.path, upstream.body(), at.waiting)
        return dialect.decode_answer(method, params, reply.body, elapsed_s=time.monotonic() - began_s)

    async def _shown(self, at: _At, params: Mapping[str, Any]) -> Json:
        if at.api != "ollama":
            return listings.described(at.instance, params["model"])
        body = write_json(params, "the request")
        reply = await self._upstream.request(at.http, "POST", SHOW_POINT.path, body)
        shown: Json = reply.json()
        return shown

    # -- in parts ----------------------------------------------------------------------------------------------

    def stream_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> AsyncIterator[Any]:
        """The same in parts: canonical parts, or whole lines and events in the caller's API.

        What an API answers as a whole although a stream was asked for is one `RawAnswer`.

        Raises:
            InstanceFailure: The instance failed; ``LOST`` also when its answer ends without the final marker.
            InvalidRequest: The request cannot be put to this api.
        """
        at = _At(instance, api, channel, self._waiting(instance, request))
        passes = request.body is not None and request.dialect == api and instance.cancellable
        return self._passed(at, request) if passes else self._explained_parts(at, request)

    def _passed(self, at: _At, request: Request) -> Passed:
        server = at.http
        body = models.own_body(at.instance, request.body or b"", request.params["model"])
        begin = partial(self._upstream.begin, server, "POST", request.endpoint, body, at.waiting)
        return Passed(at.api, server.url, begin)

    async def _explained_parts(self, at: _At, request: Request) -> AsyncGenerator[Any, None]:
        with explaining(at.api, same_api=at.api == request.dialect):
            source = self._parts(at, request)
            if not at.instance.cancellable:
                source = apart(source, partial(self._loads.keep_work, at.instance, request))
            async with aclosing(source) as parts:
                async for part in parts:
                    yield part

    def _parts(self, at: _At, request: Request) -> AsyncGenerator[Any, None]:
        if request.body is None:
            return self._canonical_parts(at, request.method, request.params)
        if request.dialect == at.api:
            return self._passed_parts(at, request)
        return self._translated_parts(at, request)

    async def _passed_parts(self, at: _At, request: Request) -> AsyncGenerator[bytes | RawAnswer, None]:
        async with aclosing(self._passed(at, request)) as parts:
            async for part in parts:
                yield part

    async def _canonical_parts(self, at: _At, method: str, params: Mapping[str, Any]) -> AsyncGenerator[Json, None]:
        loaded = _loaded(at, method, params)
        if loaded is not None:
            yield loaded
            return
        dialect = DIALECTS[at.api].instance
        upstream = dialect.encode(method, models.own_params(at.instance, params), stream=True)
        decoder = dialect.stream_decoder(method, params)
        async with self._upstream.stream(at.http, "POST", upstream.path, upstream.body(), at.waiting) as response:
            raw.streams(at.api, at.http.url, response.content_type)
            async for data in response.content.iter_any():
                for part in _fed(decoder, data):
                    yield part
            for part in decoder.close():
                yield part
        if not decoder.finished:
            raise InstanceFailure(FailureKind.LOST, "the answer ended without its final marker: it is incomplete")

    async def _translated_parts(self, at: _At, request: Request) -> AsyncGenerator[bytes | RawAnswer, None]:
        parsed = raw.parsed(request)
        if load_answer(parsed.method, parsed.params, utc_now()) is not None:
            # This is answered whole, even when a stream was asked for.
            yield raw.rendered(request, parsed, await self._canonical(at, parsed.method, parsed.params))
            return
        encoder = CLIENTS[request.dialect].stream_encoder(parsed)
        async with aclosing(self._canonical_parts(at, parsed.method, parsed.params)) as parts:
            async for part in parts:
                data = encoder.part(part)
                if data:
                    yield counted(data, of_canonical(part))
        end = encoder.finish()
        if end:
            yield end


class _At(NamedTuple):
    """Where a request is carried out."""

    instance: ResourceInstance
    api: str
    channel: Channel
    waiting: Waiting | None

    @property
    def http(self) -> HttpChannel:
        return _http(self.channel)


def _http(channel: Channel) -> HttpChannel:
    if not isinstance(channel, HttpChannel):
        raise InstanceFailure(FailureKind.SERVER_ERROR, f"cannot drive a {channel.kind} channel", started=False)
    return channel


def _loaded(at: _At, method: str, params: Mapping[str, Any]) -> Json | None:
    """The answer to a request that only loads or unloads a model, where the api has no such notion."""
    return None if at.api == "ollama" else load_answer(method, params, utc_now())


def _fed(decoder: StreamDecoder, data: bytes) -> Iterator[Json]:
    """The parts that `data` completes; those before an error come before the error."""
    try:
        parts = decoder.feed(data)
    except UpstreamError as error:
        yield from error.parts
        raise
    yield from parts
