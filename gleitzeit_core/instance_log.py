"""Writes what instances there are to the store, behind: a store that is slow or down never holds up a request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from gleitzeit_core.errors import GleitzeitError

if TYPE_CHECKING:
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.persistence import Instances

logger = logging.getLogger(__name__)

_WAITING_MAX: Final = 10_000
_END_S: Final = 5.0


class InstanceLog:
    """Keeps the store's instances as the pool has them. Of several changes of one instance the last is written.

    Args:
        instances: Where to.
    """

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self._changes: dict[str, InstanceChange] = {}
        self._news = asyncio.Event()
        self._ending = False
        self._task = asyncio.create_task(self._run(), name="writer of instances")

    def __repr__(self) -> str:
        """How many changes wait."""
        return f"<InstanceLog {len(self._changes)} waiting>"

    def note(self, change: InstanceChange) -> None:
        """An instance has changed. With 10,000 waiting the oldest is dropped."""
        instance = change.after or change.before
        if instance is not None:
            self._changes[instance.id] = change
            if len(self._changes) > _WAITING_MAX:
                del self._changes[next(iter(self._changes))]
            self._news.set()

    async def aclose(self) -> None:
        """Write what waits, for at most 5 seconds, and stop."""
        self._ending = True
        self._news.set()
        try:
            await asyncio.wait({self._task}, timeout=_END_S)
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._changes or not self._ending:
            if not self._changes:
                self._news.clear()
                await self._news.wait()
                continue
            instance_id = next(iter(self._changes))
            try:
                await self._write(instance_id, self._changes.pop(instance_id))
            except (GleitzeitError, OSError) as error:
                logger.warning("store: instance %s was not written: %s", instance_id, error)
            except Exception:
                logger.exception("store: instance %s was not written", instance_id)

    async def _write(self, instance_id: str, change: InstanceChange) -> None:
        after = change.after
        if after is None:
            await self._instances.remove(instance_id)
            return
        record = {name: getattr(after, name) for name in ("hub", "kind", "endpoint", "generation")}
        record |= {"ownership": after.ownership.value, "capabilities": sorted(after.capabilities)}
        await self._instances.put(instance_id, record | {"state": change.state})
