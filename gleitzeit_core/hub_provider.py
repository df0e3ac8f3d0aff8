"""`HubProvider`: a new kind of resource with a protocol of its own, in one short class.

The author says how to create a resource and how to carry a method out on it; pooling, scaling between two bounds,
health, balancing, failover, metrics and breakers come with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from abc import abstractmethod
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field, model_validator

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.pool import State
from gleitzeit_core.provider import Provider
from gleitzeit_core.resources import ChannelKind, Ownership, ResourceInstance, Speaks, instance_id
from gleitzeit_core.routing import Offer, OfferKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from typing import Self

    from gleitzeit_core.requests import Request
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
        """Make one resource and return your object for it, which comes back as ``instance.handle``.

        When it is cancelled, because it takes too long or nobody wants it any more, it must leave nothing behind.
        """

    @abstractmethod
    async def execute_on_resource(self, instance: ResourceInstance, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the author's
        """Carry `method` out. What it raises counts against the resource, `InvalidRequest` excepted."""

    async def stream_on_resource(
        self, instance: ResourceInstance, method: str, params: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """The same in parts. Not asked of resources whose work cannot be cancelled: their answer is one part."""
        yield await self.execute_on_resource(instance, method, params)

    async def check_resource(self, instance: ResourceInstance) -> bool:  # noqa: ARG002 - a default
        """Whether it is well. Asked from time to time, also while it works; one that is not is replaced."""
        return True

    async def destroy_resource(self, instance: ResourceInstance) -> None:
        """Undo `create_resource`. Again, if it was cancelled."""

    async def discover(self) -> Iterable[ResourceInstance]:
        """Resources that exist already; `resource_instance` makes the records."""
        return ()

    def capabilities(self) -> frozenset[str]:
        """What each of the resources can do; what a request needs is for `requirements` to say."""
        return frozenset()

    # -- inside ------------------------------------------------------------------------------------------------

    def resource_instance(
        self,
        endpoint: str,
        handle: Any,  # noqa: ANN401 - the author's own object
        *,
        ownership: Ownership = Ownership.EXTERNAL,
        hub: str = "",
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
            InvalidRequest: `message` is not such a message.
            InstanceFailure: The resource is gone.
        """
        try:
            body = json.loads(message)
            method, params = body["method"], body.get("params", {})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest(f"not a call: {error}") from error
        instance = next((i for i in self._provider.make_hub().instances if i.endpoint == self._endpoint), None)
        if instance is None:
            raise InstanceFailure(FailureKind.REFUSED, f"{self._endpoint} is gone", started=False)
        return json.dumps(await self._provider.execute_on_resource(instance, method, params)).encode()


class _PoolHub(ResourceHub[Any]):
    """Keeps a `HubProvider`'s resources between its two bounds."""

    def __init__(self, provider: HubProvider[Any]) -> None:
        self.kind = provider.protocol  # type: ignore[misc]  # one class serves all kinds
        super().__init__(provider.options)
        self._provider = provider
        self._numbers = count(1)
        self._creations: dict[str, asyncio.Task[None]] = {}
        # What was created and is not destroyed yet, and the part of it that is being destroyed.
        self._owned: dict[str, ResourceInstance] = {}
        self._ending: set[str] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self._failed_in_a_row = 0
        self._failure = ""
        self._retry: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        self._fill()
        await asyncio.gather(*self._creations.values())

    async def discover(self) -> Iterable[ResourceInstance]:
        return await self._provider.discover()

    # -- creating ----------------------------------------------------------------------------------------------

    def _next(self, number: int = 0) -> ResourceInstance:
        endpoint = f"{self.name}-{number}"
        return self._provider.resource_instance(endpoint, None, ownership=Ownership.MANAGED, hub=self.name)

    def offer(self, requirements: Requirements) -> Offer:
        if not requirements.allow(self._next()):
            return Offer(OfferKind.NEVER)
        if self._retry is not None:
            return Offer(OfferKind.NEVER, reason=f"creating failed: {self._failure}")
        room = self.options.max_instances > len(self.instances)
        return Offer(OfferKind.CREATABLE if room else OfferKind.READY)

    async def scale(self, requirements: Requirements, wanted: int) -> None:  # noqa: ARG002 - all are alike
        self._begin(math.ceil(wanted / self._next().max_concurrent) - len(self._creations))

    def _fill(self) -> None:
        """Create what is missing to the lower bound."""
        self._begin(self.options.min_instances - len(self.instances))

    def _begin(self, more: int) -> None:
        # What is being destroyed still takes its place; when it is gone, those who wait ask again.
        there = {*self._owned, *(instance.id for instance in self.instances)}
        for _ in range(min(more, self.options.max_instances - len(there)) if self._retry is None else 0):
            coming = self._next(next(self._numbers))
            self.publish(coming, State.STARTING)
            self._creations[coming.id] = asyncio.create_task(self._create(coming))

    async def _create(self, coming: ResourceInstance) -> None:
        failure, limit_s = "", self.options.create_timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                handle = await self._provider.create_resource(self.options)
        except Exception as error:  # noqa: BLE001 - an author's own; it is logged, and told to those who wait
            failure = f"not within {limit_s:g} s" if limit.expired() else f"{type(error).__name__}: {error}"
        # Whoever is told of the end may ask for more, so it must not count any more.
        self._creations.pop(coming.id, None)
        if failure:
            self._create_failed(coming, failure)
            return
        self._failed_in_a_row = 0
        created = self._owned[coming.id] = coming.changed(handle=handle, generation=1)
        self.publish(created)

    def _create_failed(self, coming: ResourceInstance, failure: str) -> None:
        """Say why, and try again later: those who wait are told by the withdrawal."""
        self._failure = failure
        logger.warning("%s: creating %s failed: %s", self.name, coming.endpoint, failure)
        if self._retry is None:
            back_off_s = min(_BACK_OFF_S * 2.0 ** min(self._failed_in_a_row, 16), _BACK_OFF_MAX_S)
            self._failed_in_a_row += 1
            self._retry = asyncio.get_running_loop().call_later(back_off_s, self._may_retry)
        self.withdraw(coming.id, failure)

    def _may_retry(self) -> None:
        self._retry = None
        self._fill()
        self.supply_changed()

    # -- checking and ending -----------------------------------------------------------------------------------

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        if await self._provider.check_resource(instance):
            return instance
        if instance.id in self._owned:
            # Replaced rather than waited for.
            self.withdraw(instance.id, "not well")
            task = asyncio.create_task(self._destroy(instance))
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)
        raise InstanceFailure(FailureKind.REFUSED, f"{instance.endpoint} is not well")

    async def retire(self, instance: ResourceInstance) -> None:
        creation = self._creations.pop(instance.id, None)
        if creation is not None:
            creation.cancel()
        await self._destroy(instance)

    async def _destroy(self, instance: ResourceInstance) -> None:
        """Destroy what is ours, once. If this is cancelled it stays ours, for `close`."""
        owned = self._owned.get(instance.id)
        if owned is None or owned.id in self._ending:
            return
        self._ending.add(owned.id)
        try:
            await self._provider.destroy_resource(owned)
        except Exception:
            logger.exception("%s: destroying %s failed", self.name, owned.endpoint)
        finally:
            self._ending.discard(owned.id)
        del self._owned[owned.id]
        if self.running:
            self._fill()
            self.supply_changed()

    def withdraw(self, instance_id: str, reason: str) -> None:
        super().withdraw(instance_id, reason)
        if self.running:
            self._fill()

    async def close(self) -> None:
        creations, self._creations = tuple(self._creations.values()), {}
        for task in creations:
            task.cancel()
        await asyncio.gather(*creations, *self._replacing, return_exceptions=True)
        await asyncio.gather(*(self._destroy(instance) for instance in tuple(self._owned.values())))
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
