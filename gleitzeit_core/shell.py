"""The asyncio shell around the synchronous machine: keeps the hubs, carries the effects out, wakes those who wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from gleitzeit_core.admission import Admission
from gleitzeit_core.background import Background
from gleitzeit_core.effects import Changed, Effect, Emptied, Granted, Recycle, Rejected, Scale, Suspect
from gleitzeit_core.errors import InvalidRequest, RequestError, UnknownName
from gleitzeit_core.health import HealthMonitor
from gleitzeit_core.pool import State
from gleitzeit_core.records import DRAINED
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Ownership

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from random import Random

    from gleitzeit_core.breaker import BreakerPolicy
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.pool import Record, Slot
    from gleitzeit_core.resources import Requirements, ResourceInstance
    from gleitzeit_core.routing import Ticket

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Instances that are being retired or made ready again when all is closed get this long; so does a hub whose `scale`
# failed, before it is asked again.
_END_S = 5.0
_SCALE_AGAIN_S = 1.0


class Shell:
    """Keeps the hubs and the machine. Is itself the sink of the hubs and of the health monitor.

    Args:
        clock: Time.
        random: For strategies and jitter.
        policy: Of the instances' breakers; None for the default.
    """

    def __init__(self, *, clock: Clock, random: Random, policy: BreakerPolicy | None = None) -> None:
        self.clock = clock
        self.admission = admission = Admission(clock=clock, random=random, deliver=self._perform, policy=policy)
        # Most of what a sink is told is for the machine.
        self.set_state, self.set_degraded, self.drain = admission.set_state, admission.set_degraded, admission.drain
        self.remove, self.supply_changed = admission.remove, admission.supply_changed
        self.in_the_way = admission.in_the_way
        self.health = HealthMonitor(self, random=random, clock=clock)
        self.hubs: dict[str, ResourceHub[Any]] = {}
        self._listeners: list[Callable[[InstanceChange], None]] = []
        self._background = Background()
        self._scaling: dict[tuple[str, Requirements], bool] = {}
        # By instance and generation.
        self._retiring: dict[tuple[str, int], asyncio.Task[None]] = {}
        # The pairs of an instance and its second hub that were warned of.
        self._twice: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        """Counts."""
        return f"<Shell {len(self.hubs)} hubs, {len(self._background)} tasks, {self.admission!r}>"

    # -- hubs --------------------------------------------------------------------------------------------------

    async def add_hub(self, hub: ResourceHub[Any]) -> None:
        """Start a hub and check the instances it finds, so that they can be used when this returns.

        Raises:
            ValueError: There is a hub of that name.
        """
        if hub.name in self.hubs:
            raise ValueError(f"there is a hub {hub.name!r} already")
        self.hubs[hub.name] = self.admission.suppliers[hub.name] = hub
        try:
            await hub.start(self)
            try:
                await asyncio.gather(*(self.health.check(instance.id) for instance in hub.instances))
            except BaseException:
                await hub.stop()
                raise
        except BaseException:
            self._forget_hub(hub.name)
            raise
        self.admission.supply_changed()

    async def remove_hub(self, name: str, *, grace_s: float = 30.0) -> None:
        """Let a hub's instances finish what they have, then stop it.

        Args:
            name: Of the hub.
            grace_s: Work that takes longer is left to end on its own, without its hub.

        Raises:
            KeyError: There is no such hub.
        """
        hub = self.hubs[name]
        await hub.stop_searching()
        self.admission.supply_changed()

        def empty(change: InstanceChange | None) -> bool:
            # What was being created may still come; what has drained would stay.
            for instance in hub.instances if change is None else (change.after,):
                if instance is not None and instance.hub == name:
                    self.admission.drain(instance.id, "its hub is being removed")
                    if self._drained(instance.id):
                        hub.withdraw(instance.id, "its hub is being removed")
            return not hub.instances

        try:
            await self._until(empty, grace_s)
        finally:
            try:
                await hub.stop()
            finally:
                self._forget_hub(name)

    async def _until(self, reached: Callable[[InstanceChange | None], bool], limit_s: float) -> None:
        """Wait until something is so: now (asked with None), or after a change of an instance; at most `limit_s`."""
        if reached(None):
            return
        done = asyncio.Event()

        def look(change: InstanceChange) -> None:
            if reached(change):
                done.set()

        self._listeners.append(look)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await done.wait()
        finally:
            self._listeners.remove(look)

    def _forget_hub(self, name: str) -> None:
        self.hubs.pop(name, None)
        self.admission.suppliers.pop(name, None)
        self._twice = {pair for pair in self._twice if pair[1] != name}

    async def aclose(self) -> None:
        """Stop the checks, what runs in the background and the hubs. More than once is fine."""
        await self.health.aclose()
        await self._background.settle(_END_S)
        await self._background.cancel()
        hubs = list(self.hubs.values())
        results = await asyncio.gather(*(hub.stop() for hub in hubs), return_exceptions=True)
        for hub, result in zip(hubs, results, strict=True):
            if isinstance(result, Exception):
                logger.error("hub %s did not stop cleanly", hub.name, exc_info=result)
            self._forget_hub(hub.name)
        await self._background.cancel()

    # -- instances, by hand ------------------------------------------------------------------------------------

    async def add_instance(self, hub_name: str, settings: Mapping[str, Any]) -> ResourceInstance:
        """Have a hub take an instance, and check it, so that it can be used when this returns. It may be found down.

        Args:
            hub_name: Of the hub.
            settings: As one of the ``instances`` in its configuration.

        Raises:
            UnknownName: There is no such hub.
            InvalidRequest: The settings are wrong, the hub takes none by hand, or another hub has it.
        """
        hub = self.hubs.get(hub_name)
        if hub is None:
            raise UnknownName("hub", hub_name, self.hubs, are="there is")
        added = await hub.add_instance(settings)
        record = self._record(added.id)
        if record.instance.hub != hub_name:
            raise InvalidRequest(f"{added.endpoint} is in the hub {record.instance.hub!r} already")
        for each in self.hubs.values():
            each.admit(added.id)
        # It may be one that was drained.
        await self.resume_instance(added.id)
        return record.instance

    def drain_instance(self, instance_id: str) -> None:
        """Let an instance finish what it has and give it nothing new. One of our own is retired then.

        Raises:
            UnknownName: There is no such instance.
        """
        self.admission.drain(self._record(instance_id).instance.id, "drained by hand")

    async def resume_instance(self, instance_id: str) -> None:
        """Take back an instance that drains or has drained, once a check finds it well. Others are left alone.

        Raises:
            UnknownName: There is no such instance.
            InvalidRequest: It is being retired.
        """
        instance = self._record(instance_id).instance
        if (instance_id, instance.generation) in self._retiring:
            raise InvalidRequest(f"{instance_id} is being retired")
        self.admission.resume(instance_id)
        await self.health.check(instance_id)

    async def remove_instance(self, instance_id: str, grace_s: float = 30.0) -> None:
        """Let an instance finish what it has and forget it; one of our own is retired. No search brings it back.

        Args:
            instance_id: Of the instance.
            grace_s: Work that takes longer is left to end on its own, or ends with an instance of our own.

        Raises:
            UnknownName: There is no such instance.
        """
        record = self._record(instance_id)
        for hub in self.hubs.values():
            hub.exclude(instance_id)
        self.admission.drain(instance_id, "being removed")
        await self._until(lambda _: self._drained(instance_id), grace_s)
        # Meanwhile it may have been resumed, or started anew.
        if self.admission.pool.holds(record) and record.state is State.DRAINING:
            await asyncio.wait([self._retire(record.instance)])

    def _record(self, instance_id: str) -> Record:
        record = self.admission.pool.records.get(instance_id)
        if record is None:
            raise UnknownName("instance", instance_id, self.admission.pool.records, are="there is")
        return record

    def _drained(self, instance_id: str) -> bool:
        """Whether it has drained and stays, or is gone."""
        record = self.admission.pool.records.get(instance_id)
        return record is None or record.condition == DRAINED

    # -- slots -------------------------------------------------------------------------------------------------

    async def wait(self, ticket: Ticket) -> Slot:
        """The slot of a ticket that was submitted and waits. To be called at once after that.

        Raises:
            RequestError: It gets none.
        """
        if ticket.waiter is None:
            ticket.waiter = asyncio.get_running_loop().create_future()
        waiter: asyncio.Future[Slot] = ticket.waiter
        try:
            slot = await waiter
        except asyncio.CancelledError:
            # It may have been given a slot in the very moment its caller left.
            if not self.admission.cancel(ticket):
                self._give_back(ticket)
            raise
        finally:
            ticket.waiter = None
        return slot

    def turn_away(self, ticket: Ticket, error: RequestError) -> None:
        """Let a ticket that waits do so no more: its `wait` raises `error`."""
        if self.admission.cancel(ticket):
            _settle(ticket, error)

    def _give_back(self, ticket: Ticket) -> None:
        granted: asyncio.Future[Slot] = ticket.waiter
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self.admission.release(ticket, granted.result(), Outcome(result=Result.CANCELLED))

    # -- effects -----------------------------------------------------------------------------------------------

    def listen(self, listener: Callable[[InstanceChange], None]) -> None:
        """Have `listener` called with every change of an instance. It must return at once."""
        self._listeners.append(listener)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Granted(ticket, slot):
                _settle(ticket, slot)
            case Rejected(ticket, error):
                _settle(ticket, error)
            case Changed(change):
                self._changed(change)
            case Scale(hub, requirements, _):
                self._scale(hub, requirements)
            case Recycle(slot, outcome):
                self._background.spawn(self._recycle(slot, outcome), lasting=True)
            case Suspect(instance_id):
                self.health.suspect(instance_id)
            case Emptied(instance):
                # An external one stays, drained.
                if instance.ownership is not Ownership.EXTERNAL:
                    self._retire(instance)

    def _changed(self, change: InstanceChange) -> None:
        after = change.after
        if after is None and change.before is not None:
            self.health.forget(change.before.id)
        elif after is not None:
            self._watch(after, change.state)
            hub = self.hubs.get(after.hub)
            if hub is not None and hub.occupied is not None:
                hub.occupied()
        for listener in tuple(self._listeners):
            try:
                listener(change)
            except Exception:
                logger.exception("%r failed", listener)

    def _watch(self, instance: ResourceInstance, state: str) -> None:
        hub = self.hubs.get(instance.hub)
        if hub is None or state in (State.STARTING, State.DRAINING, DRAINED):
            # Its hub knows when it is there.
            self.health.forget(instance.id)
        else:
            self.health.watch(instance, hub, up=state != State.DOWN)

    def _scale(self, hub: str, requirements: Requirements) -> None:
        """One call of a hub's `scale` at a time for the same requirements; then one more if it was wanted meanwhile."""
        running = (hub, requirements) in self._scaling
        self._scaling[hub, requirements] = True
        if not running:
            self.spawn(self._keep_scaling(hub, requirements))

    async def _keep_scaling(self, name: str, requirements: Requirements) -> None:
        try:
            while name in self.hubs and self._scaling[name, requirements]:
                self._scaling[name, requirements] = False
                # As many as wait now: some may have been served, or have left, since it was asked.
                wanted = self.admission.wanting(requirements)
                if wanted:
                    await self.hubs[name].scale(requirements, wanted)
        except Exception:
            logger.exception("hub %s: creating instances failed; the next try is in %g s", name, _SCALE_AGAIN_S)
            self.clock.call_at(self.clock.monotonic() + _SCALE_AGAIN_S, self.admission.supply_changed)
        finally:
            del self._scaling[name, requirements]

    async def _recycle(self, slot: Slot, outcome: Outcome) -> None:
        keep = False
        try:
            hub = self.hubs.get(slot.instance.hub)
            keep = hub is not None and await hub.recycle(slot.instance, outcome)
        finally:
            self.admission.recycled(slot, keep=keep)

    def _retire(self, instance: ResourceInstance) -> asyncio.Task[None]:
        """Have its hub stop an instance and forget it; not again while that goes on."""
        key = (instance.id, instance.generation)
        task = self._retiring.get(key)
        if task is None:
            task = self._retiring[key] = self._background.spawn(self._end(instance), lasting=True)
            task.add_done_callback(lambda _: self._retiring.pop(key))
        return task

    async def _end(self, instance: ResourceInstance) -> None:
        hub = self.hubs.get(instance.hub)
        if hub is None:
            return
        try:
            if instance.ownership is not Ownership.EXTERNAL:
                await hub.retire(instance)
        except Exception:
            logger.exception("hub %s: retiring %s failed", hub.name, instance.id)
        # Cancelled, it stays in its hub's books, and the hub stops it when it closes. It may have been started anew.
        record = self.admission.pool.records.get(instance.id)
        same = record is not None and record.instance.generation == instance.generation
        if record is not None and same and record.state is State.DRAINING:
            hub.withdraw(instance.id, "removed" if instance.ownership is Ownership.EXTERNAL else "retired")

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in the background; `aclose` ends it. What it raises is logged unless it is a failed request's."""
        return self._background.spawn(work)

    # -- as a sink ---------------------------------------------------------------------------------------------

    def put(self, instance: ResourceInstance, state: State) -> None:
        """An instance is there, or has changed. One that another hub has already stays with that hub."""
        hub, known = self.hubs.get(instance.hub), self.admission.pool.records.get(instance.id)
        if known is not None and known.instance.hub != instance.hub:
            if (instance.id, instance.hub) not in self._twice:
                self._twice.add((instance.id, instance.hub))
                message = "%s is in the hubs %s and %s: it is used through the first"
                logger.warning(message, instance.endpoint, known.instance.hub, instance.hub)
            if hub is not None:
                hub.disown(instance.id)
            return
        if hub is not None:
            hub.note(instance)
        self.admission.put(instance, state)

    def idle_s(self, instance_id: str) -> float | None:
        """How long an instance has had no work; None while it drains."""
        record = self.admission.pool.records.get(instance_id)
        if record is None or record.state is State.DRAINING:
            return None
        return 0.0 if record.in_flight else max(0.0, self.clock.monotonic() - record.idle_since)

    def is_free(self, instance_id: str) -> bool:
        """Whether an instance is up, and has no work."""
        record = self.admission.pool.records.get(instance_id)
        return record is not None and record.serving and not record.in_flight

    async def check_now(self, instance_id: str) -> bool:
        """Check an instance without waiting for its turn."""
        return await self.health.check(instance_id)


def _settle(ticket: Ticket, result: Slot | RequestError) -> None:
    """Wake who waits.

    The answer may come before the wait has begun, in the very call that enqueued it, or just after the wait was
    cancelled: then a new future holds it for whoever looks next.
    """
    if ticket.waiter is None or ticket.waiter.done():
        ticket.waiter = asyncio.get_running_loop().create_future()
    if isinstance(result, RequestError):
        ticket.waiter.set_exception(result)
    else:
        ticket.waiter.set_result(result)
