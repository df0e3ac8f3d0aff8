"""A stream that passes from an instance to its caller as it is: one object for each, and one step for each part."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self

from aiohttp import ClientError

from gleitzeit_core.errors import InstanceFailure
from gleitzeit_llm import raw
from gleitzeit_llm.failures import explained, translated
from gleitzeit_llm.passthrough import PassThrough
from gleitzeit_llm.raw import RawAnswer
from gleitzeit_llm.upstream import Reply, read_whole
from gleitzeit_llm.usage import counted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_llm.exchange import Response


class Passed(AsyncIterator[bytes | RawAnswer]):
    """The parts of one answer. A generator for each layer between would cost more than all the rest of a part.

    What the api answers as a whole although a stream was asked for is one `RawAnswer`.

    Args:
        api: What caller and instance speak.
        url: Of the instance, for messages.
        begin: Sends the request, as `Upstream.begin`; called when the first part is asked for.

    Attributes:
        at_end: Whether nothing follows what was given out.
    """

    __slots__ = ("_api", "_failure", "_read", "_response", "_send", "_url", "_watched", "at_end")

    def __init__(self, api: str, url: str, begin: Callable[[], Awaitable[Response]]) -> None:
        self._api, self._url, self._send = api, url, begin
        self._response: Response | None = None
        self._read: Callable[[], Awaitable[bytes]] | None = None
        self._watched = PassThrough(api)
        # What follows the part that was given out last.
        self._failure: InstanceFailure | None = None
        self.at_end = False

    def __repr__(self) -> str:
        """Where from, and how far."""
        return f"<Passed from {self._url}{', at its end' if self.at_end else ''}>"

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> bytes | RawAnswer:
        """The next part.

        Raises:
            StopAsyncIteration: There is none.
            InstanceFailure: The instance failed; ``LOST`` also when its answer ends without the final marker.
        """
        try:
            while not self.at_end:
                if self._failure is not None:
                    raise self._failure
                part = self._next(await self._read()) if self._read is not None else await self._begin()
                if part:
                    return part
        except InstanceFailure as failure:
            self._close()
            raise explained(self._api, failure, same_api=True) from None
        except (ClientError, OSError) as error:
            self._close()
            raise explained(self._api, translated(self._url, error), same_api=True) from None
        raise StopAsyncIteration

    async def _begin(self) -> bytes | RawAnswer:
        """Send the request; the answer, when it comes whole, and nothing when it comes in parts."""
        self._response = response = await self._send()
        if raw.streams(self._api, self._url, response.content_type):
            self._read = response.reader()
            return b""
        reply = Reply(response.status, response.content_type, await read_whole(response))
        whole = raw.passed(self._api, self._url, reply)
        self._close()
        return whole

    def _next(self, data: bytes) -> bytes:
        """What to give out of what has come; nothing has at the end."""
        if data:
            part, self._failure = self._watched.take(data)
            if self._failure is not None or not (self._response is None or self._response.complete):
                return part
            # All has come, and its end can be looked at now: what is left then goes with it.
            data = part
        try:
            rest = self._watched.rest()
        except InstanceFailure as failure:
            self._failure = failure
            return data
        self._close()
        return counted(data + rest, getattr(rest, "usage", None) or getattr(data, "usage", None)) if rest else data

    def _close(self) -> None:
        self.at_end = True
        if self._response is not None:
            self._response.close()

    async def aclose(self) -> None:
        """Be done with it; if it has not come to its end, its connection is closed. More than once is fine."""
        if not self.at_end:
            self._close()
