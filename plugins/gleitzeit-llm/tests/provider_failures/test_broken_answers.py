"""Answers that are incomplete, that end with an error, or that are none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure

from .caller import END, ERROR, NDJSON, PAGE, PART, SSE, TYPES, WAYS, WHOLE, Call, answering, streaming, ways

if TYPE_CHECKING:
    Line = Any


# -- answers that are incomplete -----------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("how", ["end", "close", "reset"])
async def test_a_stream_that_breaks_off_is_lost(call: Call, dialect: str, api: str, how: str) -> None:
    """However it ends without its final marker, the caller has what came and is told that it is not all."""
    held = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.begin(TYPES[api])
        line.chunk(PART[api])
        await line.flush()
        await held.wait()
        line.chunk(b"") if how == "end" else getattr(line, how)()

    caller, _ = await call(dialect, api, handle)
    out = b""
    with pytest.raises(InstanceFailure) as caught:  # noqa: PT012 - the parts before it failed count
        async for part in caller.parts():
            out += part
            held.set()
    assert (caught.value.kind, caught.value.started) == (FailureKind.LOST, True)
    assert b"hi" in out


@ways
async def test_a_stream_without_anything_is_lost(call: Call, dialect: str, api: str) -> None:
    """An empty answer is not an answer."""
    caller, _ = await call(dialect, api, streaming(TYPES[api]))
    out, failure = await caller.failure(stream=True)
    assert (out, failure.kind) == (b"", FailureKind.LOST)


@ways
async def test_a_whole_answer_that_breaks_off_is_lost(call: Call, dialect: str, api: str) -> None:
    """Less than its length says is not all of it."""

    async def handle(line: Line) -> None:
        await line.request()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + WHOLE[api])
        line.close()

    caller, _ = await call(dialect, api, handle)
    _, failure = await caller.failure(stream=False)
    assert failure.kind is FailureKind.LOST


@ways
async def test_a_cut_line_is_not_given_out(call: Call, dialect: str, api: str) -> None:
    """So that an error of ours can follow."""
    caller, _ = await call(dialect, api, streaming(TYPES[api], PART[api] + PART[api][:30]))
    out, failure = await caller.failure(stream=True)
    assert failure.kind is FailureKind.LOST
    assert out.count(b'"hi"') == 1
    if dialect:
        assert out.endswith({"ollama": b"\n", "openai": b"\n\n"}[dialect])


# -- errors in streams ---------------------------------------------------------------------------------------------


@ways
async def test_an_error_before_the_first_output_leads_elsewhere(call: Call, dialect: str, api: str) -> None:
    """Nobody has seen anything, so another instance begins anew; the caller notices nothing."""
    good = streaming(TYPES[api], PART[api], END[api])
    bad = streaming(TYPES[api], ERROR[api])
    caller, servers = await call(dialect, api, bad, good)
    while not servers[0].heard:
        out = b"".join([part async for part in caller.parts()])
        assert b"hi" in out
        assert b"out of memory" not in out


@ways
@pytest.mark.parametrize("together", [True, False])
async def test_an_error_after_the_first_output_is_raised(
    call: Call,
    dialect: str,
    api: str,
    together: bool,  # noqa: FBT001 - both ways
) -> None:
    """What came before it comes out, even in the same packet; then the instance's words, and no other instance."""
    chunks = [PART[api] + ERROR[api]] if together else [PART[api], ERROR[api]]
    caller, servers = await call(dialect, api, *[streaming(TYPES[api], *chunks)] * 2)
    out, failure = await caller.failure(stream=True)
    assert (failure.kind, failure.message) == (FailureKind.SERVER_ERROR, "out of memory")
    assert b"hi" in out
    assert b"out of memory" not in out
    assert sum(len(server.heard) for server in servers) == 1


async def test_a_comment_is_output(call: Call) -> None:
    """What was sent to the caller was sent: after a comment that keeps the connection alive there is no other try."""
    bad = streaming(SSE, b": still loading\n\n", ERROR["openai"])
    caller, servers = await call("openai", "openai", bad, bad)
    out, failure = await caller.failure(stream=True)
    assert out == b": still loading\n\n"
    assert failure.message == "out of memory"
    assert sum(len(server.heard) for server in servers) == 1


@pytest.mark.parametrize("dialect", ["", "ollama"])
async def test_a_comment_that_nobody_sees_is_no_output(call: Call, dialect: str) -> None:
    """Where the stream is translated, comments do not reach the caller, so another instance can still take over."""
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
    bad = streaming(SSE, b": still loading\n\n" + role, ERROR["openai"])
    caller, servers = await call(dialect, "openai", bad, streaming(SSE, PART["openai"], END["openai"]))
    while not servers[0].heard:
        assert b"hi" in b"".join([part async for part in caller.parts()])


# -- answers that are none -----------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("stream", [True, False])
async def test_a_page_instead_of_an_answer(call: Call, dialect: str, api: str, stream: bool) -> None:  # noqa: FBT001 - both ways
    """A proxy's page with status 200 is the instance's fault, and does not reach the caller."""
    caller, _ = await call(dialect, api, answering(PAGE, kind="text/html"))
    out, failure = await caller.failure(stream=stream)
    assert (out, failure.kind, failure.body) == (b"", FailureKind.SERVER_ERROR, None)


@ways
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_with_status_200(call: Call, dialect: str, api: str, stream: bool) -> None:  # noqa: FBT001 - both ways
    """Some servers answer so what they do not know."""
    caller, _ = await call(dialect, api, answering(b'{"error":"Unexpected endpoint or method"}'))
    _, failure = await caller.failure(stream=stream)
    assert (failure.kind, failure.message) == (FailureKind.SERVER_ERROR, "Unexpected endpoint or method")


@pytest.mark.parametrize(("dialect", "api"), WAYS[:2])
async def test_another_framing_does_not_pass(call: Call, dialect: str, api: str) -> None:
    """A stream where a whole answer was asked for, or one in another framing, is refused with its type."""
    caller, _ = await call(dialect, api, answering(WHOLE[api], kind=TYPES[api]))
    _, failure = await caller.failure(stream=False)
    assert failure.message.endswith(f"answered {TYPES[api]}, not JSON")
    other = {"ollama": SSE, "openai": NDJSON}[api]
    caller, _ = await call(dialect, api, streaming(other, PART[api], END[api]))
    _, failure = await caller.failure(stream=True)
    assert failure.message.endswith(f"answered {other}, not {TYPES[api]}")
