"""The engines of a hub: which of them are there, have what is needed, and are to make the next container."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from gleitzeit_docker.containers import not_kept
from gleitzeit_docker.engine import Engine
from gleitzeit_docker.errors import DockerError, EngineDown, ImageMissing, RuntimeMissing
from gleitzeit_docker.images import Images
from gleitzeit_docker.watching import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gleitzeit_docker.options import DockerOptions
    from gleitzeit_docker.owners import Owner
    from gleitzeit_docker.watching import Watcher

logger = logging.getLogger(__name__)

# So long an engine on which a container could not be made is the last to be asked.
_SPARED_S: Final = 60.0


class Fleet:
    """The engines of one hub, watched from `open` to `aclose`.

    Args:
        options: The hub's.
        owner: Of its containers.
        watcher: The hub.
        usable_again: Called when something that was in the way is gone.
    """

    def __init__(
        self, options: DockerOptions, owner: Owner, watcher: Watcher, *, usable_again: Callable[[], None]
    ) -> None:
        self.watches: dict[str, Watch] = {}
        self._options, self._profile = options, options.profile_used()
        self._usable_again = usable_again
        self._spared_until: dict[str, float] = {}
        self.images = Images(
            self._profile.image, stall_timeout_s=options.pull_stall_timeout_s, arrived=self._image_arrived
        )
        for name, address in options.engines_used():
            engine = Engine(address, name=name, timeout_s=options.call_timeout_s, threads=options.threads)
            self.watches[name] = Watch(engine, owner, watcher, met=self._met)

    def __repr__(self) -> str:
        """How many there are, and how many are of use."""
        return f"<Fleet of {len(self.watches)} engines, {len(self._usable())} of use>"

    async def open(self) -> None:
        """See which engines are there, and watch them all. One that does not answer is tried again.

        Raises:
            RuntimeMissing: One lacks the runtime that is asked for.
        """
        results = await asyncio.gather(*map(self._meet, self.watches.values()), return_exceptions=True)
        for error in filter(None, results):
            raise error
        for watch in self.watches.values():
            watch.begin()

    async def _meet(self, watch: Watch) -> None:
        try:
            await watch.meet()
        except RuntimeMissing:
            raise
        except DockerError as error:
            logger.debug("engine %s is tried again: %s", watch.engine.name, error)
        if self._options.pull == "always" and not watch.problem:
            self.images.pull(watch.engine)

    async def look(self) -> None:
        """Compare all containers, sweep, and look for what was missing."""
        await asyncio.gather(*(self._look(watch) for watch in self.watches.values() if not watch.problem))

    async def _look(self, watch: Watch) -> None:
        # What is wrong with an engine its watch finds out as well, and tells of.
        with contextlib.suppress(DockerError):
            await watch.resync()
            if self.images.on(watch.engine) is None:
                await self.look_for_image(watch.engine)

    async def stop(self) -> None:
        """Watch no more, and stop all pulls. Containers can still be removed."""
        await asyncio.gather(*(watch.aclose() for watch in self.watches.values()), self.images.aclose())

    async def aclose(self) -> None:
        """Let go of the engines."""
        await self.stop()
        await asyncio.gather(*(watch.engine.aclose() for watch in self.watches.values()))

    # -- what is of use ------------------------------------------------------------------------------------------

    @property
    def problems(self) -> list[str]:
        """Of the engines that are not there."""
        return [watch.problem for watch in self.watches.values() if watch.problem]

    @property
    def why_none(self) -> str:
        """Why no container can be made on any engine; empty when one can."""
        if self._usable():
            return ""
        whys = (watch.problem or self.images.why_missing(watch.engine) for watch in self.watches.values())
        return "; ".join(dict.fromkeys(whys))

    def _usable(self) -> list[Engine]:
        engines = [watch.engine for watch in self.watches.values() if not watch.problem]
        return [engine for engine in engines if self.images.on(engine) is not None]

    def choose(self, taken: Iterable[Engine]) -> Engine:
        """The engine for the next container: with the fewest, among those on which the last could be made.

        Args:
            taken: The engine of each container that there is.

        Raises:
            ImageMissing: None has the image.
            EngineDown: None answers.
        """
        usable = self._usable()
        if not usable:
            there = any(not watch.problem for watch in self.watches.values())
            raise (ImageMissing if there else EngineDown)(self.why_none)
        counts, now = Counter(engine.name for engine in taken), asyncio.get_running_loop().time()
        return min(usable, key=lambda each: (self._spared_until.get(each.name, now) > now, counts[each.name]))

    def failed(self, engine: Engine) -> None:
        """A container could not be made there: others are to be tried before it, for a while."""
        self._spared_until[engine.name] = asyncio.get_running_loop().time() + _SPARED_S

    # -- what they need ------------------------------------------------------------------------------------------

    async def _met(self, engine: Engine) -> None:
        """An engine answers: see whether it has the runtime and the image, and keeps what the profile says.

        Raises:
            RuntimeMissing: It lacks the runtime.
        """
        info = await engine.call(lambda client: client.info())
        runtime, known = self._profile.runtime, info.get("Runtimes") or {}
        if runtime and runtime not in known:
            have = ", ".join(sorted(known))
            raise RuntimeMissing(f"{engine.name} has no runtime {runtime!r}; it has: {have}")
        missing = not_kept(self._profile, info)
        if missing:
            logger.warning("engine %s cannot keep what the profile says of: %s", engine.name, ", ".join(missing))
        await self.look_for_image(engine)

    async def look_for_image(self, engine: Engine) -> None:
        """See whether an engine has the image, and pull it in the background where that is wanted."""
        if await self.images.look(engine) is not None:
            self._usable_again()
        elif self._options.pull != "never":
            self.images.pull(engine)

    def _image_arrived(self, engine: Engine) -> None:
        logger.info("%s is there on %s", self.images.name, engine.name)
        self._usable_again()
