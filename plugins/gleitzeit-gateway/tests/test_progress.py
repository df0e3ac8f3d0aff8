"""Answers are reaped by their progress, not by their age; and what lacks its end is nowhere taken for complete."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_ollama.testing import (
    DropAfter,
    Fault,
    Gate,
    HangBeforeHeaders,
    OllamaServer,
    StallAfter,
    Status,
    TruncateAfter,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.faults

PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
ENDS = ('"done":true', "[DONE]", "message_stop")
in_each_api = pytest.mark.parametrize("api", PATHS)
over_each_api = pytest.mark.parametrize("apis", [("ollama",), ("openai",)], ids=["on ollama", "on openai"])
streaming_or_not = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def body_of(api: str, *, stream: bool) -> dict[str, Any]:
    """A question in one of the client APIs."""
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    return body | ({"max_tokens": 100} if api == "anthropic" else {})


async def chat(gateway: RunningGateway, api: str, *, stream: bool) -> Answered:
    """Ask it."""
    return await gateway.ask(PATHS[api], body_of(api, stream=stream))


async def tries(gateway: RunningGateway) -> dict[str, float]:
    """How many tries have ended how, as the metrics say."""
    found: dict[str, float] = {}
    for line in (await gateway.ask("/metrics")).text.splitlines():
        if line.startswith("gleitzeit_tries_total{"):
            result = line.partition('result="')[2].partition('"')[0]
            found[result] = found.get(result, 0) + float(line.rpartition(" ")[2])
    return {result: count for result, count in found.items() if count}


def incomplete(answered: Answered, *, stream: bool) -> bool:
    """Whether an answer says by itself that it is none, or not all of one."""
    if not stream:
        return answered.status >= 500 and "error" in answered.text
    return answered.status == 200 and not answered.complete and not any(end in answered.text for end in ENDS)


# -- standing still ----------------------------------------------------------------------------------------------------


@streaming_or_not
@over_each_api
@in_each_api
async def test_an_answer_that_stands_still(
    serve: Serve, ollama: OllamaServer, api: str, apis: tuple[str, ...], *, stream: bool
) -> None:
    """Long before its deadline an answer ends, with an error, when nothing more of it comes; it counts as a time-out."""
    gateway = await serve(ollama, apis=apis, llm={"stall_timeout_s": 0.1}, route={"max_tries": 1})
    ollama.script.always(StallAfter(1))
    async with asyncio.timeout(20):
        answered = await chat(gateway, api, stream=stream)
        await ollama.wait_for(lambda server: server.disconnects == 1)
    if stream:
        assert incomplete(answered, stream=True)
        assert "sent nothing for 0.1 s" in answered.text
    else:
        assert answered.status == 504
    assert (await tries(gateway), gateway.in_flight) == ({"timeout": 1}, 0)


@in_each_api
async def test_a_whole_answer_that_stands_still_goes_elsewhere(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, api: str
) -> None:
    """Nobody has seen anything of it, so another instance can answer."""
    gateway = await serve(ollama, other, llm={"stall_timeout_s": 0.1}, route={"strategy": "round_robin"})
    ollama.script.next(StallAfter(1))
    async with asyncio.timeout(20):
        answers = [await chat(gateway, api, stream=False) for _ in range(2)]
    assert [answered.status for answered in answers] == [200, 200]


async def test_slow_is_not_still(serve: Serve, ollama: OllamaServer) -> None:
    """An answer of which something comes now and then goes on, for much longer than the limit in all."""
    ollama.gate = gate = Gate()
    gateway = await serve(ollama, llm={"stall_timeout_s": 0.6})
    asked = asyncio.create_task(gateway.chat("one two three four five six", stream=True))
    async with asyncio.timeout(20):
        while not asked.done():
            await asyncio.wait({asked}, timeout=0.15)
            gate.allow(1)
    assert (await asked).complete


async def test_a_reader_who_stands_still_is_no_fault_of_the_instance(serve: Serve, ollama: OllamaServer) -> None:
    """While the caller takes nothing, nothing is asked of the instance, and so nothing is missed."""
    ollama.reply = lambda _: ["x" * 4_000_000] * 8
    gateway = await serve(ollama, llm={"stall_timeout_s": 0.1})
    async with gateway.session.post(gateway.url + "/api/chat", json=body_of("ollama", stream=True)) as response:
        first = await response.content.read(100)
        for _ in range(8):
            # Nothing happens, which is what must not matter.
            await asyncio.sleep(0.1)
        rest = await response.read()
    assert len(first + rest) > 32_000_000
    assert b'"done":true' in rest[-1000:]


# -- an instance that goes down before it answers ------------------------------------------------------------------------


@streaming_or_not
async def test_an_instance_that_goes_down_with_those_who_wait(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, *, stream: bool
) -> None:
    """Who waits for the first output of an instance that turns out to be down is answered by another."""
    gateway = await serve(ollama, other, route={"strategy": "round_robin"})
    ollama.script.always(HangBeforeHeaders())
    async with asyncio.timeout(20):
        asked = [asyncio.create_task(chat(gateway, "ollama", stream=stream)) for _ in range(4)]
        await ollama.wait_for(lambda server: server.held == 2)
        (report,) = [one for one in gateway.manager.instances() if one.instance.endpoint == ollama.url]
        ollama.script.always(Status(500), on="any")
        # One bad check might be a mistake.
        assert [await gateway.manager.dispatcher.shell.check_now(report.instance.id) for _ in range(2)] == [False] * 2
        answers = await asyncio.gather(*asked)
    assert [answered.status for answered in answers] == [200] * 4
    assert sorted(answered.headers["X-Gleitzeit-Tries"] for answered in answers) == ["1", "1", "2", "2"]
    assert ollama.disconnects >= 2


async def test_an_instance_that_comes_back_at_once_keeps_those_who_wait(serve: Serve, ollama: OllamaServer) -> None:
    """Checks that fail for a moment cost nobody a load that is under way."""
    gateway = await serve(ollama)
    ollama.script.next(hang := HangBeforeHeaders())
    async with asyncio.timeout(20):
        asked = asyncio.create_task(chat(gateway, "ollama", stream=True))
        await hang.reached.wait()
        (report,) = gateway.manager.instances()
        check, name = gateway.manager.dispatcher.shell.check_now, report.instance.id
        ollama.script.always(Status(500), on="any")
        assert [await check(name) for _ in range(2)] == [False] * 2
        ollama.script.clear()
        assert await check(name)
        done, _ = await asyncio.wait({asked}, timeout=1.5)
        assert not done
        hang.released.set()
        assert (await asked).headers["X-Gleitzeit-Tries"] == "1"


# -- without an end ------------------------------------------------------------------------------------------------------

ENDLESS = {"ended cleanly": TruncateAfter(1), "closed": DropAfter(1), "reset": DropAfter(1, reset=True)}


@streaming_or_not
@over_each_api
@in_each_api
@pytest.mark.parametrize("fault", ENDLESS.values(), ids=ENDLESS)
async def test_an_answer_without_its_end(
    serve: Serve, ollama: OllamaServer, fault: Fault, api: str, apis: tuple[str, ...], *, stream: bool
) -> None:
    """It is incomplete to its caller, however clean the connection ended, and a failure in the metrics."""
    gateway = await serve(ollama, apis=apis, route={"max_tries": 1})
    ollama.script.always(fault)
    async with asyncio.timeout(20):
        answered = await chat(gateway, api, stream=stream)
    assert incomplete(answered, stream=stream)
    found = await tries(gateway)
    assert "ok" not in found
    assert found.keys() <= {"lost", "server_error"}
    assert gateway.in_flight == 0


@pytest.mark.parametrize(("api", "apis"), [("ollama", ["ollama"]), ("openai", ["openai"]), ("openai", ["ollama"])])
async def test_leaving_with_all_of_an_answer(serve: Serve, ollama: OllamaServer, api: str, apis: list[str]) -> None:
    """Who has the last part, and leaves before the connection says that it was the last, has been served."""
    gateway = await serve(ollama, apis=apis)
    end = b'"done":true' if api == "ollama" else b'"finish_reason":"stop"'
    path = "/api/chat" if apis == ["ollama"] else "/v1/chat/completions"
    probe = await gateway.ask(path, body_of("openai", stream=True))
    parts = len([part for part in probe.text.split("\n" if apis == ["ollama"] else "\n\n") if part])
    before = await tries(gateway)
    ollama.script.next(StallAfter(parts))
    seen = b""
    async with asyncio.timeout(20):
        async with gateway.session.post(gateway.url + PATHS[api], json=body_of(api, stream=True)) as response:
            while end not in seen:
                seen += await response.content.readany()
        await gateway.until(lambda: gateway.in_flight == 0)
    assert (before, await tries(gateway)) == ({"ok": 1}, {"ok": 2})
