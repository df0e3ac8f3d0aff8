"""The three ways to hold a provider, against real servers: alone, on a shared hub, by name from a configuration."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import (
    ClosedError,
    GleitzeitError,
    InvalidRequest,
    NoCapableInstance,
    Unavailable,
    UnknownMethod,
    UnknownName,
)
from gleitzeit_core.hookspecs import InstanceChange
from gleitzeit_core.instance_log import InstanceLog
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.resources import HttpChannel, Requirements, ResourceInstance
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import OllamaOptions
from gleitzeit_ollama.provider import OllamaProvider
from gleitzeit_ollama.testing import OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_provider_alone_makes_and_owns_its_hub() -> None:
    """It answers, whole and in parts, and leaves nothing behind."""
    before = asyncio.all_tasks()
    async with OllamaServer() as server:
        async with OllamaProvider(server.url) as llm:
            answer = await llm.execute("llm/chat", QUESTION)
            parts = [part async for part in llm.stream("llm/chat", QUESTION)]
        assert answer["message"]["content"] == "".join(part["message"]["content"] for part in parts)
        assert parts[-1]["done"] is True
        with pytest.raises(ClosedError):
            await llm.execute("llm/chat", QUESTION)
    assert asyncio.all_tasks() == before


async def test_two_providers_on_one_hub_share_its_slots() -> None:
    """What one of them runs, the other waits for; the hub lives as long as the last of them."""
    async with OllamaServer() as server:
        options = OllamaOptions.model_validate({"instances": [{"url": server.url, "max_concurrent": 1}]})
        hub = OllamaHub(options)
        async with OllamaProvider(hub=hub) as first:
            async with LLMProvider(hub=hub) as second:
                asked = [provider.execute("llm/chat", QUESTION) for provider in (first, second) for _ in range(4)]
                answers = await asyncio.gather(*asked)
            assert {answer["done"] for answer in answers} == {True}
            assert server.max_in_flight == 1
            assert (await first.execute("llm/chat", QUESTION))["done"] is True
        assert hub.instances == ()


async def test_a_manager_runs_a_configuration(tmp_path: Path) -> None:
    """Everything by name; what no instance has is told with what there is."""
    async with OllamaServer() as one, OllamaServer() as other:
        path = tmp_path / "gleitzeit.yaml"
        path.write_text(
            f"hubs:\n  lan: {{type: ollama, instances: ['{one.url}', '{other.url}']}}\n"
            "routes: [{methods: ['llm/*'], hubs: [lan], strategy: round_robin}]\n"
        )
        async with ResourceManager.from_config(path) as manager:
            await asyncio.gather(*(manager.execute("llm/chat", QUESTION) for _ in range(8)))
            with pytest.raises(NoCapableInstance, match="model:smollm2"):
                await manager.execute("llm/chat", {**QUESTION, "model": "nope"})
            served = [status["served"] for status in manager.status()["instances"]]
        assert served == [4, 4]


async def test_each_asks_every_instance() -> None:
    """An outcome for each instance that has the model, and an error for the one that cannot be reached."""
    async with OllamaServer() as server:
        gone = {"url": "http://127.0.0.1:9", "models": ["smollm2"]}
        options = OllamaOptions.model_validate({"instances": [server.url, gone]})
        async with OllamaProvider(hub=OllamaHub(options)) as llm:
            outcomes = await llm.each("llm/show", {"model": "smollm2"})
    answered = [outcome.value["details"]["family"] for outcome in outcomes if outcome.error is None]
    assert answered == ["llama"]
    assert [type(outcome.error) for outcome in outcomes if outcome.error is not None] == [Unavailable]


async def test_an_instance_in_two_hubs_is_used_through_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its slots are counted once, somebody is told, and the end of the second hub does not take it away."""
    async with OllamaServer() as server:
        path = tmp_path / "gleitzeit.yaml"
        path.write_text(f"hubs: {{one: {{type: ollama, instances: ['{server.url}']}}}}\n")
        async with ResourceManager.from_config(path) as manager:
            other = OllamaHub(OllamaOptions.model_validate({"instances": [server.url]}), name="other")
            await manager.add_hub(other)
            assert "is in the hubs one and other" in caplog.text
            await manager.remove_hub("other")
            assert [(r.instance.hub, r.state) for r in manager.instances()] == [("one", "ready")]
            assert (await manager.execute("llm/chat", QUESTION))["done"] is True


async def test_what_may_have_a_model_and_is_down_is_named(tmp_path: Path) -> None:
    """A server that was never reached may be the one that has it: the error says so."""
    path = tmp_path / "gleitzeit.yaml"
    path.write_text("hubs: {lan: {type: ollama, instances: ['http://127.0.0.1:9']}}\n")
    async with ResourceManager.from_config(path) as manager:
        with pytest.raises(NoCapableInstance, match=r"http://127\.0\.0\.1:9 is down"):
            await manager.execute("llm/chat", QUESTION)


async def test_a_hub_that_cannot_start_ends_the_start_of_all(tmp_path: Path) -> None:
    """The error names what is wrong, and nothing of the others is left running."""
    before = asyncio.all_tasks()
    async with OllamaServer() as server:
        path = tmp_path / "gleitzeit.yaml"
        path.write_text(
            f"hubs:\n  lan: {{type: ollama, instances: ['{server.url}']}}\n"
            "  here: {type: llamacpp, models: [{path: ./gone.gguf}]}\n"
        )
        manager = ResourceManager.from_config(path)
        with pytest.raises(GleitzeitError, match=r"gone\.gguf"):
            await manager.__aenter__()
        with pytest.raises(ClosedError):
            manager.instances()
    assert asyncio.all_tasks() == before


NEAR = """
from gleitzeit_core.hookspecs import StrategyType, hookimpl
from gleitzeit_core.strategies.base import Filter, NoOptions

class Near(Filter[NoOptions]):
    name = "near"

    def keep(self, request, view):
        return [one for one in view.candidates if "near" in one.instance.tags]

@hookimpl
def gleitzeit_register_strategies():
    options = "gleitzeit_core.strategies.base:NoOptions"
    return [StrategyType(name="near", target=f"{__name__}:Near", options=options, summary="Near.", filters=True)]
"""


async def test_a_chain_of_strategies_serves_a_route(tmp_path: Path) -> None:
    """What the filter keeps is what the last chooses from; put in force while running, too."""
    (tmp_path / "near.py").write_text(NEAR)
    async with OllamaServer() as near, OllamaServer() as far:
        path = tmp_path / "gleitzeit.yaml"
        text = (
            "plugins: {files: [./near.py]}\n"
            f"hubs: {{lan: {{type: ollama, instances: [{{url: '{near.url}', tags: [near]}}, '{far.url}']}}}}\n"
            "routes: [{methods: ['llm/*'], strategy: [near, round_robin]}]\n"
        )
        path.write_text(text)
        async with ResourceManager.from_config(path) as manager:
            served = [await _served(manager, near, far) for _ in range(2)]
            assert served == [(4, 0), (4, 0)]
            assert manager.status()["routes"][0]["strategy"] == "near -> round_robin"
            await asyncio.to_thread(path.write_text, text.replace("[near, round_robin]", "round_robin"))
            await manager.reload()
            assert await _served(manager, near, far) == (2, 2)


async def _served(manager: ResourceManager, *servers: OllamaServer) -> tuple[int, ...]:
    """How many of four requests each has answered."""
    before = [len(server.requests) for server in servers]
    for _ in range(4):
        await manager.execute("llm/chat", QUESTION)
    paths = [[one.path for one in server.requests[n:]] for server, n in zip(servers, before, strict=True)]
    return tuple(each.count("/api/chat") for each in paths)


# -- a manager's other doors

BROKEN_URL = "http://127.0.0.1:9"


@pytest.fixture
async def manager(server: OllamaServer) -> AsyncIterator[ResourceManager]:
    """Over it."""
    hubs = {"lan": {"type": "ollama", "instances": [{"url": server.url, "max_concurrent": 4}]}}
    async with ResourceManager.from_config(overrides={"hubs": hubs}) as manager:
        yield manager


async def test_a_closed_manager_says_so(manager: ResourceManager) -> None:
    """Not that it knows no methods."""
    stream = manager.stream("llm/chat", QUESTION)
    await manager.aclose()
    with pytest.raises(ClosedError):
        manager.provider("llm/chat")
    with pytest.raises(ClosedError):
        await manager.execute("llm/chat", QUESTION)
    with pytest.raises(ClosedError):
        manager.batch_execute("llm/chat", [])
    with pytest.raises(ClosedError):
        manager.allocate_resource("ollama")
    with pytest.raises(GleitzeitError):
        await anext(stream)


async def test_an_instance_comes_is_drained_comes_back_and_goes(manager: ResourceManager) -> None:
    """By hand, while the manager runs; its state says each time how it is."""
    async with OllamaServer(models=["other"]) as second:
        added = await manager.add_instance({"url": second.url, "weight": 2, "tags": ["new"]})
        shown = manager.instance(added.id)
        assert (shown["state"], shown["hub"], shown["weight"], shown["tags"]) == ("ready", "lan", 2.0, ["new"])
        question = {**QUESTION, "model": "other"}
        assert (await manager.execute("llm/chat", question))["done"] is True
        manager.drain_instance(added.id)
        assert manager.instance(added.id)["state"] == "drained"
        with pytest.raises(GleitzeitError):
            await manager.execute("llm/chat", question)
        await manager.resume_instance(added.id)
        assert manager.instance(added.id)["state"] == "ready"
        await manager.remove_instance(added.id)
        with pytest.raises(UnknownName, match="unknown instance"):
            manager.instance(added.id)


async def test_an_instance_of_a_kind_that_has_no_hub_gets_one(manager: ResourceManager, server: OllamaServer) -> None:
    """Named after its type; settings that are wrong leave no hub behind."""
    with pytest.raises(InvalidRequest):
        await manager.add_instance({"type": "openai", "url": server.url, "colour": "red"})
    assert set(manager.dispatcher.shell.hubs) == {"lan"}
    await manager.remove_hub("lan")
    added = await manager.add_instance({"type": "openai", "url": server.url})
    assert (added.hub, manager.instance(added.id)["state"]) == ("openai", "ready")


async def test_a_new_hub_takes_a_name_that_is_free(server: OllamaServer) -> None:
    """Where another type's hub has the name, it gets one that says how it came; at one time only one is made."""
    hubs = {"openai": {"type": "ollama", "instances": [BROKEN_URL]}}
    async with ResourceManager.from_config(overrides={"hubs": hubs}) as manager:
        other = {"type": "openai", "url": BROKEN_URL}
        both = await asyncio.gather(
            manager.add_instance({"type": "openai", "url": server.url}), manager.add_instance(other)
        )
        assert {added.hub for added in both} == {"openai-added"}


async def test_an_instance_that_nobody_can_take(manager: ResourceManager) -> None:
    """No such hub, no such type, several that could, wrong settings: each has its own sentence."""
    with pytest.raises(UnknownName, match=r"unknown hub 'den'.*lan"):
        await manager.add_instance({"url": BROKEN_URL}, hub="den")
    with pytest.raises(InvalidRequest, match="hub 'lan' is of type 'ollama', not 'openai'"):
        await manager.add_instance({"type": "openai", "url": BROKEN_URL}, hub="lan")
    with pytest.raises(UnknownName, match="unknown hub type 'ollana'"):
        await manager.add_instance({"type": "ollana", "url": BROKEN_URL})
    with pytest.raises(InvalidRequest, match="hubs of type 'llamacpp' take no instances by hand"):
        await manager.add_instance({"type": "llamacpp", "url": BROKEN_URL})
    with pytest.raises(InvalidRequest, match="wieght"):
        await manager.add_instance({"url": BROKEN_URL, "wieght": 2})
    await manager.add_hub(OllamaHub(OllamaOptions.model_validate({"instances": [BROKEN_URL]}), name="den"))
    with pytest.raises(InvalidRequest, match="several hubs are of type 'ollama': name one of den, lan"):
        await manager.add_instance({"url": "http://127.0.0.1:10"})
    for change in (manager.drain_instance, manager.instance):
        with pytest.raises(UnknownName):
            change("nope")
    with pytest.raises(UnknownName):
        await manager.resume_instance("nope")
    with pytest.raises(UnknownName):
        await manager.remove_instance("nope")


async def test_an_instance_is_leased(manager: ResourceManager) -> None:
    """By the kind of its hub or the hub's name, with what is needed of it."""
    (report,) = manager.instances()
    for kind, needs in (("ollama", None), ("lan", {"model": "smollm2"}), ("lan", Requirements(accepts=()))):
        async with manager.allocate_resource(kind, needs, ttl_s=5.0) as lease:
            assert lease.instance.id == report.instance.id
            assert manager.instances()[0].in_flight == 1
        assert manager.instances()[0].in_flight == 0
    with pytest.raises(UnknownName, match=r"unknown kind of resource 'olama'.*did you mean 'ollama'"):
        manager.allocate_resource("olama")
    with pytest.raises(InvalidRequest, match="modl: unknown key"):
        manager.allocate_resource("lan", {"modl": "smollm2"})
    with pytest.raises(NoCapableInstance):
        async with manager.allocate_resource("lan", {"tags": ["gpu"]}):
            raise AssertionError


async def test_a_share_is_reserved(manager: ResourceManager) -> None:
    """For the route that serves a method, or by its name; more than there is is refused."""
    kept = manager.reserve("llm/chat", 0.75, tenant="us")
    with pytest.raises(InvalidRequest, match="share"):
        manager.reserve("*", 0.5, tenant="them")
    kept.release()
    manager.reserve("*", 0.5, model="smollm2").release()
    with pytest.raises(UnknownMethod, match="did you mean 'llm/chat'"):
        manager.reserve("llm/chta", 0.5, tenant="us")
    for share, tenant in ((0.0, "us"), (1.5, "us"), (0.5, "")):
        with pytest.raises(InvalidRequest, match="share"):
            manager.reserve("llm/chat", share, tenant=tenant)
    with pytest.raises(InvalidRequest, match="share must be a number above 0, not 'half'"):
        manager.reserve("llm/chat", "half", tenant="us")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="timeout_s must be a number above 0, not 'long'"):
        await manager.execute("llm/chat", QUESTION, timeout_s="long")  # type: ignore[arg-type]


async def test_a_status_is_plain_data(manager: ResourceManager) -> None:
    """All of it can be sent as JSON; numbers of an instance are its own."""
    await manager.execute("llm/chat", QUESTION)
    (report,) = manager.instances()
    status, shown = manager.status(), manager.instance(report.instance.id)
    json.dumps([status, shown, manager.metrics_report(recent=False)])
    (its,) = status["instances"]
    assert (its["state"], its["degraded"], its["breaker"], its["limit"], its["generation"]) == (
        *("ready", [], "closed", 4),
        report.instance.generation,
    )
    assert (its["served"], its["output_tokens"] > 0) == (1, True)
    assert status["hedges"] == {"started": 0, "won": 0}
    assert status["queues"] == manager.queues() == []
    assert {name: shown[name] for name in its} == its
    assert [check["ok"] for check in shown["health"]] == [True]
    assert manager.metrics_report()["sum"]["count"] == 1


async def test_the_store_has_the_instances_to_the_last(manager: ResourceManager, server: OllamaServer) -> None:
    """As they are, and none once the manager is closed: the last withdrawals are written before the store closes."""
    assert manager.store is not None
    instances = manager.store.instances
    assert instances is not None
    (report,) = manager.instances()
    while not (records := await instances.all()):
        await asyncio.sleep(0)
    assert records[report.instance.id]["endpoint"] == server.url
    await manager.aclose()
    assert await instances.all() == {}


class Stuck:
    """A store's facet that fails, or never answers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def put(self, instance_id: str, record: Mapping[str, Any]) -> None:
        """Fail, or hang."""
        del instance_id, record
        self.asked.set()
        if self.error is not None:
            raise self.error
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()

    async def remove(self, instance_id: str) -> None:
        """Remember it."""
        self.asked.set()
        raise OSError(f"cannot forget {instance_id}")

    async def all(self) -> dict[str, Mapping[str, Any]]:
        """None."""
        return {}


def came(number: int) -> InstanceChange:
    """A new instance."""
    url = f"http://gpu{number}:11434"
    its = ResourceInstance(id=str(number), hub="lan", kind="x", endpoint=url, offers=(("x", HttpChannel(url)),))
    return InstanceChange(before=None, after=its, state="ready", reason="")


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("a bug")])
async def test_a_store_that_fails_is_only_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """What comes after is written all the same."""
    store = Stuck(error)
    log = InstanceLog(store)
    log.note(came(1))
    await store.asked.wait()
    store.error = OSError("still full")
    log.note(came(2))
    await log.aclose()
    assert "instance 1 was not written" in caplog.text
    assert "instance 2 was not written" in caplog.text


async def test_a_store_that_hangs_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is given up after a while; what is noted meanwhile is bounded, the last of each instance counting."""
    monkeypatch.setattr("gleitzeit_core.instance_log._END_S", 0.01)
    monkeypatch.setattr("gleitzeit_core.instance_log._WAITING_MAX", 3)
    store = Stuck()
    log = InstanceLog(store)
    log.note(came(0))
    await store.asked.wait()
    for number in (1, 1, 2, 3, 4):
        log.note(came(number))
    assert repr(log) == "<InstanceLog 3 waiting>"
    await log.aclose()
    assert store.left.is_set()
