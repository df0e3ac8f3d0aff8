"""Signs of life for callers who wait for the first part of an answer, while a model is being loaded perhaps.

What is sent means nothing in the caller's API, and no client shows it. With it the head of the answer is sent: status
and headers stand from then on, before it is known who will serve, and an error can only be told inside the answer.

    ollama     a space, which may stand before any JSON: an empty line would be no JSON to Ollama's own clients
    openai     a comment, in both of its APIs
    anthropic  a ping, as Anthropic itself sends them
    rpc        a space, as for Ollama: its answers are lines of JSON, too
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from gleitzeit_gateway.answers import InParts
    from gleitzeit_gateway.call import Call

SIGNS: Final[Mapping[str, bytes]] = {
    "ollama": b" ",
    "openai": b": keep-alive\n\n",
    "openai-responses": b": keep-alive\n\n",
    "rpc": b" ",
    "anthropic": b'event: ping\ndata: {"type": "ping"}\n\n',
}
"""What is sent, by client API."""


async def first_part(
    call: Call, parts: AsyncIterator[Any], content_type: str, sign: bytes, in_band: Callable[[Exception], bytes]
) -> tuple[Any, InParts | None]:
    """Wait for the first of `parts`, and see that the caller hears of it when that takes long.

    Args:
        call: Who waits.
        parts: Of the answer.
        content_type: Of the answer.
        sign: See `SIGNS`.
        in_band: Puts an error into the form it has inside the answer.

    Returns:
        The first part, and the answer if it has begun. An error that comes after that is told inside it; then the
        answer is `Call.broken_off`, and there is no part.
    """
    waiting = KeepAlive(call, content_type, sign)
    try:
        first = await anext(parts)
        return first, None if waiting.sending is None else await waiting.end()
    except Exception as error:
        response = await waiting.end()
        if response is None or call.gone:
            raise
        await call.break_off(response, error, in_band)
        return None, response
    finally:
        waiting.close()


class KeepAlive:
    """The wait for the first part. Costs a timer, and more only when that runs out.

    Args:
        call: Who waits; its options say for how long nothing is sent.
        content_type: Of the answer.
        sign: What is sent then, and again and again.

    Attributes:
        sending: Sends it; None before that.
    """

    __slots__ = ("_call", "_content_type", "_over", "_response", "_sign", "_timer", "sending")

    def __init__(self, call: Call, content_type: str, sign: bytes) -> None:
        self._call, self._content_type, self._sign = call, content_type, sign
        self.sending: asyncio.Task[None] | None = None
        every_s = call.options.keepalive_s
        self._timer = asyncio.get_running_loop().call_later(every_s, self._begin, every_s) if every_s else None

    def close(self) -> None:
        """Send no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self.sending is not None:
            self.sending.cancel()

    async def end(self) -> InParts | None:
        """Wait no more; the answer, if it has begun, on which nothing more is sent here."""
        if self.sending is None:
            return None
        self._over.set()
        await self.sending
        return self._response

    def _begin(self, every_s: float) -> None:
        self._over = asyncio.Event()
        self._response: InParts | None = None
        self.sending = asyncio.ensure_future(self._send(every_s))

    async def _send(self, every_s: float) -> None:
        # Who has left is nobody's business here: the request itself is ended then.
        with contextlib.suppress(ConnectionError):
            self._response = response = await self._call.begin(self._content_type)
            while not self._over.is_set():
                await response.write(self._sign)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await self._over.wait()
