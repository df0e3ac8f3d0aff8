"""What hostile callers send and how they behave, and what the process that bears them costs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gleitzeit_gateway.testing import RunningGateway


QUESTION: Final = {"model": "smollm2", "stream": False, "messages": [{"role": "user", "content": "hi"}]}
BODY: Final = json.dumps(QUESTION).encode()
LIMIT_S: Final = 120
MIB: Final = 1024 * 1024
ALIVE: Final = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWERED_ALIVE: Final = b'{"status":"ok"}'


def chat(*headers: str, length: int | None = len(BODY)) -> bytes:
    """The head of a chat."""
    lines = ["POST /api/chat HTTP/1.1", "Host: localhost", *headers]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough


def memory_bytes() -> int:
    """How much memory this process has, in RAM."""
    gc.collect()
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()


async def at_most_open(limit: int) -> None:
    """Wait until this process has so few files and sockets open."""
    async with asyncio.timeout(LIMIT_S):
        while await asyncio.to_thread(descriptors) > limit:
            await asyncio.sleep(0.001)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed, by FIN or RST."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65536):
            got += part
    return bytes(got)


async def pour(writer: asyncio.StreamWriter, parts: Iterable[bytes]) -> int:
    """Send until all is sent or the other side has had enough; how many bytes were taken from us."""
    taken = 0
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            if writer.transport.is_closing():
                break
            taken += len(part)
    return taken


def reads_nothing(writer: asyncio.StreamWriter) -> None:
    """Let what comes on a connection lie where it is."""
    cast("asyncio.Transport", writer.transport).pause_reading()


async def others_are_served(gateway: RunningGateway) -> None:
    """A usual caller gets a usual answer."""
    answered = await gateway.chat()
    assert (answered.status, answered.json["message"]["content"]) == (200, "You said: hi")
