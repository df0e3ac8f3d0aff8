from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gleitzeit_core.errors import ConfigurationError, NoCapableInstance
from gleitzeit_core.hookspecs import HubType
from gleitzeit_core.plugins import PluginHost
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import OllamaOptions, checked_options
from gleitzeit_ollama.provider import OllamaProvider
from gleitzeit_ollama.testing import Gate, OllamaProcess, OllamaServer


def _chat(model: str = "tiny", text: str = "hi") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


async def test_alone_it_finds_the_servers_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OllamaProvider()` is all a program needs: it discovers, and the answer is the server's."""
    async with OllamaServer(models=["only-in-this-test"]) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        async with OllamaProvider() as llm:
            answer = await llm.execute("llm/chat", _chat("only-in-this-test"))
        assert answer["message"] == {"role": "assistant", "content": "You said: hi"}


async def test_servers_can_be_named() -> None:
    """URLs, or mappings with all that a configuration can say; all of them work."""
    async with OllamaServer(models=["tiny"]) as one, OllamaServer(models=["big"]) as two:
        async with OllamaProvider(one.url, {"url": two.url, "api_key": "sk-sesame"}) as llm:
            assert (await llm.execute("llm/chat", _chat("tiny")))["model"] == "tiny"
            assert (await llm.execute("llm/chat", _chat("big")))["model"] == "big"
            assert [m["name"] for m in (await llm.execute("llm/models"))["models"]] == ["big:latest", "tiny:latest"]
        assert two.requests[-1].headers["Authorization"] == "Bearer sk-sesame"


async def test_it_streams() -> None:
    """Parts come one by one, and the last one says so."""
    async with OllamaServer(models=["tiny"]) as server, OllamaProvider(server.url) as llm:
        parts = [part async for part in llm.stream("llm/chat", _chat())]
    assert "".join(part["message"]["content"] for part in parts) == "You said: hi"
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]


async def test_providers_share_a_hub() -> None:
    """Two providers on one hub count the same slots; the hub lives until the second has left."""
    gate = Gate()
    async with OllamaServer(models=["tiny"], gate=gate) as server:
        hub = OllamaHub(checked_options({"instances": [{"url": server.url, "max_concurrent": 1}]}))
        async with OllamaProvider(hub=hub) as first:
            async with LLMProvider(hub=hub) as second:
                both = [asyncio.create_task(llm.execute("llm/chat", _chat())) for llm in (first, second)]
                await server.wait_for(lambda _: gate.waiting == 1)
                gate.open()
                await asyncio.gather(*both)
                assert server.max_in_flight == 1
            assert repr(hub) == "<OllamaHub ollama, 1 instances>"
        assert repr(hub) == "<OllamaHub ollama, 0 instances>"


async def test_a_model_that_is_pulled_can_be_asked_at_once() -> None:
    """What `ensure_model` fetched is there for the next request."""
    async with OllamaServer(models=["tiny"], registry={"big": 10}) as server:
        hub = OllamaHub(checked_options({"instances": [server.url]}))
        async with OllamaProvider(hub=hub) as llm:
            with pytest.raises(NoCapableInstance, match="model:big"):
                await llm.execute("llm/chat", _chat("big"))
            await hub.ensure_model("big")
            assert (await llm.execute("llm/chat", _chat("big")))["model"] == "big"


async def test_eight_at_once_over_two_servers_and_one_dies() -> None:
    """Both servers get work; when one is killed before it answers, all requests succeed on the other."""
    async with (
        OllamaProcess(models=["tiny"], gate=True) as dies,
        OllamaServer(models=["tiny"], gate=(gate := Gate())) as lives,
        OllamaProvider(dies.url, lives.url) as llm,
    ):
        requests = [asyncio.create_task(llm.execute("llm/chat", _chat(text=str(n)))) for n in range(8)]
        await dies.wait_for(in_flight=4)
        await lives.wait_for(lambda server: server.in_flight == 4)
        dies.kill()
        gate.open()
        answers = await asyncio.gather(*requests)
        assert [answer["message"]["content"] for answer in answers] == [f"You said: {n}" for n in range(8)]


def test_wrong_servers_are_told() -> None:
    """A server that cannot be one is refused when the provider is made, with all that is wrong and no secret."""
    with pytest.raises(ConfigurationError) as caught:
        OllamaProvider("http://gpu1/v1", {"url": "gpu2", "weigth": 2, "api_key": "sk sesame"})
    assert [str(problem) for problem in caught.value.problems] == [
        "instances[0]: must end after host and port: no path, query or fragment",
        "instances[1].api_key: the key has characters in it that no key has",
        "instances[1].weigth: unknown key (did you mean 'weight'?)",
    ]


def test_servers_and_a_hub_exclude_each_other() -> None:
    """Which of the two would win is nothing to guess."""
    with pytest.raises(ValueError, match="give servers or a hub, not both"):
        OllamaProvider("http://gpu1:11434", hub=OllamaHub())


def test_the_plugin_brings_the_hub_and_the_command() -> None:
    """What the entry point names can be loaded, and the hub comes first when nothing is configured."""
    host = PluginHost.load()
    record = next(record for record in host.records if record.name == "ollama")
    assert (record.status, record.reason) == ("ok", "")
    hub = host.hub_type("ollama")
    assert isinstance(hub, HubType)
    assert (host.load_target(hub), host.load_options(hub)) == (OllamaHub, OllamaOptions)
    assert (hub.auto_rank, hub.fallback) == (10, False)
    assert host.load_target(host.commands["models pull"]).name == "pull"
