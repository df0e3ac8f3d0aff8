"""Aliases, fallbacks and lists of models over HTTP: what the official clients see of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import anthropic
import ollama as ollama_client
import openai
import pytest

from gleitzeit_llm import listings
from gleitzeit_ollama.testing import Hang, OllamaProcess, OllamaServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Start = Callable[..., Awaitable[OllamaProcess]]

pytestmark = pytest.mark.fidelity

MESSAGES: Final[list[Any]] = [{"role": "user", "content": "hi"}]
LLM: Final = {"aliases": {"gpt-4o": "big"}, "fallbacks": {"huge": ["big"], "vectors": ["big"]}}
over_each_api = pytest.mark.parametrize("apis", [(), ("ollama",), ("openai",)], ids=["both", "ollama", "openai"])


def _use(url: str) -> None:
    """Each client asks for the alias and for the model that is not there, whole and in parts."""
    with ollama_client.Client(host=url) as client:
        for name in ("gpt-4o", "huge"):
            assert client.chat(name, MESSAGES).model == "big"
            assert {part.model for part in client.chat(name, MESSAGES, stream=True)} == {"big"}
        assert client.embed("gpt-4o", "hi").model == "big"
        assert client.show("gpt-4o").details is not None
        with pytest.raises(ollama_client.ResponseError, match="not found"):
            client.embed("vectors", "hi")
        (alias,) = (model for model in client.list().models if model.model == "gpt-4o")
        assert alias.details is not None
        assert (alias.details.parent_model or "").removesuffix(":latest") == "big"
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as v1:
        for name in ("gpt-4o", "huge"):
            whole = v1.chat.completions.with_raw_response.create(model=name, messages=MESSAGES)
            assert whole.headers["X-Gleitzeit-Model"] == whole.parse().model == "big"
            parts = v1.chat.completions.create(model=name, messages=MESSAGES, stream=True)
            assert {part.model for part in parts} == {"big"}
            assert v1.responses.create(model=name, input="hi").model == "big"
        assert v1.embeddings.create(model="gpt-4o", input="hi").model == "big"
        extra = v1.models.retrieve("gpt-4o").model_extra or {}
        assert extra["parent"].removesuffix(":latest") == "big"
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as claude:
        assert claude.messages.create(model="gpt-4o", max_tokens=9, messages=MESSAGES).model == "big"
        assert claude.messages.create(model="huge", max_tokens=9, messages=MESSAGES).model == "big"


@over_each_api
async def test_clients_hear_which_model_served(serve: Serve, apis: tuple[str, ...]) -> None:
    """In the answer's own field and in a header, whatever they speak and the server speaks."""
    async with OllamaServer(models=["big"]) as server:
        gateway = await serve(server, apis=apis, models=["big"], llm=LLM)
        await asyncio.to_thread(_use, gateway.url)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_the_last_one_is_lost_on_the_way(
    serve: Serve,
    process: Start,
    stream: bool,  # noqa: FBT001 - a parameter
) -> None:
    """The very request that finds it gone is served by the fallback, and so is the library's."""
    async with OllamaServer(models=["small"]) as server:
        lost = await process(models=["big"])
        gateway = await serve(server, lost, llm={"fallbacks": {"big": ["small"]}})
        assert (await gateway.chat(model="big", stream=stream)).headers["X-Gleitzeit-Model"] == "big"
        lost.kill()
        await lost.wait()
        answered = await gateway.chat(model="big", stream=stream)
        assert (answered.status, answered.headers["X-Gleitzeit-Model"]) == (200, "small")
        assert answered.lines[-1]["model"] == "small"
        assert (await gateway.manager.execute("llm/chat", {"model": "big", "messages": MESSAGES}))["model"] == "small"


async def test_without_names_there_is_no_header(serve: Serve, ollama: OllamaServer) -> None:
    """Where neither is configured answers are as they were."""
    gateway = await serve(ollama)
    assert "X-Gleitzeit-Model" not in (await gateway.chat()).headers


async def test_a_key_for_a_model_is_one_for_its_other_names(serve: Serve) -> None:
    """A key's models are those that serve: by an alias it gets no other, and sees the aliases of its own."""
    key = {"name": "alice", "key": "a-key-of-at-least-16-characters", "models": ["big"]}
    headers = {"Authorization": f"Bearer {key['key']}"}
    llm = {"aliases": {"gpt-4o": "big", "gpt-5": "small"}}
    async with OllamaServer(models=["big", "small"]) as server:
        gateway = await serve(server, keys=[key], llm=llm)
        listed = (await gateway.ask("/v1/models", headers=headers)).json["data"]
        statuses = [
            (await gateway.ask("/api/chat", {"model": name, "messages": MESSAGES}, headers=headers)).status
            for name in ("gpt-4o", "gpt-5")
        ]
    assert [entry["id"] for entry in listed] == ["big:latest", "gpt-4o"]
    assert statuses == [200, 403]


@pytest.mark.parametrize("name", ["hf.co/some-one/A_Model-GGUF:Q4_K_M", "library/m:8b", "ä model"])
async def test_one_model_whatever_it_is_called(serve: Serve, ollama: OllamaServer, name: str) -> None:
    """Slashes, tags and other characters, as they are or percent-encoded."""
    gateway = await serve(ollama, apis=["openai"], models=[name])
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client:
        assert (await client.models.retrieve(name)).id == name
    for path in (quote(name), quote(name, safe="")):
        answered = await gateway.ask(f"/v1/models/{path}")
        assert (answered.status, answered.json["id"]) == (200, name)
    assert (await gateway.ask(f"/v1/models/{quote(name, safe='')}x")).status == 404


async def test_models_of_a_killed_server_are_marked(serve: Serve, ollama: OllamaServer, process: Start) -> None:
    """They are listed as they were last seen, with a mark that the official clients take, and a header names it."""
    lost = await process(models=["gone"])
    gateway = await serve(ollama, lost)
    assert "X-Gleitzeit-Stale" not in (await gateway.ask("/api/tags")).headers
    lost.kill()
    await gateway.chat(model="gone")
    await gateway.until(lambda: not all(report.serving for report in gateway.manager.instances()))
    (down,) = (report.instance.id for report in gateway.manager.instances() if not report.serving)
    for path, key, name in (("/api/tags", "models", "name"), ("/v1/models", "data", "id")):
        answered = await gateway.ask(path)
        assert answered.headers["X-Gleitzeit-Stale"] == down
        marks = {entry[name]: entry.get("stale") for entry in answered.json[key]}
        assert marks == {"gone:latest": True, "smollm2:latest": None}
    async with ollama_client.AsyncClient(host=gateway.url) as client:
        assert [model.model for model in (await client.list()).models] == ["gone:latest", "smollm2:latest"]
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as v1:
        assert [model.id async for model in v1.models.list()] == ["gone:latest", "smollm2:latest"]


async def test_a_server_that_never_answers_slows_no_list(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part is what was last seen, and marked; it is asked once, and the next list does not wait for it."""
    gateway = await serve(ollama, other)
    await asyncio.gather(*(gateway.chat() for _ in range(4)))
    monkeypatch.setattr(listings, "LISTING_LIMIT_S", 0.3)
    other.script.always(Hang(), on="/api/ps")
    hanging = next(r.instance.id for r in gateway.manager.instances() if r.instance.endpoint == other.url)
    before = len(other.requests)
    for _ in range(3):
        answered = await gateway.ask("/api/ps")
        assert answered.headers["X-Gleitzeit-Stale"] == hanging
        assert [entry.get("stale") for entry in answered.json["models"] if not entry.get("stale")] == [None]
        assert "X-Gleitzeit-Stale" not in (await gateway.ask("/api/tags")).headers
    assert [record.path for record in other.requests[before:]].count("/api/ps") == 1
    async with ollama_client.AsyncClient(host=gateway.url) as client:
        assert {model.model for model in (await client.ps()).models} == {"smollm2:latest"}
