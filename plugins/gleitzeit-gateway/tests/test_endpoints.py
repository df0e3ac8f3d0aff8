"""Endpoints that other plugins add, the finding of paths, and the life of a gateway."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from gleitzeit_gateway.endpoints import Endpoint, Router, json_response
from gleitzeit_gateway.errors import plain_error
from gleitzeit_gateway.options import GatewayOptions
from gleitzeit_gateway.server import Gateway
from gleitzeit_ollama.testing import HangBeforeHeaders, OllamaServer, StallAfter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aiohttp import web

    from gleitzeit_gateway.call import Call
    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

RESET = struct.pack("ii", 1, 0)
"""With this, closing a socket resets its connection."""
PLUGIN = '''
"""Endpoints of somebody else's, good and bad."""

import asyncio

from aiohttp import web

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.hookspecs import hookimpl
from gleitzeit_gateway.answers import Whole
from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import plain_error


async def hello(call):
    return json_response({"rest": call.rest, "tenant": call.tenant, "body": (await call.body()).decode()})


async def parts(call):
    response = await call.begin("text/plain")
    await response.write(b"begun ")
    if call.rest == "well":
        await response.write(b"and done")
        return response
    if call.rest == "refused":
        raise ConnectionRefusedError("of its own")
    raise ValueError("begun and broken")


async def own_parts(call):
    response = web.StreamResponse()
    await response.prepare(call.request)
    await response.write(b"begun ")
    raise ValueError("begun and broken")


gate = asyncio.Event()


async def gated(call):
    response = await call.begin("text/plain")
    await response.write(b"begun ")
    await gate.wait()
    while True:
        await response.write(b"more")


async def flood(call):
    response = await call.begin("text/plain")
    while call.rest == "plain":
        await response.write(b"x" * 100_000)
    await call.send(response, endless(), lambda error: b"never seen")
    return response


async def endless():
    while True:
        yield b"x" * 100_000


async def nothing(call):
    return None


async def unsendable(call):
    headers = {"X-Theirs": "one\\r\\nX-Other: two"}
    if call.rest == "parts":
        call.headers.update(headers)
        return await call.begin("text/plain")
    return web.Response(headers=headers) if call.rest == "aiohttp" else Whole(b"", headers=headers)


same = Whole(
    b"same",
    content_type="text/plain",
    headers={"server": "theirs", "X-Request-Id": "theirs", "x-mine": "whole", "content-length": "7", "X-Theirs": "1"},
)


async def shared(call):
    call.headers.update({"Server": "theirs too", "X-Mine": "call"})
    return same


async def wrong(call):
    raise InvalidRequest("not like this")


async def broken(call):
    raise ConnectionRefusedError("its own upstream, not the caller")


def bad_renderer(error):
    raise RuntimeError("cannot even say so")


@hookimpl
def gleitzeit_gateway_endpoints():
    one = lambda path, handler, method="GET", **more: Endpoint(
        method=method, path=path, handler=handler, **{"error": plain_error, **more}
    )
    return [
        one("/mine/*", hello),
        one("/mine/*", hello, "POST"),
        one("/mine/open", hello, public=True),
        one("/parts/*", parts),
        one("/own_parts", own_parts),
        one("/flood/*", flood),
        one("/gated", gated),
        one("/nothing", nothing),
        one("/unsendable/*", unsendable),
        one("/shared", shared),
        one("/wrong", wrong),
        one("/broken", broken),
        one("/worse", broken, error=bad_renderer),
        one("/api/chat", hello, "POST"),
        one("/api/chat", hello, "PUT"),
        "no endpoint",
    ]
'''
SINGLE_PLUGIN = """
from gleitzeit_core.hookspecs import hookimpl

@hookimpl
def gleitzeit_gateway_endpoints():
    return 3
"""
OTHER_PLUGIN = """
from gleitzeit_core.hookspecs import hookimpl

@hookimpl
def gleitzeit_gateway_endpoints():
    raise RuntimeError("broken at start")
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A plugin with endpoints, and one that is broken."""
    (tmp_path / "theirs.py").write_text(PLUGIN)
    (tmp_path / "broken.py").write_text(OTHER_PLUGIN)
    (tmp_path / "single.py").write_text(SINGLE_PLUGIN)
    return [tmp_path / "broken.py", tmp_path / "theirs.py", tmp_path / "single.py"]


# -- endpoints of plugins ------------------------------------------------------------------------------------------


async def test_endpoint_of_a_plugin(serve: Serve, ollama: OllamaServer, files: list[Path]) -> None:
    """An endpoint of a plugin has what those of the gateway have: keys, headers, the rest of its path, the body."""
    key = "a-key-of-at-least-16-characters"
    gateway = await serve(ollama, files=files, keys=[{"name": "alice", "key": key}])
    headers = {"X-Api-Key": key, "X-Request-Id": "mine"}
    got = await gateway.ask("/mine/a/b%20c", headers=headers)
    assert got.json == {"rest": "a/b c", "tenant": "alice", "body": ""}
    assert (got.headers["X-Request-Id"], got.headers["X-Gleitzeit-Gateway"]) == ("mine", "1")
    assert (await gateway.ask("/mine/x", "some body", headers=headers)).json["body"] == "some body"
    assert (await gateway.ask("/mine/x", verb="HEAD", headers=headers)).status == 200
    assert (await gateway.ask("/mine/x")).status == 401
    assert (await gateway.ask("/mine/open")).json["tenant"] == ""
    assert (await gateway.ask("/mine/", headers=headers)).status == 404
    refused = await gateway.ask("/mine/x", verb="DELETE", headers=headers)
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, POST")


async def test_endpoint_that_is_taken(
    serve: Serve, ollama: OllamaServer, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A plugin cannot take a path and method of the gateway, and hears of it; another method it can have."""
    gateway = await serve(ollama, files=files)
    assert (await gateway.chat()).json["message"]["content"] == "You said: hi"
    assert (await gateway.ask("/api/chat", "x", verb="PUT")).json["body"] == "x"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "POST /api/chat is taken already: a second endpoint is not used" in warnings
    for wrong in ("'no endpoint'", "3"):
        assert f"gleitzeit_gateway_endpoints: {wrong} is no Endpoint, and is not used" in warnings
    (failed,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "broken" in failed


async def test_endpoint_that_fails(
    serve: Serve, ollama: OllamaServer, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """What a plugin does wrong is in the log; the caller gets its envelope, or ours, and never how it failed."""
    gateway = await serve(ollama, files=files)
    wrong = await gateway.ask("/wrong")
    assert wrong.status == 400
    assert wrong.json == {"error": {"code": "invalid_request", "message": "not like this", "retryable": False}}
    for path in ("/nothing", "/broken", "/worse"):
        failed = await gateway.ask(path)
        assert failed.status == 500
        assert failed.json == {"error": {"code": "internal", "message": "internal error", "retryable": False}}
        assert failed.headers["X-Gleitzeit-Error"] == "internal"
    assert "its own upstream, not the caller" in caplog.text
    assert "/worse: its error renderer failed" in caplog.text
    assert (await gateway.chat()).status == 200


@pytest.mark.parametrize("kind", ["aiohttp", "whole", "parts"])
async def test_answer_that_cannot_be_sent(
    serve: Serve, ollama: OllamaServer, files: list[Path], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """An answer that is none for HTTP is a failure of ours: told as such, and not as a caller who has left."""
    caplog.set_level(logging.INFO, "gleitzeit.access")
    gateway = await serve(ollama, files=files, access_log=True)
    failed = await gateway.ask(f"/unsendable/{kind}")
    assert failed.status == 500
    assert "X-Other" not in failed.headers
    (line,) = [record.getMessage() for record in caplog.records if record.name == "gleitzeit.access"]
    assert " 500 " in line
    assert "error=internal" in line


async def test_no_header_is_sent_twice(serve: Serve, ollama: OllamaServer, files: list[Path]) -> None:
    """What every answer says stands before what an endpoint says under the same name, also when it answers again."""
    gateway = await serve(ollama, files=files)
    for number in range(2):
        head = f"GET /shared HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: id-{number}\r\nConnection: close\r\n\r\n"
        top, _, body = (await gateway.raw(head.encode())).decode().partition("\r\n\r\n")
        assert body == "same"
        _, *lines = top.split("\r\n")
        said = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert len(said) == len(lines)
        assert (said["server"], said["x-request-id"], said["x-mine"]) == ("gleitzeit", f"id-{number}", "call")
        assert (said["content-length"], said["x-theirs"], said["content-type"]) == ("4", "1", "text/plain")


@pytest.mark.parametrize("path", ["/parts/broken", "/parts/refused", "/own_parts"])
async def test_endpoint_that_fails_in_the_middle(
    serve: Serve, ollama: OllamaServer, files: list[Path], path: str
) -> None:
    """An answer that has begun breaks off: no second answer comes in the middle of it, and no clean end."""
    gateway = await serve(ollama, files=files)
    answered = await gateway.ask(path)
    assert (answered.status, answered.body, answered.complete) == (200, b"begun ", False)
    assert (await gateway.ask("/parts/well")).text == "begun and done"
    head = await gateway.raw(b"HEAD /parts/well HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("how", ["plain", "sent"])
async def test_leaving_while_more_is_written(
    serve: Serve, ollama: OllamaServer, files: list[Path], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """A write that finds nobody there is no error of ours: the request's line says 499, and nothing else is logged."""
    gateway = await serve(ollama, files=files, access_log=True)
    caplog.clear()
    caplog.set_level(logging.INFO)
    for _ in range(5):
        reader, writer = await gateway.connect()
        writer.write(f"GET /flood/{how} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readexactly(1_000_000)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    await gateway.until(lambda: len(caplog.messages) >= 5)
    assert [f"GET /flood/{how} 499 " in message for message in caplog.messages] == [True] * 5


async def test_leaving_between_two_writes(
    serve: Serve, ollama: OllamaServer, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The same when the write is the first to notice, before the loop does."""
    gateway = await serve(ollama, files=files, access_log=True)
    theirs = str(files[1])
    (gate,) = [vars(m)["gate"] for m in list(sys.modules.values()) if getattr(m, "__file__", None) == theirs]
    caplog.clear()
    caplog.set_level(logging.INFO)
    with socket.create_connection(("127.0.0.1", gateway.gateway.port)) as caller:
        caller.sendall(b"GET /gated HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await gateway.until(lambda: "1 requests" in repr(gateway.gateway))
        await asyncio.sleep(0.01)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    gate.set()
    await gateway.until(lambda: caplog.messages)
    (message,) = caplog.messages
    assert "GET /gated 499 " in message


# -- paths ---------------------------------------------------------------------------------------------------------


async def _handler(_: Call) -> web.Response:
    return json_response({})


def _endpoint(path: str, method: str = "GET") -> Endpoint:
    return Endpoint(method=method, path=path, handler=_handler, error=plain_error)


def test_router_prefers_the_exact() -> None:
    """An exact path goes before one that takes everything below, and the first of two that are the same has it."""
    below, exact, second = _endpoint("/a/*"), _endpoint("/a/b"), _endpoint("/a/b")
    router = Router([below, exact, second])
    assert router.find("GET", "/a/b").endpoint is exact
    assert router.find("GET", "/a/c").endpoint is below
    assert router.find("GET", "/a/c/d").rest == "c/d"
    assert router.find("GET", "/a/").endpoint is None
    assert router.find("GET", "/a").allowed == ()
    assert repr(router) == "<Router 2 paths>"


def test_router_knows_methods() -> None:
    """HEAD goes to GET unless it has an endpoint of its own; other methods are named."""
    get, post, own_head = _endpoint("/a"), _endpoint("/a", "POST"), _endpoint("/b", "HEAD")
    router = Router([get, post, own_head])
    assert router.find("HEAD", "/a").endpoint is get
    assert router.find("HEAD", "/b").endpoint is own_head
    assert router.find("PUT", "/a").endpoint is None
    assert router.find("PUT", "/a").allowed == ("GET", "HEAD", "POST")
    assert router.find("GET", "/b").allowed == ("HEAD",)


def test_endpoint_that_could_never_be_found() -> None:
    """A path without its slash and a method in small letters are mistakes that are told at once."""
    with pytest.raises(ValueError, match="begins with a slash, unlike 'a'"):
        _endpoint("a")
    with pytest.raises(ValueError, match="like GET, and not like 'get'"):
        _endpoint("/a", "get")


# -- the life of a gateway -----------------------------------------------------------------------------------------


async def test_port_in_use(serve: Serve, ollama: OllamaServer) -> None:
    """A port that is taken is an error at once, and the gateway that has it goes on."""
    gateway = await serve(ollama)
    second = Gateway(gateway.manager, GatewayOptions(port=gateway.gateway.port))
    with pytest.raises(OSError, match="address already in use"):
        await second.bind()
    await second.aclose()
    assert (await gateway.chat()).status == 200


async def test_bound_is_not_listening(serve: Serve, ollama: OllamaServer) -> None:
    """Between `bind` and `start` the address is ours, and nobody is answered yet."""
    manager = (await serve(ollama)).manager
    gateway = Gateway(manager, GatewayOptions(port=0))
    await gateway.bind()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
    await gateway.start()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.close()
    await gateway.aclose()
    await gateway.aclose()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]"])
async def test_url(serve: Serve, ollama: OllamaServer, host: str) -> None:
    """The URL leads to where it listens, also in IPv6."""
    if ":" in host and not _has_ipv6():
        host = "127.0.0.1"
    gateway = await serve(ollama, host=host)
    assert (await gateway.ask("/")).text == "Ollama is running"
    assert str(gateway.gateway.port) in gateway.url
    assert gateway.url in repr(gateway.gateway)


async def test_drain_lets_answers_finish(serve: Serve, ollama: OllamaServer) -> None:
    """What runs finishes, in parts too; those who wait are sent away at once."""
    gateway = await serve(ollama, hub={"max_concurrent": 2})
    ollama.script.next(hang := HangBeforeHeaders())
    ollama.script.next(stall := StallAfter(1))
    running = [asyncio.create_task(gateway.chat(stream=stream)) for stream in (False, True)]
    async with asyncio.timeout(20):
        await gateway.until(lambda: gateway.in_flight == 2)
        waiting = [asyncio.create_task(gateway.chat(v1=v1)) for v1 in (False, True)]
        await gateway.until(lambda: gateway.waiting == 2)
        draining = asyncio.create_task(gateway.gateway.drain())
        assert [(await task).status for task in waiting] == [503, 503]
        assert not draining.done()
        await hang.reached.wait()
        hang.released.set()
        await stall.reached.wait()
        stall.released.set()
        answers = await asyncio.gather(*running)
        await draining
    assert [(answered.status, answered.complete) for answered in answers] == [(200, True)] * 2


async def test_drain_has_a_limit(serve: Serve, ollama: OllamaServer) -> None:
    """What outlives the grace period is ended with an error: in words before the answer, inside it after."""
    gateway = await serve(ollama, grace_s=0.1)
    ollama.script.next(HangBeforeHeaders())
    ollama.script.next(StallAfter(1))
    begun = asyncio.Event()
    async with asyncio.timeout(20):
        plain = asyncio.create_task(gateway.chat())
        await ollama.wait_for(lambda server: server.held == 1)
        stream = asyncio.create_task(gateway.chat(stream=True, begun=begun.set))
        await begun.wait()
        await gateway.gateway.drain()
        assert not plain.done()
        await gateway.manager.aclose()
        refused, broken = await plain, await stream
    assert (refused.status, refused.headers["X-Gleitzeit-Error"]) == (503, "shutting_down")
    assert "grace period is over" in refused.json["error"]
    assert not broken.complete
    assert "grace period is over" in broken.lines[-1]["error"]


async def test_manager_that_is_closed(serve: Serve, ollama: OllamaServer) -> None:
    """When the manager is closed under it, the gateway is unavailable, and not broken."""
    gateway = await serve(ollama)
    reader, writer = await gateway.connect()
    body = b'{"model": "smollm2", "messages": []}'
    writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
    await gateway.until(lambda: "1 requests" in repr(gateway.gateway))
    await gateway.manager.aclose()
    writer.write(body)
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
    writer.close()
    for path in ("/metrics", "/health/ready"):
        refused = await gateway.ask(path)
        assert (refused.status, refused.headers["X-Gleitzeit-Error"]) == (503, "closed")
    assert (await gateway.ask("/health/live")).status == 200


async def test_without_the_protocol(serve: Serve, ollama: OllamaServer) -> None:
    """Without the plugin that has the protocol its calls are unknown, and the gateway's own still work."""
    gateway = await serve(ollama, disabled=["llm"])
    refused = await gateway.chat()
    assert (refused.status, refused.headers["X-Gleitzeit-Error"]) == (404, "unknown_method")
    assert (await gateway.ask("/health/ready")).status == 200


async def test_close_without_drain(serve: Serve, ollama: OllamaServer) -> None:
    """Closed at once, it cuts what runs, and the instance's slot is free."""
    gateway = await serve(ollama)
    ollama.script.next(StallAfter(1))
    begun = asyncio.Event()
    asked = asyncio.create_task(gateway.chat(stream=True, begun=begun.set))
    async with asyncio.timeout(20):
        await begun.wait()
        await gateway.gateway.aclose()
        assert not (await asked).complete
        await ollama.wait_for(lambda server: server.disconnects == 1)
        await gateway.until(lambda: gateway.in_flight == 0)
