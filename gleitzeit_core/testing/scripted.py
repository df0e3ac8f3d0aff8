"""Instances that do what a test tells them, call by call: for tests of what happens around the work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.resources import ResourceInstance, instance_id
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.testing.machine import ECHO, EchoChannel
from gleitzeit_core.testing.todo import Todo, Todos

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import Channel, Requirements
    from gleitzeit_core.runs import InstanceReport

_END = object()


class Call(Todo):
    """One piece of work on an instance.

    Args:
        instance: Where.
        request: What.
    """

    def __init__(self, instance: ResourceInstance, request: Request) -> None:
        super().__init__(f"{request.method} on {instance.endpoint}")
        self.instance, self.request = instance, request
        self.stopped = asyncio.Event()
        self._may_stop = asyncio.Event()
        self._may_stop.set()
        self._parts: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def where(self) -> str:
        """The endpoint."""
        return self.instance.endpoint

    def refuse(self, kind: FailureKind, *, started: bool = True, retry_after_s: float | None = None) -> None:
        """The instance fails."""
        failure = InstanceFailure(kind, f"{kind} on {self.where}", started=started, retry_after_s=retry_after_s)
        self.fail(failure)
        self._parts.put_nowait(failure)

    def part(self, value: object) -> None:
        """One part of an answer in parts."""
        self._parts.put_nowait(value)

    def end(self) -> None:
        """There are no more parts."""
        self._parts.put_nowait(_END)

    def linger(self) -> None:
        """When it is cancelled, it goes on until `let_go`."""
        self._may_stop.clear()

    def let_go(self) -> None:
        """It may stop now."""
        self._may_stop.set()

    async def parts(self) -> AsyncIterator[Any]:
        """The parts as they come."""
        while (part := await self._parts.get()) is not _END:
            if isinstance(part, BaseException):
                raise part
            yield part

    async def stop(self) -> None:
        """What an instance does when its work is cancelled."""
        await self._may_stop.wait()
        self.stopped.set()


class ScriptedHub(ResourceHub[HubOptions]):
    """A fixed set of instances.

    Args:
        instances: Endpoints, each with the fields of its `ResourceInstance` that differ.
        name: As for every hub.
    """

    kind = "echo"

    def __init__(self, instances: dict[str, dict[str, Any]] | Iterable[str] = ("a",), *, name: str = "") -> None:
        super().__init__(HubOptions(), name=name)
        self._given = instances if isinstance(instances, dict) else {endpoint: {} for endpoint in instances}
        self.checks: dict[str, InstanceFailure | None] = {}
        self.closed = 0

    async def discover(self) -> Iterable[ResourceInstance]:
        """All."""
        return [self.make(endpoint, **changes) for endpoint, changes in self._given.items()]

    def make(self, endpoint: str, **changes: Any) -> ResourceInstance:  # noqa: ANN401 - any field
        """The record of one."""
        fields: dict[str, Any] = {"offers": ((ECHO.api, EchoChannel()),), "probe": False, **changes}
        name = instance_id(self.kind, endpoint)
        return ResourceInstance(id=name, hub=self.name, kind=self.kind, endpoint=endpoint, **fields)

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Well, unless a test says otherwise."""
        failure = self.checks.get(instance.endpoint)
        if failure is not None:
            raise failure
        return instance

    async def close(self) -> None:
        """Nothing to stop; counted."""
        self.closed += 1


class ScriptedProvider(Provider[NoOptions]):
    """Work that ends when a test says so: see `calls`. ``echo/once`` must not be done twice."""

    protocol = "echo"
    accepts = (ECHO,)
    methods = (
        Method(name="echo/say", summary="do it, again if need be", replayable=True),
        Method(name="echo/once", summary="do it once", replayable=False),
        Method(name="echo/parts", summary="in parts, again until the first", replayable=True, streams=True),
        Method(name="echo/names", summary="without an instance", replayable=True, local=True),
    )

    def __init__(self, options: NoOptions | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        self.calls: Todos[Call] = Todos()
        self.opened = 0
        self.auto = False

    def make_hub(self) -> ScriptedHub:
        """One instance."""
        return ScriptedHub()

    async def open(self) -> None:
        """Counted."""
        self.opened += 1

    async def close(self) -> None:
        """Counted."""
        self.opened -= 1

    def requirements(self, request: Request) -> Requirements:
        """A capability, when the parameters name one."""
        needs = super().requirements(request)
        wanted = request.params.get("needs")
        return needs if wanted is None else type(needs)(accepts=needs.accepts, capabilities=frozenset((wanted,)))

    async def answer(self, request: Request, instances: tuple[InstanceReport, ...]) -> Any:  # noqa: ANN401 - a list
        """The endpoints there are."""
        if request.params.get("fail"):
            raise LookupError("no names")
        return [report.instance.endpoint for report in instances]

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - as told
        """As a test tells."""
        del api, channel
        call = self.calls.add(Call(instance, request))
        if self.auto:
            call.finish(instance.endpoint)
        try:
            return await call.wait()
        finally:
            await call.stop()

    async def stream_on(
        self, instance: ResourceInstance, api: str, channel: Channel, request: Request
    ) -> AsyncIterator[Any]:
        """As a test tells."""
        del api, channel
        call = self.calls.add(Call(instance, request))
        try:
            async for part in call.parts():
                yield part
        except BaseException:
            call.cancelled = True
            raise
        finally:
            await call.stop()
