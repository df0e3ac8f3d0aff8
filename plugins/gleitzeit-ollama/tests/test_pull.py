from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import (
    FailureKind,
    GleitzeitError,
    InstanceFailure,
    InvalidRequest,
    NoCapableInstance,
    Unavailable,
    UnknownName,
)
from gleitzeit_core.resources import HttpChannel, ResourceInstance
from gleitzeit_llm.models import capability
from gleitzeit_ollama.downloads import PullProgress
from gleitzeit_ollama.pulls import choose
from gleitzeit_ollama.testing import (
    DropAfter,
    ErrorLineAfter,
    Fault,
    Garbage,
    Gate,
    Hang,
    Model,
    OllamaServer,
    Pace,
    StallAfter,
    Status,
    TruncateAfter,
)

from .seen import pulled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gleitzeit_ollama.hub import OllamaHub

    StartPool = Callable[..., Awaitable[Any]]

KEY = "sk-open-sesame"


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaServer]:
    """A server with one model and a registry with another."""
    async with OllamaServer(models=["tiny"], registry={"big": 4000}) as server:
        yield server


async def test_a_pulled_model_can_be_used_at_once(pool: StartPool, ollama: OllamaServer) -> None:
    """When the pull is done the model is a capability of the instance, without waiting for the next check."""
    pooled = await pool(ollama.url)
    assert await pooled.hub.ensure_model("big") == (pooled.instance(ollama.url).id,)
    assert pooled.models(ollama.url) == {"model:tiny", "model:big"}
    assert pulled(ollama) == ["big"]


async def test_success_is_told_when_the_model_is_known(pool: StartPool, ollama: OllamaServer) -> None:
    """Whoever hears of the success may ask for the model in the same moment."""
    pooled, known = await pool(ollama.url), []

    def hear(step: PullProgress) -> None:
        known.append((step.status, "model:big" in pooled.models(ollama.url)))

    await pooled.hub.ensure_model("big", progress=hear)
    assert known[-1] == ("success", True)
    assert {there for status, there in known[:-1]} == {False}


async def test_progress_is_told_step_by_step(pool: StartPool, ollama: OllamaServer) -> None:
    """Every step has the instance, the server's words, and for a part its digest and how much of it is there."""
    pooled = await pool(ollama.url)
    steps: list[PullProgress] = []
    await pooled.hub.ensure_model("big", progress=steps.append)
    identity = pooled.instance(ollama.url).id
    assert {step.instance_id for step in steps} == {identity}
    assert steps[0] == PullProgress(instance_id=identity, status="pulling manifest")
    part = [step for step in steps if step.digest]
    assert [step.completed_bytes for step in part] == [None, 1000, 2000, 3000, 4000]
    assert {step.total_bytes for step in part} == {4000}
    assert part[0].status.startswith("pulling ")
    assert part[0].digest.startswith("sha256:")
    assert [step.status for step in steps[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]


async def test_a_model_that_is_there_is_not_pulled(pool: StartPool, ollama: OllamaServer) -> None:
    """With or without `:latest`; another tag is another model."""
    ollama.registry = {"tiny:1b": 10}
    pooled = await pool(ollama.url)
    assert await pooled.hub.ensure_model("tiny") == ()
    assert await pooled.hub.ensure_model("tiny:latest") == ()
    assert pulled(ollama) == []
    assert await pooled.hub.ensure_model("tiny:1b") != ()
    assert pulled(ollama) == ["tiny:1b"]


async def test_a_model_that_came_by_another_way_is_noticed(pool: StartPool, ollama: OllamaServer) -> None:
    """Before it pulls, the hub looks again; what it sees can be used at once."""
    pooled = await pool(ollama.url)
    ollama.catalogue.add(Model("big"))
    assert await pooled.hub.ensure_model("big") == ()
    assert "model:big" in pooled.models(ollama.url)


async def test_pull_updates_what_is_there(pool: StartPool, ollama: OllamaServer) -> None:
    """Unlike `ensure_model`, `pull` asks the server even when it has the model."""
    ollama.registry = {"tiny": 4000}
    pooled = await pool(ollama.url)
    steps = [step async for step in pooled.hub.pull("tiny")]
    assert steps[-1].status == "success"
    assert pulled(ollama) == ["tiny"]


async def test_by_default_one_instance_pulls_where_there_is_most_room(pool: StartPool) -> None:
    """Of servers that lack the model, the one with the least on it gets it, and only that one."""
    async with (
        OllamaServer(models=["a", "b"], registry={"big": 10}) as full,
        OllamaServer(models=["a"], registry={"big": 10}) as free,
    ):
        pooled = await pool(full.url, free.url)
        assert await pooled.hub.ensure_model("big") == (pooled.instance(free.url).id,)
        assert (pulled(full), pulled(free)) == ([], ["big"])
        assert await pooled.hub.ensure_model("big") == ()


async def test_servers_that_are_down_are_passed_over(pool: StartPool) -> None:
    """Where to pull is decided by how the servers are now, not by how they were."""
    async with (
        OllamaServer(models=[], registry={"big": 10}) as free,
        OllamaServer(models=["a"], registry={"big": 10}) as full,
    ):
        pooled = await pool(free.url, full.url)
        await free.stop()
        assert await pooled.hub.ensure_model("big") == (pooled.instance(full.url).id,)


async def test_pulls_go_to_the_named_instances(pool: StartPool) -> None:
    """An instance is named by its id, its name or any form of its URL; only those that lack the model pull it."""
    async with (
        OllamaServer(models=["a"], registry={"big": 10}) as one,
        OllamaServer(models=["a"], registry={"big": 10}) as two,
        OllamaServer(models=["big"], registry={"big": 10}) as has,
        OllamaServer(models=["a"], registry={"big": 10}) as other,
    ):
        pooled = await pool(instances=[one.url, {"url": two.url, "name": "two"}, has.url, other.url])
        identity = pooled.instance(one.url).id
        given = [identity, "two", f"localhost:{one.port}", has.url + "/"]
        assert await pooled.hub.ensure_model("big", instances=given) == (identity, pooled.instance(two.url).id)
        assert [pulled(server) for server in (one, two, has, other)] == [["big"], ["big"], [], []]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("nothere", "pull model manifest: file does not exist"),
        ("no such name", "invalid model name"),
        ("../etc/passwd", "invalid model name"),
    ],
)
async def test_a_pull_that_is_refused_says_why(pool: StartPool, ollama: OllamaServer, model: str, reason: str) -> None:
    """Whether the server answers 400, or 200 with an error in the stream: it fails with the server's own words."""
    pooled = await pool(ollama.url)
    steps: list[PullProgress] = []
    with pytest.raises(InstanceFailure) as caught:
        await pooled.hub.ensure_model(model, progress=steps.append)
    assert str(caught.value) == f"{ollama.url} could not pull {model!r}: {reason}"
    assert caught.value.instance_id == pooled.instance(ollama.url).id
    assert "success" not in [step.status for step in steps]
    assert pooled.states() == {ollama.url: "ready"}


async def test_a_registry_out_of_reach_is_an_error(pool: StartPool) -> None:
    """A real server answers 200 then, and the failure is only in the stream."""
    async with OllamaServer(registry=None) as server:
        pooled = await pool(server.url)
        with pytest.raises(InstanceFailure, match="no such host"):
            await pooled.hub.ensure_model("big")
        assert [record.status for record in server.requests if record.path == "/api/pull"] == [200]


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (ErrorLineAfter(0, "disk is full"), FailureKind.SERVER_ERROR, "disk is full$"),
        (ErrorLineAfter(3, "disk is full"), FailureKind.SERVER_ERROR, "disk is full$"),
        (ErrorLineAfter(3, ""), FailureKind.SERVER_ERROR, "it does not say why$"),
        (TruncateAfter(0), FailureKind.LOST, "its answer ended before the pull did$"),
        (TruncateAfter(5), FailureKind.LOST, "its answer ended before the pull did$"),
        (DropAfter(3), FailureKind.LOST, "http://127.0.0.1"),
        (DropAfter(3, reset=True), FailureKind.LOST, "http://127.0.0.1"),
        (Garbage(), FailureKind.SERVER_ERROR, "not that of an Ollama server$"),
        (Status(200, "[1]"), FailureKind.SERVER_ERROR, "not that of an Ollama server$"),
        (Status(200, {"status": 1}), FailureKind.SERVER_ERROR, "not that of an Ollama server$"),
        (Status(200, "x" * 2_000_000), FailureKind.SERVER_ERROR, "longer than 1048576 bytes$"),
        (Status(200, "[" * 100_000), FailureKind.SERVER_ERROR, "not that of an Ollama server$"),
        (Status(200, ""), FailureKind.LOST, "its answer ended before the pull did$"),
        (Status(500, {"error": "out of luck"}), FailureKind.SERVER_ERROR, "out of luck$"),
        (Status(404, "404 page not found"), FailureKind.REJECTED, "404 page not found$"),
        (Status(401, ""), FailureKind.UNAUTHORIZED, "HTTP 401 Unauthorized$"),
        (Status(503, ""), FailureKind.BUSY, "HTTP 503 Service Unavailable$"),
    ],
)
async def test_a_pull_that_breaks_is_an_error(
    pool: StartPool, ollama: OllamaServer, fault: Fault, kind: FailureKind, reason: str
) -> None:
    """Whatever goes wrong on the way, the pull has failed, the failure says how, and the model is not there."""
    pooled = await pool(ollama.url)
    ollama.script.next(fault, on="/api/pull")
    with pytest.raises(InstanceFailure, match=reason) as caught:
        await pooled.hub.ensure_model("big")
    assert caught.value.kind is kind
    assert caught.value.message.startswith(f"{ollama.url} could not pull 'big': ")
    assert pooled.models(ollama.url) == {"model:tiny"}
    assert await pooled.hub.ensure_model("big") != ()


@pytest.mark.parametrize("fault", [Hang(), StallAfter(n_parts=3)])
async def test_a_pull_that_stalls_ends(pool: StartPool, ollama: OllamaServer, fault: Fault) -> None:
    """A server that says nothing for too long has failed, before its headers and after, and is let go."""
    pooled = await pool(ollama.url, pull_stall_timeout_s=0.1)
    ollama.script.next(fault, on="/api/pull")
    with pytest.raises(InstanceFailure, match=r"it said nothing for 0\.1 s") as caught:
        await pooled.hub.ensure_model("big")
    assert caught.value.kind is FailureKind.TIMEOUT
    await ollama.wait_for(lambda server: all(record.finished for record in server.requests))


async def test_a_slow_pull_is_not_one_that_stalls(pool: StartPool, ollama: OllamaServer) -> None:
    """The limit is for silence: a pull that takes longer in all, and goes on saying so, succeeds."""
    ollama.gate = Pace(0.3)
    pooled = await pool(ollama.url, pull_stall_timeout_s=1.0)
    assert await pooled.hub.ensure_model("big") != ()


async def test_a_server_that_is_gone_cannot_pull(pool: StartPool, ollama: OllamaServer) -> None:
    """Named although it is down, it is asked all the same, and the error says that it was not reached."""
    pooled = await pool(ollama.url)
    await ollama.stop()
    with pytest.raises(InstanceFailure, match=re.escape(ollama.url)) as caught:
        await pooled.hub.ensure_model("big", instances=[ollama.url])
    assert caught.value.kind is FailureKind.REFUSED
    with pytest.raises(InstanceFailure, match="could not pull 'big'"):
        [step async for step in pooled.hub.pull("big", instances=[ollama.url])]


async def test_a_call_has_a_limit(pool: StartPool, ollama: OllamaServer) -> None:
    """A server that never answers a call that is done at once has failed after the limit, and is let go."""
    pooled = await pool(ollama.url)
    ollama.script.next(Hang(), on="/api/delete")
    with pytest.raises(InstanceFailure, match=r"did not answer DELETE /api/delete within 0\.1 s") as caught:
        await pooled.hub.ask(pooled.instance(ollama.url), "DELETE", "/api/delete", {"model": "tiny"}, limit_s=0.1)
    assert (caught.value.kind, caught.value.instance_id) == (FailureKind.TIMEOUT, pooled.instance(ollama.url).id)
    await ollama.wait_for(lambda server: all(record.finished for record in server.requests))


async def test_a_pull_that_succeeded_stands_though_the_server_dies(pool: StartPool, ollama: OllamaServer) -> None:
    """When the look at the new model fails, the pull has succeeded nevertheless; health checks tell the rest."""
    pooled = await pool(ollama.url, check_timeout_s=0.1)
    ollama.script.always(Hang(), on=lambda record: record.path != "/api/pull" and "big" in pulled(ollama))
    assert await pooled.hub.ensure_model("big") != ()


async def test_of_several_the_failure_comes_last(pool: StartPool) -> None:
    """Where one of two fails, the other goes on to its end; then the failure is raised."""
    gate = Gate()
    async with (
        OllamaServer(models=[], registry={"big": 10}, gate=gate) as good,
        OllamaServer(models=[], registry={}) as bad,
    ):
        pooled = await pool(good.url, bad.url)
        both = asyncio.create_task(pooled.hub.ensure_model("big", instances=[good.url, bad.url]))
        await good.wait_for(lambda _: gate.waiting)
        await bad.wait_for(lambda server: [r for r in server.requests if r.path == "/api/pull" and r.finished])
        assert not both.done()
        gate.open()
        with pytest.raises(InstanceFailure, match="file does not exist") as caught:
            await both
        assert caught.value.instance_id == pooled.instance(bad.url).id
        assert pooled.models(good.url) == {"model:big"}


async def test_of_several_all_failures_are_told(pool: StartPool) -> None:
    """When both fail, the error names both."""
    async with OllamaServer(registry={}) as one, OllamaServer(registry=None) as two:
        pooled = await pool(one.url, two.url)
        with pytest.raises(InstanceFailure) as caught:
            await pooled.hub.ensure_model("big", instances=[one.url, two.url])
        first, second = str(caught.value).split("; ")
        assert first == f"{one.url} could not pull 'big': pull model manifest: file does not exist"
        assert second.startswith(f"{two.url} could not pull 'big': ")


async def test_pull_yields_the_steps_of_all(pool: StartPool) -> None:
    """The iterator merges several pulls, each to its own success."""
    async with OllamaServer(registry={"big": 10}) as one, OllamaServer(registry={"big": 20}) as two:
        pooled = await pool(one.url, two.url)
        steps = [step async for step in pooled.hub.pull("big", instances=[one.url, two.url])]
        ends = {step.instance_id for step in steps if step.status == "success"}
        assert ends == {pooled.instance(one.url).id, pooled.instance(two.url).id}
        assert {step.total_bytes for step in steps if step.digest} == {10, 20}


async def test_pull_raises_after_the_last_step(pool: StartPool, ollama: OllamaServer) -> None:
    """What was told before the failure is yielded before it is raised."""
    pooled = await pool(ollama.url)
    ollama.script.next(ErrorLineAfter(1, "disk is full"), on="/api/pull")
    async with aclosing(pooled.hub.pull("big")) as steps:
        assert (await anext(steps)).status == "pulling manifest"
        with pytest.raises(InstanceFailure, match="disk is full"):
            await anext(steps)


async def test_leaving_pull_early_ends_it(pool: StartPool, ollama: OllamaServer) -> None:
    """Closing the iterator closes the connection to the server before it returns."""
    ollama.gate = Gate()
    pooled = await pool(ollama.url)
    async with aclosing(pooled.hub.pull("big")) as steps:
        assert (await anext(steps)).status == "pulling manifest"
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("pull of")]
    assert repr(pooled.hub.pulls) == "<Pulls 0 running, 0 waiting>"
    await ollama.wait_for(lambda server: server.disconnects == 1)


@pytest.mark.parametrize(
    ("instance", "reason"),
    [
        ({"probe": False, "models": ["tiny"]}, "it is static ('probe: false')"),
        ({"models": ["tiny"]}, "its models are those that the configuration lists"),
    ],
)
async def test_instances_whose_models_are_given_pull_nothing(
    pool: StartPool, ollama: OllamaServer, instance: dict[str, Any], reason: str
) -> None:
    """What nobody asks about its models cannot be sent a pull: named, that is an error; unasked, it is left out."""
    pooled = await pool(instances=[{"url": ollama.url, **instance}])
    for attempt in (pooled.hub.ensure_model("big", instances=[ollama.url]), _all(pooled.hub, "big", [ollama.url])):
        with pytest.raises(InvalidRequest, match=re.escape(f"no model can be pulled to {ollama.url}: {reason}")):
            await attempt
    with pytest.raises(NoCapableInstance, match="has no instance that a model can be pulled to"):
        await pooled.hub.ensure_model("big")
    assert pulled(ollama) == []


async def _all(hub: OllamaHub, model: str, instances: list[str]) -> list[PullProgress]:
    return [step async for step in hub.pull(model, instances=instances)]


@pytest.mark.parametrize("model", ["", "  "])
async def test_a_model_must_have_a_name(pool: StartPool, ollama: OllamaServer, model: str) -> None:
    """Nothing is asked of anybody for an empty name."""
    pooled = await pool(ollama.url)
    before = len(ollama.requests)
    for attempt in (pooled.hub.ensure_model(model), _all(pooled.hub, model, [ollama.url])):
        with pytest.raises(InvalidRequest, match="a model's name is needed"):
            await attempt
    assert len(ollama.requests) == before


@pytest.mark.parametrize("given", ["gpu9", "", "http://127.0.0.1:1", "::"])
async def test_unknown_instances_are_told(pool: StartPool, ollama: OllamaServer, given: str) -> None:
    """A name that is nobody's answers with the ids there are, and an empty one is nobody's."""
    pooled = await pool(ollama.url)
    known = pooled.instance(ollama.url).id
    with pytest.raises(UnknownName, match=re.escape(f"unknown instance {given!r}; there is: {known}")):
        await pooled.hub.ensure_model("big", instances=[ollama.url, given])
    assert pulled(ollama) == []


async def test_one_of_several_that_is_down_fails_all_before_anything_is_pulled(
    pool: StartPool, ollama: OllamaServer
) -> None:
    """Whether the model is there must be known everywhere; nothing is left running when it is not."""
    pooled = await pool(ollama.url, "http://127.0.0.1:1")
    with pytest.raises(InstanceFailure, match=r"127\.0\.0\.1:1"):
        await pooled.hub.ensure_model("big", instances=["http://127.0.0.1:1", ollama.url])
    assert all(record.finished for record in ollama.requests)
    assert pulled(ollama) == []


async def test_nobody_to_ask(pool: StartPool) -> None:
    """Without instances, and with instances that do not answer, the errors are different ones and say so."""
    empty = await pool(discover_ports=[1])
    with pytest.raises(NoCapableInstance, match=r"neither at OLLAMA_HOST nor on loopback ports 1$"):
        await empty.hub.ensure_model("big")
    async with OllamaServer() as server:
        pooled = await pool(server.url, check_timeout_s=0.1)
        server.script.always(Hang(), on="any")
        with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s") as caught:
            await pooled.hub.ensure_model("big")
        assert caught.value.instances == (pooled.instance(server.url).id,)


async def test_pulls_carry_the_key_and_errors_do_not(
    pool: StartPool, ollama: OllamaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The server gets the key with the pull; no error, repr or log shows it."""
    caplog.set_level("DEBUG")
    pooled = await pool(instances=[{"url": ollama.url, "api_key": KEY}])
    with pytest.raises(GleitzeitError) as caught:
        await pooled.hub.ensure_model("nothere")
    asked = next(record for record in ollama.requests if record.path == "/api/pull")
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{caught.value!r} {caught.value.as_dict()} {pooled.hub!r} {caplog.text}"


def _instance(
    number: int, *, models: tuple[str, ...] = (), warm: int = 0, size: int = 0, weight: float = 1
) -> ResourceInstance:
    url = f"http://gpu{number}:11434"
    held = frozenset(map(capability, models))
    return ResourceInstance(
        id=f"gpu{number}",
        hub="lan",
        kind="ollama",
        endpoint=url,
        offers=(("ollama", HttpChannel(url)),),
        capabilities=held,
        warm=frozenset(f"model:warm{n}" for n in range(warm)),
        weight=weight,
        details={"models": {"x": {"size": size}, "y": {"size": None}}},
    )


def test_choice_prefers_those_that_have_it() -> None:
    """All that have the model are chosen, to be updated."""
    chosen = choose([_instance(1), _instance(2, models=("big",)), _instance(3, models=("big",))], "big:latest")
    assert [instance.id for instance in chosen] == ["gpu2", "gpu3"]


@pytest.mark.parametrize(
    ("instances", "running", "chosen"),
    [
        ([_instance(1), _instance(2)], {"gpu1": 1}, "gpu2"),
        ([_instance(1, warm=2), _instance(2, warm=1, size=900)], {}, "gpu2"),
        ([_instance(1, warm=2, weight=4), _instance(2, warm=1)], {}, "gpu1"),
        ([_instance(1, size=900), _instance(2, size=100)], {}, "gpu2"),
        ([_instance(1, size=900, weight=10), _instance(2, size=100)], {}, "gpu1"),
        ([_instance(2), _instance(1)], {}, "gpu1"),
    ],
)
def test_choice_is_by_room(instances: list[Any], running: dict[str, int], chosen: str) -> None:
    """Fewest pulls first, then fewest models in memory, then fewest bytes on disk, each for the weight; then the id."""
    found = choose(instances, "big", lambda identity: running.get(identity, 0))
    assert [instance.id for instance in found] == [chosen]
    assert choose([], "big") == ()
