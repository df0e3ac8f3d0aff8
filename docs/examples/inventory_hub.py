"""A hub of your own: servers that speak OpenAI's API, listed in a text file that another program writes.

Use it as a single-file plugin:

    plugins: {files: [./inventory_hub.py]}
    hubs:
      lab: {type: inventory, file: ./servers.txt, model: tiny}
"""

from __future__ import annotations

import asyncio
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hookspecs import HubType, hookimpl
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.needs import checked
from gleitzeit_core.pool import State
from gleitzeit_core.resources import HttpChannel, ResourceInstance, instance_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class InventoryOptions(HubOptions):
    """Options: what may stand under the hub's name in a configuration."""

    file: Path = Field(description="One URL per line; lines that begin with # do not count.")
    model: str = Field(description="The model that all of them have.")


class Server(BaseModel):
    """What `gleitzeit instances add` may say of one; a URL alone will do."""

    model_config = ConfigDict(extra="forbid")

    url: str
    weight: float = Field(1.0, gt=0)


class InventoryHub(ResourceHub[InventoryOptions]):
    """Publishes a server for each line of the file, and looks again every ``discover_interval_s``."""

    kind = "inventory"

    async def discover(self) -> Iterable[ResourceInstance]:
        text = await asyncio.to_thread(self.options.file.read_text, "utf-8")
        urls = [line.strip().rstrip("/") for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return [self._instance(url) for url in urls]

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        address = urlsplit(instance.endpoint)
        try:
            _, writer = await asyncio.open_connection(address.hostname, address.port or 80)
        except OSError as error:
            raise InstanceFailure(FailureKind.REFUSED, f"{instance.endpoint}: {error}", started=False) from error
        writer.close()
        await writer.wait_closed()
        return instance

    async def add_instance(self, settings: Mapping[str, Any]) -> ResourceInstance:
        asked = checked(Server, settings)
        instance = self._instance(asked.url.rstrip("/")).changed(weight=asked.weight)
        self.publish(instance, State.DOWN)
        return instance

    async def reconfigure(self, options: InventoryOptions) -> bool:
        if not self.differing(options) <= {"file", *HubOptions.model_fields}:
            return False
        self.options = options
        await self.search()
        return True

    def _instance(self, url: str) -> ResourceInstance:
        return ResourceInstance(
            id=instance_id(self.kind, url),
            hub=self.name,
            kind=self.kind,
            endpoint=url,
            offers=(("openai", HttpChannel(url)),),
            capabilities=frozenset((f"model:{self.options.model}",)),
            max_concurrent=4,
        )


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """What this file adds."""
    return [
        HubType(
            name="inventory",
            target=f"{__name__}:InventoryHub",
            options=f"{__name__}:InventoryOptions",
            summary="servers listed in a text file",
        )
    ]
