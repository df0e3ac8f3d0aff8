"""What the gateway says about itself: health, status, response headers and the access line."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING

import pytest

from gleitzeit_gateway.access_line import printable
from gleitzeit_ollama.testing import ErrorLineAfter, HangBeforeHeaders, OllamaServer, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

in_each_api = pytest.mark.parametrize("v1", [False, True], ids=["ollama", "openai"])
streaming_or_not = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


# -- health --------------------------------------------------------------------------------------------------------


async def test_ready_when_an_instance_is(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Ready says how many instances are; one is enough, and with none it is 503 while the process still lives."""
    gateway = await serve(ollama, other)
    ready = await gateway.ask("/health/ready")
    assert (ready.status, ready.json) == (200, {"status": "ok", "ready": 2, "instances": 2})
    await ollama.stop()
    ids = [report.instance.id for report in gateway.manager.instances()]
    for name in ids:
        await gateway.manager.dispatcher.shell.health.check(name)
    assert (await gateway.ask("/health/ready")).json == {"status": "ok", "ready": 1, "instances": 2}
    await other.stop()
    for name in ids:
        await gateway.manager.dispatcher.shell.health.check(name)
    ready = await gateway.ask("/health/ready")
    assert (ready.status, ready.json) == (503, {"status": "no instance is ready", "ready": 0, "instances": 2})
    assert (await gateway.ask("/health/live")).json == {"status": "ok"}


async def test_degraded_is_ready(serve: Serve, ollama: OllamaServer) -> None:
    """An instance that is degraded serves, and so counts as ready."""
    gateway = await serve(ollama)
    (report,) = gateway.manager.instances()
    gateway.manager.dispatcher.shell.admission.set_degraded(report.instance.id, "latency", "slow")
    assert [one["state"] for one in (await gateway.ask("/admin/instances")).json["instances"]] == ["degraded"]
    ready = await gateway.ask("/health/ready")
    assert (ready.status, ready.json) == (200, {"status": "ok", "ready": 1, "instances": 1})
    assert (await gateway.ask("/api/tags")).json["models"]


async def test_not_ready_without_instances(serve: Serve) -> None:
    """A gateway with nothing to serve is not ready."""
    gateway = await serve()
    assert (await gateway.ask("/health/ready")).status == 503
    assert (await gateway.ask("/api/tags")).json == {"models": []}
    assert (await gateway.chat()).status == 404


async def test_not_ready_while_draining(serve: Serve, ollama: OllamaServer) -> None:
    """From the beginning of the drain on it is not ready, and nothing new is taken; what runs goes on."""
    gateway = await serve(ollama)
    ollama.script.next(hang := HangBeforeHeaders())
    running = asyncio.create_task(gateway.chat())
    async with asyncio.timeout(20):
        await hang.reached.wait()
        draining = asyncio.create_task(gateway.gateway.drain())
        await gateway.until(lambda: "draining" in repr(gateway.gateway))
        ready = await gateway.ask("/health/ready")
        assert (ready.status, ready.json["status"]) == (503, "shutting down")
        assert (await gateway.ask("/health/live")).status == 200
        assert (await gateway.ask("/api/tags")).status == 503
        for v1 in (False, True):
            refused = await gateway.chat(v1=v1)
            assert refused.status == 503
            assert refused.headers["X-Gleitzeit-Error"] == "shutting_down"
            assert refused.headers["Connection"] == "close"
        assert not draining.done()
        hang.released.set()
        assert (await running).status == 200
        await draining


# -- status --------------------------------------------------------------------------------------------------------


async def test_status(serve: Serve, ollama: OllamaServer) -> None:
    """The status is what the manager knows, as JSON."""
    gateway = await serve(ollama)
    await gateway.chat()
    status = (await gateway.ask("/admin/status")).json
    (instance,) = status["instances"]
    assert (instance["endpoint"], instance["state"], instance["served"]) == (ollama.url, "ready", 1)
    assert {method["name"] for method in status["methods"]} >= {"llm/chat", "llm/models"}
    assert status["requests"]["ok"] == 1


async def test_queues(serve: Serve, ollama: OllamaServer) -> None:
    """A queue is listed while somebody waits in it: how many, for whom, and how long it will take."""
    key = {"name": "alice", "key": "alices-key-is-very-secret", "priority": 3}
    gateway = await serve(ollama, hub={"max_concurrent": 1}, route={"max_queue": 5}, keys=[key])
    as_alice = {"X-Api-Key": key["key"]}
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    assert (await gateway.ask("/admin/queues", headers=as_alice)).json == {"queues": []}
    ollama.script.next(hang := HangBeforeHeaders())
    asked = [asyncio.create_task(gateway.ask("/api/chat", body, headers=as_alice)) for _ in range(3)]
    async with asyncio.timeout(20):
        await hang.reached.wait()
        await gateway.until(lambda: gateway.waiting == 2)
        (queue,) = (await gateway.ask("/admin/queues", headers=as_alice)).json["queues"]
        hang.released.set()
        assert [(await task).status for task in asked] == [200] * 3
    assert (queue["route"], queue["waiting"], queue["limit"]) == ("*", 2, 5)
    assert (queue["tenants"], queue["bands"]) == ({"alice": 2}, {"3": 2})
    assert "smollm2" in queue["model"]
    assert queue["oldest_s"] >= 0
    assert (await gateway.ask("/admin/queues", headers=as_alice)).json == {"queues": []}


async def test_numbers(serve: Serve, ollama: OllamaServer) -> None:
    """The numbers of the last minutes and of all time can be had, in sum and by instance, model, route and method."""
    gateway = await serve(ollama)
    await gateway.chat()
    for window in ("", "?window=recent", "?window=total"):
        answered = await gateway.ask(f"/admin/metrics{window}")
        assert answered.status == 200
        found = answered.json
        assert found["sum"]["count"] == 1
        assert found["sum"]["results"] == {"ok": 1}
        assert found["methods"].keys() == {"llm/chat"}
        assert len(found["instances"]) == len(found["models"]) == len(found["routes"]) == 1
    wrong = await gateway.ask("/admin/metrics?window=day")
    assert (wrong.status, wrong.json["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/admin/instances?x=1", "/admin/queues?x=1", "/admin/metrics?widnow=total"])
async def test_unknown_parameters(serve: Serve, ollama: OllamaServer, path: str) -> None:
    """A parameter that is not known is refused, with what is."""
    gateway = await serve(ollama)
    answered = await gateway.ask(path)
    assert (answered.status, answered.json["error"]["code"]) == (400, "invalid_request")
    assert "unknown parameter" in answered.json["error"]["message"]


# -- headers -------------------------------------------------------------------------------------------------------


@in_each_api
@streaming_or_not
async def test_headers_name_who_served(serve: Serve, ollama: OllamaServer, *, v1: bool, stream: bool) -> None:
    """Every answer names the instance, the wait and the tries, and carries a request id of its own."""
    gateway = await serve(ollama)
    answers = [await gateway.chat(v1=v1, stream=stream) for _ in range(2)]
    (report,) = gateway.manager.instances()
    for answered in answers:
        assert answered.headers["X-Gleitzeit-Instance"] == report.instance.id
        assert answered.headers["X-Gleitzeit-Queue-Ms"] == "0"
        assert answered.headers["X-Gleitzeit-Tries"] == "1"
        assert answered.headers["X-Gleitzeit-Gateway"] == "1"
        assert answered.headers["Server"] == "gleitzeit"
        assert re.fullmatch(r"[0-9a-f]{16}", answered.headers["X-Request-Id"])
    assert len({answered.headers["X-Request-Id"] for answered in answers}) == 2


async def test_headers_tell_the_wait(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Waiting for a slot is told in milliseconds."""
    gateway = await serve(ollama, other, hub={"max_concurrent": 1})
    for server in (ollama, other):
        server.script.next(HangBeforeHeaders())
    asked = [asyncio.create_task(gateway.chat()) for _ in range(3)]
    async with asyncio.timeout(20):
        await gateway.until(lambda: (gateway.in_flight, gateway.waiting) == (2, 1))
        await asyncio.sleep(0.02)
        ollama.release()
        other.release()
        waited = [int((await task).headers["X-Gleitzeit-Queue-Ms"]) for task in asked]
    assert waited[:2] == [0, 0]
    assert waited[2] >= 15


@streaming_or_not
async def test_headers_tell_the_place_in_the_queue(serve: Serve, ollama: OllamaServer, *, stream: bool) -> None:
    """Who had to wait is told where, and how long that was expected to take; who had not to, neither."""
    gateway = await serve(ollama, hub={"max_concurrent": 1})
    ollama.script.next(hang := HangBeforeHeaders())
    asked = []
    async with asyncio.timeout(20):
        for waiting in range(4):
            asked.append(asyncio.create_task(gateway.chat(stream=stream)))
            await (hang.reached.wait() if not waiting else gateway.until(lambda n=waiting: gateway.waiting == n))
        hang.released.set()
        first, *others = [(await task).headers for task in asked]
    assert not {"X-Gleitzeit-Queue-Position", "X-Gleitzeit-Expected-Wait-Ms"} & first.keys()
    assert [headers["X-Gleitzeit-Queue-Position"] for headers in others] == ["1", "2", "3"]
    expected = [int(headers["X-Gleitzeit-Expected-Wait-Ms"]) for headers in others]
    assert expected == sorted(expected)
    assert expected[0] > 0


@pytest.mark.parametrize("given", ["my-id_1.2:3", "a", "x" * 64])
async def test_request_id_of_the_caller(serve: Serve, ollama: OllamaServer, given: str) -> None:
    """A caller's own id comes back, with errors too."""
    gateway = await serve(ollama)
    for path in ("/api/tags", "/nope", "/v1/models/nope"):
        assert (await gateway.ask(path, headers={"X-Request-Id": given})).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "ä", '"', "a;b", "{}"])
async def test_request_id_that_is_none(serve: Serve, ollama: OllamaServer, given: str) -> None:
    """What could harm a log is replaced."""
    gateway = await serve(ollama)
    answered = await gateway.ask("/api/tags", headers={"X-Request-Id": given})
    assert re.fullmatch(r"[0-9a-f]{16}", answered.headers["X-Request-Id"])


# -- the access line -----------------------------------------------------------------------------------------------


@in_each_api
@streaming_or_not
async def test_access_line(
    serve: Serve, ollama: OllamaServer, caplog: pytest.LogCaptureFixture, *, v1: bool, stream: bool
) -> None:
    """One line per request: id, method, path, status, time, model, instance, wait and tries."""
    caplog.set_level(logging.INFO, "gleitzeit.access")
    gateway = await serve(ollama, access_log=True)
    answered = await gateway.chat(v1=v1, stream=stream)
    await gateway.until(lambda: caplog.messages)
    (line,) = caplog.messages
    path = "/v1/chat/completions" if v1 else "/api/chat"
    head = f"{answered.headers['X-Request-Id']} POST {path} 200 "
    assert line.startswith(head)
    instance = answered.headers["X-Gleitzeit-Instance"]
    assert re.fullmatch(rf"[0-9.]+ms model=smollm2 instance={instance} queued=0ms tries=1", line.removeprefix(head))


async def test_access_line_of_an_error(serve: Serve, ollama: OllamaServer, caplog: pytest.LogCaptureFixture) -> None:
    """A failed request's line has the error's code, and the instance that failed."""
    caplog.set_level(logging.INFO, "gleitzeit.access")
    gateway = await serve(ollama, access_log=True)
    ollama.script.always(Status(500))
    await gateway.chat()
    await gateway.chat(model="nope\nforged line")
    await gateway.ask("/api/chat", b"{")
    await gateway.ask("/a%20path/with%0Alines?and=secrets", headers={"X-Forwarded-For": "192.0.2.1"})
    failed, unknown, wrong, nowhere = caplog.messages
    assert re.search(r" 500 .* model=smollm2 instance=ollama-\S+ error=instance_failure$", failed)
    assert re.search(r" 404 .* model=nope\?forged\?line error=no_capable_instance$", unknown)
    assert re.search(r" POST /api/chat 400 \S+ error=invalid_request$", wrong)
    assert re.search(r" GET /a\?path/with\?lines 404 \S+ms$", nowhere)


@in_each_api
async def test_access_line_of_an_answer_that_broke_off(
    serve: Serve, ollama: OllamaServer, caplog: pytest.LogCaptureFixture, *, v1: bool
) -> None:
    """What broke off after its status was sent has that status, and the error's code."""
    caplog.set_level(logging.INFO, "gleitzeit.access")
    gateway = await serve(ollama, access_log=True)
    ollama.script.next(ErrorLineAfter(2))
    assert not (await gateway.chat(v1=v1, stream=True)).complete
    await gateway.until(lambda: caplog.messages)
    (line,) = caplog.messages
    assert re.search(r" 200 \S+ model=smollm2 instance=ollama-\S+ queued=0ms tries=1 error=instance_failure$", line)


async def test_access_line_can_be_left_out(
    serve: Serve, ollama: OllamaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``access_log: false`` there is none."""
    caplog.set_level(logging.INFO, "gleitzeit.access")
    gateway = await serve(ollama, access_log=False)
    await gateway.chat()
    assert caplog.messages == []


def test_printable() -> None:
    """What goes into a line is one word, and not endless."""
    assert printable("a b\r\n\x1b[31m\u2028c") == "a?b???[31m?c"
    assert len(printable("x" * 1000)) == 200


OBSERVER = """
from gleitzeit_core.hookspecs import hookimpl
from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import plain_error

seen = []


async def show(call):
    return json_response(seen)


@hookimpl
def gleitzeit_request_finished(finished):
    seen.append([finished.request.id, finished.request.tenant])


@hookimpl
def gleitzeit_gateway_endpoints():
    return [Endpoint(method="GET", path="/seen", handler=show, error=plain_error)]
"""


async def test_request_inside(serve: Serve, ollama: OllamaServer, tmp_path: Path) -> None:
    """Inside, ids are unique whatever callers send, the same as outside where they send none; keys become tenants."""
    (tmp_path / "observer.py").write_text(OBSERVER)
    key = "a-key-of-at-least-16-characters"
    gateway = await serve(ollama, files=[tmp_path / "observer.py"], keys=[{"name": "alice", "key": key}])
    question = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    headers = {"X-Api-Key": key}
    for _ in range(2):
        await gateway.ask("/api/chat", question, headers={**headers, "X-Request-Id": "the-same"})
    answered = await gateway.ask("/v1/chat/completions", question, headers=headers)
    call = {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": question}
    called = await gateway.ask("/rpc", call, headers=headers)
    first, second, third, fourth = (await gateway.ask("/seen", headers=headers)).json
    assert len({first[0], second[0], "the-same"}) == 3
    assert third == [answered.headers["X-Request-Id"], "alice"]
    assert fourth == [called.headers["X-Request-Id"], "alice"]
