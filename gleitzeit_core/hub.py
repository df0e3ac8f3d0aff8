"""What a hub is: the owner of the instances of one kind.

An author writes a subclass with options and as many of these methods as the kind of resource needs:

    discover   the instances there are                               (every hub that does not only create)
    check      is it well, and what can it do now?                   (every hub that can ask)
    offer      can an instance that meets these requirements be had? (hubs that create)
    scale      see to it that as many as are wanted come             (hubs that create)
    recycle    make it ready again after a use, or say it is spent   (hubs whose instances keep traces of a use)
    retire     stop one of our own                                   (hubs that create)
    add_instance   take one that a person names                      (hubs whose instances have an address)
    reconfigure    go on with other options                          (every hub that can without a restart)

What a hub knows it tells its sink: `publish`, `withdraw`, `supply_changed`. Scheduling, health, breakers and metrics
come from there.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import Field

from gleitzeit_core.errors import ClosedError, InvalidRequest
from gleitzeit_core.health import CheckOptions, HealthSink
from gleitzeit_core.pool import State
from gleitzeit_core.probes import ProbeOptions  # noqa: TC001 - pydantic needs it at run time
from gleitzeit_core.routing import Offer, OfferKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Requirements, ResourceInstance

logger = logging.getLogger(__name__)

# So many that were removed by hand are remembered.
_EXCLUDED_MAX = 1024


class HubOptions(CheckOptions):
    """Options every hub has. Times in seconds."""

    discover_interval_s: float = Field(default=30.0, gt=0, description="Between two searches for new instances.")
    health_probe: ProbeOptions | None = Field(
        default=None,
        description="What says whether an instance is well: an http, tcp or command probe; null: its hub.",
    )


OptionsT = TypeVar("OptionsT", bound=HubOptions)


class HubSink(HealthSink, Protocol):
    """Where a hub reports to, with what its checks report. All calls return at once."""

    @property
    def clock(self) -> Clock:
        """Time, for hubs that do something later."""

    def remove(self, instance_id: str, reason: str) -> None:
        """An instance is gone."""

    def supply_changed(self) -> None:
        """What can be created has changed."""

    def drain(self, instance_id: str, reason: str) -> None:
        """Let an instance finish what it has; one of our own is retired then."""

    def idle_s(self, instance_id: str) -> float | None:
        """How long it has had no work, in seconds; 0.0 while it has some, None while it drains or is not known."""

    def is_free(self, instance_id: str) -> bool:
        """Whether it is up, and has no work."""

    def in_the_way(self, instance: ResourceInstance, fresh: ResourceInstance) -> bool:
        """Whether the first of those who wait for one like `fresh` cannot use `instance`."""

    async def check_now(self, instance_id: str) -> bool:
        """Check it without waiting for its turn. Whether it is well."""


class ResourceHub(ABC, Generic[OptionsT]):
    """Base of all hubs.

    Args:
        options: Checked already.
        name: As in the configuration; the kind when empty.
    """

    kind: ClassVar[str]
    recycles: ClassVar[bool] = False
    """Whether `recycle` must run after each use, before the slot is free again."""
    occupied: Callable[[], None] | None = None
    """Called when an instance got its first work, or is in another condition; must return at once. None: not wanted."""
    running = False
    """Whether it is started and not being removed: only then it is asked for more instances."""
    tenant_bound = False
    """Whether an instance belongs, after its first use, to the tenant of that use; only a `SupplyHub` sees to it."""
    problem = ""
    """Why it cannot do all that it should, for people; empty when it can."""

    def __init__(self, options: OptionsT, *, name: str = "") -> None:
        self.options = options
        self.name = name or self.kind
        self._sink: HubSink | None = None
        self._known: dict[str, ResourceInstance] = {}
        # Removed by hand: no search brings them back. A dictionary is an ordered set.
        self._excluded: dict[str, None] = {}
        self._search: asyncio.Task[None] | None = None
        self._closing = False

    def __repr__(self) -> str:
        """Kind, name and count."""
        return f"<{type(self).__name__} {self.name}, {len(self._known)} instances>"

    # -- for authors -------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Acquire what the hub itself needs: a client session, a connection. Called once, before all else."""

    async def discover(self) -> Iterable[ResourceInstance]:
        """The instances there are now. Called at start and then every ``discover_interval_s``.

        One that is no longer found is not forgotten: its checks decide. What it raises fails the start; later it is
        logged and the next search tries again.
        """
        return ()

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Ask an instance how it is and what it can do. Returns it as it is now, or unchanged.

        Raises:
            InstanceFailure: It is not well: ``REFUSED`` takes it out at once, others after two in a row.
        """
        return instance

    async def add_instance(self, settings: Mapping[str, Any]) -> ResourceInstance:  # noqa: ARG002 - a default
        """Take an instance that a person names, and publish it.

        Args:
            settings: As one of the ``instances`` of the hub's configuration.

        Raises:
            InvalidRequest: The settings are wrong, or hubs of this kind take no instances by hand.
        """
        raise InvalidRequest(f"hubs of kind {self.kind!r} take no instances by hand")

    async def reconfigure(self, options: OptionsT) -> bool:
        """Go on with other options. False, and nothing has changed, when that needs a restart of the hub.

        What every hub has (intervals, checks, the probe) needs none. A hub that can do more overrides this.
        """
        if not self.differing(options) <= HubOptions.model_fields.keys():
            return False
        self.options = options
        return True

    def offer(self, requirements: Requirements) -> Offer:  # noqa: ARG002 - a default for hubs that create nothing
        """Whether an instance that meets `requirements` could be created. Must return at once."""
        return Offer(OfferKind.READY)

    async def scale(self, requirements: Requirements, wanted: int) -> None:
        """Begin to create instances for `wanted` requests that wait, within the hub's limits; better not wait for them.

        Called again whenever more wait; what is being created already counts. Publish each as ``STARTING`` at once.
        When creating fails, withdraw it, and let `offer` say ``NEVER`` and why until it makes sense to try again.
        """

    async def recycle(self, instance: ResourceInstance, outcome: Outcome) -> bool:  # noqa: ARG002 - a default
        """Make an instance ready after a use. False when it is spent: it is retired then. Called when `recycles`."""
        return True

    async def retire(self, instance: ResourceInstance) -> None:
        """Stop an instance of our own, whose last work has ended. External ones are never stopped."""

    async def close(self) -> None:
        """Stop what is ours and release what `open` acquired, as far as it came.

        Called once; once more after an `open` that went on meanwhile.
        """

    @property
    def creates(self) -> bool:
        """Whether it may start instances of its own: several processes with its configuration would each do so."""
        return False

    # -- for authors to call -----------------------------------------------------------------------------------

    @property
    def instances(self) -> tuple[ResourceInstance, ...]:
        """All this hub has published and not withdrawn."""
        return tuple(self._known.values())

    def publish(self, instance: ResourceInstance, state: State = State.READY) -> None:
        """An instance is there, or has changed.

        Args:
            instance: With this hub's name. With a higher ``generation`` it is a new start; a lower one is ignored.
            state: Counts only for one that is new, or was being created; later its checks decide.

        Raises:
            ClosedError: The hub is not started.
            ValueError: It names another hub.
        """
        sink = self._open_sink()
        if instance.hub != self.name:
            raise ValueError(f"hub {self.name!r} must not publish {instance.id}, which names hub {instance.hub!r}")
        self._known.setdefault(instance.id, instance)
        self.note(instance)
        sink.put(instance, state)

    def withdraw(self, instance_id: str, reason: str) -> None:
        """An instance is gone."""
        if self._known.pop(instance_id, None) is not None and self._sink is not None:
            self._sink.remove(instance_id, reason)

    def differing(self, options: OptionsT) -> set[str]:
        """The names of those options that differ from the present ones."""
        return {name for name in type(options).model_fields if getattr(options, name) != getattr(self.options, name)}

    def drain(self, instance_id: str, reason: str) -> None:
        """Let an instance finish what it has; one of our own is retired then."""
        if self._sink is not None:
            self._sink.drain(instance_id, reason)

    def idle_s(self, instance_id: str) -> float | None:
        """How long an instance has had no work, in seconds; 0.0 while it has some, None while it drains."""
        return None if self._sink is None else self._sink.idle_s(instance_id)

    def report_down(self, instance_id: str, reason: str) -> None:
        """An instance was seen to be down, without a check: its process ended, say."""
        if self._sink is not None:
            self._sink.set_state(instance_id, State.DOWN, reason)

    def supply_changed(self) -> None:
        """`offer` would answer differently now."""
        if self._sink is not None:
            self._sink.supply_changed()

    # -- for the shell -----------------------------------------------------------------------------------------

    def note(self, instance: ResourceInstance) -> None:
        """Remember what was published, or what a check has found."""
        known = self._known.get(instance.id)
        if known is not None and known.generation <= instance.generation:
            self._known[instance.id] = instance

    async def examine(self, instance: ResourceInstance) -> ResourceInstance:
        """A health check: what `check` says, unless a probe is configured. Then that alone says whether it is well.

        Raises:
            InstanceFailure: It is not well.
        """
        probe = self.options.health_probe
        if probe is None:
            return await self._found_by_check(instance)
        await probe.examine(instance)
        try:
            # It gets half of the time: were all of it gone, the whole would have failed.
            async with asyncio.timeout(self.options.check_timeout_s / 2):
                return await self._found_by_check(instance)
        except Exception as error:  # noqa: BLE001 - whatever it is, the probe has spoken
            logger.debug("hub %s: %s is well by its probe, but: %r", self.name, instance.endpoint, error)
            return instance

    async def _found_by_check(self, instance: ResourceInstance) -> ResourceInstance:
        found = await self.check(instance)
        # An author who forgets to return anything should learn of it here.
        if getattr(found, "id", None) != instance.id:
            raise TypeError(f"{type(self).__name__}.check must return the instance as it is now, not {found!r}")
        return found

    def exclude(self, instance_id: str) -> None:
        """Let no search bring an instance back that a person has removed, until it is added by hand."""
        self._excluded[instance_id] = None
        if len(self._excluded) > _EXCLUDED_MAX:
            del self._excluded[next(iter(self._excluded))]

    def admit(self, instance_id: str) -> None:
        """Forget that it was removed by hand."""
        self._excluded.pop(instance_id, None)

    def disown(self, instance_id: str) -> None:
        """Forget what another hub has already."""
        self._known.pop(instance_id, None)

    async def start(self, sink: HubSink) -> None:
        """Open the hub and search for the first time; then go on searching.

        Raises:
            ClosedError: It is started already, or was stopped while it started.
        """
        if self._sink is not None:
            raise ClosedError(f"hub {self.name!r} is started already")
        self._sink = sink
        try:
            await self.open()
            await self.search()
            self._open_sink()
        except BaseException:
            # Stopped already, it was closed as far as it had come then.
            await (self.stop() if self._sink is sink else self.close())
            raise
        self._search = asyncio.create_task(self._keep_searching(), name=f"search of hub {self.name}")
        self.running = True

    def _open_sink(self) -> HubSink:
        if self._sink is None:
            raise ClosedError(f"hub {self.name!r} is not started")
        return self._sink

    async def stop(self) -> None:
        """Stop searching, and close. More than once is fine."""
        await self.stop_searching()
        if self._sink is None or self._closing:
            return
        self._closing = True
        try:
            await self.close()
        finally:
            for instance_id in tuple(self._known):
                self.withdraw(instance_id, "its hub is closed")
            self._sink, self._closing = None, False

    async def stop_searching(self) -> None:
        """Find and create no more instances; those there are stay."""
        self.running = False
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
            self._search = None

    async def search(self) -> None:
        """Look for instances now. New ones are down until their first check, unless nobody may check them."""
        for instance in await self.discover():
            if instance.id not in self._known and instance.id not in self._excluded:
                self.publish(instance, State.DOWN if instance.probe else State.READY)

    async def _keep_searching(self) -> None:
        while True:
            await asyncio.sleep(self.options.discover_interval_s)
            try:
                await self.search()
            except Exception:
                logger.exception("hub %s: search failed; it goes on", self.name)
