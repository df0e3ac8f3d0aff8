"""The connections of callers: how many there may be, how long they may say nothing, how large the head of a request is.

Where there are too many, those that do nothing make room: first the one that has been idle for longest, then the one
that has taken longest over the head of its request. Only when all are at work is a new one refused.

`Connections` knows nothing of HTTP but where a head ends. The server tells it what happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import socket
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.errors import Refused, plain_error

if TYPE_CHECKING:
    from gleitzeit_gateway.options import GatewayOptions

_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
# All of such an end but for its last byte.
_TAIL_BYTES: Final = 3
# What refused callers get to read their answer: closing at once would take it from those who still send.
_LINGER_S: Final = 1.0
_MAX_LINGERING: Final = 128
_FULL: Final = 503
_REASONS: Final = {408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


class _State(Enum):
    IDLE = "idle"
    HEAD = "head"
    """A part of a head is there; or nothing yet, on a new connection."""
    WORKING = "working"
    OVER = "over"
    """It is being closed; what still comes is thrown away."""


@dataclass(eq=False, slots=True)
class Connection:
    """One connection.

    Args:
        transport: Its transport.
        state: What it does.
        since_s: Since when, on the loop's clock.
        head_bytes: How much of a head is there.
        head_lines: How many lines of it.
        tail: The last bytes of it.
    """

    transport: asyncio.Transport
    state: _State
    since_s: float
    head_bytes: int = 0
    head_lines: int = 0
    tail: bytes = b""

    @property
    def is_over(self) -> bool:
        """Whether nothing that comes on it is of interest any more."""
        return self.state is _State.OVER


class Connections:
    """All connections of one gateway.

    Args:
        options: Of the gateway; may be replaced.
    """

    def __init__(self, options: GatewayOptions) -> None:
        self.options = options
        # A request needs a second socket, to the instance.
        self._room = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open = 0
        self._lingering = 0
        # By how long they have been in that state, the longest first.
        self._waiting: dict[_State, OrderedDict[Connection, None]] = {
            s: OrderedDict() for s in (_State.IDLE, _State.HEAD)
        }
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        """Counts."""
        idle, heads = (len(self._waiting[state]) for state in (_State.IDLE, _State.HEAD))
        return f"<Connections {self._open} open, {idle} idle, {heads} before the end of a head>"

    def close(self) -> None:
        """Look after none of them any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- what happens on them ----------------------------------------------------------------------------------

    def opened(self, transport: asyncio.Transport) -> Connection:
        """A new one. Where there is no room for it, it is refused, and is over."""
        if self._open >= min(self.options.max_connections, self._room):
            self._make_room()
        connection = Connection(transport, _State.HEAD, asyncio.get_running_loop().time())
        self._open += 1
        if self._open > min(self.options.max_connections, self._room):
            text = f"{self._open - 1} connections are open, and all of them are at work"
            self._refuse(connection, Refused(_FULL, text, "too_many_connections"))
            return connection
        _bound_writing(transport, self.options.send_timeout_s)
        self._wait(connection, _State.HEAD)
        return connection

    def heard(self, connection: Connection, data: bytes) -> bool:
        """Bytes have come. Whether the server may have them: of a head only so many."""
        if connection.state is _State.IDLE and self._is_usual(data):
            self.began(connection)
            return True
        if connection.state is _State.IDLE:
            self._wait(connection, _State.HEAD)
        if connection.state is not _State.HEAD:
            return connection.state is _State.WORKING
        return self._heard_of_head(connection, data)

    def began(self, connection: Connection) -> None:
        """A request has begun."""
        if not connection.is_over:
            self._forget(connection)
            connection.state = _State.WORKING

    def ended(self, connection: Connection, *, kept: bool) -> None:
        """It has ended; the connection is `kept` for another, or is about to be closed."""
        if kept and connection.state is _State.WORKING:
            self._wait(connection, _State.IDLE)

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        self._end(connection)

    # -- inside ------------------------------------------------------------------------------------------------

    def _is_usual(self, data: bytes) -> bool:
        """Whether it begins with a whole head that is within all limits, as nearly all that comes does."""
        end = data.find(b"\r\n\r\n")
        within = 0 < end < self.options.max_head_bytes - 4 and data[0] not in b"\r\n"
        return within and data.count(b"\n", 0, end) <= self.options.max_headers

    def _heard_of_head(self, connection: Connection, data: bytes) -> bool:
        if not connection.head_bytes:
            data = data.lstrip(b"\r\n")  # Empty lines before a request are no request.
        found = _END_OF_HEAD.search(connection.tail + data)
        size = len(data) if found is None else found.end() - len(connection.tail)
        connection.head_bytes += size
        connection.head_lines += data.count(b"\n", 0, size)
        most_bytes, most_headers = self.options.max_head_bytes, self.options.max_headers
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

    def _wait(self, connection: Connection, state: _State) -> None:
        self._forget(connection)
        connection.state, connection.since_s = state, asyncio.get_running_loop().time()
        connection.head_bytes, connection.head_lines, connection.tail = 0, 0, b""
        self._waiting[state][connection] = None
        ends_s = connection.since_s + self._limit_s(state)
        if self._timer is None or ends_s < self._timer.when():
            self._look_at(ends_s)

    def _forget(self, connection: Connection) -> None:
        if connection.state in self._waiting:
            self._waiting[connection.state].pop(connection, None)

    def _make_room(self) -> None:
        for state in (_State.IDLE, _State.HEAD):
            if self._waiting[state]:
                self._drop(next(iter(self._waiting[state])))
                return

    def _drop(self, connection: Connection) -> None:
        """Close one that has nothing to lose."""
        self._end(connection)
        connection.transport.abort()

    def _end(self, connection: Connection) -> None:
        self._forget(connection)
        self._open -= not connection.is_over
        connection.state = _State.OVER

    def _refuse(self, connection: Connection, error: Refused) -> None:
        """Answer on a connection on which no request has begun, and close it."""
        self._end(connection)
        transport = connection.transport
        if self._lingering >= _MAX_LINGERING:
            transport.abort()
            return
        transport.write(_bare_answer(error))
        with contextlib.suppress(OSError):  # It may be gone already.
            if transport.can_write_eof():
                transport.write_eof()
        self._lingering += 1
        asyncio.get_running_loop().call_later(_LINGER_S, self._part, transport)

    def _part(self, transport: asyncio.Transport) -> None:
        self._lingering -= 1
        transport.abort()

    # -- time --------------------------------------------------------------------------------------------------

    def _look_at(self, when_s: float) -> None:
        """Look then, and not when it was meant to be, whether somebody has waited too long."""
        self.close()
        self._timer = asyncio.get_running_loop().call_at(when_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for state, waiting in self._waiting.items():
            limit_s = self._limit_s(state)
            while waiting and next(iter(waiting)).since_s + limit_s <= now_s:
                self._give_up(next(iter(waiting)))
        oldest = [(state, next(iter(waiting))) for state, waiting in self._waiting.items() if waiting]
        if oldest:
            self._look_at(min(connection.since_s + self._limit_s(state) for state, connection in oldest))

    def _give_up(self, connection: Connection) -> None:
        if connection.head_bytes:
            text = f"the head of the request did not arrive within {self.options.head_timeout_s:g} s"
            self._refuse(connection, Refused(408, text, "slow_request"))
        else:
            self._drop(connection)

    def _limit_s(self, state: _State) -> float:
        return self.options.idle_timeout_s if state is _State.IDLE else self.options.head_timeout_s


def _bound_writing(transport: asyncio.Transport, limit_s: float) -> None:
    """Have the system close the connection of a caller who takes nothing of an answer for so long."""
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(limit_s * 1000)))


def _bare_answer(error: Refused) -> bytes:
    """An answer to what has not become a request; so in no API's envelope but our own."""
    answer = plain_error(error)
    body = answer.body if isinstance(answer.body, bytes) else b""
    headers = {**answer.headers, "Content-Length": str(len(body)), "Connection": "close"}
    if error.status == _FULL:
        headers["Retry-After"] = "1"
    lines = [
        f"HTTP/1.1 {error.status} {_REASONS[error.status]}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
