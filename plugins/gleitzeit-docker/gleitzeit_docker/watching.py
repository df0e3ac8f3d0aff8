"""Watches an engine: what happens to our containers there, and whether it is there at all."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from gleitzeit_docker.errors import DockerError
from gleitzeit_docker.owners import OWNER, PLACE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from gleitzeit_docker.containers import Container
    from gleitzeit_docker.engine import Engine
    from gleitzeit_docker.owners import Owner

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 0.2
_AGAIN_MAX_S: Final = 5.0
_RUNNING: Final = "running"
_EVENTS: Final = ("die", "oom", "pause", "destroy")


class Watcher(Protocol):
    """Who wants to know. A hub."""

    def containers_on(self, engine: Engine) -> Iterable[Container]:
        """All of ours on an engine, those that are being made included."""

    def knows(self, name: str) -> bool:
        """Whether a container of this name is ours, on whatever engine: two addresses may lead to one."""

    def lost(self, container: Container, reason: str) -> None:
        """One of them has ended, and not by us."""

    def gone(self, engine: Engine) -> None:
        """An engine answers no more."""


class Watch:
    """Watches one engine, from `begin` to `aclose`.

    Args:
        engine: Which.
        owner: Us.
        watcher: Is told.
        met: Called when it answers, for the first time or again; raises DockerError when it is of no use.
    """

    def __init__(
        self, engine: Engine, owner: Owner, watcher: Watcher, *, met: Callable[[Engine], Awaitable[None]]
    ) -> None:
        self.engine = engine
        # Why the engine is of no use now; empty when it is.
        self.problem = ""
        self._owner, self._watcher, self._met = owner, watcher, met
        self._task: asyncio.Task[None] | None = None
        self._out_of_memory: set[str] = set()

    def __repr__(self) -> str:
        """Whether the engine is well."""
        return f"<Watch {self.engine.name}: {self.problem or 'well'}>"

    async def meet(self) -> None:
        """See whether the engine is there and of use, and put right what was left there.

        Raises:
            DockerError: It is not.
        """
        try:
            await self.engine.ping()
            await self._met(self.engine)
            await self.resync()
        except DockerError as error:
            self._is_away(error.message)
            raise
        if self.problem:
            logger.info("engine %s answers again", self.engine.name)
        self.problem = ""

    def _is_away(self, why: str) -> None:
        was_well, self.problem = not self.problem, f"engine {self.engine.name}: {why}"
        self.engine.doubt()
        if was_well:
            logger.warning("%s", self.problem)
            self._watcher.gone(self.engine)

    def begin(self) -> None:
        """Go on watching."""
        self._task = asyncio.create_task(self._watch(), name=f"events of {self.engine.name}")

    async def aclose(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        pause_s = _AGAIN_S
        while True:
            try:
                async with self._events() as events:
                    # What happened before they began, this shows; what happens meanwhile waits.
                    await self.meet()
                    pause_s = _AGAIN_S
                    async for event in events:
                        self._happened(event)
                why = "its events ended"
            except (DockerError, OSError) as error:
                why = str(error)
            self._is_away(why)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _AGAIN_MAX_S)

    def _events(self) -> AbstractAsyncContextManager[AsyncIterator[dict[str, Any]]]:
        filters = {"type": ["container"], "event": list(_EVENTS), "label": [f"{OWNER}={self._owner.name}"]}
        return self.engine.events(filters)

    def _happened(self, event: Mapping[str, Any]) -> None:
        actor = event.get("Actor") or {}
        attributes = actor.get("Attributes") or {}
        name, what = attributes.get("name", ""), str(event.get("Action", ""))
        container = next((each for each in self._watcher.containers_on(self.engine) if each.name == name), None)
        if what == "oom":
            # Of the container or of a part of it: only what follows says whether it has ended.
            self._out_of_memory.add(name)
        elif container is not None and not container.leaving:
            memory = ", out of memory" if name in self._out_of_memory else ""
            words = {"die": f"ended with status {attributes.get('exitCode', '?')}{memory}", "pause": "was paused"}
            self._watcher.lost(container, f"the container {words.get(what, 'was removed')}")
        if what in ("die", "destroy"):
            self._out_of_memory.discard(name)

    async def resync(self) -> None:
        """Compare what should be there with what is; and remove what dead owners, or we, have left behind.

        Raises:
            DockerError: The engine does not say.
        """
        expected = [each for each in self._watcher.containers_on(self.engine) if each.ready and not each.leaving]
        found = await self.engine.containers(OWNER)
        states = {name: str(each.get("State", "")) for each in found for name in _names(each)}
        for container in expected:
            state = states.get(container.name, "gone")
            if state != _RUNNING and container.ready and not container.leaving:
                self._watcher.lost(container, f"the container is {state}")
        await self._sweep(found)

    async def _sweep(self, found: Iterable[Mapping[str, Any]]) -> None:
        for each in found:
            labels = each.get("Labels") or {}
            owner, place = str(labels.get(OWNER, "")), str(labels.get(PLACE, ""))
            ours = owner == self._owner.name and place == self._owner.place
            forgotten = ours and not any(map(self._watcher.knows, _names(each)))
            if forgotten or (not ours and await asyncio.to_thread(self._owner.is_dead, owner, place)):
                await self._remove(str(each["Id"]), "/".join(_names(each)))
        await asyncio.to_thread(self._owner.tidy)

    async def _remove(self, container: str, name: str) -> None:
        logger.info("engine %s: removing %s, which is left over", self.engine.name, name)
        try:
            await self.engine.remove(container)
        except DockerError as error:
            # One that cannot be removed is no reason to use the engine no more; the next sweep tries again.
            logger.warning("engine %s: %s could not be removed: %s", self.engine.name, name, error.message)


def _names(found: Mapping[str, Any]) -> list[str]:
    return [str(name).lstrip("/") for name in found.get("Names") or ()]
