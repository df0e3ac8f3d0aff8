"""The most awkward kind of resource the contracts allow, so that containers, pods and functions fit without a change.

Its instances are exclusive, created with a delay, reached by one message each way, not to be cancelled, and used up.
Nothing happens by itself: a test finishes creations and answers calls, or sets `auto` and they are answered at once.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.pool import State
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.resources import CallChannel, ChannelKind, Ownership, ResourceInstance, Speaks, instance_id
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.testing.todo import Todo, Todos

if TYPE_CHECKING:
    from gleitzeit_core.requests import Outcome, Request
    from gleitzeit_core.resources import Channel, Requirements

CONTRACT = Speaks("contract", ChannelKind.CALL)


class ContractOptions(HubOptions):
    """How many there may be, and how often each is used."""

    limit: int = Field(default=2, ge=1, description="Instances at most, those being created included.")
    uses: int = Field(default=1, ge=0, description="After so many uses an instance is retired; 0 for never.")
    auto: bool = Field(default=False, description="Create and answer at once.")


class ContractHub(ResourceHub[ContractOptions]):
    """Keeps instances that exist only while they are wanted.

    Args:
        options: Checked already.
        name: As for every hub.
    """

    kind = "contract"
    recycles = True

    def __init__(self, options: ContractOptions | None = None, *, name: str = "") -> None:
        super().__init__(options or ContractOptions(), name=name)
        self.creations: Todos[Todo] = Todos()
        self.calls: Todos[Todo] = Todos()
        self.recycled: list[str] = []
        self.retired: list[str] = []
        self.failure = ""
        self.well = True
        self._uses: dict[str, int] = {}
        self._number = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def offer(self, requirements: Requirements) -> Offer:
        """As long as there are fewer than the limit, and creating does not fail."""
        if not requirements.allow(self._named("next")):
            return Offer(OfferKind.NEVER)
        if self.failure:
            return Offer(OfferKind.NEVER, reason=self.failure)
        return Offer(OfferKind.CREATABLE if len(self.instances) < self.options.limit else OfferKind.READY, eta_s=1.0)

    async def scale(self, requirements: Requirements, wanted: int) -> None:
        """Begin to create."""
        del requirements
        for _ in range(min(wanted - len(self._tasks), self.options.limit - len(self.instances))):
            self._number += 1
            coming = self._named(f"box-{self._number}")
            self.publish(coming, State.STARTING)
            self._tasks[coming.id] = asyncio.create_task(self._create(coming))

    def _named(self, endpoint: str) -> ResourceInstance:
        return ResourceInstance(
            id=instance_id(self.kind, endpoint),
            hub=self.name,
            kind=self.kind,
            endpoint=endpoint,
            offers=((CONTRACT.api, CallBox(self, endpoint)),),
            ownership=Ownership.MANAGED,
            max_concurrent=1,
            cancellable=False,
        )

    async def _create(self, coming: ResourceInstance) -> None:
        todo = self.creations.add(Todo(coming.endpoint))
        if self.options.auto:
            todo.finish()
        try:
            await todo.wait()
        except InstanceFailure as failure:
            self.failure = failure.message
        # Whoever is told of the end may ask for more: it must not count any more.
        self._tasks.pop(coming.id, None)
        if self.failure:
            self.withdraw(coming.id, self.failure)
        else:
            self.publish(coming, State.READY)

    def recover(self) -> None:
        """Creating works again."""
        self.failure = ""
        self.supply_changed()

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Well, unless a test says otherwise."""
        if not self.well:
            raise InstanceFailure(FailureKind.REFUSED, "not well")
        return instance

    async def recycle(self, instance: ResourceInstance, outcome: Outcome) -> bool:
        """Whether it may be used once more."""
        del outcome
        self.recycled.append(instance.endpoint)
        self._uses[instance.id] = self._uses.get(instance.id, 0) + 1
        return not self.options.uses or self._uses[instance.id] < self.options.uses

    async def retire(self, instance: ResourceInstance) -> None:
        """Stop it, or stop creating it."""
        creation = self._tasks.pop(instance.id, None)
        if creation is not None:
            creation.cancel()
        self.retired.append(instance.endpoint)

    async def close(self) -> None:
        """Stop all."""
        creations, self._tasks = tuple(self._tasks.values()), {}
        for task in creations:
            task.cancel()
        await asyncio.gather(*creations, return_exceptions=True)
        self.retired += [instance.endpoint for instance in self.instances]


class CallBox:
    """The channel to one instance.

    Args:
        hub: Whose calls it is among.
        endpoint: Of the instance.
    """

    kind = ChannelKind.CALL

    def __init__(self, hub: ContractHub, endpoint: str) -> None:
        self._hub, self._endpoint = hub, endpoint

    async def call(self, message: bytes) -> bytes:
        """One message each way; a test answers, or with `auto` the message is the answer.

        Raises:
            InstanceFailure: The test says so.
        """
        todo = self._hub.calls.add(Todo(message.decode()))
        if self._hub.options.auto:
            todo.finish(message)
        answer: bytes = await todo.wait()
        return answer


class ContractParams(BaseModel):
    """What the methods take."""

    model_config = ConfigDict(extra="forbid")

    text: str = ""


class ContractProvider(Provider[NoOptions]):
    """Sends its parameters as one message and gives back what comes. ``contract/run`` must not be done twice."""

    protocol = "contract"
    accepts = (CONTRACT,)
    methods = (
        Method(name="contract/run", summary="do it once", replayable=False, params=ContractParams),
        Method(name="contract/look", summary="look again if need be", replayable=True, params=ContractParams),
        Method(name="contract/read", summary="in parts", replayable=True, streams=True, params=ContractParams),
    )

    def make_hub(self) -> ContractHub:
        """A hub that answers at once."""
        return ContractHub(ContractOptions(auto=True))

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - JSON
        """By a call.

        Raises:
            InstanceFailure: The instance failed, or its answer is not JSON.
        """
        del instance, api
        if not isinstance(channel, CallChannel):
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"cannot call {channel!r}", started=False)
        answer = await channel.call(json.dumps(dict(request.params)).encode())
        try:
            return json.loads(answer)
        except ValueError as error:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"no JSON: {answer!r}") from error
