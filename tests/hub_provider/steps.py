"""A provider with its own hub, of which each step ends when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from gleitzeit_core.hub_provider import HubProvider, PoolOptions
from gleitzeit_core.requests import Method
from gleitzeit_core.resources import Requirements
from gleitzeit_core.testing.todo import Todo, Todos, turns
from tests.tasks import nothing_left

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import ResourceInstance


class StepsOptions(PoolOptions):
    """Options of the one below."""

    capabilities: frozenset[str] = frozenset()


class Steps(HubProvider[StepsOptions]):
    """Everything it is asked for ends when a test says so."""

    protocol = "steps"
    options_type = StepsOptions
    methods = (Method(name="steps/do", summary="as told", replayable=False, streams=True),)

    def __init__(self, options: StepsOptions | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        self.creations: Todos[Todo] = Todos()
        self.works: Todos[Todo] = Todos()
        self.destructions: Todos[Todo] = Todos()
        self.destroyed: list[Any] = []
        self.unwell: set[Any] = set()
        self.there: list[ResourceInstance] = []
        self.log: list[str] = []
        self.slow_end = False

    async def open(self) -> None:
        """Noted."""
        self.log.append("open")

    async def close(self) -> None:
        """Noted."""
        self.log.append("close")

    async def create_resource(self, config: StepsOptions) -> Any:  # noqa: ANN401 - a number
        """Waits; the handle is what the test gives."""
        del config
        self.log.append("create")
        return await self.creations.add(Todo("create")).wait()

    async def execute_on_resource(self, instance: ResourceInstance, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as told
        """Waits."""
        del method, params
        return await self.works.add(Todo(instance.endpoint)).wait()

    async def check_resource(self, instance: ResourceInstance) -> bool:
        """Unless it is among the unwell."""
        return instance.handle not in self.unwell

    async def destroy_resource(self, instance: ResourceInstance) -> None:
        """Noted; waits when it is to be slow."""
        self.log.append("destroy")
        if self.slow_end:
            await self.destructions.add(Todo(instance.endpoint)).wait()
        self.destroyed.append(instance.handle)

    async def discover(self) -> Iterable[ResourceInstance]:
        """What the test put there."""
        return self.there

    def capabilities(self) -> frozenset[str]:
        """As configured."""
        return self.options.capabilities

    def requirements(self, request: Request) -> Requirements:
        """A capability, when the parameters name one."""
        wanted = request.params.get("needs")
        capabilities = frozenset() if wanted is None else frozenset((wanted,))
        return Requirements(accepts=self.accepts, capabilities=capabilities)

    def ask(self, **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A request, in a task of its own."""
        return asyncio.create_task(self.execute("steps/do", options.pop("params", None), **options))

    @property
    def states(self) -> list[str]:
        """Of all instances."""
        return [str(report.state) for report in self.dispatcher.reports()]


@contextlib.asynccontextmanager
async def steps(**options: Any) -> AsyncIterator[Steps]:  # noqa: ANN401 - any option
    """Open; at the end nothing is left, and all that was created is destroyed, once."""
    async with nothing_left():
        provider = Steps(StepsOptions(**options))
        async with provider:
            yield provider
            provider.slow_end = False
        assert sorted(provider.destroyed) == sorted(set(provider.destroyed))
        assert not provider.make_hub()._owned  # type: ignore[attr-defined]
        await turns(3)
