"""Managing models through the gateway over several servers: where calls go, what is merged, and who may."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_ollama.testing import (
    DropAfter,
    ErrorLineAfter,
    Gate,
    Hang,
    Model,
    OllamaServer,
    StallAfter,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Pair = tuple[OllamaServer, OllamaServer]

WHERE = "X-Gleitzeit-Instances"
BIG = 4000
LIMIT_S = 20


@pytest.fixture
async def pair() -> AsyncIterator[tuple[OllamaServer, OllamaServer]]:
    """Two servers with one model each, and a registry with another."""
    async with OllamaServer(registry={"big": BIG}) as one, OllamaServer(registry={"big": BIG}) as two:
        yield one, two


def _ids(gateway: RunningGateway, *servers: OllamaServer) -> list[str]:
    found = {report.instance.endpoint: report.instance.id for report in gateway.manager.instances()}
    return [found[server.url] for server in servers]


def _asked(server: OllamaServer, path: str) -> list[Any]:
    return [json.loads(record.body) for record in server.requests if record.path == path]


def _have(model: str, *servers: OllamaServer) -> list[bool]:
    return [server.catalogue.find(model) is not None for server in servers]


async def _pull(gateway: RunningGateway, where: str = "", model: str = "big", **fields: object) -> Answered:
    headers = {WHERE: where} if where else {}
    return await gateway.ask("/api/pull", {"model": model, **fields}, headers=headers)


# -- pull ----------------------------------------------------------------------------------------------------------


async def test_pull_goes_to_one_with_most_room(serve: Serve, pair: Pair) -> None:
    """Without a header the model goes to one server, the answer says which, and the pool knows it at once."""
    one, two = pair
    one.catalogue.add(Model("other"))
    gateway = await serve(one, two)
    answered = await _pull(gateway)
    assert _have("big", one, two) == [False, True]
    assert [answered.headers["X-Gleitzeit-Instance"]] == _ids(gateway, two)
    assert (await gateway.chat(model="big")).status == 200


async def test_pull_updates_all_that_have_it(serve: Serve, pair: Pair) -> None:
    """A model that is there already is pulled anew wherever it is, and nowhere else."""
    one, two = pair
    one.registry = two.registry = {"smollm2": BIG}
    async with OllamaServer(models=[]) as lacking:
        gateway = await serve(one, two, lacking)
        assert (await _pull(gateway, model="smollm2", stream=False)).json == {"status": "success"}
        assert [len(_asked(server, "/api/pull")) for server in (one, two, lacking)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("where", "expected"), [("all", [True, True]), ("2", [True, True]), ("1", [False, True]), (" ALL ", [True, True])]
)
async def test_a_header_chooses_how_many(serve: Serve, pair: Pair, where: str, expected: list[bool]) -> None:
    """All of them, or so many: those with the most room."""
    one, two = pair
    one.catalogue.add(Model("other"))
    gateway = await serve(one, two)
    assert (await _pull(gateway, where)).lines[-1] == {"status": "success"}
    assert _have("big", one, two) == expected


async def test_a_header_names_instances(serve: Serve, pair: Pair) -> None:
    """By id or URL, with commas between them; one that is named twice counts once."""
    one, two = pair
    gateway = await serve(one, two)
    (identity,) = _ids(gateway, one)
    assert (await _pull(gateway, f"{identity}, {one.url}", stream=False)).status == 200
    assert (len(_asked(one, "/api/pull")), len(_asked(two, "/api/pull"))) == (1, 0)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("gpu9", "there is no instance 'gpu9'"),
        ("0", "from 1 to 10000"),
        ("all,gpu1", "'all', a number, or ids"),
        (",", "'all', a number, or ids"),
    ],
)
async def test_a_header_that_is_wrong_is_refused(serve: Serve, pair: Pair, where: str, reason: str) -> None:
    """It is the caller's mistake, in Ollama's envelope, and nothing is done."""
    gateway = await serve(*pair)
    refused = await _pull(gateway, where)
    assert (refused.status, reason in refused.json["error"]) == (400, True)
    assert [_asked(server, "/api/pull") for server in pair] == [[], []]


async def test_progress_is_merged(serve: Serve, pair: Pair) -> None:
    """One stream tells each status once; of a part as much is done as the slowest has; success comes last, once."""
    one, two = pair
    one.gate, two.gate = Gate(), Gate()
    gateway = await serve(one, two)
    async with asyncio.timeout(LIMIT_S):
        pulling = asyncio.create_task(_pull(gateway, "all"))
        one.gate.open()
        await one.wait_for(lambda server: server.catalogue.find("big"))
        assert not pulling.done()
        two.gate.open()
        lines = (await pulling).lines
    texts = [line["status"] for line in lines if "digest" not in line]
    assert texts == ["pulling manifest", "verifying sha256 digest", "writing manifest", "success"]
    parts = [line for line in lines if "digest" in line]
    done = [line.get("completed", 0) for line in parts]
    assert done == sorted(done)
    assert done[-1] == BIG
    assert {line["total"] for line in parts} == {BIG}
    assert {tuple(line) for line in parts} <= {
        ("status", "digest", "total"),
        ("status", "digest", "total", "completed"),
    }


async def test_one_of_two_that_fails_is_told(serve: Serve, pair: Pair) -> None:
    """The other one gets the model; the answer is an error, not a success, and names who failed."""
    one, two = pair
    two.registry = {}
    gateway = await serve(one, two)
    lines = (await _pull(gateway, "all")).lines
    assert lines[-1] == {"error": "pull model manifest: file does not exist"}
    assert {"status": "success"} not in lines
    assert _have("big", one, two) == [True, False]
    one.script.next(ErrorLineAfter(2, "disk is full"), on="/api/pull")
    refused = await _pull(gateway, "all", stream=False)
    assert refused.status == 500
    for server, why in ((one, "disk is full"), (two, "file does not exist")):
        assert f"{server.url} could not pull 'big'" in refused.json["error"]
        assert why in refused.json["error"]


async def test_a_server_that_is_down_is_told_before_the_stream(serve: Serve, pair: Pair) -> None:
    """Where nothing has been said yet, the error has a status of its own."""
    one, two = pair
    gateway = await serve(one, two)
    await two.stop()
    refused = await _pull(gateway, two.url)
    assert refused.status == 503
    assert "cannot be reached" in refused.json["error"]
    assert (await _pull(gateway)).lines[-1] == {"status": "success"}
    assert _have("big", one) == [True]


async def test_a_pull_that_breaks_off_does_not_look_complete(serve: Serve, ollama: OllamaServer) -> None:
    """A server that dies in the middle leaves an error in the stream, and the connection is cut."""
    ollama.registry = {"big": BIG}
    gateway = await serve(ollama)
    ollama.script.next(DropAfter(3), on="/api/pull")
    answered = await _pull(gateway)
    assert not answered.complete
    assert "could not pull 'big'" in answered.lines[-1]["error"]


async def test_callers_for_one_model_share_the_pull(serve: Serve, ollama: OllamaServer) -> None:
    """Who comes late hears what happened so far; it is downloaded once; who leaves does not end it for the other."""
    ollama.registry, ollama.gate = {"big": BIG}, Gate()
    gateway = await serve(ollama)
    begun = [asyncio.Event(), asyncio.Event()]
    async with asyncio.timeout(LIMIT_S):
        callers = [asyncio.create_task(gateway.ask("/api/pull", {"model": "big"}, begun=event.set)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        callers[0].cancel()
        await asyncio.gather(callers[0], return_exceptions=True)
        await gateway.until(lambda: "1 requests" in repr(gateway.gateway))
        assert ollama.disconnects == 0
        ollama.gate.open()
        assert (await callers[1]).lines[-1] == {"status": "success"}
    assert len(_asked(ollama, "/api/pull")) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_last_who_leaves_ends_the_pull(serve: Serve, ollama: OllamaServer, *, stream: bool) -> None:
    """The server sees its connection close, whether the caller was told steps or not."""
    ollama.registry, ollama.gate = {"big": BIG}, Gate()
    gateway = await serve(ollama)
    async with asyncio.timeout(LIMIT_S):
        caller = asyncio.create_task(_pull(gateway, stream=stream))
        await ollama.wait_for(lambda server: any(r.path == "/api/pull" and r.parts for r in server.requests))
        caller.cancel()
        await ollama.wait_for(lambda server: server.disconnects == 1)
    assert _have("big", ollama) == [False]


async def test_an_insecure_registry_is_asked_for(serve: Serve, ollama: OllamaServer) -> None:
    """What the caller says about the registry reaches the server, and only if it was said."""
    ollama.registry = {"big": BIG}
    gateway = await serve(ollama)
    await _pull(gateway, insecure=True)
    await _pull(gateway)
    assert [body.get("insecure") for body in _asked(ollama, "/api/pull")] == [True, None]


@pytest.mark.parametrize("path", ["/api/pull", "/api/push", "/api/create"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model": 1}', b'{"model": ""}', b'{"model": "x", "stream": "yes"}', b'"\\ud800"']
)
async def test_what_cannot_be_read_is_refused_as_by_ollama(
    serve: Serve, ollama: OllamaServer, path: str, body: bytes
) -> None:
    """Status, type and words are those that the server itself has for the same body."""
    gateway = await serve(ollama)
    answered = await gateway.ask(path, body)
    async with gateway.session.post(ollama.url + path, data=body) as response:
        assert answered.status == response.status
        assert answered.body == await response.read()
        assert answered.headers["Content-Type"] == response.headers["Content-Type"]


# -- create and blobs ----------------------------------------------------------------------------------------------


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
    assert _have("pirate", one, two) == [True, False]
    assert (await gateway.chat(model="pirate")).status == 200


async def test_create_passes_all_fields(serve: Serve, ollama: OllamaServer) -> None:
    """Fields that the gateway does not know reach the server as they are."""
    gateway = await serve(ollama)
    fields = {"from": "smollm2", "parameters": {"num_ctx": 1}, "something": [{"new": None}]}
    await gateway.ask("/api/create", {"model": "pirate", "stream": False, **fields})
    assert _asked(ollama, "/api/create") == [{**fields, "model": "pirate", "stream": True}]


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
    assert _have("own", one, two) == [True, False]
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
    assert _have("own", one, two) == [True, False]


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
            assert [response.headers["X-Gleitzeit-Instance"]] == _ids(gateway, ollama)
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


# -- copy, delete, push --------------------------------------------------------------------------------------------


async def test_copy_and_delete_are_for_all_that_have_it(serve: Serve, pair: Pair) -> None:
    """Those that lack the model are passed over; the answer says who did it; the pool knows at once."""
    one, two = pair
    one.catalogue.add(Model("mine"))
    gateway = await serve(one, two)
    copied = await gateway.ask("/api/copy", {"source": "mine", "destination": "other"})
    assert (copied.status, copied.body) == (200, b"")
    assert [copied.headers["X-Gleitzeit-Instance"]] == _ids(gateway, one)
    assert _have("other", one, two) == [True, False]
    assert (await gateway.chat(model="other")).status == 200
    deleted = await gateway.ask("/api/delete", {"model": "smollm2"}, verb="DELETE")
    assert deleted.status == 200
    assert deleted.headers["X-Gleitzeit-Instance"].split(",") == _ids(gateway, one, two)
    assert _have("smollm2", one, two) == [False, False]
    assert (await gateway.chat()).status == 404


async def test_delete_on_a_named_one(serve: Serve, pair: Pair) -> None:
    """Others keep the model."""
    one, two = pair
    gateway = await serve(one, two)
    await gateway.ask("/api/delete", {"name": "smollm2"}, verb="DELETE", headers={WHERE: one.url})
    assert _have("smollm2", one, two) == [False, True]


async def test_delete_says_who_keeps_it(serve: Serve, pair: Pair) -> None:
    """A server that has the model and cannot be reached is an error; one that was never known to have it is not."""
    one, two = pair
    two.catalogue.remove("smollm2")
    gateway = await serve(one, two)
    await two.stop()
    assert (await gateway.ask("/api/delete", {"model": "smollm2"}, verb="DELETE")).status == 200
    one.catalogue.add(Model("smollm2"))
    await two.start()
    two.catalogue.add(Model("smollm2"))
    for identity in _ids(gateway, one, two):
        await gateway.manager.dispatcher.shell.health.check(identity)
    await two.stop()
    refused = await gateway.ask("/api/delete", {"model": "smollm2"}, verb="DELETE")
    assert refused.status == 503
    assert two.url in refused.json["error"]
    assert _have("smollm2", one) == [False]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 1}', b"{}", b'{"source": "smollm2"}'])
@pytest.mark.parametrize(("verb", "path"), [("POST", "/api/copy"), ("DELETE", "/api/delete")])
async def test_what_is_wrong_is_told_as_by_ollama(serve: Serve, pair: Pair, verb: str, path: str, body: bytes) -> None:
    """In the words of the first server, once."""
    gateway = await serve(*pair)
    answered = await gateway.ask(path, body, verb=verb)
    async with gateway.session.request(verb, pair[0].url + path, data=body) as response:
        assert (answered.status, answered.body) == (response.status, await response.read())


async def test_push_comes_from_one_that_has_it(serve: Serve, pair: Pair) -> None:
    """Whoever has the model pushes it, once, and the registry's answer is told in steps."""
    one, two = pair
    two.catalogue.add(Model("me/mine"))
    gateway = await serve(one, two)
    lines = (await gateway.ask("/api/push", {"model": "me/mine"})).lines
    assert lines[0] == {"status": "retrieving manifest"}
    assert "no such host" in lines[-1]["error"]
    assert (len(_asked(one, "/api/push")), len(_asked(two, "/api/push"))) == (0, 1)


# -- memory --------------------------------------------------------------------------------------------------------


async def test_load_and_unload(serve: Serve, pair: Pair) -> None:
    """A model is loaded on one server, which stays the one; on all, if so asked; and unloaded wherever it is."""
    gateway = await serve(*pair)
    body = {"model": "smollm2", "keep_alive": "1h"}
    first = (await gateway.ask("/admin/models/load", body)).json
    assert (await gateway.ask("/admin/models/load", {"model": "smollm2"})).json == first
    assert sum(len(server.runners.loaded()) for server in pair) == 1
    everywhere = (await gateway.ask("/admin/models/load", body, headers={WHERE: "all"})).json
    assert sorted(everywhere["instances"]) == sorted(_ids(gateway, *pair))
    assert [len(server.runners.loaded()) for server in pair] == [1, 1]
    done = (await gateway.ask("/admin/models/unload", {"model": "smollm2"})).json
    assert sorted(done["instances"]) == sorted(_ids(gateway, *pair))
    assert [len(server.runners.loaded()) for server in pair] == [0, 0]
    assert (await gateway.ask("/admin/models/unload", {"model": "smollm2"})).json["instances"] == []


@pytest.mark.parametrize("path", ["/admin/models/load", "/admin/models/unload"])
async def test_memory_of_what_is_not_there(serve: Serve, pair: Pair, path: str) -> None:
    """An unknown model, and a body that makes no sense, are told apart."""
    gateway = await serve(*pair)
    refused = await gateway.ask(path, {"model": "nope"})
    assert (refused.status, refused.json["error"]["message"]) == (404, "model 'nope' not found")
    for body in ({}, {"model": 1}, {"model": "smollm2", "extra": 1}, []):
        assert (await gateway.ask(path, body)).status == 400


# -- who may, and where it is not served ---------------------------------------------------------------------------

CHANGES = [
    ("POST", "/api/pull", {"model": "big"}),
    ("POST", "/api/push", {"model": "smollm2"}),
    ("POST", "/api/create", {"model": "x", "from": "smollm2"}),
    ("POST", "/api/copy", {"source": "smollm2", "destination": "x"}),
    ("DELETE", "/api/delete", {"model": "smollm2"}),
    ("POST", f"/api/blobs/sha256:{'0' * 64}", b"x"),
    ("POST", "/admin/models/load", {"model": "smollm2"}),
    ("POST", "/admin/models/unload", {"model": "smollm2"}),
]


@pytest.mark.parametrize(("verb", "path", "body"), CHANGES)
async def test_changes_need_a_key_for_it(
    serve: Serve, ollama: OllamaServer, verb: str, path: str, body: object
) -> None:
    """Where keys are configured, what changes models needs one with ``admin``; nothing is asked of a server before."""
    plain, admin = "a-key-of-at-least-16-characters", "another-key-of-at-least-16"
    keys = [{"name": "alice", "key": plain}, {"name": "root", "key": admin, "admin": True}]
    gateway = await serve(ollama, keys=keys)
    before = len(ollama.requests)
    assert (await gateway.ask(path, body, verb=verb)).status == 401
    refused = await gateway.ask(path, body, verb=verb, headers={"Authorization": f"Bearer {plain}"})
    assert (refused.status, refused.headers["X-Gleitzeit-Error"]) == (403, "forbidden")
    assert len(ollama.requests) == before
    allowed = await gateway.ask(path, body, verb=verb, headers={"Authorization": f"Bearer {admin}"})
    assert allowed.status not in (401, 403)


async def test_anybody_may_ask_for_a_blob(serve: Serve, ollama: OllamaServer) -> None:
    """Asking changes nothing; any key will do."""
    key = "a-key-of-at-least-16-characters"
    gateway = await serve(ollama, keys=[{"name": "alice", "key": key}])
    path = f"/api/blobs/sha256:{'0' * 64}"
    assert (await gateway.ask(path, verb="HEAD", headers={"Authorization": f"Bearer {key}"})).status == 404


@pytest.mark.parametrize(("verb", "path", "body"), CHANGES)
async def test_without_such_a_hub_it_is_not_served(
    serve: Serve, ollama: OllamaServer, verb: str, path: str, body: object
) -> None:
    """In a pool without an Ollama hub each call says in words that it is not served, and touches nothing."""
    gateway = await serve(ollama, apis=["openai"])
    refused = await gateway.ask(path, body, verb=verb)
    assert (refused.status, refused.headers["X-Gleitzeit-Error"]) == (501, "not_implemented")
    assert "no hub of type 'ollama'" in refused.text
    assert not ollama.requests


@pytest.mark.parametrize(("verb", "path", "body"), [change for change in CHANGES if change[1].startswith("/api")])
async def test_without_the_plugin_it_is_not_served(
    serve: Serve, ollama: OllamaServer, verb: str, path: str, body: object
) -> None:
    """Nor is it without the plugin that serves it."""
    gateway = await serve(ollama, apis=["openai"], disabled=["ollama"])
    refused = await gateway.ask(path, body, verb=verb)
    assert (refused.status, refused.headers["X-Gleitzeit-Error"]) == (501, "not_implemented")
    assert "the plugin 'ollama'" in refused.json["error"]


async def test_static_servers_are_left_alone(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Nothing but users' requests goes to them: not by default, not by 'all', and not by name."""
    fixed = {"probe": False, "models": ["smollm2"]}
    gateway = await serve(ollama, hub=fixed)
    for where in ("", "all"):
        refused = await _pull(gateway, where)
        assert refused.status == 404
        assert "has no instance that a model can be pulled to" in refused.json["error"]
    refused = await gateway.ask("/api/delete", {"model": "smollm2"}, verb="DELETE", headers={WHERE: ollama.url})
    assert (refused.status, "it is static" in refused.json["error"]) == (400, True)
    assert not ollama.requests
    del other


async def test_drained_servers_get_no_new_models(serve: Serve, pair: Pair) -> None:
    """Unless they are named; what they have is deleted with the others'. With none left that is told."""
    one, two = pair
    gateway = await serve(one, two)
    ids = _ids(gateway, one, two)
    gateway.manager.drain_instance(ids[0])
    assert (await _pull(gateway, "all", stream=False)).status == 200
    assert _have("big", one, two) == [False, True]
    assert (await _pull(gateway, ids[0], stream=False)).status == 200
    assert _have("big", one, two) == [True, True]
    assert (await gateway.ask("/api/delete", {"model": "big"}, verb="DELETE")).status == 200
    assert _have("big", one, two) == [False, False]
    gateway.manager.drain_instance(ids[1])
    refused = await _pull(gateway)
    assert (refused.status, "are drained" in refused.json["error"]) == (503, True)


async def test_draining_takes_no_new_pull(serve: Serve, ollama: OllamaServer) -> None:
    """While the gateway shuts down, a call that would take long is turned away."""
    gateway = await serve(ollama)
    await gateway.gateway.drain()
    assert (await _pull(gateway)).status == 503


async def test_closing_ends_pulls(serve: Serve, ollama: OllamaServer) -> None:
    """A pull that runs when the manager is closed ends with an error in its stream, and its connection is closed."""
    ollama.registry, ollama.gate = {"big": BIG}, Gate()
    gateway = await serve(ollama)
    begun = asyncio.Event()
    async with asyncio.timeout(LIMIT_S):
        caller = asyncio.create_task(gateway.ask("/api/pull", {"model": "big"}, begun=begun.set))
        await begun.wait()
        await gateway.manager.aclose()
        answered = await caller
        await ollama.wait_for(lambda server: server.disconnects == 1)
    assert not answered.complete
    assert "closed" in answered.lines[-1]["error"]


async def test_a_stalled_pull_is_ended(serve: Serve, ollama: OllamaServer) -> None:
    """Silence for too long is a failure, told in the stream."""
    ollama.registry = {"big": BIG}
    gateway = await serve(ollama)
    for hub in gateway.manager.dispatcher.shell.hubs.values():
        hub.options = hub.options.model_copy(update={"pull_stall_timeout_s": 0.1})
    ollama.script.next(StallAfter(2), on="/api/pull")
    answered = await _pull(gateway)
    assert "it said nothing for 0.1 s" in answered.lines[-1]["error"]
