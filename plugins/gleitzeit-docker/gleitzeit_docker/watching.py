"""Watches an engine: what happens to our containers there, and whether it is there at all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from gleitzeit_docker.errors import DockerError, EngineDown
from gleitzeit_docker.owners import OWNER, PLACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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

    async def met(self, engine: Engine) -> None:
        """An engine answers, for the first time or again.

        Raises:
            DockerError: It is of no use.
        """

    def gone(self, engine: Engine) -> None:
        """An engine answers no more."""


class Watch:
    """Watches one engine, from `begin` to `aclose`.

    Args:
        engine: Which.
        owner: Us.
        watcher: Is told.
    """

    def __init__(self, engine: Engine, owner: Owner, watcher: Watcher) -> None:
        self.engine = engine
        self.problem = ""
        self._owner, self._watcher = owner, watcher
        self._task: asyncio.Task[None] | None = None
        self._out_of_memory: set[str] = set()

    def __repr__(self) -> str:
        """Whether the engine is well."""
        return f"<Watch {self.engine.name}: {self.problem or 'well'}>"

    async def meet(self) -> None:
        """See whether the engine is there and of use, and put right what was left there."""
        try:
            await self.engine.ping()
            await self._watcher.met(self.engine)
            await self.resync()
        except DockerError as error:
            self.problem = error.message
            raise
        self.problem = ""

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
                await self._follow()
                why = "its events ended"
            except DockerError as error:
                why = error.message
            self.engine.doubt()
            was_well = not self.problem
            self.problem = f"engine {self.engine.name}: {why}"
            if was_well:
                logger.warning("%s", self.problem)
                pause_s = _AGAIN_S
                self._watcher.gone(self.engine)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _AGAIN_MAX_S)

    async def _follow(self) -> None:
        """Follow the events. What happened before they began, the comparison after that shows."""
        filters = {"type": ["container"], "event": list(_EVENTS), "label": [f"{OWNER}={self._owner.name}"]}
        async with contextlib.aclosing(self.engine.events(filters)) as events:
            following = asyncio.ensure_future(anext(events, None))
            try:
                was_away = bool(self.problem)
                await self.meet()
                if was_away:
                    logger.info("engine %s answers again", self.engine.name)
                while (event := await following) is not None:
                    self._happened(event)
                    following = asyncio.ensure_future(anext(events, None))
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

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
                logger.info("engine %s: removing %s, which is left over", self.engine.name, "/".join(_names(each)))
                with contextlib.suppress(EngineDown):
                    await self.engine.remove(str(each["Id"]))
        await asyncio.to_thread(self._owner.tidy)


def _names(found: Mapping[str, Any]) -> list[str]:
    return [str(name).lstrip("/") for name in found.get("Names") or ()]
