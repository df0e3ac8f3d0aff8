"""The official clients, unchanged: sync and async, in streams and not, over servers of either API."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import ollama as ollama_client
import openai
import pytest

from gleitzeit_ollama.testing import OllamaServer, Reply, ToolCall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from openai.types.chat import ChatCompletionMessageParam

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

SAID: Final = "You said: hi"
MESSAGES: Final = [{"role": "user", "content": "hi"}]
V1_MESSAGES: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "hi"}]
KEY: Final = "whatever the client insists on"
over_each_api = pytest.mark.parametrize("apis", [(), ("ollama",), ("openai",)], ids=["both", "ollama", "openai"])


def _use_ollama(url: str) -> None:
    with ollama_client.Client(host=url) as client:
        assert client.chat("smollm2", MESSAGES).message.content == SAID
        assert "".join(part.message.content or "" for part in client.chat("smollm2", MESSAGES, stream=True)) == SAID
        assert client.generate("smollm2", "hi").response == SAID
        assert "".join(part.response for part in client.generate("smollm2", "hi", stream=True)) == SAID
        assert len(client.embed("smollm2", ["a", "b"]).embeddings) == 2
        assert len(client.embeddings("smollm2", "a").embedding) > 0
        assert client.list().models[0].model in ("smollm2:latest", "smollm2")
        assert client.show("smollm2").details is not None
        assert all(model.model for model in client.ps().models)
        with pytest.raises(ollama_client.ResponseError, match="model 'nope' not found") as caught:
            client.chat("nope", MESSAGES)
        assert caught.value.status_code == 404
        with pytest.raises(ollama_client.ResponseError, match="model 'nope' not found"):
            list(client.chat("nope", MESSAGES, stream=True))


@over_each_api
async def test_ollama(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """What a program with Ollama's client does, it does through the gateway."""
    gateway = await serve(ollama, apis=apis)
    await asyncio.to_thread(_use_ollama, gateway.url)


@over_each_api
async def test_ollama_async(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """The same with its asynchronous client."""
    gateway = await serve(ollama, apis=apis)
    async with ollama_client.AsyncClient(host=gateway.url) as client:
        assert (await client.chat("smollm2", MESSAGES)).message.content == SAID
        chat = await client.chat("smollm2", MESSAGES, stream=True)
        parts = [part async for part in chat]
        assert "".join(part.message.content or "" for part in parts) == SAID
        assert parts[-1].done
        assert parts[-1].done_reason == "stop"
        assert (await client.generate("smollm2", "hi")).response == SAID
        told = await client.generate("smollm2", "hi", stream=True)
        assert "".join([part.response async for part in told]) == SAID
        assert len((await client.embed("smollm2", "a")).embeddings) == 1
        assert (await client.list()).models[0].model in ("smollm2:latest", "smollm2")
        assert (await client.show("smollm2")).details is not None
        assert all(model.model for model in (await client.ps()).models)
        with pytest.raises(ollama_client.ResponseError, match=r"try pulling it first") as caught:
            await client.embed("nope", "a")
        assert caught.value.status_code == 404


def _use_openai(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        chat, plain = client.chat.completions, client.completions
        answer = chat.create(model="smollm2", messages=V1_MESSAGES)
        assert answer.choices[0].message.content == SAID
        assert answer.usage is not None
        chunks = chat.create(model="smollm2", messages=V1_MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
        assert plain.create(model="smollm2", prompt="hi").choices[0].text == SAID
        told = plain.create(model="smollm2", prompt="hi", stream=True)
        assert "".join(part.choices[0].text for part in told) == SAID
        assert len(client.embeddings.create(model="smollm2", input=["a", "b"]).data) == 2
        assert next(iter(client.models.list())).id.startswith("smollm2")
        assert client.models.retrieve("smollm2").id == "smollm2"
        with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
            client.models.retrieve("nope")


@over_each_api
async def test_openai(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """What a program with OpenAI's client does, it does through the gateway."""
    gateway = await serve(ollama, apis=apis)
    await asyncio.to_thread(_use_openai, gateway.url)


@over_each_api
async def test_openai_async(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """The same with its asynchronous client."""
    gateway = await serve(ollama, apis=apis)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = await client.chat.completions.create(model="smollm2", messages=V1_MESSAGES)
        assert answer.choices[0].message.content == SAID
        chunks = await client.chat.completions.create(
            model="smollm2", messages=V1_MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        seen = [chunk async for chunk in chunks]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in seen if chunk.choices) == SAID
        assert seen[-1].usage is not None
        assert (await client.completions.create(model="smollm2", prompt="hi")).choices[0].text == SAID
        vectors = await client.embeddings.create(model="smollm2", input="a", encoding_format="float")
        assert len(vectors.data[0].embedding) > 0
        assert [model.id async for model in client.models.list()]
        with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
            await client.chat.completions.create(model="nope", messages=V1_MESSAGES)


@over_each_api
async def test_tool_calls_and_thoughts_get_through(serve: Serve, apis: tuple[str, ...]) -> None:
    """Tool calls and thinking reach both clients whole, whatever the server speaks."""
    said = Reply(["done"], ["hm"], [ToolCall("weather", {"city": "Paris"})])
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    async with OllamaServer(models=["smollm2+tools+thinking"], reply=lambda _: said) as server:
        gateway = await serve(server, apis=apis)
        async with ollama_client.AsyncClient(host=gateway.url) as client:
            message = (await client.chat("smollm2", MESSAGES, tools=[tool], think=True)).message
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.arguments == {"city": "Paris"}
        assert message.thinking == "hm"
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as v1:
            answer = await v1.chat.completions.create(
                model="smollm2",
                messages=V1_MESSAGES,
                tools=[tool],  # type: ignore[list-item]
                reasoning_effort="low",
            )
            (call,) = answer.choices[0].message.tool_calls or ()
            assert call.type == "function"
            assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Paris"}')
            assert answer.choices[0].message.model_extra == {"reasoning": "hm"}


async def test_clients_with_a_key(serve: Serve, ollama: OllamaServer) -> None:
    """Each client's own way to send a key is understood, and a wrong one is the error that the client knows."""
    key = "a-key-of-at-least-16-characters"
    gateway = await serve(ollama, keys=[{"name": "alice", "key": key}])
    headers = {"Authorization": f"Bearer {key}"}
    async with ollama_client.AsyncClient(host=gateway.url, headers=headers) as client:
        assert (await client.chat("smollm2", MESSAGES)).message.content == SAID
    async with ollama_client.AsyncClient(host=gateway.url) as client:
        with pytest.raises(ollama_client.ResponseError, match="a valid API key is needed"):
            await client.chat("smollm2", MESSAGES)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as v1:
        answer = await v1.chat.completions.create(model="smollm2", messages=V1_MESSAGES)
        assert answer.choices[0].message.content == SAID
        with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
            await v1.with_options(api_key="wrong").models.list()
