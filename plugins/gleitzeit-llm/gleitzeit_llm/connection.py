"""One connection to a server, and one request at a time on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NoReturn, cast

from aiohttp import ClientError, ClientPayloadError, ServerDisconnectedError

from gleitzeit_llm.http1 import AnswerReader, NotHTTP

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.errors import FailureKind

_SLICE_BYTES: Final = 256 * 1024
"""Of a body, written at once; the next one waits until the server has read most of it."""
_UNREAD_BYTES: Final = 512 * 1024
"""Of an answer's body: when more of it waits for its reader, the server has to wait too."""
HEAD_ONLY: Final = -1
"""See `Connection.arrival`."""


class CutOff(ClientError):
    """A connection was given up here, whatever its server may still have sent.

    Args:
        kind: What it counts as.
        message: Why, as the rest of a sentence about the server.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


class Connection(asyncio.Protocol):
    """See the module's text. It is idle without an `answer`.

    Whatever breaks is raised where the answer is waited for, after all that had come before: `NotHTTP`, an `OSError`,
    or aiohttp's errors for a server that has left.

    Args:
        loop: The running one.
        lost: Called once when it is closed for good.

    Attributes:
        answer: To the request that is on its way.
        gave: Whether any part of its body was given out.
        closed: Whether it can carry nothing more.
        idle_since: When its last answer was complete, on the loop's clock.
        key: Where it leads; for its keeper.
        quiet: How often its keeper has looked since anything came; for its keeper.
    """

    __slots__ = (
        "_error",
        "_loop",
        "_lost",
        "_reader",
        "_reading",
        "_transport",
        "_unsent",
        "_waiter",
        "_whole_bytes",
        "_writable",
        "answer",
        "closed",
        "gave",
        "idle_since",
        "key",
        "quiet",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[Connection], None], key: object) -> None:
        self._loop, self._lost, self.key = loop, lost, key
        self._transport: asyncio.Transport | None = None
        # Who waits, until he has looked; and, where all of an answer is waited for, how much of it at most.
        self._waiter: asyncio.Future[None] | None = None
        self._whole_bytes = HEAD_ONLY
        self._error: Exception | None = None
        self._writable = self._reading = True
        self._unsent: memoryview | None = None
        self._reader = AnswerReader()
        self.answer: AnswerReader | None = None
        self.gave = self.closed = False
        self.idle_since = 0.0
        self.quiet = 0

    # -- one request -------------------------------------------------------------------------------------------

    def send(self, method: str, head: bytes, body: bytes | None) -> None:
        """Send a request; a large body as fast as it is read, and no further once the answer has begun."""
        self.answer = answer = self._reader
        answer.expect(method)
        self.gave = False
        if self._transport is None or self.closed:
            self._break(ServerDisconnectedError())
        elif body is None or len(body) <= _SLICE_BYTES:
            self._transport.write(head + body if body else head)
        else:
            self._unsent = memoryview(body)
            self._transport.write(head)
            self._send_on()

    def _send_on(self) -> None:
        while self._unsent is not None and self._writable and not self._over and self._transport is not None:
            unsent, self._unsent = self._unsent, self._unsent[_SLICE_BYTES:] or None
            self._transport.write(unsent[:_SLICE_BYTES])

    @property
    def _over(self) -> bool:
        """Whether it makes no sense to send more: it is broken, or the answer is there before its question."""
        return self.closed or self._error is not None or (self.answer is not None and self.answer.head.status > 0)

    def arrival(self, whole_bytes: int = HEAD_ONLY) -> asyncio.Future[None]:
        """What is done when the head of the answer is there, or nothing more comes: `arrived` then tells which of them.

        Args:
            whole_bytes: Wait for all of the answer, if it is not larger than that, and neither a refusal nor
                compressed; `HEAD_ONLY` for no more than its head.
        """
        self._whole_bytes = whole_bytes
        self._waiter = waiter = self._loop.create_future()
        if not self._reading:
            self._read_on()
        if self._error is not None or self.closed:
            self._wake()
        elif self._reader.heard:
            self._look(self._reader)
        return waiter

    def arrived(self) -> AnswerReader:
        """The answer, whose head is there.

        Raises:
            ClientError, OSError: It does not come any more.
        """
        self._whole_bytes, self._waiter = HEAD_ONLY, None
        answer = self.answer
        if answer is None:
            raise ServerDisconnectedError
        if not answer.head.status:
            self._raise_broken(answer)
        return answer

    @property
    def heard(self) -> bool:
        """Whether any of the answer has come."""
        return self._reader.heard

    async def head(self) -> None:
        """Wait until the head of the answer is there.

        Raises:
            ClientError, OSError: It does not come any more.
        """
        await self.arrival()
        self.arrived()

    async def part(self) -> bytes:
        """What has come of the body, at least a byte; empty at its end.

        Raises:
            ClientError, OSError: It broke off before its end.
        """
        answer = self.answer
        if answer is None:
            return b""
        while not (answer.unread_bytes or answer.complete):
            if self.closed or self._error is not None:
                self._raise_broken(answer)
            self._waiter = waiter = self._loop.create_future()
            await waiter
        self._waiter = None
        if not answer.unread_bytes:
            return b""
        data = answer.take()
        self.gave = True
        if not self._reading:
            self._read_on()
        return data

    def _raise_broken(self, answer: AnswerReader) -> NoReturn:
        if self._error is not None:
            raise self._error
        raise ClientPayloadError("the connection is closed") if answer.head.status else ServerDisconnectedError

    def _look(self, answer: AnswerReader) -> None:
        """Wake who waits, if what he waits for has come; where nobody does, the server may have to wait."""
        waiter, head = self._waiter, answer.head
        if waiter is None or waiter.done():
            if answer.unread_bytes > _UNREAD_BYTES and self._reading and self._transport is not None:
                self._reading = False
                self._transport.pause_reading()
        elif answer.complete or (head.status and (answer.unread_bytes > self._whole_bytes or not head.plain)):
            waiter.set_result(None)

    def _wake(self) -> None:
        """Whoever waits looks himself what has become of it."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _read_on(self) -> None:
        """The server need not wait any more."""
        self._reading = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def release(self) -> bool:
        """Be done with the answer, read or not. Whether another request can be sent; if not, this closes it at once."""
        answer, self.answer = self.answer, None
        # Who was woken and has not looked yet would find the next answer.
        free = self._waiter is None and self._unsent is None and not self.closed
        if answer is None or not answer.reusable or not free:
            self.abort()
            return False
        if answer.unread_bytes:
            answer.take()
        if not self._reading:
            self._read_on()
        self.idle_since = self._loop.time()
        return True

    @property
    def has_output(self) -> bool:
        """Whether any of the body has come. Some servers send the head before they have anything to say."""
        return self.gave or (self.answer is not None and self.answer.unread_bytes > 0)

    @property
    def waits_for_rest(self) -> bool:
        """Whether somebody waits for more of a body that has begun, and nothing but its server holds that back."""
        waits = self._waiter is not None and not self._waiter.done() and self._reading
        return waits and self.has_output and self.answer is not None and not self.answer.complete

    def cut_off(self, error: CutOff) -> None:
        """Close it now; `error` is raised where the answer is waited for."""
        self._break(error)
        self.abort()

    def abort(self) -> None:
        """Close it now, without sending what is not sent yet."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    # -- what the loop calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        answer = self.answer
        if answer is None:
            # Nobody has asked anything: this would be taken for the answer to the next request.
            self.abort()
            return
        self.quiet = 0
        try:
            answer.feed(data)
        except NotHTTP as error:
            self._break(error)
            self.abort()
        else:
            self._look(answer)

    def eof_received(self) -> bool:
        """The server sends nothing more. Since nothing can be asked any more either, the connection is closed.

        Returns:
            False: the transport closes itself.
        """
        self._ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._ended(exc)
        self._transport = None
        self._reader.dismiss()
        self._lost(self)

    def pause_writing(self) -> None:
        """The server reads slower than we write."""
        self._writable = False

    def resume_writing(self) -> None:
        """It has read."""
        self._writable = True
        self._send_on()

    def _ended(self, error: Exception | None) -> None:
        self.closed = True
        answer = self.answer
        if answer is not None and self._error is None and not (answer.end() if error is None else answer.complete):
            if error is not None:
                self._break(error)
            elif answer.head.status:
                self._break(ClientPayloadError("the answer broke off"))
            else:
                self._break(ServerDisconnectedError())
        self._wake()

    def _break(self, error: Exception) -> None:
        self._error = error
        self._wake()
