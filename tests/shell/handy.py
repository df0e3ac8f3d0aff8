"""Instances that are added, drained and removed by hand, and work on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.testing.machine import Machine
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import Todo, Todos

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gleitzeit_core.pool import Slot
    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.routing import Ticket
    from gleitzeit_core.shell import Shell

# No test ends because this has passed.
LONG_S = 1e6


class Handy(ScriptedHub):
    """Takes instances by hand, retires when a test says so, and counts its checks."""

    def __init__(self, instances: dict[str, dict[str, Any]] | Iterable[str] = (), *, name: str = "") -> None:
        super().__init__(instances, name=name)
        self.retirements: Todos[Todo] = Todos()
        self.examined: list[str] = []

    async def add_instance(self, settings: Mapping[str, Any]) -> ResourceInstance:
        """Its endpoint and any field."""
        fields = dict(settings)
        if "endpoint" not in fields:
            raise InvalidRequest("an instance needs an endpoint", param="endpoint")
        instance = self.make(fields.pop("endpoint"), **{"probe": True, **fields})
        self.publish(instance, State.DOWN if instance.probe else State.READY)
        return instance

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Counted; it finds something."""
        self.examined.append(instance.endpoint)
        return (await super().check(instance)).changed(capabilities=frozenset({"found"}))

    async def retire(self, instance: ResourceInstance) -> None:
        """As told."""
        await self.retirements.add(Todo(f"retire {instance.endpoint}")).wait()


def named(on: Shell, endpoint: str) -> str:
    """The id of an instance."""
    return next(record.instance.id for record in on.admission.pool if record.instance.endpoint == endpoint)


def work(on: Shell) -> tuple[Ticket, Slot]:
    """A slot on any instance."""
    ticket = Machine().ticket()
    slot = on.admission.submit(ticket)
    assert slot is not None
    return ticket, slot


def end(on: Shell, taken: tuple[Ticket, Slot]) -> None:
    """The work on it ends."""
    on.admission.release(*taken, Outcome(result=Result.OK))
