"""Pulling models through the gateway over several servers: where a pull goes, what is merged, who shares it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import (
    DropAfter,
    ErrorLineAfter,
    Gate,
    Model,
    OllamaServer,
    StallAfter,
)

from .servers import BIG, LIMIT_S, WHERE, asked, have, ids_of, pull

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Pair = tuple[OllamaServer, OllamaServer]


async def test_pull_goes_to_one_with_most_room(serve: Serve, pair: Pair) -> None:
    """Without a header the model goes to one server, the answer says which, and the pool knows it at once."""
    one, two = pair
    one.catalogue.add(Model("other"))
    gateway = await serve(one, two)
    answered = await pull(gateway)
    assert have("big", one, two) == [False, True]
    assert [answered.headers["X-Gleitzeit-Instance"]] == ids_of(gateway, two)
    assert (await gateway.chat(model="big")).status == 200


async def test_pull_updates_all_that_have_it(serve: Serve, pair: Pair) -> None:
    """A model that is there already is pulled anew wherever it is, and nowhere else."""
    one, two = pair
    one.registry = two.registry = {"smollm2": BIG}
    async with OllamaServer(models=[]) as lacking:
        gateway = await serve(one, two, lacking)
        assert (await pull(gateway, model="smollm2", stream=False)).json == {"status": "success"}
        assert [len(asked(server, "/api/pull")) for server in (one, two, lacking)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("where", "expected"), [("all", [True, True]), ("2", [True, True]), ("1", [False, True]), (" ALL ", [True, True])]
)
async def test_a_header_chooses_how_many(serve: Serve, pair: Pair, where: str, expected: list[bool]) -> None:
    """All of them, or so many: those with the most room."""
    one, two = pair
    one.catalogue.add(Model("other"))
    gateway = await serve(one, two)
    assert (await pull(gateway, where)).lines[-1] == {"status": "success"}
    assert have("big", one, two) == expected


async def test_a_header_names_instances(serve: Serve, pair: Pair) -> None:
    """By id or URL, with commas between them; one that is named twice counts once."""
    one, two = pair
    gateway = await serve(one, two)
    (identity,) = ids_of(gateway, one)
    assert (await pull(gateway, f"{identity}, {one.url}", stream=False)).status == 200
    assert (len(asked(one, "/api/pull")), len(asked(two, "/api/pull"))) == (1, 0)


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
    refused = await pull(gateway, where)
    assert (refused.status, reason in refused.json["error"]) == (400, True)
    assert [asked(server, "/api/pull") for server in pair] == [[], []]


async def test_progress_is_merged(serve: Serve, pair: Pair) -> None:
    """One stream tells each status once; of a part as much is done as the slowest has; success comes last, once."""
    one, two = pair
    one.gate, two.gate = Gate(), Gate()
    gateway = await serve(one, two)
    async with asyncio.timeout(LIMIT_S):
        pulling = asyncio.create_task(pull(gateway, "all"))
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
    lines = (await pull(gateway, "all")).lines
    assert lines[-1] == {"error": "pull model manifest: file does not exist"}
    assert {"status": "success"} not in lines
    assert have("big", one, two) == [True, False]
    one.script.next(ErrorLineAfter(2, "disk is full"), on="/api/pull")
    refused = await pull(gateway, "all", stream=False)
    assert refused.status == 500
    for server, why in ((one, "disk is full"), (two, "file does not exist")):
        assert f"{server.url} could not pull 'big'" in refused.json["error"]
        assert why in refused.json["error"]


async def test_a_server_that_is_down_is_told_before_the_stream(serve: Serve, pair: Pair) -> None:
    """Where nothing has been said yet, the error has a status of its own."""
    one, two = pair
    gateway = await serve(one, two)
    await two.stop()
    refused = await pull(gateway, two.url)
    assert refused.status == 503
    assert "cannot be reached" in refused.json["error"]
    assert (await pull(gateway)).lines[-1] == {"status": "success"}
    assert have("big", one) == [True]


async def test_a_pull_that_breaks_off_does_not_look_complete(serve: Serve, ollama: OllamaServer) -> None:
    """A server that dies in the middle leaves an error in the stream, and the connection is cut."""
    ollama.registry = {"big": BIG}
    gateway = await serve(ollama)
    ollama.script.next(DropAfter(3), on="/api/pull")
    answered = await pull(gateway)
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
    assert len(asked(ollama, "/api/pull")) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_last_who_leaves_ends_the_pull(serve: Serve, ollama: OllamaServer, *, stream: bool) -> None:
    """The server sees its connection close, whether the caller was told steps or not."""
    ollama.registry, ollama.gate = {"big": BIG}, Gate()
    gateway = await serve(ollama)
    async with asyncio.timeout(LIMIT_S):
        caller = asyncio.create_task(pull(gateway, stream=stream))
        await ollama.wait_for(lambda server: any(r.path == "/api/pull" and r.parts for r in server.requests))
        caller.cancel()
        await ollama.wait_for(lambda server: server.disconnects == 1)
    assert have("big", ollama) == [False]


async def test_an_insecure_registry_is_asked_for(serve: Serve, ollama: OllamaServer) -> None:
    """What the caller says about the registry reaches the server, and only if it was said."""
    ollama.registry = {"big": BIG}
    gateway = await serve(ollama)
    await pull(gateway, insecure=True)
    await pull(gateway)
    assert [body.get("insecure") for body in asked(ollama, "/api/pull")] == [True, None]


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


async def test_static_servers_are_left_alone(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Nothing but users' requests goes to them: not by default, not by 'all', and not by name."""
    fixed = {"probe": False, "models": ["smollm2"]}
    gateway = await serve(ollama, hub=fixed)
    for where in ("", "all"):
        refused = await pull(gateway, where)
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
    ids = ids_of(gateway, one, two)
    gateway.manager.drain_instance(ids[0])
    assert (await pull(gateway, "all", stream=False)).status == 200
    assert have("big", one, two) == [False, True]
    assert (await pull(gateway, ids[0], stream=False)).status == 200
    assert have("big", one, two) == [True, True]
    assert (await gateway.ask("/api/delete", {"model": "big"}, verb="DELETE")).status == 200
    assert have("big", one, two) == [False, False]
    gateway.manager.drain_instance(ids[1])
    refused = await pull(gateway)
    assert (refused.status, "are drained" in refused.json["error"]) == (503, True)


async def test_draining_takes_no_new_pull(serve: Serve, ollama: OllamaServer) -> None:
    """While the gateway shuts down, a call that would take long is turned away."""
    gateway = await serve(ollama)
    await gateway.gateway.drain()
    assert (await pull(gateway)).status == 503


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
    answered = await pull(gateway)
    assert "it said nothing for 0.1 s" in answered.lines[-1]["error"]
