"""What the tests of managing models ask of several servers, and what they look for there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gleitzeit_gateway.testing import Answered, RunningGateway
    from gleitzeit_ollama.testing import (
        OllamaServer,
    )


WHERE = "X-Gleitzeit-Instances"
BIG = 4000
LIMIT_S = 20


def ids_of(gateway: RunningGateway, *servers: OllamaServer) -> list[str]:
    """Their instances' ids."""
    found = {report.instance.endpoint: report.instance.id for report in gateway.manager.instances()}
    return [found[server.url] for server in servers]


def asked(server: OllamaServer, path: str) -> list[Any]:
    """The bodies of requests that a server has had for a path."""
    return [json.loads(record.body) for record in server.requests if record.path == path]


def have(model: str, *servers: OllamaServer) -> list[bool]:
    """Which of them have a model."""
    return [server.catalogue.find(model) is not None for server in servers]


async def pull(gateway: RunningGateway, where: str = "", model: str = "big", **fields: object) -> Answered:
    """Pull through the gateway, where the header `where` says, if anything."""
    headers = {WHERE: where} if where else {}
    return await gateway.ask("/api/pull", {"model": model, **fields}, headers=headers)
