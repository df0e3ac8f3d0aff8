"""A hub that creates its instances: `SupplyHub`. Here they are server processes that speak OpenAI's API.

Use it as a single-file plugin:

    plugins: {files: [./process_hub.py]}
    hubs:
      own: {type: server, command: [my-server, --port, "{port}"], model: tiny, min_total: 1, idle_ttl_s: 600}
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from pydantic import Field

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hookspecs import HubType, hookimpl
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.resources import HttpChannel, Ownership, ResourceInstance, instance_id
from gleitzeit_core.supply import SupplyHub, SupplyOptions

if TYPE_CHECKING:
    from asyncio.subprocess import Process


class ProcessOptions(SupplyOptions, HubOptions):
    """What every hub has, what every supply has, and two options of its own."""

    command: list[str] = Field(min_length=1, description="Starts a server; {port} is where it must listen.")
    model: str = Field(description="The model that it has.")


class ProcessHub(SupplyHub[ProcessOptions]):
    """One server process for each instance."""

    kind = "server"

    @property
    def supply(self) -> SupplyOptions:
        return self.options

    def next(self, number: int) -> ResourceInstance:
        endpoint = f"server://{self.name}/{number}"
        return ResourceInstance(
            id=instance_id(self.kind, endpoint),
            hub=self.name,
            kind=self.kind,
            endpoint=endpoint,
            offers=(("openai", HttpChannel("http://127.0.0.1")),),  # `create` knows the port
            capabilities=frozenset((f"model:{self.options.model}",)),
            ownership=Ownership.MANAGED,
        )

    async def create(self, coming: ResourceInstance) -> ResourceInstance:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [word.replace("{port}", str(port)) for word in self.options.command]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            await _ready(process, port)
        except BaseException:  # too slow, or not wanted any more: nothing may be left behind
            await _end(process)
            raise
        return coming.changed(offers=(("openai", HttpChannel(f"http://127.0.0.1:{port}")),), handle=process)

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        if instance.handle is not None and instance.handle.returncode is not None:
            self.replace(instance, "its process has ended")
        return instance

    async def destroy(self, instance: ResourceInstance) -> None:
        await _end(instance.handle)


async def _ready(process: Process, port: int) -> None:
    while not await _listens(port):
        if process.returncode is not None:
            raise InstanceFailure(FailureKind.REFUSED, "it ended by itself", started=False)
        await asyncio.sleep(0.05)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """What this file adds."""
    return [
        HubType(
            name="server",
            target=f"{__name__}:ProcessHub",
            options=f"{__name__}:ProcessOptions",
            summary="server processes of its own, as many as are needed",
        )
    ]
