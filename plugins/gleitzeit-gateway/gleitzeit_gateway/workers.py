"""Several processes at one address: ``gleitzeit serve --workers N``.

The first process takes the address and forks the others before any loop runs; each of those listens on the address with
``SO_REUSEPORT``, so that the kernel spreads connections over them. The first one passes signals on, begins another for
one that has crashed, and carries nothing out. Workers share nothing but the address: each has its own queues, slots
and numbers. Only the numbers for Prometheus are put together, by asking the others over sockets that only this user
reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

logger = logging.getLogger(__name__)

_SIGNALS: Final = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD))
# For one that ends sooner than this after its start, the pause before the next doubles.
_STEADY_S: Final = 5.0
_PAUSE_S: Final = 1.0
_PAUSE_MAX_S: Final = 30.0
# How long another worker may take to tell its numbers.
_TELL_S: Final = 2.0
_TOLD_BYTES: Final = 64 * 1024 * 1024


# -- a worker ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Worker:
    """What one of several processes knows of the others.

    Args:
        number: From 1.
        count: Of all.
        folder: Of their sockets.
        parent: The process that began it.
        alive_fd: Comes to its end with that process.
        up_fd: Takes a byte once this one serves.
        mask: Of signals; until `take_signals`, those wait that it will have handlers for.
    """

    number: int
    count: int
    folder: Path
    parent: int
    alive_fd: int
    up_fd: int
    mask: tuple[int, ...]
    _server: asyncio.AbstractServer | None = field(default=None, repr=False)

    def take_signals(self) -> None:
        """Be told what the first process tells: from now on there are handlers."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    async def listen(self, told: Callable[[], Awaitable[bytes]]) -> None:
        """Tell other workers `told`, and that this one serves; and end with the process that began it."""

        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                writer.write(await told())
                await writer.drain()
            writer.close()

        self._server = await asyncio.start_unix_server(tell, self._socket(self.number))
        os.write(self.up_fd, b"1")
        asyncio.get_running_loop().add_reader(self.alive_fd, self._orphaned)

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self.alive_fd)
        logger.warning("the process that began this worker is gone")
        os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """Tell nothing any more."""
        if self._server is not None:
            self._server.close()

    def reload_all(self) -> None:
        """Have all workers read their configuration again."""
        os.kill(self.parent, signal.SIGHUP)

    async def of_all(self, mine: bytes) -> bytes:
        """The numbers of all workers, each with a label ``worker``; one that does not answer in time is left out."""
        others = [number for number in range(1, self.count + 1) if number != self.number]
        told = await asyncio.gather(*map(self._ask, others))
        texts = {self.number: mine, **{number: text for number, text in zip(others, told, strict=True) if text}}
        return await asyncio.to_thread(_together, texts)

    async def _ask(self, number: int) -> bytes:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_TELL_S):
                reader, writer = await asyncio.open_unix_connection(self._socket(number), limit=_TOLD_BYTES)
                try:
                    return await reader.read()
                finally:
                    writer.close()
        return b""

    def _socket(self, number: int) -> str:
        return str(self.folder / f"{number}.sock")


def _together(texts: dict[int, bytes]) -> bytes:
    """Several expositions as one, their samples told apart by a label."""
    found: dict[str, Metric] = {}
    for number, text in sorted(texts.items()):
        for family in text_string_to_metric_families(text.decode()):
            merged = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged.samples += [one._replace(labels={**one.labels, "worker": str(number)}) for one in family.samples]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(found.values()))
    return generate_latest(registry)


class _Merged:
    """Metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


# -- the process that begins them ----------------------------------------------------------------------------------


def reserve(host: str, port: int) -> tuple[int, list[socket.socket]]:
    """Take an address for all workers, without listening.

    Returns:
        The port, and what holds it: to be kept while workers run.

    Raises:
        OSError: It is taken, or not ours.
    """
    held: list[socket.socket] = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, address in found:
            at: Any = (address[0], port, *address[2:])
            # Another group of workers would share its port with us: one who does not ask to share finds it taken.
            with _bound(family, kind, protocol, at) as probe:
                port = port or probe.getsockname()[1]
            held.append(_bound(family, kind, protocol, (address[0], port, *address[2:]), shared=True))
    except OSError:
        for one in held:
            one.close()
        raise
    return port, held


def _bound(family: int, kind: int, protocol: int, address: Any, *, shared: bool = False) -> socket.socket:  # noqa: ANN401 - by family
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def supervise(count: int) -> Worker | int:
    """Begin `count` workers and see after them.

    Returns:
        In each worker, what it is. In the process that called this, its exit status, once all workers have ended.
    """
    return _Supervisor(count).run()


@dataclass(slots=True)
class _Place:
    """One worker's place."""

    pid: int = 0
    began_at: float = 0.0
    again_at: float = 0.0
    pause_s: float = _PAUSE_S


class _Supervisor:
    def __init__(self, count: int) -> None:
        self._places = [_Place() for _ in range(count)]
        self._folder = Path(tempfile.mkdtemp(prefix="gleitzeit-"))
        self._alive, self._held = os.pipe()
        self._up, self._say_up = os.pipe()
        os.set_blocking(self._up, False)
        self._stopping: list[signal.Signals] = []
        self._status = 0
        self._came_up = False

    def run(self) -> Worker | int:
        """See `supervise`."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            for number, place in enumerate(self._places, 1):
                if not place.pid and not self._stopping and place.again_at <= time.monotonic():
                    place.pid, place.began_at = os.fork(), time.monotonic()
                    if not place.pid:
                        return self._worker(number, before)
            if not any(place.pid for place in self._places) and self._stopping:
                break
            self._wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        for fd in (self._alive, self._held, self._up, self._say_up):
            os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._status

    def _worker(self, number: int, mask: Iterable[int]) -> Worker:
        os.close(self._held)
        os.close(self._up)
        # Ctrl-C goes to all processes of a terminal; this one is told by the first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return Worker(number, len(self._places), self._folder, os.getppid(), self._alive, self._say_up, tuple(mask))

    def _wait(self) -> None:
        """For a signal, or until one may be begun again."""
        due = [place.again_at for place in self._places if not place.pid]
        limit_s = max(0.0, min(due) - time.monotonic()) if due and not self._stopping else 3600.0
        told = signal.sigtimedwait(_SIGNALS, limit_s)
        if told is None:
            return
        if told.si_signo == signal.SIGCHLD:
            self._reap()
        elif told.si_signo == signal.SIGHUP:
            self._tell(signal.SIGHUP)
        else:
            self._stop(signal.Signals(told.si_signo))

    def _stop(self, number: signal.Signals) -> None:
        self._stopping.append(number)
        first = len(self._stopping) == 1
        self._status = (130 if number == signal.SIGINT else 0) if first else 128 + number
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid:
                # It may have ended, but as long as it is not reaped its number is nobody else's.
                os.kill(place.pid, number)

    def _reap(self) -> None:
        for number, place in enumerate(self._places, 1):
            if place.pid and (ended := os.waitpid(place.pid, os.WNOHANG))[0]:
                self._ended(number, place, os.waitstatus_to_exitcode(ended[1]))

    def _ended(self, number: int, place: _Place, status: int) -> None:
        lived_s, place.pid = time.monotonic() - place.began_at, 0
        with contextlib.suppress(BlockingIOError):
            self._came_up = bool(os.read(self._up, 1)) or self._came_up
        if self._stopping:
            self._status = self._status or max(0, status)
        elif not self._came_up:
            # None has ever come up, so it is nothing that passes; what it is, it has said itself.
            self._stop(signal.SIGTERM)
            self._status = status if status > 0 else 1
        else:
            place.pause_s = _PAUSE_S if lived_s >= _STEADY_S else min(2 * place.pause_s, _PAUSE_MAX_S)
            place.again_at = time.monotonic() + place.pause_s
            said = f"with status {status}" if status >= 0 else f"by signal {signal.Signals(-status).name}"
            logger.warning("worker %d has ended %s; another begins in %g s", number, said, place.pause_s)
