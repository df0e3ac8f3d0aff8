"""What becomes of a request when its instance fails, or its caller leaves."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_llm.provider import RawAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator

    from gleitzeit_core.requests import Request

    Line = Any
    Handler = Callable[[Line], Awaitable[None]]
    Serve = Callable[..., Awaitable[Any]]
    StartPool = Callable[..., Awaitable[Any]]
    MakeInstance = Callable[..., Any]

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json"
MESSAGES = [{"role": "user", "content": "hi"}]
PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
TYPES = {"ollama": NDJSON, "openai": SSE}
PART = {
    "ollama": b'{"model":"smollm2","message":{"role":"assistant","content":"hi"},"done":false}\n',
    "openai": b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n',
}
END = {
    "ollama": b'{"model":"smollm2","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n',
    "openai": b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
}
ERROR = {
    "ollama": b'{"error":"out of memory"}\n',
    "openai": b'data: {"error":{"message":"out of memory"}}\n\n',
}
WHOLE = {
    "ollama": b'{"model":"smollm2","message":{"role":"assistant","content":"hi"},"done":true,"done_reason":"stop"}',
    "openai": b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}',
}

# How a request reaches an instance that speaks `api`: as the bytes of a client API, or as parameters.
WAYS = [
    pytest.param("ollama", "ollama", id="ollama to ollama"),
    pytest.param("openai", "openai", id="openai to openai"),
    pytest.param("ollama", "openai", id="ollama to openai"),
    pytest.param("openai", "ollama", id="openai to ollama"),
    pytest.param("", "ollama", id="library to ollama"),
    pytest.param("", "openai", id="library to openai"),
]
ways = pytest.mark.parametrize(("dialect", "api"), WAYS)


def streaming(kind: str, *chunks: bytes, how: str = "end") -> Handler:
    """A server that answers with these chunks and then ends the body, closes, or resets."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            line.begin(kind)
            for chunk in chunks:
                line.chunk(chunk)
            if how != "end":
                await line.flush()
                getattr(line, how)()
                return
            line.chunk(b"")

    return handle


def answering(body: bytes, status: str = "200 OK", kind: str = JSON, more: str = "") -> Handler:
    """A server that answers whole."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            line.answer(body, status=status, kind=kind, more=more)

    return handle


class Caller:
    """Sends one kind of request to a pool, in one way, and tells what happened."""

    def __init__(self, pool: Any, dialect: str) -> None:  # noqa: ANN401 - a pool
        self.pool, self.dialect = pool, dialect

    def request(self, *, stream: bool, **fields: object) -> Request:
        """A chat."""
        params = {"model": "smollm2", "messages": MESSAGES, **fields}
        if not self.dialect:
            made: Request = self.pool.provider.request("llm/chat", params).changed(stream=stream)
            return made
        body = json.dumps({**params, "stream": stream}).encode()
        sent: Request = self.pool.provider.raw_request(self.dialect, PATHS[self.dialect], body)
        return sent

    async def whole(self, **fields: object) -> Any:  # noqa: ANN401 - an answer
        """A whole answer: the text it says."""
        request = self.request(stream=False, **fields)
        value = (await self.pool.dispatcher.one(self.pool.provider, request)).value
        return value.body if isinstance(value, RawAnswer) else value["message"]["content"].encode()

    async def parts(self, **fields: object) -> AsyncIterator[bytes]:
        """The parts of a stream, as bytes."""
        stream = self.pool.dispatcher.stream(self.pool.provider, self.request(stream=True, **fields))
        async with stream:
            async for part in stream:
                yield part if isinstance(part, bytes) else json.dumps(part).encode()

    async def failure(self, *, stream: bool, **fields: object) -> tuple[bytes, InstanceFailure]:
        """What came out before it failed, and how it failed."""
        out: list[bytes] = []
        with pytest.raises(InstanceFailure) as caught:
            await self.sent(out, stream=stream, **fields)
        return b"".join(out), caught.value

    async def sent(self, out: list[bytes], *, stream: bool, **fields: object) -> None:
        """Send a request, and put into `out` what comes out."""
        if not stream:
            out.append(await self.whole(**fields))
            return
        async for part in self.parts(**fields):
            out.append(part)  # noqa: PERF401 - what came before a failure counts

    def outcome(self, url: str) -> list[str]:
        """How tries on the instance at `url` ended."""
        report = next(r for r in self.pool.dispatcher.reports() if r.instance.endpoint == url)
        results = self.pool.dispatcher.metrics.sum(instance_id=report.instance.id).results
        return [f"{count} {result}" for result, count in sorted(results.items())]


@pytest.fixture
def call(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> Callable[..., Awaitable[tuple[Caller, Any]]]:
    """Starts servers, and a caller of the pool of them."""

    async def start(dialect: str, api: str, *handlers: Handler) -> tuple[Caller, Any]:
        servers = [await serve(handler) for handler in handlers]
        return Caller(await pool(*(instance_at(s.url, api) for s in servers)), dialect), servers

    return start


Call = Any


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

PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


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


# -- refusals ------------------------------------------------------------------------------------------------------

ENVELOPE = {
    "ollama": b'{"error":"no room for this"}',
    "openai": b'{"error":{"message":"no room for this","type":"api_error"}}',
}


@ways
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400 Bad Request", FailureKind.REJECTED),
        ("404 Not Found", FailureKind.REJECTED),
        ("500 Oops", FailureKind.SERVER_ERROR),
        ("503 Busy", FailureKind.BUSY),
    ],
)
async def test_a_refusal_in_the_servers_own_words(
    call: Call,
    dialect: str,
    api: str,
    stream: bool,  # noqa: FBT001 - both ways
    status: str,
    kind: FailureKind,
) -> None:
    """Its sentence reaches everybody; its body only those who speak the same API."""
    caller, _ = await call(dialect, api, answering(ENVELOPE[api], status=status, more="Retry-After: 9\r\n"))
    _, failure = await caller.failure(stream=stream)
    assert (failure.kind, failure.status, failure.message) == (kind, int(status[:3]), "no room for this")
    assert failure.body == (ENVELOPE[api] if dialect == api else None)
    assert failure.retry_after_s == (9 if kind is FailureKind.BUSY else None)
    assert failure.instance_id


@ways
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_by_a_page(call: Call, dialect: str, api: str, stream: bool) -> None:  # noqa: FBT001 - both ways
    """A page is no body of the caller's API, so it does not pass."""
    caller, _ = await call(dialect, api, answering(PAGE, status="502 Bad Gateway", kind="text/html"))
    _, failure = await caller.failure(stream=stream)
    assert (failure.kind, failure.status, failure.body) == (FailureKind.SERVER_ERROR, 502, None)
    assert failure.message == "HTTP 502 Bad Gateway"


@ways
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_of_our_key(call: Call, dialect: str, api: str, stream: bool) -> None:  # noqa: FBT001 - both ways
    """Nothing that the server says about our credentials reaches the caller; the instance is misconfigured."""
    said = b'{"error":{"message":"Incorrect API key provided: sk-ours"}}'
    caller, _ = await call(dialect, api, answering(said, status="401 Unauthorized"))
    _, failure = await caller.failure(stream=stream)
    assert (failure.kind, failure.status, failure.body) == (FailureKind.UNAUTHORIZED, 401, None)
    assert "sk-ours" not in failure.message
    (report,) = caller.pool.dispatcher.reports()
    assert report.state == "misconfigured"


@ways
@pytest.mark.parametrize("stream", [True, False])
async def test_a_wrong_option_is_the_callers_fault(call: Call, dialect: str, api: str, stream: bool) -> None:  # noqa: FBT001 - both ways
    """Ollama answers 500 to it; it is neither tried elsewhere nor held against the instance."""
    body = b'{"error":"option \\"temperature\\" must be of type float32"}'
    caller, servers = await call(dialect, api, *[answering(body, status="500 Internal Server Error")] * 2)
    failures = [(await caller.failure(stream=stream))[1] for _ in range(6)]
    assert {failure.status for failure in failures} == {500}
    heard = sum(len(server.heard) for server in servers)
    states = {report.state for report in caller.pool.dispatcher.reports()}
    if api == "ollama":
        assert {failure.kind for failure in failures} == {FailureKind.REJECTED}
        assert {failure.message for failure in failures} == {'option "temperature" must be of type float32'}
        assert (heard, states) == (6, {"ready"})
    else:
        assert {failure.kind for failure in failures} == {FailureKind.SERVER_ERROR}
        assert heard > 6


@ways
@pytest.mark.parametrize("stream", [True, False])
async def test_an_image_for_a_model_that_cannot_see(call: Call, dialect: str, api: str, stream: bool) -> None:  # noqa: FBT001 - both ways
    """llama.cpp answers 500 to it; who asks so takes no instance out of service, and nobody else is asked in vain."""
    said = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
    body = json.dumps({"error": {"code": 500, "message": said, "type": "server_error"}}).encode()
    caller, servers = await call(dialect, api, *[answering(body, status="500 Internal Server Error")] * 2)
    failures = [(await caller.failure(stream=stream))[1] for _ in range(6)]
    assert {(failure.status, failure.message) for failure in failures} == {(500, said)}
    heard = sum(len(server.heard) for server in servers)
    states = {report.state for report in caller.pool.dispatcher.reports()}
    kinds = {failure.kind for failure in failures}
    if api == "openai":
        assert (kinds, heard, states) == ({FailureKind.REJECTED}, 6, {"ready"})
    else:
        assert kinds == {FailureKind.SERVER_ERROR}
        assert heard > 6


@ways
@pytest.mark.parametrize("stream", [True, False])
async def test_a_busy_instance_leads_elsewhere(call: Call, dialect: str, api: str, stream: bool) -> None:  # noqa: FBT001 - both ways
    """Busy is not broken: another one answers, and nothing is held against the first."""
    busy = answering(ENVELOPE[api], status="503 Busy")
    good = streaming(TYPES[api], PART[api], END[api]) if stream else answering(WHOLE[api])
    caller, servers = await call(dialect, api, busy, good)
    while not servers[0].heard:
        out: list[bytes] = []
        await caller.sent(out, stream=stream)
        assert b"hi" in b"".join(out)
    assert {report.state for report in caller.pool.dispatcher.reports()} == {"ready"}


async def test_a_single_instance_that_closes_kept_connections_loses_nothing(call: Call) -> None:
    """It closes each connection at its second request; nobody notices."""

    async def handle(line: Line) -> None:
        await line.request()
        line.answer(WHOLE["ollama"])
        await line.request()
        line.close()

    caller, (server,) = await call("ollama", "ollama", handle)
    for _ in range(10):
        assert await caller.whole() == WHOLE["ollama"]
    assert caller.outcome(server.url) == ["10 ok"]


# -- requests that cannot be carried over --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_what_an_api_has_no_form_for(call: Call, stream: bool) -> None:  # noqa: FBT001 - both ways
    """It is the caller's fault, is said by name, and nothing is sent or held against the instance."""
    caller, (server,) = await call("ollama", "openai", answering(WHOLE["openai"]))
    with pytest.raises(InvalidRequest) as caught:
        await caller.sent([], stream=stream, options={"typical_p": 0.5})
    assert caught.value.param == "options.typical_p"
    assert server.lines == 0
    assert "failed" not in "".join(caller.outcome(server.url))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("api", ["ollama", "openai"])
async def test_what_json_has_no_form_for(call: Call, api: str, stream: bool) -> None:  # noqa: FBT001 - both ways
    """A caller of the library can put anything into the parameters; it is told what went wrong."""
    caller, (server,) = await call("", api, answering(WHOLE[api]))
    with pytest.raises(InvalidRequest):
        await caller.sent([], stream=stream, tools=object())
    assert server.lines == 0


async def test_show_with_what_json_has_no_form_for(call: Call) -> None:
    """The same for a description."""
    caller, _ = await call("", "ollama", answering(b"{}"))
    request = caller.pool.provider.request("llm/show", {"model": "smollm2", "x": object()})
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        await caller.pool.dispatcher.one(caller.pool.provider, request)


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (answering(b'{"error":"model \'smollm2\' not found"}', status="404 Not Found"), FailureKind.REJECTED),
        (answering(b"<html>", kind="text/html"), FailureKind.SERVER_ERROR),
    ],
)
@pytest.mark.parametrize("dialect", ["", "ollama"])
async def test_show_that_fails(call: Call, dialect: str, handler: Handler, kind: FailureKind) -> None:
    """As for the other methods."""
    caller, _ = await call(dialect, "ollama", handler)
    body = b'{"model":"smollm2"}'
    provider = caller.pool.provider
    request = provider.raw_request("ollama", "/api/show", body)
    if not dialect:
        request = provider.request("llm/show", {"model": "smollm2"})
    with pytest.raises(InstanceFailure) as caught:
        await caller.pool.dispatcher.one(provider, request)
    assert caught.value.kind is kind


# -- callers that leave --------------------------------------------------------------------------------------------


@contextmanager
def left_to_the_collector() -> Iterator[list[object]]:
    """The asynchronous generators that nobody closed, and that so end some time later."""
    hooks, found = sys.get_asyncgen_hooks(), []

    def finalize(generator: AsyncGenerator[object]) -> None:
        found.append(generator)
        hooks.finalizer(generator)

    sys.set_asyncgen_hooks(finalizer=finalize)
    yield found
    sys.set_asyncgen_hooks(*hooks)


@ways
async def test_leaving_a_stream_ends_the_work(call: Call, dialect: str, api: str) -> None:
    """When `aclose` is through, the connection is closed, the slot is free, and nothing is left to be done later."""
    gone = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        line.begin(TYPES[api])
        line.chunk(PART[api])
        await line.gone()
        gone.set()

    caller, _ = await call(dialect, api, handle)
    with left_to_the_collector() as left:
        parts = caller.pool.dispatcher.stream(caller.pool.provider, caller.request(stream=True))
        await anext(parts)
        await parts.aclose()
    assert left == []
    assert [report.in_flight for report in caller.pool.dispatcher.reports()] == [0]
    await gone.wait()


@ways
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("begun", [True, False])
async def test_a_cancelled_caller_ends_the_work(
    call: Call,
    dialect: str,
    api: str,
    stream: bool,  # noqa: FBT001 - both ways
    begun: bool,  # noqa: FBT001 - both ways
) -> None:
    """Before and after the headers: the server sees at once that nobody waits."""
    reached, gone = asyncio.Event(), asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        if begun:
            line.begin(TYPES[api] if stream else JSON)
            line.chunk(b"{")
            await line.flush()
        reached.set()
        await line.gone()
        gone.set()

    caller, (server,) = await call(dialect, api, handle)
    task = asyncio.create_task(caller.failure(stream=stream))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone.wait()
    assert caller.outcome(server.url) == ["1 cancelled"]
