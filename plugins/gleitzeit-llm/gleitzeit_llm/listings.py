"""What is known about models, over all instances: ``llm/models``, ``llm/loaded``, ``llm/show``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.pool import State
from gleitzeit_core.resources import ChannelKind, HttpChannel, Speaks
from gleitzeit_llm import models
from gleitzeit_llm.dialects import bodies
from gleitzeit_llm.dialects.base import Endpoint, Peek
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.runs import InstanceReport
    from gleitzeit_llm.protocol import Json
    from gleitzeit_llm.upstream import Upstream

MODELS: Final = "llm/models"
SHOW: Final = "llm/show"
LOADED: Final = "llm/loaded"
LISTING_LIMIT_S: Final = 1.0
"""How long an instance may take to say what it has in memory."""
SILENCE_S: Final = 10.0
"""For so long an instance that took longer is not asked again."""
STALE: Final = "stale"
"""Marks an entry that is known from before only, and in an answer names the instances such entries are of."""

SHOW_POINT: Final = Endpoint("/api/show", SHOW, streams_by_default=False, request_type="api.ShowRequest")
_OLLAMA: Final = (Speaks("ollama", ChannelKind.HTTP),)
_DOWN: Final = frozenset((State.DOWN, State.MISCONFIGURED))
_LOADED_PATH: Final = "/api/ps"
# What its server alone knows of a model in memory; the time is how Go writes one that is not set.
_NOT_KNOWN: Final = {"expires_at": "0001-01-01T00:00:00Z", "size_vram": 0, "context_length": 0}


def merged(reports: Iterable[InstanceReport]) -> Json:
    """The models of all instances, each once, in order of their names.

    Where several have a model, the entry is that of the first that is up. What only those have that are down is marked
    as `STALE`: it is what was last seen.
    """
    found: dict[str, Mapping[str, Any]] = {}
    down: list[str] = []
    for report in sorted(reports, key=lambda report: (not report.serving, report.instance.id)):
        for name, entry in models.entries(report.instance).items():
            found.setdefault(name, {**entry, STALE: True} if report.state in _DOWN else entry)
        if report.state in _DOWN:
            down.append(report.instance.id)
    return _listed([found[name] for name in sorted(found)], down)


def _listed(entries: list[Mapping[str, Any]], stale: list[str]) -> Json:
    """`stale` is there only where something is."""
    return {"models": entries, STALE: stale} if stale else {"models": entries}


class Loaded:
    """Lists the models in memory. Remembers who does not answer.

    Args:
        upstream: The client.
        monotonic: Seconds on a clock that never goes back.
    """

    def __init__(self, upstream: Upstream, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._upstream, self._monotonic = upstream, monotonic
        self._silent_until: dict[str, float] = {}

    def __repr__(self) -> str:
        """How many do not answer."""
        return f"<Loaded {len(self._silent_until)} silent>"

    async def of(self, reports: Iterable[InstanceReport]) -> Json:
        """The models in memory, once for each instance that has them there.

        Those instances are asked that are up, can say it and may be probed, all at once and for `LISTING_LIMIT_S` at
        most; one that takes longer is not asked again for `SILENCE_S`. Of those that are not up or do not answer it
        is what was last seen, marked as `STALE`.
        """
        reports = tuple(reports)
        known = {report.instance.id for report in reports}
        self._silent_until = {name: until for name, until in self._silent_until.items() if name in known}
        found = await asyncio.gather(*(self._on(report) for report in reports))
        stale = [report.instance.id for report, (_, fresh) in zip(reports, found, strict=True) if not fresh]
        return _listed([entry for entries, _ in found for entry in entries], stale)

    async def _on(self, report: InstanceReport) -> tuple[list[Mapping[str, Any]], bool]:
        """What an instance has in memory, and whether it is so now."""
        instance = report.instance
        reached = instance.channel_for(_OLLAMA)
        if reached is None or not isinstance(reached[1], HttpChannel) or not instance.probe:
            seen = _last_seen(instance)
            return (seen, True) if report.serving else _stale(seen)
        if report.serving and self._silent_until.get(instance.id, 0.0) <= self._monotonic():
            try:
                async with asyncio.timeout(LISTING_LIMIT_S):
                    return await _ask(self._upstream, reached[1]), True
            except TimeoutError:
                self._silent_until[instance.id] = self._monotonic() + SILENCE_S
            except InstanceFailure:
                pass
        return _stale(_last_seen(instance))


def _stale(entries: list[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], bool]:
    return [{**entry, STALE: True} for entry in entries], False


async def _ask(upstream: Upstream, channel: HttpChannel) -> list[Mapping[str, Any]]:
    reply = await upstream.request(channel, "GET", _LOADED_PATH)
    match reply.json():
        case {"models": None}:  # as Go writes an empty list
            return []
        case {"models": [*listed]} if all(isinstance(entry, dict) for entry in listed):
            return listed
    raise InstanceFailure(FailureKind.SERVER_ERROR, f"{channel.url}{_LOADED_PATH} lists no models")


def _last_seen(instance: ResourceInstance) -> list[Mapping[str, Any]]:
    """As Ollama writes them, with 0 for what is not known."""
    return [
        {key: value for key, value in entry.items() if key != "modified_at"} | _NOT_KNOWN
        for name, entry in models.entries(instance).items()
        if models.capability(name) in instance.warm
    ]


def described(instance: ResourceInstance, model: str) -> Json:
    """What ``/api/show`` says of a model whose server has no such call."""
    entry = models.entries(instance).get(models.canonical(model)) or models.entry(model)
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": entry["details"],
        "model_info": {},
        "capabilities": ["completion"],
        "modified_at": entry["modified_at"],
    }


def peek_show(body: bytes) -> Peek:
    """The model that a body of ``/api/show`` names; as in Ollama, older clients may call the field ``name``.

    Raises:
        InvalidRequest: No model can be read from it.
    """
    try:
        return bodies.peek(SHOW_POINT, body)
    except InvalidRequest:
        with contextlib.suppress(*UNREADABLE):
            name = msgspec.json.decode(body, type=_Named).name
            if name:
                return Peek(name, None)
        raise


class _Named(msgspec.Struct):
    name: str = ""
    model: str | None = None
