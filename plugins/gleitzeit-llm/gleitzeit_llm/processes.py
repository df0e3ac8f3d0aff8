"""Processes that lead a group of their own, and are stopped with everything they have started.

Start such a process with ``start_new_session=True``: its id is the group's then, what it starts is in the group too,
and a Ctrl-C at the terminal does not reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from gleitzeit_core.processes import signal_group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def stop_group(leader: int, ended: Callable[[], Awaitable[object]], *, grace_s: float) -> None:
    """End a process and all its descendants: gently if they let us, at once when cancelled. More than once is fine.

    Args:
        leader: The process.
        ended: Waits for its end; called more than once.
        grace_s: How long it may take to end by itself after SIGTERM, in seconds; what is left then gets SIGKILL.
    """
    try:
        signal_group(leader, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await ended()
    finally:
        signal_group(leader, signal.SIGKILL)
        await ended()
