"""How the tests of the stand-in call it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

    from gleitzeit_ollama.testing import OllamaServer

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "smollm2", "messages": MESSAGES}
PLAIN = {**CHAT, "stream": False}


async def post(
    client: aiohttp.ClientSession, server: OllamaServer, body: object, path: str = "/api/chat"
) -> tuple[int, Any]:
    """Ask for something; the answer's status and text."""
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    async with client.post(f"{server.url}{path}", data=data) as response:
        return response.status, await response.text()


async def get(client: aiohttp.ClientSession, server: OllamaServer, path: str) -> Any:  # noqa: ANN401
    """Ask for what JSON there is."""
    async with client.get(f"{server.url}{path}") as response:
        return await response.json()


async def loaded(client: aiohttp.ClientSession, server: OllamaServer) -> list[str]:
    """The models in memory."""
    return [row["name"] for row in (await get(client, server, "/api/ps"))["models"]]


async def raw(server: OllamaServer, request: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer
