"""What an Ollama server says about itself: its version, the models it has, those in memory."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.dialects import RESPONSES
from gleitzeit_llm.models import canonical
from gleitzeit_llm.upstream import read_whole
from gleitzeit_ollama.addresses import GATEWAY_HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.resources import HttpChannel
    from gleitzeit_llm.upstream import Upstream

_VERSION: Final = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", re.ASCII)
_HAS_RESPONSES: Final = (0, 13, 3)
VERSION_PATH: Final = "/api/version"
TAGS_PATH: Final = "/api/tags"
PS_PATH: Final = "/api/ps"

_MAX_BYTES: Final = 16 * 1024 * 1024
_NOT_FOUND: Final = 404
_FORBIDDEN: Final = 403


@dataclass(frozen=True, slots=True)
class Description:
    """A server as it is now.

    Args:
        version: Its own version.
        models: What ``/api/tags`` lists, by canonical name; None when it was not asked.
        loaded: The canonical names of the models in memory.
    """

    version: str
    models: Mapping[str, Mapping[str, Any]] | None
    loaded: frozenset[str]


async def describe(upstream: Upstream, channel: HttpChannel, *, list_models: bool = True) -> Description:
    """Ask a server for all of it, at once.

    Args:
        upstream: Open.
        channel: The server.
        list_models: Whether to ask which models it has.

    Raises:
        InstanceFailure: It is not well, is no Ollama server, or is a Gleitzeit gateway. Of several failures always the
            same one is raised, so that the reason people see does not flicker.
    """
    works = [_version(upstream, channel), _loaded(upstream, channel)]
    if list_models:
        works.append(_models(upstream, channel))
    answers: list[Any] = await asyncio.gather(*works, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return Description(answers[0], answers[2] if list_models else None, frozenset(answers[1]))


def offers(channel: HttpChannel, version: str = "") -> tuple[tuple[str, HttpChannel], ...]:
    """What a server of this version speaks, over its one channel. Where the version is not known, what all speak."""
    found = _VERSION.match(version)
    known = tuple(map(int, found.groups())) if found else (0, 0, 0)
    responses = (RESPONSES,) if known >= _HAS_RESPONSES else ()
    return tuple((api, channel) for api in ("ollama", "openai", *responses))


async def _version(upstream: Upstream, channel: HttpChannel) -> Any:  # noqa: ANN401 - gathered with others
    answer = await _get(upstream, channel, VERSION_PATH)
    found = answer.get("version") if isinstance(answer, dict) else None
    if not isinstance(found, str):
        raise _no_ollama(channel, f"GET {VERSION_PATH} names no version")
    return found


async def _models(upstream: Upstream, channel: HttpChannel) -> Any:  # noqa: ANN401 - gathered with others
    return _listed(channel, TAGS_PATH, await _get(upstream, channel, TAGS_PATH))


async def _loaded(upstream: Upstream, channel: HttpChannel) -> Any:  # noqa: ANN401 - gathered with others
    try:
        return _listed(channel, PS_PATH, await _get(upstream, channel, PS_PATH))
    except InstanceFailure as failure:
        # Ollama before 0.1.38 cannot say, nor can some servers that answer as Ollama does.
        if failure.status == _NOT_FOUND:
            return {}
        raise


def _listed(channel: HttpChannel, path: str, answer: object) -> dict[str, dict[str, Any]]:
    """The entries of ``{"models": [...]}`` by canonical name."""
    match answer:
        case {"models": None}:  # as Go writes a list that has nothing in it
            return {}
        case {"models": [*listed]} if all(map(_name_of, listed)):
            return {canonical(_name_of(entry)): entry for entry in listed}
    raise _no_ollama(channel, f"GET {path} lists no models")


def _name_of(entry: object) -> str:
    match entry:
        case {"model": str(name)} | {"name": str(name)}:
            return name
    return ""


async def _get(upstream: Upstream, channel: HttpChannel, path: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        async with upstream.stream(channel, "GET", path) as response:
            if GATEWAY_HEADER in response.headers:
                raise _gateway(channel)
            body = await read_whole(response, _MAX_BYTES)
    except InstanceFailure as failure:
        raise _explained(channel, path, failure) from failure
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        said = response.content_type if body else "nothing"
        raise _no_ollama(channel, f"GET {path} answered {said} instead of JSON") from None


def _explained(channel: HttpChannel, path: str, failure: InstanceFailure) -> InstanceFailure:
    """A refusal in words that say what to do about it."""
    if failure.kind is FailureKind.REJECTED:
        return _no_ollama(channel, f"GET {path} answered {failure.status}", failure.status)
    if failure.kind is FailureKind.UNAUTHORIZED:
        hint = "check 'api_key' and 'headers'"
        if failure.status == _FORBIDDEN:
            hint += "; an Ollama on loopback also refuses to be called by a name that is not its machine's"
        message = f"{channel.url} refuses us with status {failure.status}: {hint}"
        return InstanceFailure(failure.kind, message, started=False, status=failure.status)
    return failure


def _no_ollama(channel: HttpChannel, why: str, status: int | None = None) -> InstanceFailure:
    # Nothing a user sends there can succeed, so it is out at once, as what cannot be reached is.
    message = f"{channel.url} is no Ollama server: {why}"
    return InstanceFailure(FailureKind.REFUSED, message, started=False, status=status)


def _gateway(channel: HttpChannel) -> InstanceFailure:
    message = (
        f"{channel.url} is a Gleitzeit gateway, and one gateway does not pool another or itself: "
        "name the servers behind it instead"
    )
    return InstanceFailure(FailureKind.REFUSED, message, started=False)
