"""``GET /admin/events``: what happens in the pool, as server-sent events, for as long as the caller listens."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from gleitzeit_gateway.access import sees_all
from gleitzeit_gateway.errors import Refused
from gleitzeit_gateway.queries import Query

if TYPE_CHECKING:
    from gleitzeit_core.events import Event, EventStream
    from gleitzeit_gateway.answers import InParts, Reply
    from gleitzeit_gateway.call import Call

STREAMS_MAX: Final = 64
"""So many listen at once, at most."""
KEEP_ALIVE_S = 15.0
"""After so long without an event a comment is sent, so that nobody between takes the connection for dead."""
SLOW_S = 10.0
"""A reader who takes nothing for so long is cut off."""

_CONTENT_TYPE: Final = "text/event-stream"
# What stands between us and the caller must pass each event on at once.
_UNBUFFERED: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStreams:
    """All who listen to one gateway."""

    def __init__(self) -> None:
        self._open = 0

    def __repr__(self) -> str:
        """How many listen."""
        return f"<EventStreams {self._open}>"

    async def follow(self, call: Call) -> Reply:
        """Send events until the caller leaves or the gateway shuts down; ``?requests=1``: finished requests as well.

        Who does not see all hears of its own requests only.
        """
        requests = Query(call, "requests").flag("requests")
        call.headers.update(_UNBUFFERED)
        if call.request.method == "HEAD":
            return web.Response(headers={"Content-Type": _CONTENT_TYPE})
        if self._open >= STREAMS_MAX:
            raise Refused(503, f"{STREAMS_MAX} callers listen to events already", "too_many_streams")
        self._open += 1
        try:
            # Listening begins before the head of the answer is sent: who has that misses nothing.
            tenant = None if sees_all(call) else call.tenant
            async with contextlib.aclosing(call.manager.events(requests=requests, tenant=tenant)) as events:
                return await _send_all(call, events)
        finally:
            self._open -= 1


async def _send_all(call: Call, events: EventStream) -> InParts:
    coming = asyncio.ensure_future(anext(events, None))
    ending = asyncio.ensure_future(call.ending.wait())
    try:
        response = await call.begin(_CONTENT_TYPE)
        await _send(call, response, b": what happens from here on\n\n")
        while True:
            await asyncio.wait({coming, ending}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return response
            if not coming.done():
                await _send(call, response, b": nothing new\n\n")
                continue
            event = coming.result()
            if event is None:
                return response
            await _send(call, response, _written(event))
            coming = asyncio.ensure_future(anext(events, None))
    finally:
        coming.cancel()
        ending.cancel()
        await asyncio.wait({coming, ending})


async def _send(call: Call, response: InParts, data: bytes) -> None:
    """Send `data`; a reader who does not take it is cut off, at once and without waiting for what is on its way."""
    try:
        async with asyncio.timeout(SLOW_S):
            await response.write(data)
    except TimeoutError:
        call.broken_off = True
        if call.request.transport is not None:
            call.request.transport.abort()
        raise ConnectionResetError("the caller reads too slowly") from None


def _written(event: Event) -> bytes:
    body: dict[str, Any] = {"kind": event.kind, "at": event.at, "data": event.data}
    return b"event: " + event.kind.encode() + b"\ndata: " + msgspec.json.encode(body, enc_hook=str) + b"\n\n"
