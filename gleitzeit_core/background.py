"""Tasks that nobody waits for: kept until they end, told of when they fail, and ended together."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from gleitzeit_core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Coroutine

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Background:
    """Work in the background."""

    def __init__(self) -> None:
        # And whether each should end rather than be cancelled.
        self._tasks: dict[asyncio.Task[Any], bool] = {}

    def __len__(self) -> int:
        """Tasks that have not ended."""
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], *, lasting: bool = False) -> asyncio.Task[T]:
        """Begin `work`. What it raises is logged, unless it is a failed request's.

        Args:
            work: To be done.
            lasting: `settle` waits for it.
        """
        task = asyncio.create_task(work)
        self._tasks[task] = lasting
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RequestError):
            logger.error("background work failed", exc_info=error)

    async def settle(self, limit_s: float) -> None:
        """Wait for what is lasting, at most `limit_s`."""
        lasting = [task for task, lasts in self._tasks.items() if lasts]
        if lasting:
            await asyncio.wait(lasting, timeout=limit_s)

    async def cancel(self) -> None:
        """End all, and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
