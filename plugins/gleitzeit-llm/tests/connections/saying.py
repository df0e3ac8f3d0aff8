"""Servers that answer what they were told, and how a body is asked of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_core.resources import HttpChannel
    from gleitzeit_llm.upstream import Upstream

    Line = Any

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def saying(*pieces: bytes, close: bool = False) -> Callable[[Line], Awaitable[None]]:
    """A server that answers every request with these bytes, the loop turned between them."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            for piece in pieces:
                line.send(piece)
                await line.flush()
                await asyncio.sleep(0)
            if close:
                return

    return handle


async def body_of(upstream: Upstream, channel: HttpChannel, *, stream: bool) -> bytes:
    """The body of an answer, asked for in one of the two ways."""
    if not stream:
        return (await upstream.request(channel, "POST", "/", b"{}")).body
    async with upstream.stream(channel, "POST", "/", b"{}") as response:
        return b"".join([data async for data in response.content.iter_any()])
