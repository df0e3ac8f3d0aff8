"""Callers that leave before their answer is complete."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from .caller import JSON, PART, TYPES, Call, ways

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    Line = Any


@contextmanager
def left_to_the_collector() -> Iterator[list[object]]:
    """The asynchronous generators that nobody closed, and that so end some time later."""
    hooks, found = sys.get_asyncgen_hooks(), []

    def finalize(generator: AsyncGenerator[object]) -> None:
        found.append(generator)
        hooks.finalizer(generator)

    sys.set_asyncgen_hooks(finalizer=finalize)
    yield found
    sys.set_asyncgen_hooks(*hooks)


@ways
async def test_leaving_a_stream_ends_the_work(call: Call, dialect: str, api: str) -> None:
    """When `aclose` is through, the connection is closed, the slot is free, and nothing is left to be done later."""
    gone = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.begin(TYPES[api])
        line.chunk(PART[api])
        await line.gone()
        gone.set()

    caller, _ = await call(dialect, api, handle)
    with left_to_the_collector() as left:
        parts = caller.pool.dispatcher.stream(caller.pool.provider, caller.request(stream=True))
        await anext(parts)
        await parts.aclose()
    assert left == []
    assert [report.in_flight for report in caller.pool.dispatcher.reports()] == [0]
    await gone.wait()


@ways
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("begun", [True, False])
async def test_a_cancelled_caller_ends_the_work(
    call: Call,
    dialect: str,
    api: str,
    stream: bool,  # noqa: FBT001 - both ways
    begun: bool,  # noqa: FBT001 - both ways
) -> None:
    """Before and after the headers: the server sees at once that nobody waits."""
    reached, gone = asyncio.Event(), asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        if begun:
            line.begin(TYPES[api] if stream else JSON)
            line.chunk(b"{")
            await line.flush()
        reached.set()
        await line.gone()
        gone.set()

    caller, (server,) = await call(dialect, api, handle)
    task = asyncio.create_task(caller.failure(stream=stream))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone.wait()
    assert caller.outcome(server.url) == ["1 cancelled"]
