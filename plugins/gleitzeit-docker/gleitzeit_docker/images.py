"""Images: whether an engine has one, and how it gets it. Nothing here is waited for by a request.

A pull goes over a connection of its own on the loop; cancelling closes that, and the engine stops. Of the pulls of one
image to one engine there is never more than one.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_docker import wire
from gleitzeit_docker.errors import DockerError, EngineDown, ImageMissing, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from docker.api.client import APIClient

    from gleitzeit_docker.engine import Engine

logger = logging.getLogger(__name__)

_LATEST: Final = "latest"
_HUNDRED: Final = 100
_WHOLE: Final = "Pulling from "
# The head of an answer to a pull comes only when the registry has answered, too.
_REGISTRY_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """What an engine says while it pulls or builds.

    Args:
        status: In its own words.
        layer: What part it is about; empty for the whole.
        done_bytes: So far; None when it does not say.
        total_bytes: In the end; None when it does not say.
    """

    status: str
    layer: str = ""
    done_bytes: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An image that an engine has.

    Args:
        id: The digest of its configuration.
        digests: Those under which registries know it, ``name@sha256:...``.
        size_bytes: With all its layers.
        created: When, as the engine writes it.
        tags: Its names.
    """

    id: str
    digests: tuple[str, ...] = ()
    size_bytes: int = 0
    created: str = ""
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class Progress:
    """How far a pull has come, from its steps."""

    layers: dict[str, tuple[int, int]] = field(default_factory=dict)

    def note(self, step: Step) -> None:
        """One more step. Unpacking counts nothing: it begins again from 0."""
        if step.layer and step.total_bytes and step.status == "Downloading":
            self.layers[step.layer] = (step.done_bytes or 0, step.total_bytes)
        elif step.layer in self.layers and step.status in ("Download complete", "Pull complete"):
            self.layers[step.layer] = (self.layers[step.layer][1],) * 2

    @property
    def percent(self) -> int | None:
        """Of what is known so far; None when nothing is."""
        total = sum(total for _, total in self.layers.values())
        return _HUNDRED * sum(done for done, _ in self.layers.values()) // total if total else None


def full_name(image: str) -> str:
    """`image` with the tag that is meant when it has none. Without one, an engine would pull all there are."""
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:{_LATEST}"


def known(found: dict[str, Any]) -> Image:
    """An image, from what the engine says of it."""
    return Image(
        id=str(found["Id"]),
        digests=tuple(found.get("RepoDigests") or ()),
        size_bytes=int(found.get("Size") or 0),
        created=str(found.get("Created") or ""),
        tags=tuple(found.get("RepoTags") or ()),
    )


async def find(engine: Engine, image: str) -> Image | None:
    """The image, if the engine has it."""
    try:
        return known(await engine.call(lambda client: client.inspect_image(image)))
    except NotFound:
        return None


async def pull(engine: Engine, image: str, *, stall_timeout_s: float) -> AsyncGenerator[Step, None]:
    """Pull an image, and tell of it. Close the iterator when leaving early: that stops it.

    Credentials are those that ``docker login`` has kept.

    Args:
        engine: Where to.
        image: Its name; without a tag, ``latest``.
        stall_timeout_s: It has failed when the engine is silent for so long.

    Raises:
        ImageMissing: The registry has none, or does not give it.
        EngineDown: The engine does not answer.
    """
    name = full_name(image)
    headers = await engine.call(lambda client: _credentials(client, name))
    limit_s = max(_REGISTRY_TIMEOUT_S, engine.timeout_s)
    try:
        connection, _ = await wire.answer(
            engine.address, "POST", "/images/create", query={"fromImage": name}, headers=headers, timeout_s=limit_s
        )
    except EngineDown:
        raise
    except DockerError as error:
        raise ImageMissing(f"{name} cannot be pulled: {error}") from error
    try:
        async for step in steps(connection, stall_timeout_s):
            yield step
    except ImageMissing as error:
        raise ImageMissing(f"{name} cannot be pulled: {error}") from error
    finally:
        await connection.aclose()


async def steps(connection: wire.Wire, stall_timeout_s: float) -> AsyncIterator[Step]:
    """What an engine says while it pulls or builds.

    Raises:
        ImageMissing: It has failed, in the engine's words.
        EngineDown: The connection breaks, or is silent for too long.
    """
    async for line in wire.json_lines(connection, stall_timeout_s=stall_timeout_s):
        if "error" in line:
            raise ImageMissing(str(line["error"]))
        amount = line.get("progressDetail") or {}
        status = str(line.get("status") or line.get("stream") or "").rstrip("\n")
        if status.startswith(_WHOLE):
            # The id in it is a tag, and no part of the image.
            yield Step(f"{status}:{line.get('id', '')}")
        elif status:
            yield Step(status, str(line.get("id", "")), amount.get("current"), amount.get("total"))


def _credentials(client: APIClient, name: str) -> dict[str, str]:
    from docker import auth  # noqa: PLC0415 - slow, so in a thread

    registry, _ = auth.resolve_repository_name(name.partition("@")[0])
    header = auth.get_config_header(client, registry)
    return {"X-Registry-Auth": str(header, "ascii")} if header else {}


class Images:
    """What is known of one image on several engines, and the pulls of it that run.

    Args:
        name: The image.
        stall_timeout_s: See `pull`.
        arrived: Called when a pull has ended well, with the engine.
    """

    def __init__(self, name: str, *, stall_timeout_s: float, arrived: Callable[[Engine], None]) -> None:
        self.name = name
        self._stall_timeout_s, self._arrived = stall_timeout_s, arrived
        self._found: dict[str, Image] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, Progress] = {}
        self._failures: dict[str, str] = {}

    def __repr__(self) -> str:
        """Its name and where it is."""
        return f"<Images {self.name}: on {len(self._found)} engines, {len(self._pulls)} pulls>"

    def on(self, engine: Engine) -> Image | None:
        """The image, where an engine is known to have it."""
        return self._found.get(engine.name)

    async def look(self, engine: Engine) -> Image | None:
        """Ask an engine whether it has it."""
        found = await find(engine, self.name)
        if found is None:
            self.forget(engine)
        else:
            self._found[engine.name] = found
        return found

    def forget(self, engine: Engine) -> None:
        """An engine has it no more."""
        self._found.pop(engine.name, None)

    def why_missing(self, engine: Engine) -> str:
        """For people: what is known of an image that is not there."""
        command = f"gleitzeit docker pull {self.name}"
        if engine.name in self._pulls:
            percent = self._progress[engine.name].percent
            done = "" if percent is None else f" ({percent} %)"
            # A command that asks for one container ends sooner than the pull, and that with it.
            return f"image {self.name} is being pulled{done}; {command!r} waits for it"
        failure = self._failures.get(engine.name)
        return f"image {self.name} is missing on {engine.name}: {failure or command}"

    def pull(self, engine: Engine) -> asyncio.Task[None]:
        """Begin to pull it, unless that is being done already."""
        if engine.name not in self._pulls:
            self._progress[engine.name] = Progress()
            self._pulls[engine.name] = asyncio.create_task(self._pull(engine))
        return self._pulls[engine.name]

    async def _pull(self, engine: Engine) -> None:
        logger.debug("%s: pulling %s", engine.name, self.name)
        try:
            async for step in pull(engine, self.name, stall_timeout_s=self._stall_timeout_s):
                self._progress[engine.name].note(step)
            await self.look(engine)
            self._failures.pop(engine.name, None)
        except DockerError as error:
            # It is tried again and again; the same is said once.
            level = logging.DEBUG if self._failures.get(engine.name) == error.message else logging.WARNING
            self._failures[engine.name] = error.message
            logger.log(level, "%s: %s", engine.name, error.message)
        finally:
            del self._pulls[engine.name]
        if self.on(engine) is not None:
            self._arrived(engine)

    async def aclose(self) -> None:
        """Stop all pulls."""
        running = tuple(self._pulls.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
