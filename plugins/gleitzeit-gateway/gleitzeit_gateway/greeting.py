"""What ``gleitzeit serve`` says when it is ready: the address, the instances, the models and two commands to paste."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_gateway.access_line import printable
from gleitzeit_llm import models

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.runs import InstanceReport

# Families of models that only embed: a chat with one fails.
_EMBEDS: Final = "bert"
# More would push the address and what to try off the screen.
_SHOWN: Final = 20
_KEY: Final = ' -H "Authorization: Bearer $GLEITZEIT_KEY"'


def greeting(
    url: str, reports: Sequence[InstanceReport], hubs: Collection[ResourceHub[Any]], *, keys_needed: bool
) -> str:
    """The text, for a terminal.

    Args:
        url: Where the gateway listens.
        reports: All instances.
        hubs: All hubs.
        keys_needed: Whether callers need a key.
    """
    lines = *_instances(reports, hubs), *_models(url, reports, keys_needed)
    return "\n".join([f"Gleitzeit listens on {url}", *lines])


def _instances(reports: Sequence[InstanceReport], hubs: Collection[ResourceHub[Any]]) -> Iterator[str]:
    yield "instances:"
    for report in reports[:_SHOWN]:
        reason = f" ({report.reason})" if report.reason else ""
        yield f"  {report.state:<13} {report.instance.kind:<9} {report.instance.endpoint}{reason}"
    if len(reports) > _SHOWN:
        more, ready = len(reports) - _SHOWN, sum(report.serving for report in reports)
        yield f"  and {more} more, {ready} of all {len(reports)} ready; 'gleitzeit instances' lists them"
    creating = [hub for hub in hubs if hub.creates]
    for hub in creating:
        if not hub.instances:
            state, reason = ("degraded", f" ({hub.problem})") if hub.problem else ("on demand", "")
            yield f"  {state:<13} {hub.kind:<9} hub {hub.name}{reason}"
    if not reports and (not creating or len(creating) < len(hubs)):
        yield "  none yet: 'gleitzeit serve --instance URL', or a configuration from 'gleitzeit init'"


def _models(url: str, reports: Sequence[InstanceReport], keys_needed: bool) -> Iterator[str]:  # noqa: FBT001 - private
    ready = tuple(report.instance for report in reports if report.serving)
    names = models.names(ready)
    yield f"models: {', '.join(map(printable, names)) or 'none yet'}"
    if names:
        # A model's name is its server's to choose, and this is for a shell.
        question = {"model": _to_try(names, ready), "messages": [{"role": "user", "content": "hi"}]}
        body, key = shlex.quote(json.dumps(question)), _KEY if keys_needed else ""
        reached = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        yield "try:"
        yield f"  curl {reached}/api/chat{key} -d {body}"
        yield f"  curl {reached}/v1/chat/completions{key} -H 'content-type: application/json' -d {body}"


def _to_try(names: Sequence[str], ready: Sequence[ResourceInstance]) -> str:
    """A model to chat with: one in memory if there is any, and none that only embeds."""
    warm = {capability for instance in ready for capability in instance.warm}
    embeds = {name for instance in ready for name, entry in models.entries(instance).items() if _embeds(entry)}
    return min(names, key=lambda name: (name in embeds, models.capability(name) not in warm, name))


def _embeds(entry: object) -> bool:
    match entry:
        case {"details": {"family": str(family)}}:
            return _EMBEDS in family
    return False
