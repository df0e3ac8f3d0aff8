"""Answers in parts whose work cannot be stopped: it goes on to its end, whether anybody reads or not."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

_AHEAD: Final = 16


async def apart(
    source: AsyncGenerator[Any, None], spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
) -> AsyncGenerator[Any, None]:
    """The parts of `source`, read by a task of its own, a little ahead. What comes when its reader has left is dropped.

    Args:
        source: What is read, to its end.
        spawn: Runs work in the background.

    Raises:
        Exception: What `source` raises, after the parts that came before.
    """
    parts: deque[Any] = deque()
    came, taken = asyncio.Event(), asyncio.Event()
    left = False

    async def read() -> None:
        async with aclosing(source):
            async for part in source:
                while len(parts) >= _AHEAD and not left:
                    taken.clear()
                    await taken.wait()
                if not left:
                    parts.append(part)
                    came.set()

    reading = spawn(read())
    reading.add_done_callback(lambda _: came.set())
    try:
        while True:
            while not parts and not reading.done():
                came.clear()
                await came.wait()
            if not parts:
                reading.result()
                return
            yield parts.popleft()
            taken.set()
    finally:
        left = True
        taken.set()
