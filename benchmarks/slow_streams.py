"""What the race measures besides speed: streams that are slow, open in great number, or left by their callers.

The server is in this process, so that what happens on both sides of a contender goes by one clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODEL: Final = "slow"
OPEN: Final = 1000
"""So many slow streams at once."""
GAPS: Final = 50
PACED: Final = 20
"""So many streams, with a part each `PACE_S`, say how evenly parts come."""
PACE_S: Final = 0.02
LEAVERS: Final = 20
_SLOW_S: Final = 2.0
_NEVER_S: Final = 5.0
_LIMIT_S: Final = 60.0
_PART: Final = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "x"}}]}).encode() + b"\n\n"
_CHUNK: Final = b"%x\r\n%b\r\n" % (len(_PART), _PART)
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS: Final = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
_LIST: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_MODELS),
    _MODELS,
)


class Running(Protocol):
    """A contender that runs."""

    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Slowness:
    """What was found.

    Args:
        stream_bytes: Memory that each of the open streams took.
        opened: How many were open.
        gap_s: The median between two parts.
        gap_p99_s: The one that a hundredth exceeds.
        leaving_s: From the moment a caller left until the server heard of it, at the median.
    """

    stream_bytes: float
    opened: int
    gap_s: float
    gap_p99_s: float
    leaving_s: float


class SlowServer(asyncio.Protocol):
    """One connection; asked for a chat it sends a part now and then, for ever.

    Args:
        lost: Gets the moment at which a connection with a stream on it is gone.
    """

    def __init__(self, lost: asyncio.Queue[float]) -> None:
        self._lost, self._asked, self._streams = lost, bytearray(), False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Some of a request; small ones come in one piece, or their bodies in a second one."""
        self._asked += data
        head, end, body = bytes(self._asked).partition(b"\r\n\r\n")
        if not end or (head.startswith(b"POST") and not body.endswith(b"}")):
            return
        self._asked.clear()
        if head.startswith(b"POST"):
            self._streams = True
            self._transport.write(_HEAD + _CHUNK)
            self._next(PACE_S if b"paced" in body else _SLOW_S)
        else:
            self._transport.write(_LIST)

    def _next(self, pace_s: float) -> None:
        asyncio.get_running_loop().call_later(pace_s, self._send, pace_s)

    def _send(self, pace_s: float) -> None:
        if not self._transport.is_closing():
            self._transport.write(_CHUNK)
            self._next(pace_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        del exc
        if self._streams:
            self._lost.put_nowait(time.perf_counter())


class Slow:
    """A server that listens, and what it has heard."""

    def __init__(self) -> None:
        self.lost: asyncio.Queue[float] = asyncio.Queue()
        self.url = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its URL."""
        server = await asyncio.get_running_loop().create_server(
            lambda: SlowServer(self.lost), "127.0.0.1", backlog=2048
        )
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self.url
        finally:
            server.close()


async def measure(contender: Running, slow: Slow, path: str, headers: str) -> Slowness:
    """All of it, with one contender. Streams that cannot be opened are not counted."""
    host, _, port = contender.url.removeprefix("http://").partition(":")
    body = {
        False: b'{"model":"slow","stream":true,"messages":[]}',
        True: b'{"model":"slow","stream":true,"user":"paced","messages":[]}',
    }

    async def open_one(*, paced: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(host, int(port))
        sent = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {len(body[paced])}\r\n\r\n"
        writer.write(sent.encode() + body[paced])
        top = await reader.readuntil(b"\r\n\r\n")
        if not top.startswith(b"HTTP/1.1 200"):
            writer.close()
            raise ConnectionError(top.partition(b"\r\n")[0].decode())
        return reader, writer

    async with asyncio.timeout(_LIMIT_S * 3):
        leaving_s = await _leaving(open_one, slow)
        gaps = sorted(gap for gaps in await asyncio.gather(*(_gaps(open_one) for _ in range(PACED))) for gap in gaps)
        await _drop(slow)
        before = _memory_bytes(contender.pid)
        found = await asyncio.gather(*(open_one() for _ in range(OPEN)), return_exceptions=True)
        opened = [one for one in found if isinstance(one, tuple)]
        # All of them have had more than their beginnings.
        await asyncio.sleep(_SLOW_S * 1.5)
        took = _memory_bytes(contender.pid) - before
        for _, writer in opened:
            writer.close()
    return Slowness(
        stream_bytes=took / max(1, len(opened)),
        opened=len(opened),
        gap_s=statistics.median(gaps),
        gap_p99_s=gaps[int(len(gaps) * 0.99)],
        leaving_s=leaving_s,
    )


async def _leaving(open_one, slow: Slow) -> float:  # noqa: ANN001 - the function above
    delays = []
    for _ in range(LEAVERS):
        await _drop(slow)
        _, writer = await open_one()
        left = time.perf_counter()
        writer.transport.abort()
        try:
            async with asyncio.timeout(_NEVER_S):
                delays.append(await slow.lost.get() - left)
        except TimeoutError:
            return math.inf
    return statistics.median(delays)


async def _drop(slow: Slow) -> None:
    """Forget whom the server has heard to be gone."""
    await asyncio.sleep(0.05)
    while not slow.lost.empty():
        slow.lost.get_nowait()


async def _gaps(open_one) -> list[float]:  # noqa: ANN001 - the function above
    """The times between parts as they come."""
    reader, writer = await open_one(paced=True)
    came = []
    for _ in range(GAPS):
        await reader.readuntil(b"\n\n")
        came.append(time.perf_counter())
    writer.close()
    return [after - before for before, after in itertools.pairwise(came)]


def _memory_bytes(pid: int) -> int:
    """What a process has in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
