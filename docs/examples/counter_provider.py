"""A kind of resource with a protocol of its own, in one class: `HubProvider`.

The resource here is a Python process that counts words; pooling, scaling between two bounds, health, balancing,
failover, metrics and breakers come with the base class.

    plugins: {files: [./counter_provider.py]}
    providers:
      words: {max_total: 2}
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.hookspecs import ProviderType, hookimpl
from gleitzeit_core.hub_provider import HubProvider, PoolOptions
from gleitzeit_core.requests import Method, Request, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.resources import ResourceInstance

WORKER = """
import json, sys
for line in sys.stdin:
    print(json.dumps(len(json.loads(line).split())), flush=True)
"""


class CountParams(BaseModel):
    """What ``words/count`` takes; checked before anything is asked of a resource."""

    text: str


class WordCounter(HubProvider[PoolOptions]):
    """Counts words in child processes."""

    protocol = "words"
    methods = (Method(name="words/count", summary="how many words a text has", replayable=True, params=CountParams),)

    async def create_resource(self, config: PoolOptions) -> asyncio.subprocess.Process:
        del config
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, stdin=pipe, stdout=pipe)

    async def execute_on_resource(self, instance: ResourceInstance, method: str, params: Mapping[str, Any]) -> int:
        del method
        process: asyncio.subprocess.Process = instance.handle
        if not params["text"].strip():
            raise InvalidRequest("there is nothing to count", param="text")
        process.stdin.write(json.dumps(params["text"]).encode() + b"\n")  # type: ignore[union-attr]
        answer: int = json.loads(await process.stdout.readline())  # type: ignore[union-attr]
        return answer

    def cost(self, request: Request) -> float:
        return max(1.0, len(request.params["text"]) / 1000)

    def usage(self, request: Request, part: int) -> Usage:
        del request
        return Usage(input_tokens=part)

    async def check_resource(self, instance: ResourceInstance) -> bool:
        return instance.handle is not None and instance.handle.returncode is None

    async def destroy_resource(self, instance: ResourceInstance) -> None:
        process: asyncio.subprocess.Process = instance.handle
        if process.returncode is None:
            process.kill()
        await process.wait()


@hookimpl
def gleitzeit_register_providers() -> list[ProviderType]:
    """What this file adds."""
    return [
        ProviderType(
            name="words",
            target=f"{__name__}:WordCounter",
            options="gleitzeit_core.hub_provider:PoolOptions",
            summary="counts words in child processes",
        )
    ]
