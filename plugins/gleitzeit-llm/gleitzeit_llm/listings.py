"""What is known about models, over all instances: ``llm/models``, ``llm/loaded``, ``llm/show``."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.resources import ChannelKind, HttpChannel, Speaks
from gleitzeit_llm import models
from gleitzeit_llm.dialects import bodies
from gleitzeit_llm.dialects.base import Endpoint, Peek
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.runs import InstanceReport
    from gleitzeit_llm.protocol import Json
    from gleitzeit_llm.upstream import Upstream

MODELS: Final = "llm/models"
SHOW: Final = "llm/show"
LOADED: Final = "llm/loaded"
LISTING_LIMIT_S: Final = 2.0
"""How long an instance may take to say what it has in memory."""

SHOW_POINT: Final = Endpoint("/api/show", SHOW, streams_by_default=False, request_type="api.ShowRequest")
_OLLAMA: Final = (Speaks("ollama", ChannelKind.HTTP),)
_LOADED_PATH: Final = "/api/ps"
# When an entry expires is known to its server alone; this is how Go writes a time that is not set.
_NO_TIME: Final = "0001-01-01T00:00:00Z"


def merged(reports: Iterable[InstanceReport]) -> list[Mapping[str, Any]]:
    """The models of all instances, each once, in order of their names.

    Where several have a model, the entry is that of the first that is up.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for report in sorted(reports, key=lambda report: (not report.serving, report.instance.id)):
        for name, entry in models.entries(report.instance).items():
            found.setdefault(name, entry)
    return [found[name] for name in sorted(found)]


async def loaded(upstream: Upstream, reports: Iterable[InstanceReport]) -> list[Mapping[str, Any]]:
    """The models in memory, once for each instance that has them there.

    Those instances are asked that are up, can say it and may be probed, all at once and for `LISTING_LIMIT_S` at most.
    Of the others, and of those that do not answer, it is what was last seen.
    """
    found = await asyncio.gather(*(_loaded_on(upstream, report) for report in reports))
    return [entry for some in found for entry in some]


async def _loaded_on(upstream: Upstream, report: InstanceReport) -> list[Mapping[str, Any]]:
    reached = report.instance.channel_for(_OLLAMA)
    if reached is not None and isinstance(reached[1], HttpChannel) and _may_be_asked(report):
        with contextlib.suppress(InstanceFailure, TimeoutError):
            async with asyncio.timeout(LISTING_LIMIT_S):
                return await _ask(upstream, reached[1])
    return _last_seen(report.instance)


def _may_be_asked(report: InstanceReport) -> bool:
    return report.instance.probe and report.serving


async def _ask(upstream: Upstream, channel: HttpChannel) -> list[Mapping[str, Any]]:
    reply = await upstream.request(channel, "GET", _LOADED_PATH)
    match reply.json():
        case {"models": None}:  # as Go writes an empty list
            return []
        case {"models": [*listed]} if all(isinstance(entry, dict) for entry in listed):
            return listed
    raise InstanceFailure(FailureKind.SERVER_ERROR, f"{channel.url}{_LOADED_PATH} lists no models")


def _last_seen(instance: ResourceInstance) -> list[Mapping[str, Any]]:
    return [
        {**entry, "expires_at": _NO_TIME, "size_vram": 0}
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
