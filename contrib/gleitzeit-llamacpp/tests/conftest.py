"""What the tests of the hub type `llamacpp` share: a pool to watch, and the proof that no process is left behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.pool import State
from gleitzeit_core.shell import Shell
from gleitzeit_llamacpp.hub import LlamaCppHub
from gleitzeit_llamacpp.options import LlamaCppOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.pool import Record
    from gleitzeit_core.resources import ResourceInstance

SMALL = {"path": "smollm2", "instances": 1, "slots": 2, "context": 512, "threads": 1}


def _children() -> set[int]:
    """The processes this one has started that are not reaped yet."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = status.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid():
            found.add(int(status.parent.name))
    return found


@pytest.fixture
def children() -> Callable[[], set[int]]:
    """Tells the processes this one has started that are not reaped yet."""
    return _children


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Waits for what nobody tells us of: what another process does."""

    async def until(holds: Callable[[], object]) -> None:
        while not holds():
            await asyncio.sleep(0.01)

    return until


@pytest.fixture(autouse=True)
def leaves_no_process() -> Iterator[None]:
    """Whatever a test does, no process of it outlives it, not even as a zombie."""
    before = _children()
    yield
    assert _children() <= before


class Pool:
    """The pool without a provider, and a way to wait for what happens in it."""

    def __init__(self) -> None:
        self.shell = Shell(clock=SystemClock(), random=Random(1))
        self.seen: list[tuple[str, int, str, str]] = []
        self._happened = asyncio.Event()
        self.shell.listen(self._note)

    def _note(self, change: InstanceChange) -> None:
        if change.after is not None:
            self.seen.append((change.after.endpoint, change.after.generation, change.state, change.reason))
        self._happened.set()

    @property
    def records(self) -> list[Record]:
        """All, in order of their ids."""
        return sorted(self.shell.admission.pool, key=lambda record: record.instance.endpoint)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something is so; looked at after every change."""
        while not holds():
            self._happened.clear()
            await self._happened.wait()

    async def ready(self, count: int = 1) -> list[ResourceInstance]:
        """Wait until so many instances are ready."""
        await self.until(lambda: sum(record.state is State.READY for record in self.records) == count)
        return [record.instance for record in self.records]


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[Pool]:
    """An empty pool."""
    pool = Pool()
    yield pool
    await pool.shell.aclose()


@pytest.fixture
def make_hub() -> Callable[..., LlamaCppHub]:
    """Makes a hub with one small process, or with the models given."""

    def make(*models: dict[str, object], name: str = "", **options: object) -> LlamaCppHub:
        chosen = [{**SMALL, **model} for model in models or ({},)]
        return LlamaCppHub(LlamaCppOptions.model_validate({"models": chosen, **options}), name=name)

    return make
