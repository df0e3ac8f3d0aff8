"""Where a supply is tested: a workshop that runs, and whoever takes a bench there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from gleitzeit_core.resources import Requirements
from gleitzeit_core.testing.todo import turns
from gleitzeit_core.testing.workshop import Cleaning, HubT, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.leases import Lease

ANY = Requirements(accepts=())


@contextlib.asynccontextmanager
async def running(kind: type[HubT] = Cleaning, **options: Any) -> AsyncIterator[Running[HubT]]:  # noqa: ANN401 - any option
    """A workshop. At the end nothing is left, and what was created was destroyed, once."""
    before = asyncio.all_tasks()
    on = Running(kind, **options)
    await on.dispatcher.shell.add_hub(on.hub)
    await turns()
    try:
        yield on
    finally:
        on.hub.quick = True
        await on.dispatcher.aclose()
    assert sorted(on.hub.destroyed) == sorted(on.hub.created)
    assert not on.hub._owned
    assert not on.hub._uses
    assert on.hub._retry is on.hub._looking is on.hub._refilling is None
    await turns()
    assert not asyncio.all_tasks() - before
    assert not on.dispatcher.shell.admission.pool.in_flight


async def leased(on: Running[Any], tenant: str = "") -> Lease:
    """A lease that is to be had without a wait for a test."""
    async with asyncio.timeout(30):
        return await on.lease(tenant)


async def used(on: Running[Any], tenant: str = "") -> str:
    """Use one once; which it was."""
    lease = await leased(on, tenant)
    await lease.release()
    await turns()
    return lease.instance.endpoint
