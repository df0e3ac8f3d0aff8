"""What the tests of managed servers start, and how they look at its processes."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.resources import ResourceInstance


STANDIN = [sys.executable, "-P", "-m", "gleitzeit_ollama.testing", "serve"]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def gone(process_id: int) -> Callable[[], bool]:
    """Tells whether a process that need not be ours has ended."""
    try:
        watched = os.pidfd_open(process_id)
    except ProcessLookupError:
        return lambda: True
    return lambda: bool(select.select([watched], [], [], 0)[0])


def read(file: str | Path) -> str:
    """What stands in a file."""
    return Path(file).read_text()


async def until(holds: Callable[[], object]) -> None:
    """Wait for what nobody tells us of: what another process does."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def pid(instance: ResourceInstance) -> int:
    """Of the process behind it."""
    found: int = instance.details["pid"]
    return found
