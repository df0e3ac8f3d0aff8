"""Tasks of the tests: those that were cancelled, those that wait for a part, and those that must not be left."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait until a task was cancelled."""
    with pytest.raises(asyncio.CancelledError):
        await task


async def next_part(parts: Any) -> Any:  # noqa: ANN401 - a stream's part
    """In a coroutine of its own, so that a finished task holds the stream no longer."""
    return await anext(parts)


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """At the end there is no task that was not there before, and nothing has gone wrong unseen."""
    before, unseen = asyncio.all_tasks(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    yield
    left = asyncio.all_tasks() - before
    assert not left, f"tasks are left: {left}"
    assert not unseen, f"what went wrong unseen: {unseen}"
