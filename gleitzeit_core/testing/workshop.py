"""A hub that creates, to try `SupplyHub` with: what it makes takes as long as a test says, and time is a test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import HttpChannel, Ownership, Requirements, ResourceInstance, instance_id
from gleitzeit_core.supply import SupplyHub, SupplyOptions
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.todo import Todo, Todos, turns

if TYPE_CHECKING:
    from gleitzeit_core.leases import LeaseRequest


HubT = TypeVar("HubT", bound="Workshop")


class WorkshopOptions(HubOptions, SupplyOptions):
    """Of the hub below."""

    max_concurrent: int = 1


class Workshop(SupplyHub[WorkshopOptions]):
    """Creates and destroys when a test says so; at once when it is `quick`."""

    kind = "workshop"

    def __init__(self, options: WorkshopOptions, *, quick: bool = True) -> None:
        super().__init__(options)
        self.quick = quick
        self.creations: Todos[Todo] = Todos()
        self.destructions: Todos[Todo] = Todos()
        self.created: list[str] = []
        self.destroyed: list[str] = []

    @property
    def supply(self) -> SupplyOptions:
        """As configured."""
        return self.options

    def next(self, number: int) -> ResourceInstance:
        """Numbered."""
        return self.at(f"bench-{number}").changed(ownership=Ownership.MANAGED)

    def at(self, endpoint: str) -> ResourceInstance:
        """One that is there already."""
        return ResourceInstance(
            id=instance_id(self.kind, endpoint),
            hub=self.name,
            kind=self.kind,
            endpoint=endpoint,
            offers=(("bench", HttpChannel("http://nowhere.invalid")),),
            max_concurrent=self.options.max_concurrent,
        )

    async def create(self, coming: ResourceInstance) -> ResourceInstance:
        """Say so; wait, unless it is quick."""
        if not self.quick:
            await self.creations.add(Todo(coming.endpoint)).wait()
        self.created.append(coming.endpoint)
        return coming

    async def destroy(self, instance: ResourceInstance) -> None:
        """The same."""
        if not self.quick:
            await self.destructions.add(Todo(instance.endpoint)).wait()
        self.destroyed.append(instance.endpoint)


class Cleaning(Workshop):
    """Wipes after each use, as a test says: True, False, or an error."""

    def __init__(self, options: WorkshopOptions, *, quick: bool = True) -> None:
        super().__init__(options, quick=quick)
        self.resets_begun: Todos[Todo] = Todos()
        self.wiped: list[tuple[str, str]] = []

    async def reset(self, instance: ResourceInstance, outcome: Outcome) -> bool:
        """Say so; wait, unless it is quick."""
        self.wiped.append((instance.endpoint, outcome.tenant))
        if self.quick:
            return True
        return bool(await self.resets_begun.add(Todo(instance.endpoint)).wait())


class Running(Generic[HubT]):
    """A workshop in a dispatcher with a clock of the test's.

    Args:
        kind: Of the workshop.
        options: Its options.
    """

    def __init__(self, kind: type[HubT], **options: Any) -> None:  # noqa: ANN401 - any option
        self.clock = ManualClock()
        self.dispatcher = Dispatcher(clock=self.clock)
        self.hub: HubT = kind(WorkshopOptions(**options))

    def __repr__(self) -> str:
        """What there is."""
        return f"<Running {self.states}>"

    def lease(self, tenant: str = "", *, ttl_s: float = 1e6) -> LeaseRequest:
        """Ask for one, on behalf of a tenant."""
        needs = Requirements(accepts=(), tenant=tenant)
        return self.dispatcher.lease(needs, ttl_s=ttl_s, timeout_s=None, tenant=tenant)

    async def created(self, count: int) -> list[ResourceInstance]:
        """Have so many there."""
        await self.hub.scale(Requirements(accepts=()), count - len(self.hub.instances))
        await turns()
        return sorted(self.hub.instances, key=lambda instance: instance.endpoint)

    def use(self, instance: ResourceInstance) -> Any:  # noqa: ANN401 - a slot
        """Take a slot there."""
        pool = self.dispatcher.shell.admission.pool
        return pool.take(pool.records[instance.id])

    def free(self, slot: Any) -> None:  # noqa: ANN401 - a slot
        """Give it back, after work that has lasted until now."""
        pool = self.dispatcher.shell.admission.pool
        pool.judge(slot, Outcome(result=Result.OK, total_s=self.clock.monotonic() - slot.taken_at))
        pool.free(slot)

    @property
    def states(self) -> dict[str, str]:
        """Of all there are, by endpoint."""
        return {report.instance.endpoint: str(report.state) for report in self.dispatcher.reports()}

    @property
    def endpoints(self) -> list[str]:
        """Of all there are."""
        return sorted(instance.endpoint for instance in self.hub.instances)
