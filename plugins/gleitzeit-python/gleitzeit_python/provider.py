"""The provider of the protocol `python`: runs code on whatever has a runner at the end of a stream."""

from __future__ import annotations

import logging
import time
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from gleitzeit_core.errors import FailureKind, InstanceFailure, RequestError, UnknownMethod
from gleitzeit_core.leases import next_fence
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_python import info, job, runner, schemas
from gleitzeit_python.answers import Collector
from gleitzeit_python.exchange import Exchange
from gleitzeit_python.options import PythonOptions
from gleitzeit_python.sessions import ENDED, OPEN, Sessions
from gleitzeit_python.validation import validate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from typing import Unpack

    from gleitzeit_core.dispatch import Dispatcher
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.leases import Lease
    from gleitzeit_core.provider import RequestOptions
    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import Channel, ResourceInstance, StreamChannel
    from gleitzeit_core.runs import InstanceReport

logger = logging.getLogger(__name__)

EXECUTE: Final = "python/execute"
VALIDATE: Final = "python/validate"
INFO: Final = "python/info"
CLOSE: Final = "python/close_session"
NOBODY: Final = "anonymous"
"""The tenant of those who say none."""
# What `EXECUTE` is with a session: answered by way of a lease. Nobody can ask for it by this name.
_IN_SESSION: Final = f"{EXECUTE} in a session"
_SESSION_CALL: Final = Method(
    name=EXECUTE, summary="run code in a session", replayable=False, restricted=True, local=True
)
# What a request's parameters have besides its caller's: when it was made; the fence of its session.
_MADE_AT, _FENCE = "_made_at", "_fence"


class PythonProvider(Provider[PythonOptions]):
    """See the module's text.

    Args:
        options: None for the defaults.
        hub: Drive this hub's instances, without a manager.
    """

    protocol = "python"
    options_type = PythonOptions
    accepts = (Speaks(runner.API, ChannelKind.STREAM),)
    methods = (
        Method(
            name=EXECUTE,
            summary="run code",
            replayable=False,
            restricted=True,
            streams=True,
            params=schemas.ExecuteParams,
        ),
        Method(
            name=VALIDATE,
            summary="check the syntax of code without running it",
            replayable=True,
            restricted=True,
            local=True,
            params=schemas.ValidateParams,
        ),
        Method(
            name=INFO,
            summary="what a runner is and has",
            replayable=True,
            restricted=True,
            params=schemas.InfoParams,
        ),
        Method(
            name=CLOSE,
            summary="end a session",
            replayable=True,
            restricted=True,
            local=True,
            params=schemas.CloseParams,
        ),
    )

    def __init__(self, options: PythonOptions | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        own = self.options
        self._sessions = Sessions(_reset, most=own.max_sessions, ttl_s=own.session_ttl_s, call_s=own.max_timeout_s)
        self._leave: Callable[[], None] | None = None

    def bind(self, dispatcher: Dispatcher) -> None:
        """As for every provider; its sessions do not hold up a shutdown."""
        super().bind(dispatcher)
        dispatcher.draining.append(self._sessions.drain)
        self._leave = partial(dispatcher.draining.remove, self._sessions.drain)

    async def close(self) -> None:
        """Close all sessions."""
        if self._leave is not None:
            self._leave()
        await self._sessions.close_all()

    # -- requests ----------------------------------------------------------------------------------------------

    def method(self, name: str) -> Method:
        """As for every provider."""
        return _SESSION_CALL if name == _IN_SESSION else super().method(name)

    def requirements(self, request: Request) -> Requirements:
        """A runner that no other tenant has used."""
        return Requirements(accepts=self.accepts, tenant=request.tenant or NOBODY)

    def request(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> Request:
        """As for every provider; it remembers when it was made.

        Raises:
            UnknownMethod: There is no such method.
            InvalidRequest: The parameters are wrong, or more than the options allow.
        """
        if method == _IN_SESSION:
            raise UnknownMethod(method, self._by_name)
        request = super().request(method, params, **options)
        if method != EXECUTE:
            return request
        job.check(request.params, self.options)
        # They were made for this request, which nobody else has seen yet.
        cast("dict[str, Any]", request.params)[_MADE_AT] = time.monotonic()
        request = self._with_its_time(request)
        in_session = request.params.get("session") is not None
        return request.changed(method=_IN_SESSION) if in_session else request

    def _with_its_time(self, request: Request) -> Request:
        """The same; where it asks for all the time that its route gives, or more, it may wait for so long besides."""
        own_s = request.params.get("timeout_s")
        if own_s is None or request.deadline is not None:
            return request
        route_s = self.dispatcher.route(EXECUTE).timeout_s
        if route_s is None or own_s < route_s:
            return request
        return request.changed(deadline=self._wall() + route_s + own_s)

    async def answer(self, request: Request, instances: tuple[InstanceReport, ...]) -> dict[str, Any]:  # noqa: ARG002 - see Provider
        """Check code, close a session, or run code in one.

        Raises:
            RequestError: It failed.
        """
        params = request.params
        if request.method == VALIDATE:
            return await validate(params["code"], params.get("filename", "<code>"))
        if request.method == CLOSE:
            return {"closed": await self._sessions.close(request.tenant, params["session"])}
        inner = request.changed(method=EXECUTE)
        use = partial(self._in_session, inner)
        return await self._sessions.execute(self.dispatcher, inner, params["session"], use)

    async def _in_session(self, request: Request, lease: Lease) -> dict[str, Any]:
        inner = request.changed(params={**request.params, _FENCE: lease.fence})
        answer: dict[str, Any] = (await self.dispatcher.one(self, inner, lease)).value
        return answer

    # -- on an instance ----------------------------------------------------------------------------------------

    async def execute_on(
        self, instance: ResourceInstance, api: str, channel: Channel, request: Request
    ) -> dict[str, Any]:
        """Run code, and answer with all that it came to.

        Raises:
            InstanceFailure: The runner failed.
            InvalidRequest: It cannot do what was asked.
        """
        last: dict[str, Any] = {}
        async with aclosing(self.stream_on(instance, api, channel, request)) as parts:
            async for part in parts:
                last = part
        return info.told(instance, last) if request.method == INFO else last

    async def stream_on(
        self,
        instance: ResourceInstance,
        api: str,  # noqa: ARG002 - there is but one
        channel: Channel,
        request: Request,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The same in parts: standard output and error as they come, then the whole answer."""
        channel = _stream(channel)
        taken_at, collector = time.monotonic(), Collector()
        params = info.question(request.params) if request.method == INFO else request.params
        asked, files = job.asked(params, self.options)
        fence = params.get(_FENCE) or next_fence(self._wall())
        async with Exchange(channel, fence, asked["timeout_s"]) as exchange:
            await exchange.begin(asked, files)
            while collector.done is None:
                for part in collector.take(*await exchange.next()):
                    yield part
        done = collector.done
        if not done["alive"] and not (done["clean"] and _reusable(instance)):
            await channel.aclose()
        answer = collector.answer()
        answer["timings"] = {
            "queued_s": max(0.0, taken_at - params.get(_MADE_AT, taken_at)),
            "prepared_s": done["prepared_s"],
            "run_s": done["run_s"],
        }
        if asked["session"]:
            answer["session"] = OPEN if done["alive"] else ENDED
        yield {**answer, "instance": instance.id}


async def _reset(lease: Lease) -> None:
    """End the interpreter of a session, and clean up after it."""
    found = lease.instance.channel_for(PythonProvider.accepts)
    if found is None:
        return
    channel = _stream(found[1])
    try:
        async with Exchange(channel, lease.fence, 0.0) as exchange:
            said = await exchange.reset()
    except (RequestError, TimeoutError):
        if lease.active:  # else it is being ended anyway
            logger.warning("%s does not confirm the end of a session", lease.instance.endpoint)
        return
    if not (said["clean"] and _reusable(lease.instance)):
        await channel.aclose()


def _stream(channel: Channel) -> StreamChannel:
    # Its kind says so; to look for each of its methods would take longer than all else here.
    if channel.kind is not ChannelKind.STREAM:
        text = f"cannot drive a {channel.kind} channel"
        raise InstanceFailure(FailureKind.SERVER_ERROR, text, started=False)
    return cast("StreamChannel", channel)


def _reusable(instance: ResourceInstance) -> bool:
    """Whether it may be used again: when nothing of a payload can stay there, or its hub's owner trusts all of them."""
    said = instance.details.get("runner", {})
    able = all(said.get(name) for name in ("separate_user", "kill_all", "verified_reset"))
    return able or bool(instance.details.get("trusted"))
