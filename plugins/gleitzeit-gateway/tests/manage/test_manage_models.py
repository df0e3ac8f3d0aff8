"""Copying, deleting, pushing, loading and unloading models over several servers, and who may manage them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.testing import (
    Model,
    OllamaServer,
)

from .servers import WHERE, asked, have, ids_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Pair = tuple[OllamaServer, OllamaServer]


# -- copy, delete, push --------------------------------------------------------------------------------------------


async def test_copy_and_delete_are_for_all_that_have_it(serve: Serve, pair: Pair) -> None:
    """Those that lack the model are passed over; the answer says who did it; the pool knows at once."""
    one, two = pair
    one.catalogue.add(Model("mine"))
    gateway = await serve(one, two)
    copied = await gateway.ask("/api/copy", {"source": "mine", "destination": "other"})
    assert (copied.status, copied.body) == (200, b"")
    assert [copied.headers["X-Gleitzeit-Instance"]] == ids_of(gateway, one)
    assert have("other", one, two) == [True, False]
    assert (await gateway.chat(model="other")).status == 200
    deleted = await gateway.ask("/api/delete", {"model": "smollm2"}, verb="DELETE")
    assert deleted.status == 200
    assert deleted.headers["X-Gleitzeit-Instance"].split(",") == ids_of(gateway, one, two)
    assert have("smollm2", one, two) == [False, False]
    assert (await gateway.chat()).status == 404


async def test_delete_on_a_named_one(serve: Serve, pair: Pair) -> None:
    """Others keep the model."""
    one, two = pair
    gateway = await serve(one, two)
    await gateway.ask("/api/delete", {"name": "smollm2"}, verb="DELETE", headers={WHERE: one.url})
    assert have("smollm2", one, two) == [False, True]


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
    for identity in ids_of(gateway, one, two):
        await gateway.manager.dispatcher.shell.health.check(identity)
    await two.stop()
    refused = await gateway.ask("/api/delete", {"model": "smollm2"}, verb="DELETE")
    assert refused.status == 503
    assert two.url in refused.json["error"]
    assert have("smollm2", one) == [False]


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
    assert (len(asked(one, "/api/push")), len(asked(two, "/api/push"))) == (0, 1)


# -- memory --------------------------------------------------------------------------------------------------------


async def test_load_and_unload(serve: Serve, pair: Pair) -> None:
    """A model is loaded on one server, which stays the one; on all, if so asked; and unloaded wherever it is."""
    gateway = await serve(*pair)
    body = {"model": "smollm2", "keep_alive": "1h"}
    first = (await gateway.ask("/admin/models/load", body)).json
    assert (await gateway.ask("/admin/models/load", {"model": "smollm2"})).json == first
    assert sum(len(server.runners.loaded()) for server in pair) == 1
    everywhere = (await gateway.ask("/admin/models/load", body, headers={WHERE: "all"})).json
    assert sorted(everywhere["instances"]) == sorted(ids_of(gateway, *pair))
    assert [len(server.runners.loaded()) for server in pair] == [1, 1]
    done = (await gateway.ask("/admin/models/unload", {"model": "smollm2"})).json
    assert sorted(done["instances"]) == sorted(ids_of(gateway, *pair))
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
