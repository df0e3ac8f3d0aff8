"""Where health is watched in tests: a hub whose checks end when a test says so."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.health import CheckOptions, HealthMonitor
from gleitzeit_core.pool import State
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.machine import make_instance
from gleitzeit_core.testing.todo import Todo, Todos

if TYPE_CHECKING:
    from gleitzeit_core.resources import ResourceInstance

# Long: a check that a test waits for comes because something asked for it, not because time has passed.
NEVER_S = 1e6
# Short: a check that has not ended by then is one that never will.
SOON_S = 0.01


class Check(Todo):
    """One check that was asked for."""

    def __init__(self, instance: ResourceInstance) -> None:
        super().__init__(f"check of {instance.endpoint}")
        self.instance = instance

    def fails(self, kind: FailureKind) -> None:
        """The instance is not well."""
        self.fail(InstanceFailure(kind, f"{kind} it is"))


class Ward:
    """A sink that remembers, and a hub whose checks end when a test says so."""

    def __init__(self) -> None:
        self.checks: Todos[Check] = Todos()
        self.verdicts: list[tuple[str, str]] = []
        self.found: list[ResourceInstance] = []
        self.degraded: list[str] = []
        self.extra: dict[str, Any] = {}
        self.clock = ManualClock()
        self.monitor = HealthMonitor(self, random=Random(0), clock=self.clock)

    async def examine(self, instance: ResourceInstance) -> ResourceInstance:
        """As a hub."""
        found: ResourceInstance = await self.checks.add(Check(instance)).wait()
        return found

    def put(self, instance: ResourceInstance, state: State) -> None:
        """As a sink."""
        assert state is State.READY
        self.found.append(instance)

    def set_state(self, instance_id: str, state: State, reason: str) -> None:
        """As a sink."""
        assert instance_id
        self.verdicts.append((state.value, reason))

    def set_degraded(self, instance_id: str, source: str, reason: str) -> None:
        """As a sink."""
        assert (bool(instance_id), source) == (True, "latency")
        self.degraded.append(reason)

    def watch(
        self,
        interval_s: float = NEVER_S,
        timeout_s: float = NEVER_S,
        *,
        up: bool = True,
        **changes: Any,  # noqa: ANN401 - any field
    ) -> ResourceInstance:
        """Begin to check, or learn of a change."""
        instance = make_instance(changes.pop("name", "a"), **{"probe": True, **changes})
        self.options = CheckOptions(check_interval_s=interval_s, check_timeout_s=timeout_s, **self.extra)
        self.monitor.watch(instance, self, up=up)
        return instance

    async def ask(self, instance: ResourceInstance) -> tuple[asyncio.Task[bool], Check]:
        """A check now: the task that waits for its verdict, and what the hub has to do."""
        task = asyncio.create_task(self.monitor.check(instance.id))
        return task, await self.checks.next()


async def say(ward: Ward, instance: ResourceInstance, *verdicts: FailureKind | None, took_s: float = 0.0) -> None:
    """Checks, one after another, that find what is said; None for well."""
    for kind in verdicts:
        task, check = await ward.ask(instance)
        ward.clock.advance(took_s)
        if kind is None:
            check.finish(instance)
        else:
            check.fails(kind)
        await task
