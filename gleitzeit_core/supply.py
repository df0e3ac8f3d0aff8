"""Hubs that create instances: between two bounds, by demand, and fewer again when there is less to do.

An author says what one will be like (`next`), how to make it (`create`), how to undo that (`destroy`) and, if a use
leaves traces, how to wipe them (`reset`). The rest is here: so many are created as wait, and a few more where some are
to be ready at once (`min_idle`); a creation that fails is tried again after a pause that grows; what is not well, too
old or used up is replaced, and what has had no work for a while goes. Nothing is polled: the sink tells when one gets
work or changes its condition, and one timer stands at the next moment at which time alone changes something.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import abstractmethod
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Generic

from gleitzeit_core.hub import HubOptions, OptionsT, ResourceHub
from gleitzeit_core.pool import State
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.supply_options import NO_SUPPLY, SupplyOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gleitzeit_core.clock import Clock, TimerHandle
    from gleitzeit_core.hub import HubSink
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Requirements, ResourceInstance

__all__ = ["NO_SUPPLY", "SupplyHub", "SupplyOptions"]

logger = logging.getLogger(__name__)

# After a failed creation the next is tried this many seconds later, twice as many each time.
_BACK_OFF_S = 1.0
_BACK_OFF_MAX_S = 60.0
# A moment may be missed by the last digit of a float; then it is looked again this much later.
_LOOK_LEAST_S = 0.001


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
        self._uses: Counter[str] = Counter()
        # Whose they are, and those of them that go for the sake of others.
        self._tenants: dict[str, str] = {}
        # One more, by these options; see `_example`.
        self._next_of: OptionsT | None = None
        self._next: ResourceInstance
        self._leaving: set[str] = set()
        self._failed_in_a_row = self._short_lived = 0
        # Until then nothing is created, and why.
        self._retry: TimerHandle | None = None
        self._retry_why = ""
        self._looking: TimerHandle | None = None
        self._refilling: asyncio.Handle | None = None
        self.occupied = self._refill_soon

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

    async def reset(self, instance: ResourceInstance, outcome: Outcome) -> bool:  # noqa: ARG002 - a default
        """Make one of our own after a use what it was before; it gets no other work meanwhile.

        When this says False, raises, or takes longer than ``create_timeout_s``, the instance is destroyed, and another
        comes if one is wanted. Not called for one that has had its last use.
        """
        return True

    # -- for authors to call -----------------------------------------------------------------------------------

    def adopt(self, instance: ResourceInstance) -> None:
        """Own what an earlier process of ours has created. To be called before `open` of this class."""
        self._owned[instance.id] = instance
        # How old it is nobody knows; it has proved that it lives.
        self._created_at[instance.id] = self._clock.monotonic() - self.steady_s
        self.publish(instance)

    def replace(self, instance: ResourceInstance, reason: str) -> None:
        """One is not well: withdraw and destroy it, and create another if one is wanted. Only once for each."""
        if instance.id not in self._owned or instance.id not in self._known:
            return
        self._short_lived = self._short_lived + 1 if self._age_s(instance.id) < self.steady_s else 0
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

    def retry_now(self) -> None:
        """What made a creation fail may be gone: end the pause after it, and do as `resupply` does."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.resupply()

    # -- as every hub ------------------------------------------------------------------------------------------

    @property
    def creates(self) -> bool:
        """Unless its bounds say that it creates none."""
        return self.supply.max_total > 0

    @property
    def _example(self) -> ResourceInstance:
        """What one more would be, but for its number: asked for with every request that waits."""
        if self._next_of is not self.options:
            self._next_of, self._next = self.options, self.next(0)
        return self._next

    async def open(self) -> None:
        """Create what is to be kept in any case, and wait for it; what is to be ready besides comes after the start.

        Raises:
            ValueError: Instances that belong to tenants would take work of several at once.
        """
        if self.tenant_bound and self._example.max_concurrent > 1:
            raise ValueError(f"hub {self.name!r} keeps instances for tenants: their max_concurrent must be 1")
        self._begin(self.supply.min_total - self._there)
        # One that is drained by hand meanwhile ends cancelled, which is no reason not to start.
        if self._creations:
            await asyncio.wait(self._creations.values())

    async def start(self, sink: HubSink) -> None:
        """As every hub; then go on to what `supply` says."""
        await super().start(sink)
        self.resupply()

    def offer(self, requirements: Requirements) -> Offer:
        """Whether one more can be created, now or when one that drains, or belongs to another tenant, has gone."""
        if not requirements.allow(self._example):
            return Offer(OfferKind.NEVER)
        if self._retry is not None:
            return Offer(OfferKind.NEVER, reason=f"creating failed: {self._retry_why}")
        most = self.supply.max_total
        more = most > self._there - self._going or (most > 0 and any(self._others(requirements)))
        return Offer(OfferKind.CREATABLE if more else OfferKind.READY)

    async def scale(self, requirements: Requirements, wanted: int) -> None:
        """Begin to create as many as are wanted and are not being created yet."""
        missing = math.ceil(wanted / self._example.max_concurrent) - len(self._creations)
        # Those that are about to be gone make room, too.
        missing -= self._begin(missing) + len(self._leaving | self._destructions.keys())
        if self._retry is None and missing > 0:
            for name in self._idlest(self._others(requirements))[:missing]:
                self._leaving.add(name)
                self.drain(name, "makes room for another tenant")

    async def recycle(self, instance: ResourceInstance, outcome: Outcome) -> bool:
        """Count a use, and make ready for the next. See `reset`."""
        name, known = instance.id, self._known.get(instance.id)
        if name not in self._owned or known is None:
            return name not in self._owned
        self._uses[name] += 1
        if self.tenant_bound and outcome.tenant and name not in self._tenants:
            self._tenants[name] = outcome.tenant
            self.publish(known)
        if self._spent(name) or self._in_the_way(self._known[name]):
            return False
        async with asyncio.timeout(self.supply.create_timeout_s):
            return await self.reset(instance, outcome)

    @property
    def recycles(self) -> bool:  # type: ignore[override]  # a constant of most kinds of hubs depends on the options here
        """Whether `recycle` has anything to do."""
        return self.tenant_bound or self.supply.max_uses is not None or type(self).reset is not SupplyHub.reset

    def publish(self, instance: ResourceInstance, state: State = State.READY) -> None:
        """As every hub; with its tenant, when it has one."""
        if instance.id in self._tenants:
            instance = instance.changed(details={**instance.details, "tenant": self._tenants[instance.id]})
        super().publish(instance, state)

    def withdraw(self, instance_id: str, reason: str) -> None:
        """One is gone; another comes when too few are left."""
        super().withdraw(instance_id, reason)
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
        for timer in (self._retry, self._looking, self._refilling):
            if timer is not None:
                timer.cancel()
        self._retry = self._looking = self._refilling = None

    # -- what there is -----------------------------------------------------------------------------------------

    @property
    def _clock(self) -> Clock:
        return self._open_sink().clock

    @property
    def _there(self) -> int:
        """Those of our own that are known: created, or coming."""
        return sum(name in self._known for name in (*self._owned, *self._creations))

    @property
    def _going(self) -> int:
        """Those that drain, the ones that are being destroyed included."""
        return sum(self.idle_s(name) is None for name in self._owned)

    @property
    def _free(self) -> int:
        """Those that anybody could have now or soon: without work and of no tenant, or coming."""
        return sum(map(self._is_free, self._owned)) + sum(name in self._known for name in self._creations)

    def _is_free(self, name: str) -> bool:
        return name not in self._tenants and self._open_sink().is_free(name)

    def _others(self, requirements: Requirements) -> Iterator[str]:
        """Those that belong to tenants that are not meant, busy ones included."""
        tenant = requirements.tenant
        return (name for name, owner in self._tenants.items() if tenant and owner != tenant)

    def _idlest(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that have no work and do not drain, the longest idle first."""
        idle = [(idle_s, name) for name in names if (idle_s := self.idle_s(name)) is not None]
        return [name for idle_s, name in sorted(idle, reverse=True) if idle_s or self._open_sink().is_free(name)]

    def _age_s(self, name: str) -> float:
        return self._clock.monotonic() - self._created_at[name]

    def _spent(self, name: str) -> bool:
        supply = self.supply
        return self._uses[name] >= (supply.max_uses or math.inf) or self._age_s(name) >= (supply.max_age_s or math.inf)

    def _in_the_way(self, instance: ResourceInstance) -> bool:
        """Whether a tenant's must go because somebody else is next, and there is no room for another."""
        room = len(self._owned) < self.supply.max_total or self._creations or self._leaving or self._destructions
        if instance.id not in self._tenants or room or self._retry is not None:
            return False
        if self._open_sink().in_the_way(instance, self._example):
            self._leaving.add(instance.id)
        return instance.id in self._leaving

    # -- creating ----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Create what is missing to the lower bounds, unless the hub is being removed."""
        if self.running:
            self._begin(max(self.supply.min_total - self._there, self.supply.min_idle - self._free))

    def _refill_soon(self) -> None:
        """See, once for all that happens together, whether enough are free."""
        if self._refilling is None and self.supply.min_idle:
            self._refilling = asyncio.get_running_loop().call_soon(self._refill)

    def _refill(self) -> None:
        self._refilling = None
        self._fill()

    def _begin(self, more: int) -> int:
        """Begin to create so many, as far as there is room; how many that were."""
        # What is being destroyed still takes its place; when it is gone, those who wait ask again.
        room = self.supply.max_total - len(self._owned) - len(self._creations)
        begun = max(0, min(more, room) if self._retry is None else 0)
        for _ in range(begun):
            coming = self.next(next(self._numbers))
            self.publish(coming, State.STARTING)
            self._creations[coming.id] = asyncio.create_task(self._create(coming))
        return begun

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
        self._created_at[coming.id] = self._clock.monotonic()
        created = self._owned[coming.id] = created.changed(generation=coming.generation + 1)
        self.publish(created)
        # The bounds may have changed meanwhile.
        self._look()

    def _pause(self, why: str, times: int) -> None:
        """Create nothing for a while, after it went wrong so many times in a row."""
        self.problem = self._retry_why = why
        if self._retry is None:
            self._retry = self._later(min(_BACK_OFF_S * 2.0 ** min(times - 1, 16), _BACK_OFF_MAX_S), self.retry_now)

    def _later(self, seconds: float, callback: Callable[[], None]) -> TimerHandle:
        return self._clock.call_at(self._clock.monotonic() + seconds, callback)

    # -- ending ------------------------------------------------------------------------------------------------

    def shrink(self) -> None:
        """Let go what is above the upper bound, without work for too long, or too old; the longest idle go first."""
        if not self.running:
            return
        supply = self.supply
        ours = sorted(((s, name) for name in self._owned if (s := self.idle_s(name)) is not None), reverse=True)
        there, spare = len(ours) + len(self._creations), self._free - supply.min_idle
        for idle_s, name in ours:
            free = self._is_free(name)
            if there > supply.max_total:
                self.drain(name, f"no more than {supply.max_total} are wanted")
            elif there > supply.min_total and idle_s >= (supply.idle_ttl_s or math.inf) and (spare > 0 or not free):
                self.drain(name, f"without work for {idle_s:.0f} s")
            else:
                continue
            there, spare = there - 1, spare - free
        self._renew()

    def _renew(self) -> None:
        """Let go one that is too old, and no other until that has gone and its successor is there."""
        limit_s = self.supply.max_age_s or math.inf
        old = [name for name in self._owned if self._age_s(name) >= limit_s]
        # One without work goes before one that has some.
        for name in (self._idlest(old) or old)[:1] if not (self._creations or self._going) else ():
            self.drain(name, f"created {self._age_s(name):.0f} s ago")

    def _look(self) -> None:
        """Let go what must go, and look again when time alone may have changed something."""
        if self._looking is not None:
            self._looking.cancel()
        self.shrink()
        ttl_s, age_s = self.supply.idle_ttl_s, self.supply.max_age_s
        spent = [pair for name in self._owned for pair in ((ttl_s, self.idle_s(name)), (age_s, self._age_s(name)))]
        # What is over its limit, and stays, has another term.
        left = [limit - s if s < limit else limit for limit, s in spent if limit is not None and s is not None]
        self._looking = self._later(max(min(left), _LOOK_LEAST_S), self._look) if left else None

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
        for books in (self._owned, self._created_at, self._uses, self._tenants):
            books.pop(instance.id, None)
        self._leaving.discard(instance.id)
        if self.running:
            # First it goes, then another comes: that may have its id.
            self.withdraw(instance.id, "retired")
            self._look()
            self.supply_changed()
