"""Where requests go, and the connections there that are kept between two of them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import re
import socket
import ssl
from base64 import b64encode
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import aiohappyeyeballs
from aiohttp import ClientError, ConnectionTimeoutError, ServerDisconnectedError
from yarl import URL

from gleitzeit_core.errors import FailureKind
from gleitzeit_llm.connection import Connection, CutOff

_KEEP_S: Final = 30.0
_HAPPY_EYEBALLS_S: Final = 0.25
_LAST_S: Final = 1.0
# So often in the time after which a server that sends nothing more is cut off, it is looked whether it does.
_LOOKS: Final = 4
_MAX_ORIGINS: Final = 4096
_SENDABLE_PATH: Final = re.compile(r"[!-\"$-~]*")
_HOST: Final = re.compile(r"[!-~]+")


class Unconnected(ClientError):
    """There is no connection.

    Args:
        os_error: Why.
    """

    def __init__(self, os_error: OSError) -> None:
        super().__init__(str(os_error))
        self.os_error = os_error


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The fixed part of an address. Compared as objects are: it is looked up for every request.

    Args:
        secure: Whether TLS is spoken there.
        host: A name in ASCII or an address, without brackets.
        port: From 1.
        host_header: What the ``Host`` header says.
        base: The path that all paths are below, without a slash at its end.
        authorization: From a name and a password in the address; empty for none.
    """

    secure: bool
    host: str
    port: int
    host_header: str
    base: str
    authorization: str = field(repr=False)

    @property
    def is_address(self) -> bool:
        """Whether its host needs no look-up."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


@functools.lru_cache(_MAX_ORIGINS)
def origin_of(url: str) -> Origin:
    """The origin of a base URL.

    Raises:
        ValueError: It is no address of an HTTP server.
    """
    parsed = URL(url)
    host, port = parsed.raw_host, parsed.port
    if parsed.scheme not in ("http", "https") or not host or not port or not _HOST.fullmatch(host):
        raise ValueError("it is no address of an HTTP server")
    return Origin(
        secure=parsed.scheme == "https",
        host=host,
        port=port,
        host_header=(parsed.host_port_subcomponent or host),
        base=parsed.raw_path.rstrip("/"),
        authorization="" if parsed.user is None else _basic(parsed.user, parsed.password or ""),
    )


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def target(origin: Origin, path: str) -> str:
    """The path as it stands in a request.

    Args:
        origin: Where it is.
        path: Below the URL of `origin`, from ``/``.
    """
    if not _SENDABLE_PATH.fullmatch(path):
        path = quote(path, safe="/?&=%:@!$'()*+,;~")
    return origin.base + path


@functools.cache
def _default_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context


class Connections:
    """The connections of one client. There is no limit on their number, because slots are the limit.

    Args:
        connect_timeout_s: For a look-up, a connection and a handshake together.
        stall_timeout_s: A server that has begun to answer, and sends nothing for so long, is cut off; None: never.
    """

    def __init__(self, connect_timeout_s: float, stall_timeout_s: float | None = None) -> None:
        self._connect_timeout_s, self._stall_timeout_s = connect_timeout_s, stall_timeout_s
        self._loop = asyncio.get_running_loop()
        self._idle: defaultdict[object, list[Connection]] = defaultdict(list)
        self._all: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event = asyncio.Event()
        self._closing = False

    def __repr__(self) -> str:
        """How many there are."""
        return f"<Connections {len(self._all)}, {sum(map(len, self._idle.values()))} idle>"

    def kept(self, origin: Origin, tls: ssl.SSLContext | None) -> Connection | None:
        """The idle connection that was used last; None when there is none. It is given back with `give_back`."""
        idle = self._idle.get((origin.secure, origin.host, origin.port, tls))
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        return None

    async def fresh(self, origin: Origin, tls: ssl.SSLContext | None) -> Connection:
        """A new connection.

        Raises:
            Unconnected: There is none to be had.
            ConnectionTimeoutError: Not in time.
            ServerDisconnectedError: All of them are being closed.
        """
        if self._closing:
            raise ServerDisconnectedError
        key = (origin.secure, origin.host, origin.port, tls)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._connect(origin, tls, key)
        except TimeoutError as error:
            # The system has a time-out of its own, which has a number.
            raise (ConnectionTimeoutError() if error.errno is None else Unconnected(error)) from None
        except OSError as error:
            raise Unconnected(error) from None
        if self._closing:  # Meanwhile, that is.
            connection.abort()
            raise ServerDisconnectedError
        return connection

    async def _connect(self, origin: Origin, tls: ssl.SSLContext | None, key: object) -> Connection:
        how: dict[str, Any] = {}
        if origin.secure:
            how["ssl"] = tls or await asyncio.to_thread(_default_tls)
            how["server_hostname"] = origin.host.rstrip(".")
        if origin.is_address:
            how.update(host=origin.host, port=origin.port)
        else:
            found = await self._loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
            how["sock"] = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_HAPPY_EYEBALLS_S)
        _, made = await self._loop.create_connection(lambda: Connection(self._loop, self._lost, key), **how)
        if not made.closed:
            self._all.add(made)
            if self._watcher is None:
                self._watch()
        return made

    def give_up(self, origin: Origin, tls: ssl.SSLContext | None, why: str) -> None:
        """Cut off all that leads to a server and on which nothing has been answered yet."""
        key = (origin.secure, origin.host, origin.port, tls)
        for one in tuple(self._all):
            if one.key == key and one.answer is not None and not one.has_output:
                one.cut_off(CutOff(FailureKind.LOST, why))

    def _watch(self) -> None:
        """Look at all of them from time to time, as long as there are any: no part of an answer sets a timer."""
        if self._stall_timeout_s is not None and not self._closing:
            self._watcher = self._loop.call_later(self._stall_timeout_s / _LOOKS, self._look)

    def _look(self) -> None:
        self._watcher = None
        for one in tuple(self._all):
            one.quiet = one.quiet + 1 if one.waits_for_rest else 0
            if one.quiet > _LOOKS:
                why = f"began to answer and then sent nothing for {self._stall_timeout_s:g} s"
                one.cut_off(CutOff(FailureKind.TIMEOUT, why))
        if self._all:
            self._watch()

    def give_back(self, connection: Connection) -> None:
        """Be done with it: it is kept if its answer was read to the end and it can carry another, and closed if not."""
        if connection.release():
            self._idle[connection.key].append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(_KEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close what was idle for too long. Those used last are at the end."""
        before = self._loop.time() - _KEEP_S
        for key, idle in tuple(self._idle.items()):
            left = [one for one in idle if not one.closed and one.idle_since > before]
            for one in idle:
                if one.idle_since <= before:
                    one.abort()
            if left:
                self._idle[key] = left
            else:
                del self._idle[key]
        self._sweeper = self._loop.call_later(_KEEP_S, self._sweep) if self._idle else None

    def _lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if not self._all:
            self._emptied.set()

    async def close(self) -> None:
        """Close all of them, those in use too, and see that they are gone."""
        self._closing = True
        for timer in (self._sweeper, self._watcher):
            if timer is not None:
                timer.cancel()
        self._idle.clear()
        self._emptied.clear()
        for connection in tuple(self._all):
            connection.abort()
        if self._all:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await self._emptied.wait()
