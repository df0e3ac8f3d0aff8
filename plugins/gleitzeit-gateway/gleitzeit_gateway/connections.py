"""The connections of callers: how many there may be, how long they may say nothing, how large the head of a request is.

Where there are too many, those that do nothing make room: first the one that has been idle for longest, then the one
that has taken longest over the head of its request. Only when all are at work is a new one refused.

`Connections` knows nothing of HTTP but where a head ends. The server tells it what happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import resource
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.errors import Refused
from gleitzeit_gateway.last_answer import last_answer

if TYPE_CHECKING:
    from gleitzeit_gateway.options import GatewayOptions

_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
# All of such an end but for its last byte.
_TAIL_BYTES: Final = 3
# What refused callers get to read their answer: closing at once would take it from those who still send.
_LINGER_S: Final = 1.0
_MAX_LINGERING: Final = 128
_FULL: Final = 503


@dataclass(eq=False, slots=True)
class Connection:
    """One connection.

    Args:
        transport: Its transport.
        waits: What it waits for, with others, since `since_s`; None while a request is at work, and when it is over.
        since_s: On the loop's clock.
        over: Whether it is being closed: what still comes is thrown away.
        head_bytes: How much of a head is there.
        head_lines: How many lines of it.
        tail: The last bytes of it.
    """

    transport: asyncio.Transport
    waits: _Waiting | None = None
    since_s: float = 0.0
    over: bool = False
    head_bytes: int = 0
    head_lines: int = 0
    tail: bytes = b""


@dataclass(eq=False, slots=True)
class _Waiting:
    """Connections that wait for the same.

    Args:
        limit_s: For so long at most.
        connections: By how long they have waited, the longest first.
    """

    limit_s: float
    connections: dict[Connection, None] = field(default_factory=dict)

    @property
    def longest(self) -> Connection | None:
        return next(iter(self.connections), None)


class Connections:
    """All connections of one gateway.

    Args:
        options: Of the gateway; may be replaced.
    """

    def __init__(self, options: GatewayOptions) -> None:
        # A request needs a second socket, to the instance.
        self._room = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open = 0
        self._lingering = 0
        # For another request; and for the rest of a head, or all of one on a new connection.
        self._idle, self._heads = _Waiting(0.0), _Waiting(0.0)
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self._look_s = math.inf
        self.options = options

    def __repr__(self) -> str:
        """Counts."""
        idle, heads = len(self._idle.connections), len(self._heads.connections)
        return f"<Connections {self._open} open, {idle} idle, {heads} before the end of a head>"

    @property
    def options(self) -> GatewayOptions:
        """Those in force."""
        return self._options

    @options.setter
    def options(self, options: GatewayOptions) -> None:
        self._options = options
        self._idle.limit_s, self._heads.limit_s = options.idle_timeout_s, options.head_timeout_s
        self._most_bytes, self._most_headers = options.max_head_bytes, options.max_headers

    def close(self) -> None:
        """Look after none of them any more."""
        self._look_s = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- what happens on them ----------------------------------------------------------------------------------

    def opened(self, transport: asyncio.Transport) -> Connection:
        """A new one. Where there is no room for it, it is refused, and is over."""
        self._loop = asyncio.get_running_loop()
        if self._open >= min(self._options.max_connections, self._room):
            self._make_room()
        connection = Connection(transport)
        self._open += 1
        if self._open > min(self._options.max_connections, self._room):
            text = f"{self._open - 1} connections are open, and all of them are at work"
            self._refuse(connection, Refused(_FULL, text, "too_many_connections"))
            return connection
        _bound_writing(transport, self._options.send_timeout_s)
        self._wait(connection, self._heads)
        return connection

    def heard(self, connection: Connection, data: bytes) -> bool:
        """Bytes have come. Whether the server may have them: of a head only so many."""
        waits = connection.waits
        if waits is None:
            return not connection.over
        if waits is self._idle:
            if self._is_usual(data):
                self.began(connection)
                return True
            self._wait(connection, self._heads)
        return self._heard_of_head(connection, data)

    def began(self, connection: Connection) -> None:
        """A request has begun."""
        if connection.waits is not None:
            del connection.waits.connections[connection]
            connection.waits = None

    def ended(self, connection: Connection, *, kept: bool) -> None:
        """It has ended; the connection is `kept` for another, or is about to be closed."""
        if kept and connection.waits is None and not connection.over:
            self._wait(connection, self._idle)

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        self._end(connection)

    # -- inside ------------------------------------------------------------------------------------------------

    def _is_usual(self, data: bytes) -> bool:
        """Whether it begins with a whole head that is within all limits, as nearly all that comes does."""
        end = data.find(b"\r\n\r\n")
        within = 0 < end < self._most_bytes - 4 and data[0] not in b"\r\n"
        return within and data.count(b"\n", 0, end) <= self._most_headers

    def _heard_of_head(self, connection: Connection, data: bytes) -> bool:
        if not connection.head_bytes:
            data = data.lstrip(b"\r\n")  # Empty lines before a request are no request.
        found = _END_OF_HEAD.search(connection.tail + data)
        size = len(data) if found is None else found.end() - len(connection.tail)
        connection.head_bytes += size
        connection.head_lines += data.count(b"\n", 0, size)
        most_bytes, most_headers = self._most_bytes, self._most_headers
        # Besides the headers there are the first line and the empty one.
        if connection.head_bytes > most_bytes or connection.head_lines > most_headers + 2:
            text = f"a request may have {most_headers} headers, and {most_bytes} bytes before its body"
            self._refuse(connection, Refused(431, text, "head_too_large"))
            return False
        if found is None:
            connection.tail = (connection.tail + data)[-_TAIL_BYTES:]
        else:
            self.began(connection)
        return True

    def _wait(self, connection: Connection, waits: _Waiting) -> None:
        self.began(connection)
        connection.waits, connection.since_s = waits, self._loop.time()
        connection.head_bytes, connection.head_lines, connection.tail = 0, 0, b""
        waits.connections[connection] = None
        ends_s = connection.since_s + waits.limit_s
        if ends_s < self._look_s:
            self._look_at(ends_s)

    def _make_room(self) -> None:
        longest = self._idle.longest or self._heads.longest
        if longest is not None:
            self._drop(longest)

    def _drop(self, connection: Connection) -> None:
        """Close one that has nothing to lose."""
        self._end(connection)
        connection.transport.abort()

    def _end(self, connection: Connection) -> None:
        self.began(connection)
        self._open -= not connection.over
        connection.over = True

    def _refuse(self, connection: Connection, error: Refused) -> None:
        """Answer on a connection on which no request has begun, and close it."""
        self._end(connection)
        transport = connection.transport
        if self._lingering >= _MAX_LINGERING:
            transport.abort()
            return
        transport.write(last_answer(error))
        with contextlib.suppress(OSError):  # It may be gone already.
            if transport.can_write_eof():
                transport.write_eof()
        self._lingering += 1
        self._loop.call_later(_LINGER_S, self._part, transport)

    def _part(self, transport: asyncio.Transport) -> None:
        self._lingering -= 1
        transport.abort()

    # -- time --------------------------------------------------------------------------------------------------

    def _look_at(self, when_s: float) -> None:
        """Look then, and not when it was meant to be, whether somebody has waited too long."""
        self.close()
        self._look_s = when_s
        self._timer = self._loop.call_at(when_s, self._look)

    def _look(self) -> None:
        self.close()
        now_s = self._loop.time()
        for waits in (self._idle, self._heads):
            while (one := waits.longest) is not None and one.since_s + waits.limit_s <= now_s:
                self._give_up(one)
        oldest = [one.since_s + waits.limit_s for waits in (self._idle, self._heads) if (one := waits.longest)]
        if oldest:
            self._look_at(min(oldest))

    def _give_up(self, connection: Connection) -> None:
        if connection.head_bytes:
            text = f"the head of the request did not arrive within {self._options.head_timeout_s:g} s"
            self._refuse(connection, Refused(408, text, "slow_request"))
        else:
            self._drop(connection)


def _bound_writing(transport: asyncio.Transport, limit_s: float) -> None:
    """Have the system close the connection of a caller who takes nothing of an answer for so long."""
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(limit_s * 1000)))
