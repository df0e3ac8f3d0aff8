"""What a provider is: a protocol of named methods, carried out on any instance whose (api, channel) it can drive.

Three ways to hold one, all first-class:

    async with OllamaProvider() as llm:                 # it makes and owns its hub
        await llm.execute("llm/chat", {...})
    async with OllamaProvider(hub=hub) as a, LLMProvider(hub=hub) as b:   # both count the same slots
        ...
    async with ResourceManager.from_config() as manager:                 # everything by name
        await manager.execute("llm/chat", {...})
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ValidationError

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import ClosedError, InvalidRequest, UnknownMethod
from gleitzeit_core.needs import positive
from gleitzeit_core.requests import new_request
from gleitzeit_core.resources import Requirements
from gleitzeit_core.strategies.base import NoOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from typing import Unpack

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.requests import Method, Request, Usage
    from gleitzeit_core.resources import Channel, ResourceInstance, Speaks
    from gleitzeit_core.runs import InstanceReport, OnInstance, Stream


class RequestOptions(TypedDict, total=False):
    """What a caller may say about a request besides its parameters; see `Request`.

    ``timeout_s``, above 0, is turned into a deadline; ``tags`` and ``instances`` narrow down where it may run.
    """

    timeout_s: float | None
    priority: int
    tenant: str
    affinity: str
    cost: float
    idempotency_key: str
    tags: Iterable[str]
    instances: Iterable[str]


OptionsT = TypeVar("OptionsT", bound=BaseModel)


class Provider(ABC, Generic[OptionsT]):
    """Base of all providers.

    Args:
        options: Checked already; None for the defaults.
        hub: Drive this hub's instances, without a manager. None: with a manager, or with its own from `make_hub`.
    """

    protocol: ClassVar[str]
    methods: ClassVar[tuple[Method, ...]]
    accepts: ClassVar[tuple[Speaks, ...]]
    """The (api, channel) pairs it can drive, best first."""
    options_type: ClassVar[type[BaseModel]] = NoOptions
    parts_apart: ClassVar[bool] = False
    """Whether it answers in parts also on instances whose work cannot be cancelled: then the work must go on when
    `stream_on` is closed, see `lingering`. If not, such an answer is one part, from `execute_on`."""

    def __init__(self, options: OptionsT | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        self.options: OptionsT = options if options is not None else self.options_type()  # type: ignore[assignment]
        self._hub = hub
        self._dispatcher: Dispatcher | None = None
        self._by_name = {method.name: method for method in self.methods}
        self._anything = Requirements(accepts=self.accepts)

    def __repr__(self) -> str:
        """Protocol and what it is bound to."""
        return f"<{type(self).__name__} {self.protocol}, {self._dispatcher!r}>"

    # -- for authors -------------------------------------------------------------------------------------------

    @abstractmethod
    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry a request out on an instance.

        Must stop the work before it raises, cancellation included: its slot is freed then.

        Raises:
            InstanceFailure: The instance failed; `FailureKind` and ``started`` decide what happens next.
            InvalidRequest: The request cannot be put to this api.
        """

    async def stream_on(
        self, instance: ResourceInstance, api: str, channel: Channel, request: Request
    ) -> AsyncIterator[Any]:
        """The same in parts. One part with the whole answer, unless a provider does better."""
        yield await self.execute_on(instance, api, channel, request)

    def requirements(self, request: Request) -> Requirements:  # noqa: ARG002 - a default
        """What `request` needs of an instance, besides what its caller demands: capabilities, such as a model."""
        return self._anything

    def cost(self, request: Request) -> float:  # noqa: ARG002 - a default
        """The work `request` is expected to be, relative to others; above 0. Used unless its caller says."""
        return 1.0

    def usage(self, request: Request, part: Any) -> Usage | None:  # noqa: ANN401, ARG002 - what a method answers is its own
        """What a whole answer, or one part of it, says of the work it took; None when it says nothing.

        Called with every part, so it must be cheap; what the last part says that says anything counts.
        """
        return None

    async def answer(self, request: Request, instances: tuple[InstanceReport, ...]) -> Any:  # noqa: ANN401, ARG002 - a default
        """Answer a method marked ``local``.

        Raises:
            UnknownMethod: There is none by that name.
        """
        raise UnknownMethod(request.method, (method.name for method in self.methods if method.local))

    def lingering(self, instance: ResourceInstance, request: Request) -> asyncio.Future[Any] | None:  # noqa: ARG002 - a default
        """What of `request` goes on at `instance` although its caller has left; None when all of it has stopped.

        Asked when a caller has left, or its time ran out. The slot is freed when what is returned is done.
        """
        return None

    def is_last(self, request: Request, part: Any) -> bool:  # noqa: ANN401, ARG002 - what a method answers is its own
        """Whether a caller who has `part` of an answer in parts, and leaves, has all of it. Asked when one leaves."""
        return False

    def make_hub(self) -> ResourceHub[Any]:
        """A hub of its own, for use without a manager.

        Raises:
            ClosedError: This provider has no kind of resource of its own.
        """
        raise ClosedError(f"{type(self).__name__} has no hub: give it one, or use it through a ResourceManager")

    async def open(self) -> None:
        """Acquire what requests need, such as a client session. Called once, in the running loop."""

    async def close(self) -> None:
        """Release it. Called once."""

    # -- requests ----------------------------------------------------------------------------------------------

    def method(self, name: str) -> Method:
        """The method called `name`.

        Raises:
            UnknownMethod: There is none.
        """
        found = self._by_name.get(name)
        if found is None:
            raise UnknownMethod(name, self._by_name)
        return found

    def request(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> Request:
        """A checked request.

        Raises:
            UnknownMethod: There is no such method.
            InvalidRequest: The parameters are wrong.
        """
        fields = cast("dict[str, Any]", options)
        tags, instances, cost = (), (), None
        if fields:
            tags, instances, cost = fields.pop("tags", ()), fields.pop("instances", ()), fields.pop("cost", None)
            fields = self.timed(options)
        request = new_request(method=method, params=self._checked(self.method(method), params or {}), **fields)
        # Nobody else has seen it yet; a changed copy would take as long as all the rest.
        object.__setattr__(request, "requirements", self._needs(request, tags, instances))
        cost = self.cost(request) if cost is None else cost
        if cost != 1.0:
            object.__setattr__(request, "cost", checked_cost(cost))
        return request

    def timed(self, options: RequestOptions) -> dict[str, Any]:
        """`options` with a deadline in place of their ``timeout_s``; they are changed.

        Raises:
            InvalidRequest: ``timeout_s`` is not above 0.
        """
        fields = cast("dict[str, Any]", options)
        timeout_s = fields.pop("timeout_s", None)
        if timeout_s is not None:
            fields["deadline"] = self._wall() + positive("timeout_s", timeout_s)
        return fields

    def complete(self, request: Request, *, tags: Iterable[str] = (), instances: Iterable[str] = ()) -> Request:
        """`request` with its requirements filled in, and its cost where it says nothing else than the default."""
        needs, cost = self._needs(request, tags, instances), request.cost
        return request.changed(requirements=needs, cost=checked_cost(self.cost(request) if cost == 1.0 else cost))

    def _needs(self, request: Request, tags: Iterable[str], instances: Iterable[str]) -> Requirements:
        needs = self.requirements(request)
        if tags or instances:
            needs = needs.narrowed(tags=frozenset(tags), instances=frozenset(instances))
        return needs

    def _wall(self) -> float:
        return time.time() if self._dispatcher is None else self._dispatcher.clock.wall()

    async def execute(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry `method` out and return its answer.

        Raises:
            RequestError: It failed.
        """
        answer = await self.dispatcher.one(self, self.request(method, params, **options))
        return answer.value

    def stream(self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]) -> Stream:
        """Carry `method` out and iterate over its answer's parts as they come.

        Raises:
            RequestError: It failed, here or in the iteration.
        """
        request = self.request(method, {**(params or {})}, **options).changed(stream=True)
        return self.dispatcher.stream(self, request)

    async def each(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> list[OnInstance]:
        """Carry `method` out on every instance that can, and return an outcome for each."""
        return await self.dispatcher.each(self, self.request(method, params, **options))

    def _checked(self, method: Method, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if method.params is None:
            return params
        try:
            return method.params.model_validate(dict(params)).model_dump(exclude_unset=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            text = first["msg"].removeprefix("Value error, ")
            raise InvalidRequest(f"{method.name}: {where or 'parameters'}: {text}", param=where or None) from None

    # -- life --------------------------------------------------------------------------------------------------

    def bind(self, dispatcher: Dispatcher) -> None:
        """Send requests through `dispatcher`."""
        self._dispatcher = dispatcher

    @property
    def dispatcher(self) -> Dispatcher:
        """What carries its requests out.

        Raises:
            ClosedError: It is not open.
        """
        if self._dispatcher is None:
            name = type(self).__name__
            raise ClosedError(f"{name} is not open: use it in an 'async with' block or through a manager")
        return self._dispatcher

    async def __aenter__(self) -> Self:
        """Open it, and its hub. A hub that several providers share is started by the first and stopped by the last."""
        if self._dispatcher is not None:
            raise ClosedError(f"{type(self).__name__} is open already")
        await self.open()
        try:
            hub = self._hub if self._hub is not None else self.make_hub()
            self._shared = _SHARED.setdefault(hub, _Shared())
            self.bind(await self._shared.join(hub))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Leave the hub, which ends what runs if this was its last provider; then close."""
        self._dispatcher = None
        try:
            await self._shared.leave()
        finally:
            await self.close()


class _Shared:
    """The dispatcher of a hub that is used without a manager, by one provider or several."""

    def __init__(self) -> None:
        self._dispatcher: Dispatcher | None = None
        self._users = 0
        # Whoever comes while it opens or closes waits for that.
        self._lock = asyncio.Lock()

    async def join(self, hub: ResourceHub[Any]) -> Dispatcher:
        """One user more; the first one starts the hub."""
        async with self._lock:
            if self._dispatcher is None:
                made = Dispatcher()
                await made.shell.add_hub(hub)
                self._dispatcher = made
            self._users += 1
            return self._dispatcher

    async def leave(self) -> None:
        """One user fewer; the last one stops the hub."""
        self._users -= 1
        async with self._lock:
            if self._users == 0 and self._dispatcher is not None:
                dispatcher, self._dispatcher = self._dispatcher, None
                await dispatcher.aclose()


_SHARED: WeakKeyDictionary[ResourceHub[Any], _Shared] = WeakKeyDictionary()


def checked_cost(cost: float) -> float:
    """`cost`.

    Raises:
        InvalidRequest: It is not a finite number above 0.
    """
    if cost == math.inf:
        raise InvalidRequest(f"cost must be a finite number, not {cost!r}", param="cost")
    return positive("cost", cost)
