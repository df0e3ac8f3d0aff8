"""`HubProvider`: a new kind of resource with a protocol of its own, in one short class.

The author says how to create a resource and how to carry a method out on it; pooling, scaling between two bounds,
health, balancing, failover, metrics and breakers come with it.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.provider import Provider
from gleitzeit_core.resources import ChannelKind, Ownership, ResourceInstance, Speaks, instance_id
from gleitzeit_core.supply import SupplyHub, SupplyOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import Channel


class PoolOptions(HubOptions, SupplyOptions):
    """Options of every `HubProvider`. Add your own in a subclass."""


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


class _PoolHub(SupplyHub[Any]):
    """Keeps a `HubProvider`'s resources."""

    def __init__(self, provider: HubProvider[Any]) -> None:
        self.kind = provider.protocol  # type: ignore[misc]  # one class serves all kinds
        super().__init__(provider.options)
        self._provider = provider

    @property
    def supply(self) -> SupplyOptions:
        options: PoolOptions = self.options
        return options

    async def discover(self) -> Iterable[ResourceInstance]:
        return await self._provider.discover()

    def next(self, number: int) -> ResourceInstance:
        endpoint = f"{self.name}-{number}"
        return self._provider.resource_instance(endpoint, None, ownership=Ownership.MANAGED, hub=self.name)

    async def create(self, coming: ResourceInstance) -> ResourceInstance:
        return coming.changed(handle=await self._provider.create_resource(self.options))

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        if await self._provider.check_resource(instance):
            return instance
        # Ours are replaced rather than waited for.
        self.replace(instance, "not well")
        raise InstanceFailure(FailureKind.REFUSED, f"{instance.endpoint} is not well")

    async def destroy(self, instance: ResourceInstance) -> None:
        await self._provider.destroy_resource(instance)
