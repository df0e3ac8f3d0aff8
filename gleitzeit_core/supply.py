"""Hubs that create instances: between two bounds, by demand, and fewer again when there is less to do.

An author says what one will be like (`next`), how to make it (`create`) and how to undo that (`destroy`). The rest is
here: so many are created as wait, a creation that fails is tried again after a pause that grows, what is not well is
replaced, and what has had no work for a while goes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import abstractmethod
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Final, Generic

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gleitzeit_core.hub import HubOptions, OptionsT, ResourceHub
from gleitzeit_core.pool import State
from gleitzeit_core.routing import Offer, OfferKind

if TYPE_CHECKING:
    from typing import Self

    from gleitzeit_core.resources import Requirements, ResourceInstance

logger = logging.getLogger(__name__)

# After a failed creation the next is tried this many seconds later, twice as many each time.
_BACK_OFF_S = 1.0
_BACK_OFF_MAX_S = 60.0
# So often within `idle_s` it is looked for instances without work.
_LOOKS = 4


class SupplyOptions(BaseModel):
    """How many instances a hub keeps. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_instances: int = Field(default=0, ge=0, description="Created at start and kept.")
    max_instances: int = Field(default=4, ge=1, description="Never more than this.")
    create_timeout_s: float = Field(default=60.0, gt=0, description="A creation that takes longer has failed.")
    idle_s: float | None = Field(
        default=None,
        gt=0,
        description="One without work for so long is ended, down to min_instances; left out: none ever is.",
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_instances > self.max_instances:
            raise ValueError("min_instances must not be above max_instances")
        return self


NO_SUPPLY: Final = SupplyOptions.model_construct(min_instances=0, max_instances=0, create_timeout_s=60.0, idle_s=None)
"""Of a hub that is to create nothing."""


class SupplyHub(ResourceHub[OptionsT], Generic[OptionsT]):
    """Base of hubs that create instances. See the module's text. Its `problem` is why the last creation failed."""

    steady_s: ClassVar[float] = 10.0
    """What is not well sooner than this after its creation is replaced at once only the first time in a row."""

    def __init__(self, options: OptionsT, *, name: str = "") -> None:
        super().__init__(options, name=name)
        self._numbers = count(1)
        self._creations: dict[str, asyncio.Task[None]] = {}
        # What was created and is not destroyed yet, and the part of it that is being destroyed.
        self._owned: dict[str, ResourceInstance] = {}
        self._destructions: dict[str, asyncio.Task[None]] = {}
        self._created_at: dict[str, float] = {}
        self._failed_in_a_row = self._short_lived = 0
        self._retry: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None

    # -- for authors -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def supply(self) -> SupplyOptions:
        """How many to keep, and for how long."""

    @abstractmethod
    def next(self, number: int) -> ResourceInstance:
        """The record of one to be created, as far as it is known before. Must return at once.

        Args:
            number: 1 for the first, then 2, ...; 0 only asks what one would be able to do.
        """

    @abstractmethod
    async def create(self, coming: ResourceInstance) -> ResourceInstance:
        """Make what `coming` describes, and return it as it is now. What it raises is logged and told to callers.

        When it is cancelled, because it takes too long or nobody wants it any more, it must leave nothing behind.
        """

    @abstractmethod
    async def destroy(self, instance: ResourceInstance) -> None:
        """Undo `create`. Again, if it was cancelled."""

    # -- for authors to call -----------------------------------------------------------------------------------

    def adopt(self, instance: ResourceInstance) -> None:
        """Own what an earlier process of ours has created. To be called before `open` of this class."""
        self._owned[instance.id] = instance
        self.publish(instance)

    def replace(self, instance: ResourceInstance, reason: str) -> None:
        """One is not well: withdraw and destroy it, and create another if one is wanted. Only once for each."""
        if instance.id not in self._owned or instance.id not in self._known:
            return
        age_s = asyncio.get_running_loop().time() - self._created_at.get(instance.id, -math.inf)
        self._short_lived = self._short_lived + 1 if age_s < self.steady_s else 0
        if self._short_lived > 1:
            self._pause(reason, self._short_lived - 1)
        self.withdraw(instance.id, reason)
        self._destruction(instance.id)

    def resupply(self) -> None:
        """`supply` has changed: create what is missing, let go what is too much."""
        if self.running:
            self._fill()
            self._look()
            self.supply_changed()

    # -- as every hub ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Create what is to be kept, and wait for it."""
        self._fill()
        # One that is drained by hand meanwhile ends cancelled, which is no reason not to start.
        if self._creations:
            await asyncio.wait(self._creations.values())
        # Meanwhile more may be wanted, or be tried again.
        self._fill()
        self._look()

    def offer(self, requirements: Requirements) -> Offer:
        """Whether one more can be created."""
        if not requirements.allow(self.next(0)):
            return Offer(OfferKind.NEVER)
        if self._retry is not None:
            return Offer(OfferKind.NEVER, reason=f"creating failed: {self.problem}")
        return Offer(OfferKind.CREATABLE if self.supply.max_instances > self._there else OfferKind.READY)

    async def scale(self, requirements: Requirements, wanted: int) -> None:  # noqa: ARG002 - all are alike
        """Begin to create as many as are wanted and are not being created yet."""
        self._begin(math.ceil(wanted / self.next(0).max_concurrent) - len(self._creations))

    def withdraw(self, instance_id: str, reason: str) -> None:
        """One is gone; another comes when too few are left."""
        super().withdraw(instance_id, reason)
        if self.running:
            self._fill()

    async def reconfigure(self, options: OptionsT) -> bool:
        """Go on with other bounds; see `ResourceHub.reconfigure`."""
        if not self.differing(options) <= {*HubOptions.model_fields, *SupplyOptions.model_fields}:
            return False
        self.options = options
        self.resupply()
        return True

    async def retire(self, instance: ResourceInstance) -> None:
        """End one of our own, created or being created."""
        creation = self._creations.get(instance.id)
        if creation is not None:
            creation.cancel()
            # Until it has ended it takes its place, and `close` would wait for it.
            await asyncio.wait((creation,))
            self._creations.pop(instance.id, None)
        if instance.id in self._owned:
            await self._destruction(instance.id)

    async def close(self) -> None:
        """End all of our own."""
        creations, self._creations = tuple(self._creations.values()), {}
        for task in creations:
            task.cancel()
        await asyncio.gather(*creations, return_exceptions=True)
        # Who waits for the end of one may be cancelled, and that with it: then it is ended again.
        while self._owned:
            await asyncio.gather(*map(self._destruction, tuple(self._owned)), return_exceptions=True)
        for timer in (self._retry, self._looking):
            if timer is not None:
                timer.cancel()
        self._retry = self._looking = None

    # -- creating ----------------------------------------------------------------------------------------------

    @property
    def _there(self) -> int:
        """Those of our own that are known: created, or coming."""
        return sum(name in self._known for name in (*self._owned, *self._creations))

    def _fill(self) -> None:
        """Create what is missing to the lower bound."""
        self._begin(self.supply.min_instances - self._there)

    def _begin(self, more: int) -> None:
        # What is being destroyed still takes its place; when it is gone, those who wait ask again.
        room = self.supply.max_instances - len(self._owned) - len(self._creations)
        for _ in range(min(more, room) if self._retry is None else 0):
            coming = self.next(next(self._numbers))
            self.publish(coming, State.STARTING)
            self._creations[coming.id] = asyncio.create_task(self._create(coming))

    async def _create(self, coming: ResourceInstance) -> None:
        failure, created, limit_s = "", coming, self.supply.create_timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                created = await self.create(coming)
        except Exception as error:  # noqa: BLE001 - an author's own; it is logged, and told to those who wait
            failure = f"not within {limit_s:g} s" if limit.expired() else f"{type(error).__name__}: {error}"
        # Whoever is told of the end may ask for more, so it must not count any more.
        self._creations.pop(coming.id, None)
        if failure:
            logger.warning("%s: creating %s failed: %s", self.name, coming.endpoint, failure)
            self._failed_in_a_row += self._retry is None
            self._pause(failure, self._failed_in_a_row)
            # Those who wait are told by this.
            self.withdraw(coming.id, failure)
            return
        self._failed_in_a_row, self.problem = 0, ""
        self._created_at[coming.id] = asyncio.get_running_loop().time()
        created = self._owned[coming.id] = created.changed(generation=coming.generation + 1)
        self.publish(created)
        # The bounds may have changed meanwhile.
        self.shrink()

    def _pause(self, why: str, times: int) -> None:
        """Create nothing for a while, after it went wrong so many times in a row."""
        self.problem = why
        if self._retry is None:
            back_off_s = min(_BACK_OFF_S * 2.0 ** min(times - 1, 16), _BACK_OFF_MAX_S)
            self._retry = asyncio.get_running_loop().call_later(back_off_s, self._may_retry)

    def _may_retry(self) -> None:
        self._retry = None
        self.resupply()

    # -- ending ------------------------------------------------------------------------------------------------

    def shrink(self) -> None:
        """Let go what is above the upper bound, and what has had no work for too long; the longest idle go first."""
        if not self.running:
            return
        supply, idle = self.supply, {name: self.idle_s(name) for name in self._owned}
        ours = sorted(((idle_s, name) for name, idle_s in idle.items() if idle_s is not None), reverse=True)
        there = len(ours) + len(self._creations)
        for place, (idle_s, name) in enumerate(ours):
            if place < there - supply.max_instances:
                self.drain(name, f"no more than {supply.max_instances} are wanted")
            elif place < there - supply.min_instances and idle_s >= (supply.idle_s or math.inf):
                self.drain(name, f"without work for {idle_s:.0f} s")

    def _look(self) -> None:
        """Look for instances without work, now and then again."""
        if self._looking is not None:
            self._looking.cancel()
        self.shrink()
        idle_s = self.supply.idle_s
        loop = asyncio.get_running_loop()
        self._looking = None if idle_s is None else loop.call_later(idle_s / _LOOKS, self._look)

    def _destruction(self, instance_id: str) -> asyncio.Task[None]:
        """Destroy what is ours, once. If that is cancelled it stays ours, for `close`."""
        task = self._destructions.get(instance_id)
        if task is None:
            task = self._destructions[instance_id] = asyncio.create_task(self._destroy(self._owned[instance_id]))
            task.add_done_callback(lambda _: self._destructions.pop(instance_id))
        return task

    async def _destroy(self, instance: ResourceInstance) -> None:
        try:
            await self.destroy(instance)
        except Exception:
            logger.exception("%s: destroying %s failed", self.name, instance.endpoint)
        del self._owned[instance.id]
        self._created_at.pop(instance.id, None)
        if self.running:
            # First it goes, then another comes: that may have its id.
            self.withdraw(instance.id, "retired")
            self.supply_changed()
