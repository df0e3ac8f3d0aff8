"""Callers who send or read slowly, or not at all: others are served meanwhile, and what they cost is bounded."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from .callers import (
    ALIVE,
    ANSWERED_ALIVE,
    BODY,
    LIMIT_S,
    MIB,
    QUESTION,
    at_most_open,
    chat,
    descriptors,
    memory_bytes,
    others_are_served,
    read_all,
    reads_nothing,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]
    Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]
    Connect = Callable[..., Awaitable[Connected]]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.mark.parametrize("sent", [b"", b"P", chat()[:-2]], ids=["nothing", "a byte", "all but the end"])
async def test_head_that_does_not_come(serve: Serve, ollama: OllamaServer, connect: Connect, sent: bytes) -> None:
    """Who has not sent the head of a request in time is told so, if anything was sent, and is cut off."""
    gateway = await serve(ollama, head_timeout_s=0.2)
    reader, _ = await connect(gateway, sent)
    async with asyncio.timeout(LIMIT_S):
        answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 408 ") == bool(sent)
    await others_are_served(gateway)


async def test_heads_a_byte_at_a_time(serve: Serve, ollama: OllamaServer, connect: Connect, *, full_size: bool) -> None:
    """A byte now and then buys no time; meanwhile others are served, and then nothing is left of the slow ones."""
    gateway = await serve(ollama, head_timeout_s=0.5)
    await others_are_served(gateway)
    before = await asyncio.to_thread(descriptors)
    slow = [await connect(gateway) for _ in range(1000 if full_size else 100)]

    async def drip(connected: Connected) -> bytes:
        reader, writer = connected
        answer = asyncio.ensure_future(read_all(reader))
        for number in range(10**6):
            if answer.done():
                break
            writer.write(b"GET / HTTP/1.1\r\nX: "[number : number + 1] or b"x")
            await asyncio.sleep(0.01)
        writer.close()
        return await answer

    async with asyncio.timeout(LIMIT_S):
        dripping = [asyncio.ensure_future(drip(one)) for one in slow]
        while not all(task.done() for task in dripping):
            await others_are_served(gateway)
        assert all(task.result().startswith((b"HTTP/1.1 408 ", b"")) for task in dripping)
        await at_most_open(before)


async def test_bodies_a_byte_at_a_time(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """The same with bodies; their callers hold no slot until all is there."""
    gateway = await serve(ollama, hub={"max_concurrent": 1})
    slow = [await connect(gateway, chat()) for _ in range(50)]
    async with asyncio.timeout(LIMIT_S):
        for number in range(len(BODY) - 1):
            for _, writer in slow:
                writer.write(BODY[number : number + 1])
            if number % 20 == 0:
                await others_are_served(gateway)
        assert gateway.in_flight == 0
        for reader, writer in slow:
            writer.write(BODY[-1:])
            assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"


async def test_idle_connection(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """A connection that has had its answer is closed without a word when no other request comes."""
    gateway = await serve(ollama, idle_timeout_s=0.2)
    reader, _ = await connect(gateway, ALIVE)
    async with asyncio.timeout(LIMIT_S):
        assert (await read_all(reader)).endswith(ANSWERED_ALIVE)


async def test_caller_who_never_reads(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """The one slot goes to the next when a caller has taken nothing for too long; until then little is kept for it."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, send_timeout_s=0.5)
    words = 100_000
    ollama.reply = lambda _: ["word " * 1000] * words
    body = json.dumps({**QUESTION, "stream": True}).encode()
    before = memory_bytes()
    _, writer = await connect(gateway, chat(length=len(body)) + body)
    reads_nothing(writer)
    async with asyncio.timeout(LIMIT_S):
        await ollama.wait_for(lambda server: server.in_flight == 1)
        waiting = asyncio.ensure_future(gateway.chat())
        await gateway.until(lambda: gateway.waiting == 1)
        ollama.reply = lambda _: ["hi"]
        assert (await waiting).status == 200
    (hog, _) = [record for record in ollama.requests if record.body]
    assert hog.disconnected
    # What lies in the sockets' own buffers on the way, and no more: 500 MB would have been sent.
    assert hog.tokens < words / 10
    assert memory_bytes() - before < 64 * MIB


async def test_callers_who_never_read_whole_answers(serve: Serve, ollama: OllamaServer, connect: Connect) -> None:
    """A whole answer that nobody reads holds no slot; others are served."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, send_timeout_s=0.5)
    ollama.reply = lambda _: ["x" * 8 * MIB]
    for _ in range(3):
        _, writer = await connect(gateway, chat() + BODY)
        reads_nothing(writer)
    async with asyncio.timeout(LIMIT_S):
        await ollama.wait_for(lambda server: sum(r.finished for r in server.requests if r.body) == 3)
        ollama.reply = lambda _: ["You said: hi"]
        await others_are_served(gateway)
        await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
