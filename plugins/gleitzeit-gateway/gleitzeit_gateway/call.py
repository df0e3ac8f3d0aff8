"""One HTTP request as an endpoint gets it, and the ways to answer it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

from gleitzeit_core.errors import GleitzeitError, InstanceFailure, InvalidRequest
from gleitzeit_gateway.answers import InParts, Whole, line, lines_of, with_more
from gleitzeit_gateway.callers import ANYBODY
from gleitzeit_gateway.errors import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.requests import Served
    from gleitzeit_gateway.http_request import Request
    from gleitzeit_gateway.options import GatewayOptions
    from gleitzeit_gateway.passage import Passage

logger = logging.getLogger(__name__)

MARK: Final = "X-Gleitzeit-Gateway"
"""On every answer: by it discovery knows a gateway from an Ollama."""
_INSTANCE: Final = "X-Gleitzeit-Instance"
_OF_EVERY: Final = lines_of({MARK: "1", "Server": "gleitzeit"})


class Call:
    """One HTTP request.

    Args:
        request: As it was sent.
        manager: What carries requests out.
        options: Of the gateway.
        shown_id: For logs and headers; the caller's own, where it sent one.
        unique_id: For the request inside: what a caller chooses may have been used before, and by somebody else.
        ending: Set when the gateway begins to shut down; from then on it takes nothing new.

    Attributes:
        headers: Put on the answer, whatever it is, besides those that every answer has.
        passage: What follows from its head; set before an endpoint gets it.
        caller: Whose key was used, and what it may do.
        held: Whether it counts as a running request of its key.
        model: For the access line; set by the endpoint when it knows.
        served: Who served it; set by `note_served`.
        queued_ms: How long it waited then, in milliseconds.
        error: The code of the error that was answered; for the access line.
        failed_on: The instance that failed, when that was the error; for the access line.
        begun: Whether an answer in parts has begun: no other can be sent any more.
        broken_off: Whether an answer that had begun was cut.
    """

    __slots__ = (
        *("begun", "broken_off", "caller", "ending", "error", "failed_on", "headers", "held", "id", "manager", "model"),
        *("options", "passage", "queued_ms", "request", "served", "unique_id"),
    )

    def __init__(
        self,
        request: Request,
        manager: ResourceManager,
        options: GatewayOptions,
        shown_id: str,
        unique_id: str,
        ending: asyncio.Event,
    ) -> None:
        self.request, self.manager, self.options = request, manager, options
        self.id, self.unique_id, self.ending = shown_id, unique_id, ending
        self.headers: dict[str, str] = {}
        self.passage: Passage
        self.caller, self.held = ANYBODY, False
        self.served: Served | None = None
        self.model = self.queued_ms = self.error = self.failed_on = ""
        self.begun = self.broken_off = False

    def __repr__(self) -> str:
        """Its id and what was asked for."""
        return f"<Call {self.id}, {self.request!r}>"

    # -- who asks ----------------------------------------------------------------------------------------------

    @property
    def tenant(self) -> str:
        """The name of its key; empty for none."""
        return self.caller.name

    @property
    def priority(self) -> int:
        """Of that key."""
        return self.caller.priority

    @property
    def admin(self) -> bool:
        """Whether its caller may change the pool."""
        return self.passage.admin

    def hold(self) -> None:
        """Count it as a request of its key, which runs until `let_go`; what the key has left goes into the headers.

        Raises:
            LimitReached: The key has used what it may.
        """
        limits = self.caller.limits
        try:
            limits.acquire()
        finally:
            if limits.bounded:
                self.headers.update(limits.headers())
        self.held = True

    def let_go(self) -> None:
        """It has ended. More than once is fine."""
        if self.held:
            self.held = False
            self.caller.limits.release()

    # -- what was asked ----------------------------------------------------------------------------------------

    @property
    def rest(self) -> str:
        """What a path ending in ``*`` matched there."""
        return self.passage.rest

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            Refused: It is too large (413), or does not arrive in time (408).
            InvalidRequest: It is not encoded as its headers say.
        """
        body = self.body_now()
        if body is None:
            limit = self.options.max_body_bytes
            if (self.request.content_length or 0) > limit:
                raise _too_large(limit)
            body = await self._rest_of_body(limit)
        return body

    def body_now(self) -> bytes | None:
        """The same where all of it has come; None where `body` must be awaited."""
        body = self.request.take_whole()
        if body is not None and len(body) > self.options.max_body_bytes:
            raise _too_large(self.options.max_body_bytes)
        return body

    async def _rest_of_body(self, limit_bytes: int) -> bytes:
        limit_s = self.options.body_timeout_s
        self.request.invite()
        try:
            async with asyncio.timeout(limit_s):
                return await self.request.read(limit_bytes)
        except web.HTTPRequestEntityTooLarge:
            raise _too_large(limit_bytes) from None
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {limit_s:g} s", "slow_request") from None
        except web.RequestPayloadError as error:
            raise InvalidRequest(f"the body is not encoded as its headers say: {error}") from None

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, however large. While a part is not taken, its sender is held back.

        Raises:
            Refused: Nothing has come for too long (408).
            InvalidRequest: It is not encoded as its headers say.
        """
        self.request.invite()
        limit_s = self.options.body_timeout_s
        try:
            while True:
                async with asyncio.timeout(limit_s):
                    part = await self.request.content.readany()
                if not part:
                    return
                yield part
        except TimeoutError:
            raise Refused(408, f"nothing more of the request arrived within {limit_s:g} s", "slow_request") from None
        except web.RequestPayloadError as error:
            raise InvalidRequest(f"the body is not encoded as its headers say: {error}") from None

    @property
    def affinity(self) -> str:
        """What its caller names to keep requests together, for strategies that look at it."""
        return self.passage.affinity

    @property
    def draining(self) -> bool:
        """Whether the gateway is shutting down."""
        return self.ending.is_set()

    @property
    def gone(self) -> bool:
        """Whether the caller has left."""
        transport = self.request.transport
        return transport is None or transport.is_closing()

    # -- what is answered --------------------------------------------------------------------------------------

    def note_served(self, served: Served) -> None:
        """Say in the answer's head and in the access line who served it; nothing where no instance did."""
        if served.tries:
            self.served, self.queued_ms = served, f"{served.queued_s * 1000:.0f}"

    def lines(self) -> str:
        """What the head of the answer says besides what the answer itself does.

        Raises:
            ValueError: A header cannot be sent.
        """
        lines, served = f"{_OF_EVERY}X-Request-Id: {self.id}\r\n", self.served
        if served is not None:
            waited = f"X-Gleitzeit-Queue-Ms: {self.queued_ms}\r\nX-Gleitzeit-Tries: {served.tries}\r\n"
            lines += line(_INSTANCE, served.instance_id) + waited
            if served.position:
                lines += line("X-Gleitzeit-Queue-Position", str(served.position))
                lines += line("X-Gleitzeit-Expected-Wait-Ms", f"{served.expected_wait_s * 1000:.0f}")
        return with_more(lines, self.headers) if self.headers else lines

    def sign(self, reply: Whole | web.StreamResponse) -> None:
        """Put that on an answer that has not begun.

        Raises:
            ValueError: A header cannot be sent.
        """
        if isinstance(reply, Whole):
            reply.signature = self.lines()
        else:
            reply.headers.update(dict(one.split(": ", 1) for one in self.lines().split("\r\n")[:-1]))

    def note_error(self, error: Exception) -> None:
        """Say in the headers and in the access line what went wrong with the request as a whole."""
        if isinstance(error, InstanceFailure) and error.instance_id:
            self.failed_on = error.instance_id
            if self.served is None:
                self.headers.setdefault(_INSTANCE, error.instance_id)
        self.note_partial_error(error)

    def note_partial_error(self, error: Exception) -> None:
        """Say in the access line what went wrong; what is a mistake of our own goes to the log whole."""
        if isinstance(error, GleitzeitError):
            self.error, error.of_request = error.code, self.id
        else:
            self.error = "internal"
            logger.error("request %s failed", self.id, exc_info=error)

    def in_parts(self, content_type: str) -> InParts:
        """An answer in parts, whose head is sent with the first. From now on an error can only be told inside it.

        Args:
            content_type: Of the answer.

        Raises:
            ValueError: A header cannot be sent.
        """
        response = InParts(self.request, {}, self.lines() + line("Content-Type", content_type))
        self.begun = True
        return response

    async def begin(self, content_type: str) -> InParts:
        """The same, with its head sent now.

        Raises:
            ConnectionError: The caller has left.
        """
        response = self.in_parts(content_type)
        await response.begin()
        return response

    async def send(self, response: InParts, parts: AsyncIterator[bytes], in_band: Callable[[Exception], bytes]) -> None:
        """Send all `parts`.

        Args:
            response: From `begin`.
            parts: What is left of the answer.
            in_band: Puts an error into the form it has inside the answer.

        Raises:
            ConnectionError: The caller has left.
        """
        try:
            async for part in parts:
                if response.put(part, last=getattr(parts, "at_end", False)):
                    await response.drained()
        except Exception as error:
            # Whatever it is, the caller must not take the answer for complete.
            if self.gone:
                raise
            await self.break_off(response, error, in_band)

    async def break_off(self, response: InParts, error: Exception, in_band: Callable[[Exception], bytes]) -> None:
        """End an answer that has begun with an error inside it; the rest as for `send`."""
        self.note_error(error)
        await response.write(in_band(error))
        self.cut()

    def cut(self) -> None:
        """Close the connection after what was sent: an answer that broke off must not look complete."""
        self.broken_off = True
        if self.request.transport is not None:
            self.request.transport.close()


def _too_large(limit_bytes: int) -> Refused:
    return Refused(413, f"the request is larger than {limit_bytes} bytes", "too_large")
