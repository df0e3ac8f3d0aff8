from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.resources import ChannelKind, HttpChannel, Ownership, Speaks, instance_id
from gleitzeit_llm.models import entries
from gleitzeit_ollama.addresses import GATEWAY_HEADER
from gleitzeit_ollama.testing import (
    Busy,
    DropAfter,
    DropBeforeHeaders,
    Fault,
    Garbage,
    Hang,
    Model,
    OllamaServer,
    Status,
    Unauthorized,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    StartPool = Callable[..., Awaitable[Any]]

KEY = "sk-open-sesame"
GATEWAY = Status(200, {"version": "0.24.0"}, {GATEWAY_HEADER: "1"})


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaServer]:
    """One server with two models."""
    async with OllamaServer(models=["smollm2", "toolsy:7b"]) as server:
        yield server


def _paths(server: OllamaServer) -> list[str]:
    return sorted(record.path for record in server.requests)


async def test_a_server_is_ready_with_what_it_has(pool: StartPool, ollama: OllamaServer) -> None:
    """After the start a server is ready, and its models, their entries and its version are known."""
    pooled = await pool(ollama.url)
    assert pooled.states() == {ollama.url: "ready"}
    instance = pooled.instance(ollama.url)
    assert instance.capabilities == {"model:smollm2", "model:toolsy:7b"}
    assert instance.warm == frozenset()
    assert instance.details["version"] == "0.24.0"
    assert entries(instance)["smollm2"]["name"] == "smollm2:latest"
    assert entries(instance)["toolsy:7b"]["details"]["family"] == "llama"
    assert instance.ownership is Ownership.EXTERNAL
    assert instance.id == instance_id("ollama", ollama.url)


async def test_it_offers_both_apis(pool: StartPool, ollama: OllamaServer) -> None:
    """An Ollama server is driven through its own API or through OpenAI's, over the same channel."""
    instance = (await pool(ollama.url)).instance(ollama.url)
    for api in ("ollama", "openai"):
        assert instance.channel_for((Speaks(api, ChannelKind.HTTP),)) == (api, HttpChannel(ollama.url))


async def test_options_reach_the_instance(pool: StartPool, ollama: OllamaServer) -> None:
    """Weight, limit, tags and name are the configured ones."""
    options = {"url": ollama.url, "name": "big", "weight": 2, "max_concurrent": 3, "tags": ["gpu", "eu"]}
    instance = (await pool(instances=[options])).instance(ollama.url)
    assert (instance.weight, instance.max_concurrent, instance.tags) == (2.0, 3, {"gpu", "eu"})
    assert instance.details["name"] == "big"


async def test_latest_is_no_other_model(pool: StartPool) -> None:
    """`name` and `name:latest` are one capability; another tag is another model."""
    async with OllamaServer(models=["a:latest", "a:1b", "b"]) as server:
        pooled = await pool(server.url)
        assert pooled.models(server.url) == {"model:a", "model:a:1b", "model:b"}


async def test_loaded_models_are_warm(pool: StartPool, ollama: OllamaServer) -> None:
    """A model in memory makes the instance warm for it, until it leaves memory."""
    pooled = await pool(ollama.url)
    model = Model("smollm2")
    async with ollama.runners.slot(model, keep_alive_s=60):
        await pooled.check(ollama.url)
        assert pooled.instance(ollama.url).warm == {"model:smollm2"}
    ollama.runners.unload(model.name)
    await pooled.check(ollama.url)
    assert pooled.instance(ollama.url).warm == frozenset()


async def test_models_come_and_go(pool: StartPool, ollama: OllamaServer) -> None:
    """A model that is added is a capability after the next check, one that is removed is none."""
    pooled = await pool(ollama.url)
    ollama.catalogue.add(Model("fresh"))
    ollama.catalogue.remove("smollm2")
    await pooled.check(ollama.url)
    assert pooled.models(ollama.url) == {"model:fresh", "model:toolsy:7b"}


async def test_a_check_that_finds_nothing_new_changes_nothing(pool: StartPool, ollama: OllamaServer) -> None:
    """A server that stays as it is costs the pool no new snapshot."""
    pooled = await pool(ollama.url)
    before = pooled.instance(ollama.url)
    assert await pooled.hub.check(before) == before
    await pooled.check(ollama.url)
    assert pooled.instance(ollama.url) is before


async def test_models_may_be_none(pool: StartPool) -> None:
    """A server without models is ready, with nothing to offer; older ones write the empty list as null."""
    async with OllamaServer(models=[]) as server:
        pooled = await pool(server.url)
        assert pooled.states() == {server.url: "ready"}
        assert pooled.models(server.url) == set()
        server.script.always(Status(200, {"models": None}), on="/api/tags")
        assert await pooled.check(server.url) == "ready"


async def test_a_server_that_cannot_tell_what_is_loaded_is_well(pool: StartPool, ollama: OllamaServer) -> None:
    """Ollama before 0.1.38 has no /api/ps: then nothing counts as loaded."""
    ollama.script.always(Status(404, "404 page not found"), on="/api/ps")
    pooled = await pool(ollama.url)
    assert pooled.states() == {ollama.url: "ready"}
    assert pooled.models(ollama.url) == {"model:smollm2", "model:toolsy:7b"}


async def test_listed_models_are_not_asked_for(pool: StartPool, ollama: OllamaServer) -> None:
    """Where the configuration lists the models, the server is watched but never asked for its list."""
    pooled = await pool(instances=[{"url": ollama.url, "models": ["tiny:latest", "big"]}])
    await pooled.check(ollama.url)
    assert pooled.states() == {ollama.url: "ready"}
    assert pooled.models(ollama.url) == {"model:tiny", "model:big"}
    assert entries(pooled.instance(ollama.url))["tiny"]["name"] == "tiny:latest"
    assert set(_paths(ollama)) == {"/api/version", "/api/ps"}


@pytest.mark.parametrize(
    ("fault", "on", "reason"),
    [
        (Garbage(), "any", "GET /api/version answered text/html instead of JSON"),
        (Garbage(b"", "text/html"), "any", "GET /api/version answered nothing instead of JSON"),
        (Garbage(b"[" * 100_000, "application/json"), "any", "instead of JSON"),
        (Garbage(b"{\xff}", "application/json"), "any", "instead of JSON"),
        (Status(404, "404 page not found"), "any", "GET /api/version answered 404"),
        (Status(405, ""), "any", "GET /api/version answered 405"),
        (Status(200, {"hello": "world"}), "any", "GET /api/version names no version"),
        (Status(200, '["0.24.0"]'), "any", "GET /api/version names no version"),
        (Status(200, {"version": 24}), "/api/version", "GET /api/version names no version"),
        (Status(200, {"data": []}), "/api/tags", "GET /api/tags lists no models"),
        (Status(200, {"models": {}}), "/api/tags", "GET /api/tags lists no models"),
        (Status(200, {"models": [{"size": 1}]}), "/api/tags", "GET /api/tags lists no models"),
        (Status(200, {"models": [7]}), "/api/ps", "GET /api/ps lists no models"),
    ],
)
async def test_what_is_no_ollama_is_down_at_once(
    pool: StartPool, ollama: OllamaServer, fault: Fault, on: str, reason: str
) -> None:
    """Another server at the address is never used, and the reason says what it did."""
    ollama.script.always(fault, on=on)
    pooled = await pool(ollama.url)
    report = pooled.reports()[ollama.url]
    assert report.state == "down"
    assert report.reason.startswith(f"{ollama.url} is no Ollama server: ")
    assert reason in report.reason


async def test_a_gateway_is_not_pooled(pool: StartPool, ollama: OllamaServer) -> None:
    """A Gleitzeit gateway answers as an Ollama does; one that is configured is down, and it is said why."""
    pooled = await pool(ollama.url)
    ollama.script.always(GATEWAY, on="/api/version")
    assert await pooled.check(ollama.url) == (
        f"down: {ollama.url} is a Gleitzeit gateway, and one gateway does not pool another or itself: "
        "name the servers behind it instead"
    )
    ollama.script.clear()
    assert await pooled.check(ollama.url) == "ready"


@pytest.mark.parametrize(
    ("fault", "hint"),
    [(Unauthorized(), "status 401: check 'api_key'"), (Status(403, ""), "a name that is not its machine's")],
)
async def test_a_refused_key_is_a_mistake_in_the_configuration(
    pool: StartPool, ollama: OllamaServer, fault: Fault, hint: str
) -> None:
    """401 and 403 are shown as such, with what to look at, and pass when the server thinks better of it."""
    ollama.script.always(fault, on="any")
    pooled = await pool(ollama.url)
    report = pooled.reports()[ollama.url]
    assert report.state == "misconfigured"
    assert hint in report.reason
    ollama.script.clear()
    assert await pooled.check(ollama.url) == "ready"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Status(500), "answered 500"),
        (Garbage(b" " * 20_000_000, "application/json"), "answered more than 16777216 bytes"),
        (Status(302, "", {"Location": "/login"}), "answered 302"),
        (Busy(), "answered 503"),
        (DropBeforeHeaders(), ""),
        (DropBeforeHeaders(reset=True), ""),
        (DropAfter(1), ""),
    ],
)
async def test_one_failed_check_is_an_accident_two_are_not(
    pool: StartPool, ollama: OllamaServer, fault: Fault, reason: str
) -> None:
    """A server that answers badly is down after the second time, and back after one good answer."""
    pooled = await pool(ollama.url)
    ollama.script.always(fault, on="any")
    assert (await pooled.check(ollama.url)).startswith("ready")
    assert re.match(rf"down: .*{re.escape(ollama.url)}.*{reason}", await pooled.check(ollama.url))
    ollama.script.clear()
    assert await pooled.check(ollama.url) == "ready"


async def test_a_server_that_says_nothing_is_down(pool: StartPool, ollama: OllamaServer) -> None:
    """A check has a time limit; what does not keep it twice is down, and its requests are given up."""
    pooled = await pool(ollama.url, check_timeout_s=0.1)
    ollama.script.always(Hang(), on="any")
    await pooled.check(ollama.url)
    assert re.fullmatch(r"down: no answer .* within 0\.1 s", await pooled.check(ollama.url))
    await ollama.wait_for(lambda server: server.held == 0)


async def test_one_slow_answer_of_three_fails_the_check(pool: StartPool, ollama: OllamaServer) -> None:
    """All that is asked must be answered in time, and a check that ends leaves no request open."""
    pooled = await pool(ollama.url, check_timeout_s=0.1)
    ollama.script.always(Hang(), on="/api/ps")
    await pooled.check(ollama.url)
    assert (await pooled.check(ollama.url)).startswith("down")
    await ollama.wait_for(lambda server: all(record.finished for record in server.requests))


async def test_the_reason_does_not_flicker(pool: StartPool, ollama: OllamaServer) -> None:
    """When several questions fail in different ways, it is always the same one that is told."""
    pooled = await pool(ollama.url)
    ollama.script.always(Status(404, "no"), on="any")
    ollama.script.always(Garbage(), on="/api/tags")
    ollama.script.always(Status(500), on="/api/ps")
    said = {await pooled.check(ollama.url) for _ in range(10)}
    assert said == {f"down: {ollama.url} is no Ollama server: GET /api/version answered 404"}


async def test_keys_and_headers_are_sent_and_nowhere_shown(
    pool: StartPool, ollama: OllamaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Checks carry the instance's headers; no repr, report or log has them, not even when the server fails."""
    caplog.set_level("DEBUG")
    instance = {"url": ollama.url, "api_key": KEY, "headers": {"X-Team": f"{KEY}-team"}}
    pooled = await pool(instances=[instance])
    ollama.script.always(Unauthorized(), on="any")
    await pooled.check(ollama.url)
    for record in ollama.requests:
        assert record.headers["Authorization"] == f"Bearer {KEY}"
        assert record.headers["X-Team"] == f"{KEY}-team"
    shown = [pooled.hub, pooled.hub.instances, pooled.hub.options, pooled.dispatcher, pooled.reports()]
    assert KEY not in repr(shown) + caplog.text


async def test_many_checks_at_once_do_not_disturb_each_other(pool: StartPool) -> None:
    """Each server gets its own verdict, whatever its neighbours do."""
    async with OllamaServer(models=["a"]) as one, OllamaServer(models=["b"]) as two, OllamaServer() as three:
        three.script.always(Garbage(), on="any")
        pooled = await pool(one.url, two.url, three.url)
        await asyncio.gather(*(pooled.check(url) for url in (one.url, two.url, three.url) for _ in range(5)))
        assert pooled.states() == {one.url: "ready", two.url: "ready", three.url: "down"}
        assert (pooled.models(one.url), pooled.models(two.url)) == ({"model:a"}, {"model:b"})
