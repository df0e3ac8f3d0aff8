"""HTTP itself: bodies of every kind, limits on them, odd paths and odd callers. None harms others."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import Gate, HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

in_each_api = pytest.mark.parametrize("v1", [False, True], ids=["ollama", "openai"])
QUESTION = {"model": "smollm2", "stream": False, "messages": [{"role": "user", "content": "hi"}]}
BODY = json.dumps(QUESTION).encode()
PATHS = {False: "/api/chat", True: "/v1/chat/completions"}


def message_of(answered: Answered, *, v1: bool) -> str:
    """The words of an error, which is in its API's envelope."""
    error = answered.json["error"]
    assert isinstance(error, dict if v1 else str)
    return str(error["message"] if v1 else error)


def head(body: bytes = BODY, *headers: str, path: str = "/api/chat", verb: str = "POST", version: str = "1.1") -> bytes:
    """The head of a request on a connection that is closed after it."""
    lines = [f"{verb} {path} HTTP/{version}", "Host: localhost", "Connection: close"]
    sized = [] if any(header.startswith(("Transfer", "Content-L")) for header in headers) else [len(body)]
    lines += [*headers, *(f"Content-Length: {size}" for size in sized)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def in_chunks(body: bytes) -> bytes:
    """A body in two chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"


# -- limits --------------------------------------------------------------------------------------------------------


@in_each_api
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_full_queue(serve: Serve, ollama: OllamaServer, *, v1: bool, stream: bool) -> None:
    """One more than may wait is refused with its API's own status, and is told when to come back."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, route={"max_queue": 1})
    ollama.script.next(hang := HangBeforeHeaders())
    running = asyncio.create_task(gateway.chat(v1=v1))
    async with asyncio.timeout(20):
        await hang.reached.wait()
        waiting = asyncio.create_task(gateway.chat(v1=v1))
        await gateway.until(lambda: gateway.waiting == 1)
        refused = await gateway.chat(v1=v1, stream=stream)
        hang.released.set()
        assert [(await task).status for task in (running, waiting)] == [200, 200]
    assert refused.status == (429 if v1 else 503)
    assert "queue is full: 1 waiting, limit 1" in message_of(refused, v1=v1)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["X-Gleitzeit-Error"] == "queue_full"


@in_each_api
async def test_deadline_in_the_queue(serve: Serve, ollama: OllamaServer, *, v1: bool) -> None:
    """A deadline that passes while waiting for a slot is 504, and says where."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, route={"timeout_s": 0.2})
    ollama.script.next(hang := HangBeforeHeaders())
    longer = {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": QUESTION, "timeout_s": 60}
    running = asyncio.create_task(gateway.ask("/rpc", longer))
    async with asyncio.timeout(20):
        await hang.reached.wait()
        refused = await gateway.chat(v1=v1)
        hang.released.set()
        assert "result" in (await running).json
    assert refused.status == 504
    assert message_of(refused, v1=v1).endswith(", in the queue")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/chat", "model 'nope' not found"),
        ("/api/generate", "model 'nope' not found"),
        ("/api/show", "model 'nope' not found"),
        ("/api/embed", 'model "nope" not found, try pulling it first'),
        ("/api/embeddings", 'model "nope" not found, try pulling it first'),
        ("/v1/chat/completions", "model 'nope' not found"),
        ("/v1/completions", "model 'nope' not found"),
        ("/v1/embeddings", 'model "nope" not found, try pulling it first'),
    ],
)
async def test_unknown_model(serve: Serve, ollama: OllamaServer, path: str, words: str) -> None:
    """A model that no instance has is 404 in the words of a real server on that path, and no instance is asked."""
    gateway = await serve(ollama)
    body = {"model": "nope", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
    direct, through = await gateway.session.post(ollama.url + path, json=body), await gateway.ask(path, body)
    assert through.status == direct.status == 404
    assert message_of(through, v1=path.startswith("/v1")) == words
    assert through.json == await direct.json()
    assert [record.path for record in ollama.requests if record.method == "POST"] == [path]


@in_each_api
@pytest.mark.parametrize("chunked", [False, True], ids=["told size", "chunked"])
async def test_body_that_is_too_large(serve: Serve, ollama: OllamaServer, *, v1: bool, chunked: bool) -> None:
    """A byte more than may be is 413; as many as may be are read."""
    gateway = await serve(ollama, max_body_bytes=1000)
    padded = BODY + b" " * (1000 - len(BODY))

    async def send(body: bytes) -> bytes:
        if chunked:
            return await gateway.raw(head(b"", "Transfer-Encoding: chunked", path=PATHS[v1]) + in_chunks(body))
        return await gateway.raw(head(body, path=PATHS[v1]) + body)

    assert (await send(padded)).startswith(b"HTTP/1.1 200 ")
    refused = await send(padded + b" ")
    assert refused.startswith(b"HTTP/1.1 413 ")
    assert b"the request is larger than 1000 bytes" in refused


@in_each_api
async def test_body_that_does_not_come(serve: Serve, ollama: OllamaServer, *, v1: bool) -> None:
    """A body that is not there in time is 408; one byte after another does not buy time."""
    gateway = await serve(ollama, body_timeout_s=0.2)
    reader, writer = await gateway.connect()
    writer.write(head(BODY, path=PATHS[v1]))
    async with asyncio.timeout(20):
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        for byte in BODY:
            if answer.done():
                break
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.01)
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive within 0.2 s" in await reader.readuntil(b"}")
    writer.close()


# -- bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", "nonsense"])
async def test_type_of_the_body_does_not_matter(serve: Serve, ollama: OllamaServer, kind: str) -> None:
    """``curl -d`` says that it sends a form; as with a real server, the body is read as JSON."""
    gateway = await serve(ollama)
    assert (await gateway.ask("/api/chat", BODY, headers={"Content-Type": kind})).status == 200


async def test_body_without_a_type(serve: Serve, ollama: OllamaServer) -> None:
    """Nor does it matter when nothing is said."""
    gateway = await serve(ollama)
    assert (await gateway.raw(head() + BODY)).startswith(b"HTTP/1.1 200 ")


async def test_chunked_body(serve: Serve, ollama: OllamaServer) -> None:
    """A body in chunks is a body."""
    gateway = await serve(ollama)
    answer = await gateway.raw(head(b"", "Transfer-Encoding: chunked") + in_chunks(BODY))
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_compressed_body(serve: Serve, ollama: OllamaServer) -> None:
    """A compressed body is read, and the limit counts what comes out of it."""
    gateway = await serve(ollama, max_body_bytes=1000)
    headers = {"Content-Encoding": "gzip"}
    assert (await gateway.ask("/api/chat", gzip.compress(BODY), headers=headers)).status == 200
    bomb = await gateway.ask("/api/chat", gzip.compress(BODY + b" " * 100_000), headers=headers)
    assert bomb.status == 413


async def test_invited_body(serve: Serve, ollama: OllamaServer) -> None:
    """Who asks before sending a body is told to go on."""
    gateway = await serve(ollama)
    reader, writer = await gateway.connect()
    writer.write(head(BODY, "Expect: 100-continue"))
    async with asyncio.timeout(20):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_error_after_an_invited_body(serve: Serve, ollama: OllamaServer) -> None:
    """The invitation is no part of the answer: an error can still follow it."""
    gateway = await serve(ollama)
    body = BODY.replace(b"smollm2", b"nope")
    reader, writer = await gateway.connect()
    writer.write(head(body, "Expect: 100-continue") + body)
    async with asyncio.timeout(20):
        assert b"model 'nope' not found" in await reader.read()
    writer.close()


@pytest.mark.parametrize(("key", "size", "status"), [("", 10, b"401"), ("k" * 16, 2000, b"413")])
async def test_body_that_is_not_invited(serve: Serve, ollama: OllamaServer, key: str, size: int, status: bytes) -> None:
    """Who has no key, or too much to send, hears so before sending it."""
    gateway = await serve(ollama, keys=[{"name": "alice", "key": "k" * 16}], max_body_bytes=1000)
    headers = (f"Authorization: Bearer {key}", "Expect: 100-continue", f"Content-Length: {size}")
    reader, writer = await gateway.connect()
    writer.write(head(b"", *headers))
    async with asyncio.timeout(20):
        top = await reader.readuntil(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 " + status)
    # Or the body would be taken for the next request.
    assert b"Connection: close" in top
    writer.close()


NONSENSE = {
    "no chunk": ("Transfer-Encoding: chunked", b"no chunk at all\r\n"),
    "not compressed": ("Content-Encoding: gzip", b"not compressed"),
    "cut compressed": ("Content-Encoding: gzip", gzip.compress(BODY)[:30]),
    "two lengths": ("Content-Length: 1\r\nContent-Length: 2", b"{}"),
    "no length": ("Content-Length: many", b"{}"),
}


@pytest.mark.parametrize(("header", "body"), NONSENSE.values(), ids=NONSENSE)
async def test_body_that_is_not_as_said(serve: Serve, ollama: OllamaServer, header: str, body: bytes) -> None:
    """A body that is not what its headers say is the caller's mistake: 400, and never a word about our insides."""
    gateway = await serve(ollama)
    answer = await gateway.raw(head(body, header) + body)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"Traceback" not in answer


@in_each_api
@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"{" * 5000, b"[" * 100_000, b'{"model": "smollm2"}x', b"\x00"],
)
async def test_body_that_is_no_request(serve: Serve, ollama: OllamaServer, body: bytes, *, v1: bool) -> None:
    """What is no request is 400 in the API's envelope."""
    gateway = await serve(ollama)
    refused = await gateway.ask(PATHS[v1], body)
    assert refused.status == 400
    assert message_of(refused, v1=v1)
    assert refused.headers["X-Gleitzeit-Error"] == "invalid_request"


@pytest.mark.parametrize("apis", [(), ("openai",), ("ollama",)], ids=["both", "openai", "ollama"])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/embeddings"])
async def test_fields_of_a_wrong_type(serve: Serve, ollama: OllamaServer, path: str, apis: tuple[str, ...]) -> None:
    """Whatever is wrong inside a request, it is no mistake of ours and none of the instance."""
    gateway = await serve(ollama, apis=apis)
    fields = ("messages", "prompt", "input", "options", "tools", "format", "stream", "think", "temperature", "stop")
    for wrong in (3, "x", [3], {"a": 1}, [None], True):
        body = {"model": "smollm2", "messages": [], "prompt": "x", "input": "x"}
        for name in fields:
            answered = await gateway.ask(path, {**body, name: wrong})
            assert answered.status in (200, 400)
    assert (await gateway.ask("/health/ready")).status == 200


# -- paths and callers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "//api/tags",
        "/api/tags/",
        "/api/../api/tags",
        "/API/tags",
        "/api",
        "/v1/models/",
        "/api/tags%00",
        "/%2e",
    ],
)
async def test_path_that_is_none(serve: Serve, ollama: OllamaServer, path: str) -> None:
    """Only what is exactly an endpoint is one."""
    gateway = await serve(ollama)
    answer = await gateway.raw(head(b"", path=path, verb="GET"))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"404 page not found")


@pytest.mark.parametrize("path", ["/api/tags?a=b", "http://localhost/api/tags", "/%61pi/tags", "/api/tags#x"])
async def test_path_that_is_one(serve: Serve, ollama: OllamaServer, path: str) -> None:
    """A query, an absolute address and escapes lead where they say."""
    gateway = await serve(ollama)
    assert (await gateway.raw(head(b"", path=path, verb="GET"))).startswith(b"HTTP/1.1 200 ")


async def test_model_with_slashes(serve: Serve) -> None:
    """Names of models have slashes, plain or escaped."""
    async with OllamaServer(models=["hf.co/some/model:q4"]) as server:
        gateway = await serve(server)
        for path in ("/v1/models/hf.co/some/model:q4", "/v1/models/hf.co%2Fsome%2Fmodel:q4"):
            assert b'"id":"hf.co/some/model:q4"' in await gateway.raw(head(b"", path=path, verb="GET"))


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("GET", "/api/chat", "POST"),
        ("POST", "/api/tags", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("PUT", "/rpc", "POST"),
    ],
)
async def test_method_that_is_none(serve: Serve, ollama: OllamaServer, verb: str, path: str, allowed: str) -> None:
    """A path that exists says which methods it has."""
    gateway = await serve(ollama)
    refused = await gateway.ask(path, verb=verb)
    assert (refused.status, refused.text) == (405, "405 method not allowed")
    assert refused.headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/api/pull"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/push"),
    ],
)
async def test_what_is_not_served_says_so(serve: Serve, ollama: OllamaServer, verb: str, path: str) -> None:
    """A call that nobody serves gets an error in words, and nothing pretends: here there is no Ollama in the pool."""
    gateway = await serve(ollama, apis=["openai"])
    refused = await gateway.ask(path, {"model": "x"}, verb=verb)
    assert refused.status == 501
    assert path in message_of(refused, v1=False)


@in_each_api
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_http_1_0(serve: Serve, ollama: OllamaServer, *, v1: bool, stream: bool) -> None:
    """Old callers, and proxies that speak as they do, get an answer without chunks that ends with the connection."""
    gateway = await serve(ollama)
    body = json.dumps({**QUESTION, "stream": stream}).encode()
    asked = head(body, path=PATHS[v1], version="1.0") + body
    # Even where they would rather keep it: nothing else could say where an answer in parts ends.
    answer = await gateway.raw(asked.replace(b"close", b"keep-alive") if stream else asked)
    top, _, rest = answer.partition(b"\r\n\r\n")
    assert b" 200 " in top.splitlines()[0]
    assert b"chunked" not in top.lower()
    assert rest.startswith(b"data: {" if v1 and stream else b"{")
    assert b"hi" in rest


async def test_pipelined_requests(serve: Serve, ollama: OllamaServer) -> None:
    """Requests that are sent ahead are answered in order, on the same connection."""
    gateway = await serve(ollama)
    kept = head().replace(b"Connection: close\r\n", b"")
    listing = head(b"", verb="GET", path="/api/version").replace(b"Connection: close\r\n", b"")
    answer = await gateway.raw(kept + BODY + listing + kept + BODY + head(b"", verb="GET", path="/nope"))
    answered = answer.split(b"HTTP/1.1 ")[1:]
    assert [part[:3] for part in answered] == [b"200", b"200", b"200", b"404"]
    assert [b"You said: hi" in part for part in answered] == [True, False, True, False]


async def test_slow_heads_do_not_hold_up_others(serve: Serve, ollama: OllamaServer) -> None:
    """A hundred callers who are still writing their first line are in nobody's way."""
    gateway = await serve(ollama)
    slow = [await gateway.connect() for _ in range(100)]
    for _, writer in slow:
        writer.write(b"POST /api/ch")
        await writer.drain()
    assert (await gateway.chat()).status == 200
    for reader, writer in slow[:3]:
        writer.write(
            b"at HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    for _, writer in slow:
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: close\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["tls", "version", "no path", "no colon", "long header", "many headers", "long path"],
)
async def test_what_is_no_http(
    serve: Serve, ollama: OllamaServer, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no HTTP is refused in our own words, and the next caller is served; nothing of it is an error of ours."""
    gateway = await serve(ollama)
    answer = await gateway.raw(sent)
    assert answer.split(b" ", 2)[1] in (b"400", b"414", b"431", b"505")
    assert b'"code":"' in answer
    assert b"Traceback" not in answer
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (await gateway.chat()).status == 200


async def test_upgrade_is_declined(serve: Serve, ollama: OllamaServer) -> None:
    """Who offers another protocol is answered in this one."""
    gateway = await serve(ollama)
    headers = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    sent = head(b"", *headers, verb="GET", path="/api/version").replace(b"Connection: close\r\n", b"")
    reader, writer = await gateway.connect()
    writer.write(sent)
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_reader_that_is_slow_holds_up_nobody(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """A caller who does not read its stream does not hold up another one's."""
    ollama.reply = other.reply = lambda _: ["word " * 2000] * 200
    gateway = await serve(ollama, other)
    _, writer = await gateway.connect()
    body = json.dumps({**QUESTION, "stream": True}).encode()
    writer.write(head(body) + body)
    await gateway.until(lambda: gateway.in_flight == 1)
    ollama.gate = other.gate = Gate(is_open=True)
    assert (await gateway.chat()).status == 200
    writer.close()
    await gateway.until(lambda: gateway.in_flight == 0)
