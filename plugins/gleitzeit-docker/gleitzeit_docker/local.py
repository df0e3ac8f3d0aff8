"""The engines and hubs that a command is about: those of the configuration, or those it is given."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gleitzeit_core.config_messages import validated
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_docker.engine import Engine
from gleitzeit_docker.errors import DockerError
from gleitzeit_docker.images import full_name
from gleitzeit_docker.options import DockerOptions
from gleitzeit_docker.owners import HUB, OWNER, PLACE, Owner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from gleitzeit_core.cli.context import Invocation
    from gleitzeit_docker.address import Address


@dataclass(frozen=True, slots=True)
class Found:
    """A container of a hub, as an engine tells of it.

    Args:
        engine: Where it is.
        id: The engine's own.
        name: What it is called.
        hub: Whose it is.
        image: What it is made of.
        status: In the engine's words.
        owner: The process that made it.
        life: Of its owner: ``alive``, ``dead``, or ``elsewhere`` for one that cannot be judged from here.
    """

    engine: str
    id: str
    name: str
    hub: str
    image: str
    status: str
    owner: str
    life: str


def hubs_of(invocation: Invocation, engines: Sequence[str]) -> dict[str, DockerOptions]:
    """The options of the hubs by name; those of one with the defaults, where there is none or engines are named.

    Raises:
        ConfigurationError: The configuration is wrong, or an engine's URL.
    """
    if engines:
        return {"command line": checked_options({"engines": list(engines)})}
    sections = invocation.configuration().hubs.values()
    found = {section.name: section.options for section in sections if isinstance(section.options, DockerOptions)}
    return found or {"docker": checked_options({})}


def checked_options(data: dict[str, Any]) -> DockerOptions:
    """Options from plain values, as a configuration has them.

    Raises:
        ConfigurationError: With everything that is wrong.
    """
    options, problems = validated(DockerOptions, data)
    if options is None:
        raise ConfigurationError(problems)
    return options


def _names(hubs: Mapping[str, DockerOptions]) -> dict[Address, str]:
    """What their engines are called, each by one name that no other has: its URL, where a hub calls another so."""
    found: dict[Address, str] = {}
    for options in hubs.values():
        for name, address in options.engines_used():
            found.setdefault(address, address.url if name in found.values() else name)
    return found


@contextlib.asynccontextmanager
async def engines_of(hubs: Mapping[str, DockerOptions]) -> AsyncIterator[dict[str, Engine]]:
    """Their engines, each once, by name."""
    timeout_s = max(options.call_timeout_s for options in hubs.values())
    found = {name: Engine(address, name=name, timeout_s=timeout_s) for address, name in _names(hubs).items()}
    try:
        yield found
    finally:
        await asyncio.gather(*(engine.aclose() for engine in found.values()))


def images_wanted(hubs: Mapping[str, DockerOptions]) -> dict[str, dict[str, list[str]]]:
    """By image and engine: the hubs that need it there."""
    wanted: dict[str, dict[str, list[str]]] = {}
    names = _names(hubs)
    for name, options in hubs.items():
        for _, address in options.engines_used():
            wanted.setdefault(full_name(options.profile_used().image), {}).setdefault(names[address], []).append(name)
    return wanted


async def _containers(engine: Engine, owner: Owner) -> list[Found]:
    """All containers of hubs on an engine, whoever made them; their owners as `owner` sees them."""
    return [await asyncio.to_thread(_found, engine, owner, each) for each in await engine.containers(OWNER)]


def _found(engine: Engine, owner: Owner, each: Mapping[str, Any]) -> Found:
    labels = each.get("Labels") or {}
    name, place = str(labels.get(OWNER, "")), str(labels.get(PLACE, ""))
    life = "elsewhere" if place != owner.place else "dead" if owner.is_dead(name, place) else "alive"
    return Found(
        engine=engine.name,
        id=str(each["Id"])[:12],
        name=str((each.get("Names") or [""])[0]).lstrip("/"),
        hub=str(labels.get(HUB, "")),
        image=str(each.get("Image", "")),
        status=str(each.get("Status", "")),
        owner=name,
        life=life,
    )


async def everywhere(engines: Mapping[str, Engine]) -> tuple[list[Found], dict[str, DockerError]]:
    """The containers of hubs on all engines; and of those that do not say, why.

    Raises:
        OSError: No owner can be judged here.
    """
    owner = await asyncio.to_thread(Owner.begin)
    try:
        results = await asyncio.gather(
            *(_containers(engine, owner) for engine in engines.values()), return_exceptions=True
        )
    finally:
        await asyncio.to_thread(owner.close)
    found: list[Found] = []
    failures: dict[str, DockerError] = {}
    for name, result in zip(engines, results, strict=True):
        if isinstance(result, DockerError):
            failures[name] = result
        elif isinstance(result, BaseException):
            raise result
        else:
            found += result
    return found, failures
