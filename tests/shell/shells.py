"""A shell for tests, and what they look at there."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.shell import Shell
from gleitzeit_core.testing.machine import Machine
from gleitzeit_core.testing.todo import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.routing import Ticket

OUTCOME = Outcome(result=Result.OK)


@contextlib.asynccontextmanager
async def shell(*hubs: ResourceHub[Any]) -> AsyncIterator[Shell]:
    """With hubs; closed at the end, with no task left."""
    before = asyncio.all_tasks()
    made = Shell(clock=SystemClock(), random=Random(0))
    for hub in hubs:
        await made.add_hub(hub)
    yield made
    async with asyncio.timeout(PATIENCE_S):
        await made.aclose()
    assert not asyncio.all_tasks() - before


def states(shell: Shell) -> dict[str, str]:
    """Of all instances."""
    return {record.instance.endpoint: record.condition for record in shell.admission.pool}


def ticket() -> Ticket:
    """Of a request for any of the instances here."""
    return Machine().ticket()


async def until(shell: Shell, state: str) -> InstanceChange:
    """The next change to a state."""
    seen: asyncio.Future[InstanceChange] = asyncio.get_running_loop().create_future()
    shell.listen(lambda change: None if change.state != state or seen.done() else seen.set_result(change))
    async with asyncio.timeout(PATIENCE_S):
        return await seen
