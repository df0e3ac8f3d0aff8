"""Callers who send far ahead, or come in thousands: others are served meanwhile, and what they cost is bounded."""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import Gate, OllamaServer

from .callers import (
    ALIVE,
    ANSWERED_ALIVE,
    BODY,
    LIMIT_S,
    MIB,
    at_most_open,
    chat,
    descriptors,
    memory_bytes,
    others_are_served,
    pour,
    read_all,
    reads_nothing,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]
    Connect = Callable[..., Awaitable[Connected]]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


async def test_requests_sent_far_ahead(
    serve: Serve, ollama: OllamaServer, connect: Connect, *, full_size: bool
) -> None:
    """They are answered in order, one at a time; meanwhile others are served."""
    gateway = await serve(ollama)
    count = 5000 if full_size else 500
    paths = [f"/v1/models/smollm2?{number}" if number % 2 else f"/nope/{number}" for number in range(count)]
    reader, writer = await connect(gateway)

    async def answers() -> list[bytes]:
        got = []
        for _ in paths:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
            await reader.readexactly(size)
            got.append(head[9:12])
        return got

    async with asyncio.timeout(LIMIT_S):
        answered = asyncio.ensure_future(answers())
        sent = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths]
        pouring = asyncio.ensure_future(pour(writer, sent))
        await others_are_served(gateway)
        assert await answered == [b"200" if number % 2 else b"404" for number in range(count)]
        await pouring


async def test_requests_sent_ahead_and_not_read(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """Who sends without end and reads nothing is held back, and then cut off."""
    gateway = await serve(ollama, send_timeout_s=0.5)
    before = memory_bytes()
    _, writer = await connect(gateway)
    reads_nothing(writer)
    async with asyncio.timeout(LIMIT_S):
        async with asyncio.TaskGroup() as group:
            pouring = group.create_task(pour(writer, itertools.repeat(ALIVE * 100)))
            while not pouring.done():
                await others_are_served(gateway)
    assert pouring.result() < 100 * MIB
    assert memory_bytes() - before < 64 * MIB


async def test_thousands_of_idle_connections(
    serve: Serve, ollama: OllamaServer, connect: Connect, *, full_size: bool
) -> None:
    """They cost little and others are served; above the limit the one that has been idle for longest makes room."""
    room = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2
    count = min(5000, room) if full_size else 300
    kept = count * 4 // 5
    gateway = await serve(ollama, max_connections=kept)
    before, open_before = memory_bytes(), await asyncio.to_thread(descriptors)
    async with asyncio.timeout(LIMIT_S):
        idle = []
        for _ in range(count):
            idle.append(await connect(gateway, ALIVE))
            assert (await idle[-1][0].readuntil(b"}")).endswith(ANSWERED_ALIVE)
        await others_are_served(gateway)
        assert [reader.at_eof() or await reader.read(1) == b"" for reader, _ in idle[: count - kept]]
        # The last ones can still be used.
        for reader, writer in idle[-3:]:
            writer.write(ALIVE)
            assert (await reader.readuntil(b"}")).endswith(ANSWERED_ALIVE)
        await at_most_open(open_before + count + kept + 20)
    assert memory_bytes() - before < count * 40_000 + 8 * MIB


async def test_all_connections_at_work(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """One more than may be is refused with 503 and a time to come back; no work is broken off for it."""
    gateway = await serve(ollama, max_connections=3)
    ollama.gate = gate = Gate()
    async with asyncio.timeout(LIMIT_S):
        working = [await connect(gateway, chat() + BODY) for _ in range(3)]
        await ollama.wait_for(lambda server: server.in_flight == 3)
        reader, _ = await connect(gateway)
        refused = await read_all(reader)
        gate.open()
        for reader, _ in working:
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        # They are idle now, and one makes room.
        reader, _ = await connect(gateway, ALIVE)
        assert (await reader.readuntil(b"}")).endswith(ANSWERED_ALIVE)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in refused
    assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"


async def test_slow_heads_make_room(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """Who fills all connections with beginnings of requests keeps nobody out."""
    gateway = await serve(ollama, max_connections=20)
    slow = [await connect(gateway, b"GET / HTTP") for _ in range(40)]
    async with asyncio.timeout(LIMIT_S):
        await others_are_served(gateway)
        assert [await read_all(reader) for reader, _ in slow[:20]] == [b""] * 20


async def test_connections_that_come_and_go(serve: Serve, ollama: OllamaServer, *, full_size: bool) -> None:
    """Whatever they leave behind in the middle of, nothing of it stays."""
    gateway = await serve(ollama)
    await others_are_served(gateway)
    beginnings = [b"", b"G", chat(), chat() + BODY[:9], chat() + BODY, ALIVE, b"\x16\x03\x01", ALIVE * 9, b"G" * 70_000]
    before, tasks = await asyncio.to_thread(descriptors), len(asyncio.all_tasks())

    async def come_and_go(number: int) -> None:
        _, writer = await gateway.connect()
        writer.write(beginnings[number % len(beginnings)])
        if number % 3:
            await writer.drain()
        if number % 2:
            writer.transport.abort()
        writer.close()

    async with asyncio.timeout(LIMIT_S):
        for number in range(0, 5000 if full_size else 400, 20):
            await asyncio.gather(*(come_and_go(number + step) for step in range(20)))
            if number % 100 == 0:
                await others_are_served(gateway)
        await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
        await gateway.until(lambda: (gateway.in_flight, gateway.waiting) == (0, 0))
        await ollama.wait_for(lambda server: server.in_flight == 0)
        await gateway.until(lambda: len(asyncio.all_tasks()) <= tasks + 4)
        # Connections to the instance may be kept.
        await at_most_open(before + 16)
