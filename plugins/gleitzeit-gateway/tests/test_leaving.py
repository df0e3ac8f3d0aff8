"""Callers who leave: their work is stopped at the instance, then their slot is free, and a line tells of them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import Gate, HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.faults
in_each_api = pytest.mark.parametrize("v1", [False, True], ids=["ollama", "openai"])


async def _cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@in_each_api
async def test_leaving_in_the_middle_of_a_stream(serve: Serve, ollama: OllamaServer, *, v1: bool) -> None:
    """The upstream request is closed as soon as the caller has left, and the next one gets the slot."""
    ollama.gate = gate = Gate(tokens=1)
    gateway = await serve(ollama, hub={"max_concurrent": 1})
    begun = asyncio.Event()
    asked = asyncio.create_task(gateway.chat(stream=True, v1=v1, begun=begun.set))
    async with asyncio.timeout(20):
        await begun.wait()
        waiting = asyncio.create_task(gateway.chat(v1=v1))
        await gateway.until(lambda: gateway.waiting == 1)
        await _cancelled(asked)
        await ollama.wait_for(lambda server: server.disconnects == 1)
        # Nothing but the place that has become free lets the other one in.
        await ollama.wait_for(lambda server: server.in_flight == 1)
        gate.open()
        assert (await waiting).status == 200
    assert [record.disconnected for record in ollama.requests if record.body] == [True, False]
    assert gateway.in_flight == 0


@in_each_api
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("translated", [False, True], ids=["same api", "other api"])
async def test_leaving_before_the_answer_begins(
    serve: Serve, ollama: OllamaServer, *, stream: bool, v1: bool, translated: bool
) -> None:
    """Also a plain answer is no longer computed when nobody waits for it."""
    gateway = await serve(ollama, apis=["ollama" if translated == v1 else "openai"])
    ollama.script.next(hang := HangBeforeHeaders())
    asked = asyncio.create_task(gateway.chat(stream=stream, v1=v1))
    async with asyncio.timeout(20):
        await hang.reached.wait()
        assert gateway.in_flight == 1
        await _cancelled(asked)
        await ollama.wait_for(lambda server: server.disconnects == 1)
        await gateway.until(lambda: gateway.in_flight == 0)


@in_each_api
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_leaving_a_server_that_cannot_bear_it(
    serve: Serve, ollama: OllamaServer, *, stream: bool, v1: bool
) -> None:
    """With ``cancellable: false`` no connection to it is closed early: the work goes on, and has its slot until then."""
    ollama.gate = gate = Gate(tokens=1)
    gateway = await serve(ollama, hub={"max_concurrent": 1, "cancellable": False})
    begun = asyncio.Event()
    asked = asyncio.create_task(gateway.chat(stream=stream, v1=v1, begun=begun.set))
    async with asyncio.timeout(20):
        # A stream comes in parts here, too.
        await (begun.wait() if stream else ollama.wait_for(lambda _: gate.waiting == 1))
        waiting = asyncio.create_task(gateway.chat(stream=stream, v1=v1))
        await gateway.until(lambda: gateway.waiting == 1)
        await _cancelled(asked)
        await gateway.until(lambda: "1 requests" in repr(gateway.gateway))
        assert (gateway.in_flight, gateway.waiting, ollama.disconnects) == (1, 1, 0)
        gate.open()
        assert (await waiting).complete
        await gateway.until(lambda: gateway.in_flight == 0)
    done = [record for record in ollama.requests if record.body]
    assert [(record.finished, record.disconnected) for record in done] == [(True, False)] * 2


@in_each_api
async def test_leaving_the_queue(serve: Serve, ollama: OllamaServer, *, v1: bool) -> None:
    """Who leaves while waiting gives the place up, and no instance ever hears of it."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, route={"max_queue": 1})
    ollama.script.next(hang := HangBeforeHeaders())
    running = asyncio.create_task(gateway.chat("first", v1=v1))
    async with asyncio.timeout(20):
        await hang.reached.wait()
        leaving = asyncio.create_task(gateway.chat("leaves", v1=v1))
        await gateway.until(lambda: gateway.waiting == 1)
        await _cancelled(leaving)
        await gateway.until(lambda: gateway.waiting == 0)
        staying = asyncio.create_task(gateway.chat("stays", v1=v1))
        await gateway.until(lambda: gateway.waiting == 1)
        hang.released.set()
        assert [(await task).status for task in (running, staying)] == [200, 200]
    asked = [record.json["messages"][0]["content"] for record in ollama.requests if record.body]  # type: ignore[index, call-overload]
    assert asked == ["first", "stays"]


@pytest.mark.parametrize("api", ["ollama", "openai"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_leaving_with_anthropics_api(serve: Serve, ollama: OllamaServer, api: str, *, stream: bool) -> None:
    """It is always translated, and its callers leave like all others: before the answer, and in the middle of it."""
    ollama.gate = Gate(tokens=1)
    gateway = await serve(ollama, apis=[api])
    begun = asyncio.Event()
    body = {"model": "smollm2", "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": "a b"}]}
    asked = asyncio.create_task(gateway.ask("/v1/messages", body, begun=begun.set))
    async with asyncio.timeout(20):
        await (begun.wait() if stream else ollama.wait_for(lambda server: server.in_flight == 1))
        await _cancelled(asked)
        await ollama.wait_for(lambda server: server.disconnects == 1)
        await gateway.until(lambda: gateway.in_flight == 0)


async def test_leaving_while_the_body_is_sent(serve: Serve, ollama: OllamaServer) -> None:
    """Half a request is no request: nothing is sent on, and the place where it was read is free."""
    gateway = await serve(ollama)
    _, writer = await gateway.connect()
    writer.write(b'POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"model":')
    await writer.drain()
    await gateway.until(lambda: "1 requests" in repr(gateway.gateway))
    writer.close()
    await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
    assert not [record for record in ollama.requests if record.method == "POST"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_leaving_is_logged(
    serve: Serve, ollama: OllamaServer, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    """A request has its line also when nobody waited for its answer: status 499."""
    caplog.set_level(logging.INFO, "gleitzeit.access")
    ollama.gate = Gate(tokens=1)
    gateway = await serve(ollama, access_log=True)
    begun = asyncio.Event()
    asked = asyncio.create_task(gateway.chat(stream=stream, begun=begun.set))
    async with asyncio.timeout(20):
        await ollama.wait_for(lambda server: any(record.tokens for record in server.requests))
        if stream:
            await begun.wait()
        await _cancelled(asked)
        await gateway.until(lambda: caplog.messages)
    (line,) = caplog.messages
    assert "POST /api/chat 499 " in line
    assert "model=smollm2" in line
    assert ("instance=ollama-" in line) == stream
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_leaving_while_a_large_answer_is_sent(
    serve: Serve, ollama: OllamaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole answer counts as given when it is sent, not when it is ready; its slot is free before."""
    caplog.set_level(logging.INFO, "gleitzeit.access")
    ollama.reply = lambda _: ["x" * 20_000_000]
    gateway = await serve(ollama, access_log=True)
    _, writer = await gateway.connect()
    body = b'{"model": "smollm2", "stream": false, "messages": [{"role": "user", "content": "hi"}]}'
    writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    async with asyncio.timeout(20):
        await ollama.wait_for(lambda server: any(record.finished and record.body for record in server.requests))
        await gateway.until(lambda: gateway.in_flight == 0)
        for _ in range(100):
            await asyncio.sleep(0)
    assert caplog.messages == []
    assert "1 requests" in repr(gateway.gateway)
    writer.close()
    await gateway.until(lambda: caplog.messages)
    assert " 499 " in caplog.messages[0]


async def test_many_who_leave_at_once(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """After a crowd has left at every stage nothing is left of it, and the next one is served."""
    ollama.gate = other.gate = gate = Gate(tokens=2)
    gateway = await serve(ollama, other)
    crowd = [asyncio.create_task(gateway.chat(stream=n % 2 == 0, v1=n % 3 == 0)) for n in range(40)]
    async with asyncio.timeout(20):
        await gateway.until(lambda: gateway.in_flight == 8 and gateway.waiting == 32)
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await gateway.until(lambda: gateway.in_flight == gateway.waiting == 0)
        await ollama.wait_for(lambda server: server.in_flight == 0)
        await other.wait_for(lambda server: server.in_flight == 0)
        gate.open()
        assert (await gateway.chat()).status == 200
