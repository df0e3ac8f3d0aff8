"""The three ways to hold a provider, against real servers: alone, on a shared hub, by name from a configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.errors import ClosedError, GleitzeitError, NoCapableInstance, Unavailable
from gleitzeit_core.manager import ResourceManager
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import OllamaOptions
from gleitzeit_ollama.provider import OllamaProvider
from gleitzeit_ollama.testing import OllamaServer

if TYPE_CHECKING:
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
