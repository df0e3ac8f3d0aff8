"""Loaded models: slots that work at once, a queue before them, loads one at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.golang import JsonObject, timestamp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gleitzeit_ollama.testing.models import Model

DEFAULT_KEEP_ALIVE_S = 300.0
_FOREVER_AHEAD_S = 292 * 365 * 86_400  # the longest duration Go can hold
_MEMORY_BYTES = 143_762_688


class QueueFull(Exception):
    """As many requests as the server lets wait already wait for a load."""

    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


@dataclass(slots=True)
class Runner:
    """A model in memory."""

    model: Model
    slots: asyncio.Semaphore
    expires_at_s: float
    users: int = 0

    def row(self, now_s: float) -> JsonObject:
        """Return its row in `/api/ps`."""
        ends = min(self.expires_at_s, now_s + _FOREVER_AHEAD_S)
        return {
            "name": self.model.name,
            "model": self.model.name,
            "size": _MEMORY_BYTES,
            "digest": self.model.digest,
            "details": self.model.details(),
            "expires_at": timestamp(ends),
            "size_vram": 0,
            "context_length": self.model.context_length,
        }


@dataclass(slots=True)
class Runners:
    """Who may work: at most `num_parallel` at once per model, the others in order of arrival.

    While a model is being loaded, at most `max_queue` more requests wait for a load, and the next
    is refused. Once it is loaded, the queue before its slots has no bound, as recorded.

    Args:
        num_parallel: slots of a loaded model.
        max_queue: requests that may wait for a load beside the one that loads.
        clock: seconds since the epoch; models expire by it.
        changed: called after each change.
    """

    num_parallel: int
    max_queue: int
    clock: Callable[[], float]
    changed: Callable[[], None]
    running: int = 0
    queued: int = 0
    loads: Counter[str] = field(default_factory=Counter)
    _pending: int = 0
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _held: dict[str, asyncio.Event] = field(default_factory=dict)
    _loaded: dict[str, Runner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_parallel < 1:
            raise ValueError(f"num_parallel must be at least 1, got {self.num_parallel}")
        if self.max_queue < 0:
            raise ValueError(f"max_queue must not be negative, got {self.max_queue}")

    def loaded(self) -> list[Runner]:
        """Return the models in memory, those that stay longest first; expired ones are gone."""
        now_s = self.clock()
        for name, runner in list(self._loaded.items()):
            if not runner.users and runner.expires_at_s <= now_s:
                del self._loaded[name]
        return sorted(self._loaded.values(), key=lambda runner: -runner.expires_at_s)

    def unload(self, name: str) -> None:
        """Drop a model from memory; requests that work on it go on."""
        self._loaded.pop(name, None)
        self.changed()

    def hold_load(self, name: str, event: asyncio.Event) -> None:
        """Drop a model from memory and let its next load last until `event` is set."""
        self._held[name] = event
        self.unload(name)

    @asynccontextmanager
    async def slot(self, model: Model, keep_alive_s: float | None) -> AsyncGenerator[None]:
        """Hold a slot of `model`, loading it first if need be.

        Raises:
            QueueFull: the model is not loaded and too many wait already.
        """
        runner = await self._admit(model)
        try:
            self._count_running(1)
            yield
        finally:
            runner.slots.release()
            runner.users -= 1
            stay_s = DEFAULT_KEEP_ALIVE_S if keep_alive_s is None else keep_alive_s
            runner.expires_at_s = self.clock() + stay_s
            self._count_running(-1)

    async def _admit(self, model: Model) -> Runner:
        self.queued += 1
        self.changed()
        try:
            runner = await self._ready(model)
            runner.users += 1
            await self._take_slot(runner)
        except BaseException:
            self.queued -= 1
            self.changed()
            raise
        self.queued -= 1
        return runner

    async def _take_slot(self, runner: Runner) -> None:
        try:
            await runner.slots.acquire()
        except BaseException:
            runner.users -= 1
            raise

    def _count_running(self, change: int) -> None:
        self.running += change
        self.changed()

    async def _ready(self, model: Model) -> Runner:
        if runner := self._find(model.name):
            return runner
        await self._turn_to_load()
        try:
            return self._find(model.name) or await self._load(model)
        finally:
            self._loading.release()

    def _find(self, name: str) -> Runner | None:
        return next((runner for runner in self.loaded() if runner.model.name == name), None)

    async def _turn_to_load(self) -> None:
        if self._loading.locked() and self._pending >= self.max_queue:
            raise QueueFull
        self._pending += 1
        try:
            await self._loading.acquire()
        finally:
            self._pending -= 1

    async def _load(self, model: Model) -> Runner:
        # A request that leaves aborts its load, and the next that waits starts one of its own.
        if event := self._held.get(model.name):
            await event.wait()
            if self._held.get(model.name) is event:
                del self._held[model.name]
        slots = asyncio.Semaphore(self.num_parallel)
        runner = Runner(model, slots, self.clock() + DEFAULT_KEEP_ALIVE_S)
        self._loaded[model.name] = runner
        self.loads[model.name] += 1
        return runner
