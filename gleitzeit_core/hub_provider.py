"""`HubProvider`: a new kind of resource with a protocol of its own, in one short class.

The author says how to create a resource and how to carry a method out on it; pooling, scaling between two bounds, health,
balancing, failover, metrics and breakers come with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from abc import abstractmethod
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field, model_validator

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.pool import State
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Request
from gleitzeit_core.resources import ChannelKind, Ownership, ResourceInstance, Speaks, instance_id
from gleitzeit_core.routing import Offer, OfferKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
    from typing import Self

    from gleitzeit_core.resources import Channel, Requirements

logger = logging.getLogger(__name__)

# After a failed creation the next is tried this many seconds later, twice as many each time.
_BACK_OFF_S = 1.0
_BACK_OFF_MAX_S = 60.0


class PoolOptions(HubOptions):
    """Options of every `HubProvider`. Add your own in a subclass."""

    min_instances: int = Field(default=0, ge=0, description="Created at start and kept.")
    max_instances: int = Field(default=4, ge=1, description="Never more than this.")
    create_timeout_s: float = Field(default=60.0, gt=0, description="A creation that takes longer has failed.")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_instances > self.max_instances:
            raise ValueError("min_instances must not be above max_instances")
        return self


ConfigT = TypeVar("ConfigT", bound=PoolOptions)


class HubProvider(Provider[ConfigT], Generic[ConfigT]):
    """Base for a protocol with a kind of resource of its own. Set ``protocol``, ``methods`` and ``options_type``.

    Args:
        options: Checked already; None for the defaults.
    """

    options_type = PoolOptions
    exclusive: ClassVar[bool] = True
    """One request at a time on a resource."""
    cancellable: ClassVar[bool] = True
    """Whether cancelling `execute_on_resource` stops the work."""

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        super().__init_subclass__(**kwargs)
        if "protocol" in vars(cls):
            cls.accepts = (Speaks(cls.protocol, ChannelKind.CALL),)

    def __init__(self, options: ConfigT | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        self._own_hub: ResourceHub[Any] = hub or _PoolHub(self)

    # -- for authors -------------------------------------------------------------------------------------------

    @abstractmethod
    async def create_resource(self, config: ConfigT) -> Any:  # noqa: ANN401 - the author's own object
        """Make one resource and return your object for it, which comes back as ``instance.handle``."""

    @abstractmethod
    async def execute_on_resource(self, instance: ResourceInstance, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the author's
        """Carry `method` out. What it raises counts against the resource, `InvalidRequest` excepted."""

    async def stream_on_resource(
        self, instance: ResourceInstance, method: str, params: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """The same in parts."""
        yield await self.execute_on_resource(instance, method, params)

    async def check_resource(self, instance: ResourceInstance) -> bool:
        """Whether it is well. Asked from time to time, and before it is used again."""
        return True

    async def destroy_resource(self, instance: ResourceInstance) -> None:
        """Undo `create_resource`."""

    async def discover(self) -> Iterable[ResourceInstance]:
        """Resources that exist already; `resource_instance` makes the records."""
        return ()

    def capabilities(self) -> frozenset[str]:
        """What each of the resources can do; what a request needs is for `requirements` to say."""
        return frozenset()

    # -- inside ------------------------------------------------------------------------------------------------

    def resource_instance(
        self, endpoint: str, handle: Any, *, ownership: Ownership = Ownership.EXTERNAL, hub: str = ""
    ) -> ResourceInstance:
        """The record of a resource."""
        return ResourceInstance(
            id=instance_id(self.protocol, endpoint),
            hub=hub or self.protocol,
            kind=self.protocol,
            endpoint=endpoint,
            offers=((self.protocol, _Direct(self, endpoint)),),
            ownership=ownership,
            capabilities=self.capabilities(),
            max_concurrent=1 if self.exclusive else 64,
            cancellable=self.cancellable,
            handle=handle,
        )

    def make_hub(self) -> ResourceHub[Any]:
        """The hub that keeps its resources."""
        return self._own_hub

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ARG002, ANN401 - see Provider
        """By `execute_on_resource`."""
        return await self.execute_on_resource(instance, request.method, request.params)

    async def stream_on(
        self,
        instance: ResourceInstance,
        api: str,  # noqa: ARG002 - see Provider
        channel: Channel,  # noqa: ARG002
        request: Request,
    ) -> AsyncIterator[Any]:
        """By `stream_on_resource`."""
        async for part in self.stream_on_resource(instance, request.method, request.params):
            yield part


class _Direct:
    """The channel to a resource: a JSON message ``{"method": ..., "params": ...}``, answered in JSON.

    Other providers that speak the protocol's api can use it; the `HubProvider` itself goes the short way.
    """

    kind = ChannelKind.CALL

    def __init__(self, provider: HubProvider[Any], endpoint: str) -> None:
        self._provider, self._endpoint = provider, endpoint

    async def call(self, message: bytes) -> bytes:
        """One method on the resource.

        Raises:
            InvalidRequest: `message` is not such a message, or the resource is gone.
        """
        wanted = instance_id(self._provider.protocol, self._endpoint)
        instance = next((i for i in self._provider.make_hub().instances if i.id == wanted), None)
        try:
            body = json.loads(message)
            method, params = body["method"], body.get("params", {})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest(f"not a call: {error}") from error
        if instance is None:
            raise InvalidRequest(f"{self._endpoint} is gone")
        return json.dumps(await self._provider.execute_on_resource(instance, method, params)).encode()


class _PoolHub(ResourceHub[Any]):
    """Keeps a `HubProvider`'s resources between its two bounds."""

    def __init__(self, provider: HubProvider[Any]) -> None:
        self.kind = provider.protocol  # type: ignore[misc]  # one class serves all kinds
        super().__init__(provider.options)
        self._provider = provider
        self._numbers = count(1)
        self._creating = 0
        self._failed_in_a_row = 0
        self._failure = ""
        self._retry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._fill()

    async def discover(self) -> Iterable[ResourceInstance]:
        return await self._provider.discover()

    def offer(self, requirements: Requirements) -> Offer:
        if not requirements.capabilities <= self._provider.capabilities():
            return Offer(OfferKind.NEVER)
        if self._retry is not None:
            return Offer(OfferKind.NEVER, reason=f"creating failed: {self._failure}")
        return Offer(OfferKind.CREATABLE if self._missing() else OfferKind.READY)

    def _missing(self) -> int:
        limit: int = self.options.max_instances
        return max(0, limit - len(self.instances))

    async def scale(self, requirements: Requirements, wanted: int) -> None:  # noqa: ARG002 - all are alike
        more = min(wanted - self._creating, self._missing())
        if more > 0 and self._retry is None:
            await asyncio.gather(*(self._spawn(self._create()) for _ in range(more)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _create(self) -> None:
        endpoint = f"{self.name}-{next(self._numbers)}"
        coming = self._provider.resource_instance(endpoint, None, ownership=Ownership.MANAGED, hub=self.name)
        self._creating += 1
        self.publish(coming, State.STARTING)
        try:
            async with asyncio.timeout(self.options.create_timeout_s):
                handle = await self._provider.create_resource(self.options)
        except BaseException as error:
            self._creating -= 1
            self._create_failed(coming, error)
            if not isinstance(error, Exception):
                raise
            return
        self._creating -= 1
        self._failed_in_a_row = 0
        self.publish(coming.changed(handle=handle, generation=1), State.READY)

    def _create_failed(self, coming: ResourceInstance, error: BaseException) -> None:
        """Say why, and try again later: those who wait are told by the withdrawal."""
        self._failure = f"{type(error).__name__}: {error}"
        logger.warning("%s: creating %s failed: %s", self.name, coming.endpoint, self._failure)
        back_off_s = min(_BACK_OFF_S * 2.0**self._failed_in_a_row, _BACK_OFF_MAX_S)
        self._failed_in_a_row += 1
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(back_off_s, self._may_retry)
        self.withdraw(coming.id, self._failure)

    def _may_retry(self) -> None:
        self._retry = None
        self._spawn(self._fill())
        self.supply_changed()

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        if await self._provider.check_resource(instance):
            return instance
        if instance.ownership is Ownership.MANAGED:
            # Replaced rather than waited for; in a task of its own, because withdrawing it ends this check.
            self._spawn(self._replace(instance))
        raise InstanceFailure(FailureKind.REFUSED, f"{instance.endpoint} is not well")

    async def _replace(self, instance: ResourceInstance) -> None:
        self.withdraw(instance.id, "not well")
        await self._destroy(instance)
        await self._fill()
        self.supply_changed()

    async def _fill(self) -> None:
        """Create what is missing to the lower bound."""
        missing = self.options.min_instances - len(self.instances)
        await asyncio.gather(*(self._spawn(self._create()) for _ in range(missing)))

    async def _destroy(self, instance: ResourceInstance) -> None:
        try:
            await self._provider.destroy_resource(instance)
        except Exception:
            logger.exception("%s: destroying %s failed", self.name, instance.endpoint)

    async def retire(self, instance: ResourceInstance) -> None:
        if instance.ownership is not Ownership.EXTERNAL:
            await self._destroy(instance)

    async def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ours = [i for i in self.instances if i.ownership is Ownership.MANAGED and i.handle is not None]
        await asyncio.gather(*(self._destroy(instance) for instance in ours))
