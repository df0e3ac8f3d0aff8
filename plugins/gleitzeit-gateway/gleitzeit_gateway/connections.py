"""The connections of callers: how many there may be, and how long they may say nothing.

Where there are too many, those that do nothing make room: first the one that has been idle for longest, then the one
that has taken longest over the head of its request. Only when all are at work is a new one refused.

`Connections` knows nothing of HTTP. The server tells it what happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.errors import Refused
from gleitzeit_gateway.http_parsing import HeadLimits
from gleitzeit_gateway.last_answer import last_answer

if TYPE_CHECKING:
    from gleitzeit_gateway.options import GatewayOptions

# What refused callers get to read their answer: closing at once would take it from those who still send.
_LINGER_S: Final = 1.0
_MAX_LINGERING: Final = 128
_FULL: Final = 503


class Guarded:
    """A connection as `Connections` sees it.

    Attributes:
        transport: Its transport; None once it is closed.
        waits: What it waits for, with others, since `since_s`; None while a request is at work, and when it is over.
        since_s: On the loop's clock.
        over: Whether it is being closed: what still comes is thrown away.
    """

    __slots__ = ("over", "since_s", "transport", "waits")

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waits: _Waiting | None = None
        self.since_s = 0.0
        self.over = False

    @property
    def in_head(self) -> bool:
        """Whether some of a request's head has come, and not all of it."""
        return False


@dataclass(eq=False, slots=True)
class _Waiting:
    """Connections that wait for the same.

    Args:
        limit_s: For so long at most.
        connections: By how long they have waited, the longest first.
    """

    limit_s: float
    connections: dict[Guarded, None] = field(default_factory=dict)

    @property
    def longest(self) -> Guarded | None:
        return next(iter(self.connections), None)


class Connections:
    """All connections of one gateway.

    Args:
        options: Of the gateway; may be replaced.

    Attributes:
        head_limits: How large the heads of requests may be, by these options.
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
        self.head_limits = HeadLimits()
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
        self.head_limits.most_bytes, self.head_limits.most_headers = options.max_head_bytes, options.max_headers

    def close(self) -> None:
        """Look after none of them any more."""
        self._look_s = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- what happens on them ----------------------------------------------------------------------------------

    def opened(self, connection: Guarded, transport: asyncio.Transport) -> None:
        """A new one. Where there is no room for it, it is refused, and is over."""
        self._loop = asyncio.get_running_loop()
        if self._open >= min(self._options.max_connections, self._room):
            self._make_room()
        self._open += 1
        if self._open > min(self._options.max_connections, self._room):
            text = f"{self._open - 1} connections are open, and all of them are at work"
            self._refuse(connection, Refused(_FULL, text, "too_many_connections"))
            return
        _bound_writing(transport, self._options.send_timeout_s)
        self._wait(connection, self._heads)

    def heard(self, connection: Guarded) -> None:
        """Something has come, and no whole head: all of that must be there in time."""
        if connection.waits is self._idle:
            self.began(connection)
            self._wait(connection, self._heads)

    def began(self, connection: Guarded) -> None:
        """It waits no more: a request has begun."""
        if connection.waits is not None:
            del connection.waits.connections[connection]
            connection.waits = None

    def ended(self, connection: Guarded) -> None:
        """Its requests have been answered, and it is kept for another, which may have begun to come."""
        if not connection.over:
            self._wait(connection, self._heads if connection.in_head else self._idle)

    def lost(self, connection: Guarded) -> None:
        """It is closed."""
        self.began(connection)
        self._open -= not connection.over
        connection.over = True

    # -- inside ------------------------------------------------------------------------------------------------

    def _wait(self, connection: Guarded, waits: _Waiting) -> None:
        connection.waits, connection.since_s = waits, self._loop.time()
        waits.connections[connection] = None
        ends_s = connection.since_s + waits.limit_s
        if ends_s < self._look_s:
            self._look_at(ends_s)

    def _make_room(self) -> None:
        longest = self._idle.longest or self._heads.longest
        if longest is not None:
            self._drop(longest)

    def _drop(self, connection: Guarded) -> None:
        """Close one that has nothing to lose."""
        self.lost(connection)
        if connection.transport is not None:
            connection.transport.abort()

    def _refuse(self, connection: Guarded, error: Refused) -> None:
        """Answer on a connection on which no request has begun, and close it."""
        self.lost(connection)
        transport = connection.transport
        if transport is None:
            return
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

    def _give_up(self, connection: Guarded) -> None:
        if connection.in_head:
            text = f"the head of the request did not arrive within {self._options.head_timeout_s:g} s"
            self._refuse(connection, Refused(408, text, "slow_request"))
        else:
            self._drop(connection)


def _bound_writing(transport: asyncio.Transport, limit_s: float) -> None:
    """Have the system close the connection of a caller who takes nothing of an answer for so long."""
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(limit_s * 1000)))
