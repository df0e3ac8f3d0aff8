"""Servers that misbehave: what has not begun goes elsewhere, what has begun never ends as if it were complete."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import (
    Busy,
    DropAfter,
    DropBeforeHeaders,
    ErrorLineAfter,
    Fault,
    Garbage,
    Gate,
    Hang,
    OllamaProcess,
    OllamaServer,
    StallAfter,
    Status,
    TruncateAfter,
    Unauthorized,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Start = Callable[..., Awaitable[OllamaProcess]]

pytestmark = pytest.mark.faults
SAID = "You said: hi"
in_each_api = pytest.mark.parametrize("v1", [False, True], ids=["ollama", "openai"])
streaming_or_not = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def message_of(answered: Answered, *, v1: bool) -> str:
    """The words of an error, which is in its API's envelope."""
    error = answered.json["error"]
    if not v1:
        assert isinstance(error, str)
        return error
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["message"])


def said(answered: Answered, *, v1: bool, stream: bool) -> str:
    """The words of a complete answer."""
    assert answered.status == 200
    assert answered.complete
    if not v1:
        parts = answered.lines
        assert parts[-1]["done"] is True
        return "".join(part["message"]["content"] for part in parts)
    if not stream:
        return str(answered.json["choices"][0]["message"]["content"])
    *chunks, done = answered.events
    assert done == "[DONE]"
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)


def broken_off(answered: Answered, *, v1: bool) -> str:
    """The words of the error at the end of an answer that had begun: in its API's shape, and no clean end after it."""
    assert answered.status == 200
    assert not answered.complete
    *parts, last = answered.events if v1 else answered.lines
    assert parts
    assert "[DONE]" not in parts
    assert not any(part.get("done") for part in parts)
    error = last["error"]
    return str(error["message"] if v1 else error)


# -- many at once --------------------------------------------------------------------------------------------------


async def test_eight_at_once_over_two(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Eight requests at once are spread evenly over two instances with four slots each; none waits."""
    ollama.gate = other.gate = gate = Gate()
    gateway = await serve(ollama, other)
    asked = [asyncio.create_task(gateway.chat(stream=number % 2 == 0, v1=number % 4 < 2)) for number in range(8)]
    await ollama.wait_for(lambda server: server.in_flight == 4)
    await other.wait_for(lambda server: server.in_flight == 4)
    assert (gateway.in_flight, gateway.waiting) == (8, 0)
    gate.open()
    for number, answered in enumerate(await asyncio.gather(*asked)):
        assert said(answered, v1=number % 4 < 2, stream=number % 2 == 0) == SAID
        assert answered.headers["X-Gleitzeit-Tries"] == "1"


async def test_kill_under_load(serve: Serve, process: Start) -> None:
    """After kill -9 of one of two instances nothing fails that had not begun; what had gets an error, no clean end."""
    victim, survivor = [await process(gate=True, num_parallel=64) for _ in range(2)]
    gateway = await serve(victim, survivor, hub={"max_concurrent": 64})
    begun: list[str] = []
    first = [(True, number % 2 == 0) for number in range(8)]
    later = [(number % 2 == 0, number % 4 < 2) for number in range(24)]

    def ask(stream: bool, v1: bool) -> asyncio.Task[Answered]:  # noqa: FBT001 - as listed
        return asyncio.create_task(gateway.chat(stream=stream, v1=v1, begun=lambda: begun.append("")))

    async with asyncio.timeout(20):
        asked = [ask(*kind) for kind in first]
        await victim.wait_for(waiting_tokens=4)
        await victim.allow(4)
        await gateway.until(lambda: len(begun) == 4)
        asked += [ask(*kind) for kind in later]
        await victim.wait_for(waiting_tokens=16)
        await survivor.wait_for(waiting_tokens=16)
        victim.kill()
        await survivor.open_gate()
        answers = await asyncio.gather(*asked)
    broken = 0
    for (stream, v1), answered in zip([*first, *later], answers, strict=True):
        if answered.complete:
            assert said(answered, v1=v1, stream=stream) == SAID
        else:
            broken += 1
            assert broken_off(answered, v1=v1)
    assert broken == 4
    assert sorted(answered.headers["X-Gleitzeit-Tries"] for answered in answers) == ["1"] * 20 + ["2"] * 12
    assert gateway.in_flight == 0
    assert said(await gateway.chat(), v1=False, stream=False) == SAID


# -- one that fails, and one that is well --------------------------------------------------------------------------

BEFORE_OUTPUT = {
    "500": Status(500),
    "500 of a proxy": Garbage(code=500),
    "a page instead of an answer": Garbage(),
    "busy": Busy(retry_after_s=7),
    "refuses our key": Unauthorized(),
    "closed without a word": DropBeforeHeaders(),
    "reset without a word": DropBeforeHeaders(reset=True),
    "closed after the headers": DropAfter(0),
    "an error instead of an answer": ErrorLineAfter(0),
}


@in_each_api
@streaming_or_not
@pytest.mark.parametrize("fault", BEFORE_OUTPUT.values(), ids=BEFORE_OUTPUT)
async def test_failure_before_output_goes_elsewhere(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, fault: Fault, *, stream: bool, v1: bool
) -> None:
    """What fails before its first output is answered by the other instance, and nobody notices."""
    gateway = await serve(ollama, other, route={"strategy": "round_robin"})
    ollama.script.next(fault)
    answers = [await gateway.chat(stream=stream, v1=v1) for _ in range(3)]
    assert [said(answered, v1=v1, stream=stream) for answered in answers] == [SAID] * 3
    assert sorted(answered.headers["X-Gleitzeit-Tries"] for answered in answers) == ["1", "1", "2"]


@in_each_api
async def test_stream_without_any_output_goes_elsewhere(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, *, v1: bool
) -> None:
    """A stream that ends before it has begun is no answer."""
    gateway = await serve(ollama, other, route={"strategy": "round_robin"})
    ollama.script.next(TruncateAfter(0))
    answers = [await gateway.chat(stream=True, v1=v1) for _ in range(3)]
    assert [said(answered, v1=v1, stream=True) for answered in answers] == [SAID] * 3
    assert sorted(answered.headers["X-Gleitzeit-Tries"] for answered in answers) == ["1", "1", "2"]


# -- one that fails, and no other ----------------------------------------------------------------------------------

ALONE = {
    "500": (Status(500), 500, "something went wrong"),
    "500 of a proxy": (Garbage(code=500), 500, "HTTP 500 Internal Server Error"),
    "502 with text": (Status(502, "bad gateway"), 502, "bad gateway"),
    "500 in another API's shape": (Status(500, {"object": "error", "message": "oh"}), 500, "oh"),
    "a page instead of an answer": (Garbage(), 502, "text/html"),
    "a redirect": (Status(302, "", {"Location": "/elsewhere"}), 502, "302"),
    "refuses our key": (Unauthorized(), 502, "refused the gateway's own credentials"),
    "closed without a word": (DropBeforeHeaders(), 502, "closed the connection"),
    "closed after the headers": (DropAfter(0), 502, ""),
}


@in_each_api
@streaming_or_not
@pytest.mark.parametrize(("fault", "status", "words"), ALONE.values(), ids=ALONE)
async def test_failure_of_the_only_one(
    serve: Serve, ollama: OllamaServer, fault: Fault, status: int, words: str, *, stream: bool, v1: bool
) -> None:
    """The caller gets a status and a sentence in its API's envelope, never the page of somebody else."""
    gateway = await serve(ollama)
    ollama.script.always(fault)
    answered = await gateway.chat(stream=stream, v1=v1)
    assert answered.status == status
    assert words in message_of(answered, v1=v1)
    assert answered.complete
    assert answered.headers["X-Gleitzeit-Error"] == "instance_failure"
    assert answered.headers["X-Gleitzeit-Instance"].startswith("ollama-127.0.0.1")


@in_each_api
@streaming_or_not
async def test_busy_one(serve: Serve, ollama: OllamaServer, *, stream: bool, v1: bool) -> None:
    """A busy instance's own words and its Retry-After reach the caller."""
    gateway = await serve(ollama)
    ollama.script.next(Busy(retry_after_s=7))
    answered = await gateway.chat(stream=stream, v1=v1)
    assert answered.status == 503
    assert "maximum pending requests exceeded" in message_of(answered, v1=v1)
    assert answered.headers["Retry-After"] == "7"


@in_each_api
async def test_nobody_is_up(serve: Serve, ollama: OllamaServer, *, v1: bool) -> None:
    """A model whose instances are all down is 503, and the sentence names them."""
    gateway = await serve(ollama)
    await ollama.stop()
    await gateway.chat(v1=v1)
    answered = await gateway.chat(v1=v1)
    assert answered.status == 503
    assert ollama.url in message_of(answered, v1=v1)
    assert answered.headers["X-Gleitzeit-Error"] == "unavailable"


# -- in the middle of a stream -------------------------------------------------------------------------------------

AFTER_OUTPUT = {
    "no final marker": (TruncateAfter(2), "without its final marker"),
    "closed": (DropAfter(2), ""),
    "reset": (DropAfter(2, reset=True), ""),
    "an error inside": (ErrorLineAfter(2, "out of memory"), "out of memory"),
}


@in_each_api
@pytest.mark.parametrize("translated", [False, True], ids=["same api", "other api"])
@pytest.mark.parametrize(("fault", "words"), AFTER_OUTPUT.values(), ids=AFTER_OUTPUT)
async def test_failure_in_the_middle_of_a_stream(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, fault: Fault, words: str, *, translated: bool, v1: bool
) -> None:
    """An answer that has begun cannot go elsewhere: it gets an error inside, and the connection is cut."""
    api = "ollama" if translated == v1 else "openai"
    gateway = await serve(ollama, other, apis=[api])
    ollama.script.always(fault)
    other.script.always(fault)
    answered = await gateway.chat(stream=True, v1=v1)
    assert words in broken_off(answered, v1=v1)
    assert gateway.in_flight == 0
    ollama.script.clear()
    other.script.clear()
    assert said(await gateway.chat(stream=True, v1=v1), v1=v1, stream=True) == SAID


# -- one that hangs ------------------------------------------------------------------------------------------------


@in_each_api
@streaming_or_not
async def test_deadline_of_one_that_hangs(serve: Serve, ollama: OllamaServer, *, stream: bool, v1: bool) -> None:
    """Only the deadline ends the wait for an instance that says nothing: 504, and its connection is closed."""
    gateway = await serve(ollama, route={"timeout_s": 0.2})
    ollama.script.next(hang := Hang())
    answered = await gateway.chat(stream=stream, v1=v1)
    assert hang.reached.is_set()
    assert answered.status == 504
    assert "deadline exceeded" in message_of(answered, v1=v1)
    async with asyncio.timeout(20):
        await ollama.wait_for(lambda server: server.disconnects == 1)
    assert gateway.in_flight == 0


@in_each_api
async def test_deadline_of_one_that_stalls(serve: Serve, ollama: OllamaServer, *, v1: bool) -> None:
    """A stream that stands still until its deadline ends with an error inside."""
    gateway = await serve(ollama, route={"timeout_s": 0.3})
    ollama.script.next(StallAfter(2))
    assert "deadline exceeded" in broken_off(await gateway.chat(stream=True, v1=v1), v1=v1)
    async with asyncio.timeout(20):
        await ollama.wait_for(lambda server: server.disconnects == 1)
    assert gateway.in_flight == 0


@pytest.mark.parametrize("strategy", ["least_loaded", "round_robin", "random"])
async def test_fast_failures_are_no_sinkhole(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, *, strategy: str
) -> None:
    """A server that fails at once, and so always looks idle, gets nothing after its fifth failure; callers see none."""
    gateway = await serve(ollama, other, route={"strategy": strategy})
    ollama.script.always(Status(500))
    answers = [await gateway.chat() for _ in range(60)]
    assert [answered.status for answered in answers] == [200] * 60
    assert sum(record.path == "/api/chat" for record in ollama.requests) == 5
    states = {one["endpoint"]: one["state"] for one in (await gateway.ask("/admin/instances")).json["instances"]}
    assert states == {ollama.url: "ejected", other.url: "ready"}
