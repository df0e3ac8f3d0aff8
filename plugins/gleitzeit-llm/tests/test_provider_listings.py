"""What is known about models over all instances: `llm/models`, `llm/loaded`, `llm/show`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InstanceFailure
from gleitzeit_core.pool import State
from gleitzeit_core.resources import CallChannel, ChannelKind
from gleitzeit_core.runs import InstanceReport
from gleitzeit_llm import listings, models

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_llm.upstream import Upstream

    Line = Any
    Serve = Callable[..., Awaitable[Any]]
    StartPool = Callable[..., Awaitable[Any]]
    MakeInstance = Callable[..., Any]

pytestmark = pytest.mark.fidelity

NOWHERE = "http://127.0.0.1:1"
LOADED = {"name": "smollm2:latest", "model": "smollm2:latest", "size_vram": 5, "expires_at": "2030-01-01T00:00:00Z"}


async def listed(pool: Any, method: str) -> list[dict[str, Any]]:  # noqa: ANN401 - a pool
    """The entries of a listing."""
    request = pool.provider.request(method)
    answer = (await pool.dispatcher.one(pool.provider, request)).value
    found: list[dict[str, Any]] = answer["models"]
    return found


def saying(answer: object) -> Callable[[Line], Awaitable[None]]:
    """A server that answers everything with this JSON."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            line.answer(json.dumps(answer).encode())

    return handle


# -- the models there are ------------------------------------------------------------------------------------------


async def test_no_models(pool: StartPool) -> None:
    """Without instances there are none, and none is in memory."""
    started = await pool()
    assert await listed(started, "llm/models") == []
    assert await listed(started, "llm/loaded") == []


async def test_models_are_merged(pool: StartPool, instance_at: MakeInstance) -> None:
    """Each model once, in order of the names, whatever its instances speak."""
    started = await pool(
        instance_at("http://a:1", "ollama", models_=["zephyr", "llama3:latest"]),
        instance_at("http://b:1", "openai", models_=["llama3", "gpt"]),
    )
    names = [models.canonical(entry["name"]) for entry in await listed(started, "llm/models")]
    assert names == ["gpt", "llama3", "zephyr"]


@pytest.mark.parametrize("down", ["http://a:1", "http://b:1"])
async def test_what_is_down_is_listed_too(pool: StartPool, instance_at: MakeInstance, down: str) -> None:
    """As it was last seen; but where an instance that is up has the model, its entry is shown."""
    entries = {
        url: {name: models.entry(name, digest=f"{name} of {url}") for name in ("both", url)}
        for url in ("http://a:1", "http://b:1")
    }
    instances = [instance_at(url, details={"models": found}) for url, found in entries.items()]
    started = await pool(*instances)
    gone = next(instance for instance in instances if instance.endpoint == down)
    started.hub.report_down(gone.id, "gone")
    up = "http://b:1" if down == "http://a:1" else "http://a:1"
    answer = await started.dispatcher.one(started.provider, started.provider.request("llm/models", {}))
    assert answer.value["stale"] == [gone.id]
    assert [entry["name"] for entry in answer.value["models"] if entry.get("stale")] == [down]
    digests = [entry["digest"] for entry in answer.value["models"]]
    assert digests == [f"both of {up}", "http://a:1 of http://a:1", "http://b:1 of http://b:1"]


async def test_an_instance_that_says_nothing_about_its_models(pool: StartPool, instance_at: MakeInstance) -> None:
    """It adds nothing to the list."""
    started = await pool(instance_at(NOWHERE, details={}))
    assert await listed(started, "llm/models") == []
    assert await listed(started, "llm/loaded") == []


# -- the models in memory ------------------------------------------------------------------------------------------


async def test_loaded_models_are_asked_for(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """Each server that can say it is asked, and its own entries are shown."""
    servers = [await serve(saying({"models": [{**LOADED, "size_vram": n}]})) for n in (1, 2)]
    started = await pool(*(instance_at(server.url) for server in servers))
    assert sorted(entry["size_vram"] for entry in await listed(started, "llm/loaded")) == [1, 2]
    assert [(heard.method, heard.path) for server in servers for heard in server.heard] == [("GET", "/api/ps")] * 2


@pytest.mark.parametrize("answer", [{"models": []}, {"models": None}])
async def test_nothing_in_memory(serve: Serve, pool: StartPool, instance_at: MakeInstance, answer: object) -> None:
    """What the server says now counts, not what was seen before."""
    server = await serve(saying(answer))
    started = await pool(instance_at(server.url, warm=frozenset({"model:smollm2"})))
    assert await listed(started, "llm/loaded") == []


@pytest.mark.parametrize(
    "answer",
    [{}, [], 5, {"models": 5}, {"models": [5]}, {"models": {}}, {"error": "no such call"}],
    ids=json.dumps,
)
async def test_what_makes_no_sense(serve: Serve, pool: StartPool, instance_at: MakeInstance, answer: object) -> None:
    """Then what was last seen is shown."""
    server = await serve(saying(answer))
    started = await pool(instance_at(server.url, warm=frozenset({"model:smollm2"})))
    assert [entry["name"] for entry in await listed(started, "llm/loaded")] == ["smollm2"]


async def test_a_server_that_fails(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """It hides nothing of the others, and is shown as it was last seen."""

    async def failing(line: Line) -> None:
        await line.request()
        line.answer(b'{"error":"oops"}', status="500 Oops")

    bad, good = await serve(failing), await serve(saying({"models": [LOADED]}))
    warm = frozenset({"model:smollm2"})
    started = await pool(instance_at(bad.url, warm=warm), instance_at(NOWHERE, warm=warm), instance_at(good.url))
    found = await listed(started, "llm/loaded")
    assert sorted(entry["size_vram"] for entry in found) == [0, 0, 5]


async def test_a_slow_server_does_not_hold_the_list(
    serve: Serve, pool: StartPool, instance_at: MakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while what was last seen has to do, and the request is ended."""
    monkeypatch.setattr(listings, "LISTING_LIMIT_S", 0.3)
    gone = asyncio.Event()

    async def stalling(line: Line) -> None:
        await line.request()
        await line.gone()
        gone.set()

    server = await serve(stalling)
    started = await pool(instance_at(server.url, warm=frozenset({"model:smollm2"})))
    (entry,) = await listed(started, "llm/loaded")
    assert (entry["name"], entry["size_vram"], entry["expires_at"]) == ("smollm2", 0, "0001-01-01T00:00:00Z")
    assert entry["stale"] is True
    # The keys of a real one, and the mark.
    known = "name model size digest details expires_at size_vram context_length"
    assert list(entry) == [*known.split(), "stale"]
    await gone.wait()
    # And it is not waited for again so soon.
    assert await listed(started, "llm/loaded") == [entry]
    assert len(server.heard) == 1


async def test_a_silent_server_is_asked_again_later(
    serve: Serve, upstream: Upstream, instance_at: MakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once some time is over it is asked again, and then what it says counts."""
    monkeypatch.setattr(listings, "LISTING_LIMIT_S", 0.3)
    now, answers = 0.0, iter([None, {"models": [LOADED]}])

    async def waking(line: Line) -> None:
        await line.request()
        answer = next(answers)
        if answer is None:
            await line.gone()
        else:
            line.answer(json.dumps(answer).encode())

    server = await serve(waking)
    listing = listings.Loaded(upstream, lambda: now)
    report = InstanceReport(instance_at(server.url), State.READY, 0, "", limit=1, breaker="closed")
    assert (await listing.of([report]))["stale"] == [report.instance.id]
    assert repr(listing) == "<Loaded 1 silent>"
    now = listings.SILENCE_S
    monkeypatch.setattr(listings, "LISTING_LIMIT_S", 20)
    assert await listing.of([report]) == {"models": [LOADED]}


async def test_only_what_may_be_asked_is_asked(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """Static instances, those that are not up and those that cannot say it are sent nothing."""
    server = await serve(saying({"models": [LOADED]}))
    warm = frozenset({"model:smollm2"})
    instances = [
        instance_at(server.url, id="static", warm=warm, probe=False),
        instance_at(server.url, "openai", id="other", warm=warm),
        *(instance_at(server.url, id=state, warm=warm) for state in ("down", "misconfigured")),
    ]
    started = await pool(*instances)
    for state in (State.DOWN, State.MISCONFIGURED):
        started.dispatcher.shell.set_state(state.value, state, "")
    assert [entry["name"] for entry in await listed(started, "llm/loaded")] == ["smollm2"] * 4
    assert server.lines == 0


async def test_only_what_is_in_memory_is_listed(pool: StartPool, instance_at: MakeInstance) -> None:
    """Of an instance that cannot be asked, its warm models."""
    started = await pool(instance_at(NOWHERE, "openai", models_=["a", "b:latest"], warm=frozenset({"model:b"})))
    assert [entry["name"] for entry in await listed(started, "llm/loaded")] == ["b:latest"]


async def test_a_cancelled_listing_leaves_no_request(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """All that was asked is ended with it."""
    reached, gone = asyncio.Barrier(3), asyncio.Barrier(3)

    async def stalling(line: Line) -> None:
        await line.request()
        await reached.wait()
        await line.gone()
        await gone.wait()

    servers = [await serve(stalling) for _ in range(2)]
    started = await pool(*(instance_at(server.url) for server in servers))
    task = asyncio.create_task(listed(started, "llm/loaded"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone.wait()


# -- one model -----------------------------------------------------------------------------------------------------


async def test_a_model_of_an_openai_server_is_described(pool: StartPool, instance_at: MakeInstance) -> None:
    """With what is known of it, in the shape of Ollama's answer, and without a request."""
    details = {"family": "llama", "parameter_size": "8B"}
    entry = models.entry("llama3", details=details, modified_at="2026-01-01T00:00:00Z")
    started = await pool(instance_at(NOWHERE, "openai", models_=["llama3"], details={"models": {"llama3": entry}}))
    raw = await started.raw("ollama", "/api/show", {"model": "llama3:latest"})
    shown = json.loads(raw.body)
    assert (raw.status, raw.content_type) == (200, "application/json; charset=utf-8")
    assert (shown["details"], shown["modified_at"]) == (details, "2026-01-01T00:00:00Z")
    assert shown["capabilities"] == ["completion"]


async def test_a_model_that_nothing_is_known_of(pool: StartPool, instance_at: MakeInstance) -> None:
    """Its description is empty, but has its shape."""
    started = await pool(instance_at(NOWHERE, "openai", details={}))
    shown = json.loads((await started.raw("ollama", "/api/show", {"name": "smollm2"})).body)
    assert shown["details"]["family"] == ""


# -- other channels ------------------------------------------------------------------------------------------------


class Post:
    """A channel that is no HTTP."""

    kind = ChannelKind.HTTP

    async def call(self, message: bytes) -> bytes:
        """Give back what came."""
        return message


async def test_a_channel_that_only_says_it_is_http(pool: StartPool, instance_at: MakeInstance) -> None:
    """It is not driven, and nothing is asked there; the failure says why."""
    post = Post()
    assert isinstance(post, CallChannel)
    started = await pool(instance_at(NOWHERE, offers=(("ollama", post),), warm=frozenset({"model:smollm2"})))
    assert [entry["name"] for entry in await listed(started, "llm/loaded")] == ["smollm2"]
    with pytest.raises(InstanceFailure, match="cannot drive a http channel"):
        await started.raw("ollama", "/api/chat", {"model": "smollm2", "stream": False})
