"""A hub whose every step ends when a test says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.testing.todo import Todo, Todos

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Requirements, ResourceInstance
    from gleitzeit_core.shell import Shell


class Slow(ResourceHub[HubOptions]):
    """Every step ends when a test says so."""

    kind = "echo"

    def __init__(self, *, fails: str = "", recycles: bool = False) -> None:
        super().__init__(HubOptions(discover_interval_s=0.01))
        self.recycles = recycles  # type: ignore[misc]  # each test its own
        self.steps: Todos[Todo] = Todos()
        self.fails = fails
        self.offers = Offer(OfferKind.READY)
        self.log: list[str] = []

    async def step(self, name: str) -> Any:  # noqa: ANN401 - as told
        """Wait for the test."""
        self.log.append(name)
        if self.fails == name:
            raise LookupError(f"{name} failed")
        return await self.steps.add(Todo(name)).wait()

    async def reached(self, name: str, times: int = 1) -> None:
        """Wait until a step has begun so often."""
        while self.log.count(name) < times:
            await asyncio.sleep(0)

    async def open(self) -> None:
        """Counted."""
        self.log.append("open")

    async def discover(self) -> Iterable[ResourceInstance]:
        """Whatever the test gives."""
        found: Iterable[ResourceInstance] = await self.step("discover")
        return found

    def offer(self, requirements: Requirements) -> Offer:
        """As set."""
        del requirements
        return self.offers

    async def scale(self, requirements: Requirements, wanted: int) -> None:
        """Remembered with its number."""
        del requirements
        await self.step(f"scale {wanted}")

    async def recycle(self, instance: ResourceInstance, outcome: Outcome) -> bool:
        """As told."""
        del instance, outcome
        return bool(await self.step("recycle"))

    async def retire(self, instance: ResourceInstance) -> None:
        """Remembered."""
        await self.step(f"retire {instance.endpoint}")

    async def close(self) -> None:
        """Remembered."""
        self.log.append("close")


async def started(on: Shell, hub: Slow, *instances: ResourceInstance) -> None:
    """With what its first search found."""
    adding = asyncio.create_task(on.add_hub(hub))
    (await hub.steps.next()).finish(instances)
    await adding
