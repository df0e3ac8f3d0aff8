"""Requests that an instance refuses, and those that cannot be carried over to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest

from .caller import END, ENVELOPE, PAGE, PART, TYPES, WHOLE, Call, answering, streaming, ways

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Line = Any
    Handler = Callable[[Line], Awaitable[None]]


# -- refusals ------------------------------------------------------------------------------------------------------


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
