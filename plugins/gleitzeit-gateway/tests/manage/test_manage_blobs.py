"""Creating models through the gateway over several servers, and the blobs that they are made of."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import (
    Hang,
    Model,
    OllamaServer,
    Status,
)

from .servers import LIMIT_S, WHERE, asked, have, ids_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Pair = tuple[OllamaServer, OllamaServer]


async def _upload(gateway: RunningGateway, data: bytes, where: str = "", digest: str = "") -> Answered:
    name = digest or f"sha256:{hashlib.sha256(data).hexdigest()}"
    return await gateway.ask(f"/api/blobs/{name}", data, headers={WHERE: where} if where else {})


async def test_create_goes_to_where_its_source_is(serve: Serve, pair: Pair) -> None:
    """A model is made where what it is made from is; a second time where it is itself, though another has more room."""
    one, two = pair
    one.catalogue.add(Model("base"))
    gateway = await serve(one, two)
    made = {"model": "pirate", "from": "base"}
    assert (await gateway.ask("/api/create", made)).lines[-1] == {"status": "success"}
    assert (await gateway.ask("/api/create", {**made, "from": "smollm2"})).lines[-1] == {"status": "success"}
    assert have("pirate", one, two) == [True, False]
    assert (await gateway.chat(model="pirate")).status == 200


async def test_create_passes_all_fields(serve: Serve, ollama: OllamaServer) -> None:
    """Fields that the gateway does not know reach the server as they are."""
    gateway = await serve(ollama)
    fields = {"from": "smollm2", "parameters": {"num_ctx": 1}, "something": [{"new": None}]}
    await gateway.ask("/api/create", {"model": "pirate", "stream": False, **fields})
    assert asked(ollama, "/api/create") == [{**fields, "model": "pirate", "stream": True}]


async def test_create_goes_to_where_the_blobs_are(serve: Serve, pair: Pair) -> None:
    """A creation from files goes to a server that has them, and not to the one with most room."""
    one, two = pair
    one.catalogue.add(Model("other"))
    gateway = await serve(one, two)
    digest = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    assert (await _upload(gateway, b"weights", one.url)).status == 201
    assert [server.blobs for server in pair] == [{digest}, set()]
    made = await gateway.ask("/api/create", {"model": "own", "files": {"a.gguf": digest}})
    assert made.lines[-1] == {"status": "success"}
    assert have("own", one, two) == [True, False]
    missing = await gateway.ask("/api/create", {"model": "own", "files": {"a.gguf": "sha256:" + "1" * 64}})
    assert "no such file" in missing.json["error"]


async def test_blob_goes_to_all(serve: Serve, pair: Pair) -> None:
    """Any may get the creation that follows; who asks first hears whether all have it."""
    gateway = await serve(*pair)
    data = b"weights" * 1000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    path = f"/api/blobs/{digest}"
    assert (await gateway.ask(path, verb="HEAD")).status == 404
    assert (await _upload(gateway, data)).status == 201
    assert [server.blobs for server in pair] == [{digest}, {digest}]
    assert (await gateway.ask(path, verb="HEAD")).status == 200
    assert (await gateway.ask(path.replace("sha256:", "sha256-"), verb="HEAD")).status == 200
    assert (await _upload(gateway, data)).status == 200
    pair[1].blobs.clear()
    assert (await gateway.ask(path, verb="HEAD")).status == 404
    assert (await _upload(gateway, data)).status == 201
    assert [len([r for r in s.requests if r.path == path and r.method == "POST"]) for s in pair] == [1, 2]


async def test_blob_of_another_digest(serve: Serve, pair: Pair) -> None:
    """What all servers refuse is refused in their words."""
    gateway = await serve(*pair)
    refused = await _upload(gateway, b"weights", digest="sha256:" + "0" * 64)
    assert refused.status == 400
    assert refused.json["error"].startswith("digest mismatch, expected ")
    assert refused.headers["Content-Type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("digest", ["x", "sha256:" + "0" * 63, "sha256:" + "G" * 64, "sha256:../../api/tags", "a/b"])
@pytest.mark.parametrize("verb", ["HEAD", "POST"])
async def test_blob_without_a_digest(serve: Serve, pair: Pair, digest: str, verb: str) -> None:
    """What is no digest is refused here, and reaches no server as a path."""
    gateway = await serve(*pair)
    before = [len(server.requests) for server in pair]
    refused = await gateway.ask(f"/api/blobs/{digest}", b"x" if verb == "POST" else None, verb=verb)
    assert refused.status == 400 if "api/tags" not in digest else refused.status in (400, 404, 405)
    if verb == "POST" and "api/tags" not in digest:
        assert refused.json == {"error": "invalid digest format"}
    assert [len(server.requests) for server in pair] == before


async def test_blob_is_larger_than_any_request_may_be(serve: Serve, pair: Pair) -> None:
    """The limit on bodies is for what is held in memory; a blob is passed on in parts, with the caller's length."""
    gateway = await serve(*pair, max_body_bytes=1000)
    data = bytes(range(256)) * 2048
    assert (await _upload(gateway, data)).status == 201
    for server in pair:
        (sent,) = [record for record in server.requests if record.method == "POST"]
        assert sent.headers["Content-Length"] == str(len(data))
        assert hashlib.sha256(sent.body).hexdigest() == hashlib.sha256(data).hexdigest()


async def test_blob_in_chunks(serve: Serve, ollama: OllamaServer) -> None:
    """A caller that does not know the length gets it there just as well."""
    gateway = await serve(ollama)
    parts = [bytes([number]) * 1000 for number in range(100)]

    async def chunks() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    digest = f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"
    async with gateway.session.post(f"{gateway.url}/api/blobs/{digest}", data=chunks()) as response:
        assert response.status == 201
    assert ollama.blobs == {digest}


async def test_a_slow_server_holds_the_caller_back(serve: Serve) -> None:
    """What a server does not take stays with the caller, not in the gateway's memory; then all of it gets through."""
    taken, release = 0, asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            await release.wait()
            while taken < size:
                taken += len(await reader.read(2**20))
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        else:
            verb, path, _ = head.split(b" ", 2)
            body = b'{"version": "0.24.0"}' if b"version" in path else b'{"models": []}'
            status = b"404 Not Found" if verb == b"HEAD" else b"200 OK"
            length = str(0 if verb == b"HEAD" else len(body)).encode()
            writer.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Type: application/json\r\n" % status)
            writer.write(b"Content-Length: %s\r\n\r\n" % length + (b"" if verb == b"HEAD" else body))
        await writer.drain()
        writer.close()

    size, sent = 64 * 2**20, 0
    chunk = bytes(2**18)

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < size:
            sent += len(chunk)
            yield chunk

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, asyncio.timeout(LIMIT_S):
        gateway = await serve(url)
        path = f"{gateway.url}/api/blobs/sha256:{'0' * 64}"
        uploading = asyncio.create_task(gateway.session.post(path, data=chunks()))
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        # Kernel buffers on both ways hold a few megabytes, the gateway less than one.
        assert 0 < sent < size // 2
        release.set()
        async with await uploading as response:
            assert response.status == 201
    assert sent == size <= taken, "with what says where chunks begin"


async def test_one_server_that_fails_does_not_spoil_an_upload(serve: Serve, pair: Pair) -> None:
    """Another has the blob then, and the creation goes there; but one that was named must have it."""
    one, two = pair
    gateway = await serve(one, two)
    two.script.always(Status(507, {"error": "disk is full"}), on=lambda record: record.method == "POST")
    data = b"weights" * 50_000
    assert (await _upload(gateway, data)).status == 201
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (one.blobs, two.blobs) == ({digest}, set())
    refused = await _upload(gateway, data, f"{one.url},{two.url}")
    assert (refused.status, refused.json) == (507, {"error": "disk is full"})
    two.script.clear()
    made = await gateway.ask("/api/create", {"model": "own", "files": {"a.gguf": digest}})
    assert made.lines[-1] == {"status": "success"}
    assert have("own", one, two) == [True, False]


async def test_a_server_that_never_answers_an_upload_is_given_up(serve: Serve, pair: Pair) -> None:
    """The others have the blob; it is left behind after the time that silence may last."""
    one, two = pair
    gateway = await serve(one, two)
    for hub in gateway.manager.dispatcher.shell.hubs.values():
        hub.options = hub.options.model_copy(update={"pull_stall_timeout_s": 2.0})
    two.script.next(Hang(), on=lambda record: record.method == "POST")
    async with asyncio.timeout(LIMIT_S):
        assert (await _upload(gateway, b"weights")).status == 201
        await two.wait_for(lambda server: server.disconnects == 1)
    assert (len(one.blobs), len(two.blobs)) == (1, 0)


async def test_a_server_that_stops_reading_is_left_behind(serve: Serve, ollama: OllamaServer) -> None:
    """It holds the others up for the time that silence may last, and no longer."""
    left = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await left.wait()
        body = b'{"version": "0.24.0"}' if b"/api/version" in head else b'{"models": []}'
        status = b"404 Not Found" if head.startswith(b"HEAD") else b"200 OK"
        length = str(len(body)).encode()
        writer.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\n" % status)
        writer.write(b"Content-Length: %s\r\n\r\n" % length + (b"" if head.startswith(b"HEAD") else body))
        writer.close()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    part, count = bytes(2**18), 128

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield part

    async with server, asyncio.timeout(LIMIT_S):
        gateway = await serve(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ollama)
        for hub in gateway.manager.dispatcher.shell.hubs.values():
            hub.options = hub.options.model_copy(update={"pull_stall_timeout_s": 3.0})
        digest = f"sha256:{hashlib.sha256(part * count).hexdigest()}"
        async with gateway.session.post(f"{gateway.url}/api/blobs/{digest}", data=chunks()) as response:
            assert response.status == 201
            assert [response.headers["X-Gleitzeit-Instance"]] == ids_of(gateway, ollama)
        left.set()
    assert ollama.blobs == {digest}


async def test_a_caller_who_leaves_in_an_upload_leaves_no_blob(serve: Serve, pair: Pair) -> None:
    """Every server sees its connection break, and keeps nothing."""
    gateway = await serve(*pair)
    reader, writer = await gateway.connect()
    head = f"POST /api/blobs/sha256:{'0' * 64} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    async with asyncio.timeout(LIMIT_S):
        writer.write(head.encode() + b"x" * 500)
        for server in pair:
            await server.wait_for(lambda server: server.requests[-1].method == "POST")
        writer.close()
        for server in pair:
            await server.wait_for(lambda server: server.disconnects == 1)
        await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
    assert [server.blobs for server in pair] == [set(), set()]
    del reader


async def test_an_upload_that_stops_is_ended(serve: Serve, pair: Pair) -> None:
    """A caller that sends nothing more for too long gets 408, and the servers keep nothing."""
    gateway = await serve(*pair, body_timeout_s=0.1)
    head = f"POST /api/blobs/sha256:{'0' * 64} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    answer = await gateway.raw(head.encode() + b"x" * 500)
    assert answer.startswith(b"HTTP/1.1 408 ")
    async with asyncio.timeout(LIMIT_S):
        for server in pair:
            await server.wait_for(lambda server: server.disconnects == 1)


async def test_a_caller_who_waits_to_be_invited_is(serve: Serve, ollama: OllamaServer) -> None:
    """With ``Expect: 100-continue`` the body comes once the servers have said that they lack the blob."""
    gateway = await serve(ollama)
    digest = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    url = f"{gateway.url}/api/blobs/{digest}"
    async with asyncio.timeout(LIMIT_S), gateway.session.post(url, data=b"weights", expect100=True) as response:
        assert response.status == 201
    assert ollama.blobs == {digest}
