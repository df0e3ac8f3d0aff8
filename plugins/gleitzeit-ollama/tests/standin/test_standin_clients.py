"""The official clients `ollama` and `openai` cannot tell the stand-in from the real thing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import ollama
import openai
import pytest

from gleitzeit_ollama.testing import OllamaServer, echo, fixed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam

pytestmark = pytest.mark.fidelity

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
OPENAI_QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
SAID = "Good day to you."
PARTS = ["Good", " day", " to", " you."]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris"]}}},
    },
}


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    """A stand-in with the three recorded models and one that can be pulled."""
    models = ["smollm2", "thinky", "toolsy"]
    async with OllamaServer(models=models, reply=fixed(SAID), registry={"tiny": 4_000_000}) as running:
        yield running


async def _with_ollama(server: OllamaServer, use: Callable[[ollama.Client], object]) -> Any:  # noqa: ANN401
    def in_thread() -> object:
        with ollama.Client(server.url) as client:
            return use(client)

    return await asyncio.to_thread(in_thread)


async def _with_openai(server: OllamaServer, use: Callable[[openai.OpenAI], object]) -> Any:  # noqa: ANN401
    def in_thread() -> object:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            return use(client)

    return await asyncio.to_thread(in_thread)


@pytest.fixture
async def ollama_client(server: OllamaServer) -> AsyncIterator[ollama.AsyncClient]:
    """Ollama's own asynchronous client."""
    async with ollama.AsyncClient(server.url) as client:
        yield client


@pytest.fixture
async def openai_client(server: OllamaServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's asynchronous client."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_ollama_chat(server: OllamaServer) -> None:
    """The synchronous client reads a chat, whole and in parts."""
    whole = await _with_ollama(server, lambda client: client.chat("smollm2", QUESTION))
    parts = await _with_ollama(server, lambda client: list(client.chat("smollm2", QUESTION, stream=True)))
    assert whole.message.content == SAID
    assert whole.done_reason == "stop"
    assert [part.message.content for part in parts] == [*PARTS, ""]
    assert parts[-1].done


async def test_ollama_chat_async(ollama_client: ollama.AsyncClient) -> None:
    """The asynchronous client reads a chat, whole and in parts."""
    whole = await ollama_client.chat("smollm2", QUESTION)
    parts = [part async for part in await ollama_client.chat("smollm2", QUESTION, stream=True)]
    assert whole.message.content == SAID
    assert [part.message.content for part in parts] == [*PARTS, ""]


async def test_ollama_generate(server: OllamaServer) -> None:
    """The synchronous client reads a generated text, whole and in parts, with its context."""
    whole = await _with_ollama(server, lambda client: client.generate("smollm2", "hi"))
    parts = await _with_ollama(server, lambda client: list(client.generate("smollm2", "hi", stream=True)))
    assert whole.response == SAID
    assert whole.context
    assert "".join(part.response for part in parts) == SAID


async def test_ollama_generate_async(ollama_client: ollama.AsyncClient) -> None:
    """The asynchronous client reads a generated text, and a limit on tokens cuts it."""
    whole = await ollama_client.generate("smollm2", "hi", options={"num_predict": 2})
    parts = [part async for part in await ollama_client.generate("smollm2", "hi", stream=True)]
    assert (whole.response, whole.done_reason, whole.eval_count) == ("Good day", "length", 2)
    assert "".join(part.response or "" for part in parts) == SAID


async def test_ollama_thinking(ollama_client: ollama.AsyncClient, server: OllamaServer) -> None:
    """A model that can think does so unless told not to."""
    server.reply = echo
    thought = await ollama_client.chat("thinky", QUESTION)
    silent = await ollama_client.chat("thinky", QUESTION, think=False)
    assert (thought.message.thinking, thought.message.content) == ("Let me think.", "You said: hi")
    assert (silent.message.thinking, silent.message.content) == (None, "You said: hi")


async def test_ollama_tools(ollama_client: ollama.AsyncClient, server: OllamaServer) -> None:
    """A tool that is offered is called, and the answer to its result is a text."""
    server.reply = echo
    asked = await ollama_client.chat("toolsy", QUESTION, tools=[TOOL])
    (call,) = asked.message.tool_calls or []
    result = {"role": "tool", "tool_name": "get_weather", "content": "11 degrees"}
    answered = await ollama_client.chat("toolsy", [*QUESTION, asked.message, result], tools=[TOOL])
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    assert answered.message.content == "You said: 11 degrees"


async def test_ollama_format(ollama_client: ollama.AsyncClient, server: OllamaServer) -> None:
    """Where a schema is asked for, the text fits it."""
    server.reply = echo
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "age": {"type": "integer"}}}
    answer = await ollama_client.chat("smollm2", QUESTION, format=schema)
    assert answer.message.content == '{"city": "text", "age": 1}'


async def test_ollama_embeddings(ollama_client: ollama.AsyncClient) -> None:
    """Embeddings have the asked length, are of length one, and follow from the text."""
    pair = await ollama_client.embed("smollm2", ["hello", "world"], dimensions=8)
    again = await ollama_client.embed("smollm2", "hello", dimensions=8)
    old = await ollama_client.embeddings("smollm2", "hello")
    assert [len(vector) for vector in pair.embeddings] == [8, 8]
    assert pair.embeddings[0] == again.embeddings[0] != pair.embeddings[1]
    assert sum(number**2 for number in pair.embeddings[0]) == pytest.approx(1)
    assert len(old.embedding) == 576


async def test_ollama_lists(ollama_client: ollama.AsyncClient) -> None:
    """The client reads the lists of models, those loaded and the details of one."""
    before = await ollama_client.ps()
    await ollama_client.chat("smollm2:latest", [])
    after = await ollama_client.ps()
    listed = await ollama_client.list()
    shown = await ollama_client.show("toolsy")
    assert (len(before.models), [model.model for model in after.models]) == (0, ["smollm2:latest"])
    assert {model.model for model in listed.models} == {"smollm2:latest", "thinky:latest", "toolsy:latest"}
    assert shown.capabilities == ["completion", "tools"]


async def test_ollama_manages_models(ollama_client: ollama.AsyncClient) -> None:
    """What is created and copied is there, and what is deleted is not."""
    await ollama_client.create("pirate", from_="smollm2", system="You talk like a pirate.")
    await ollama_client.copy("pirate", "corsair:1b")
    await ollama_client.delete("pirate")
    shown = await ollama_client.show("corsair:1b")
    listed = await ollama_client.list()
    assert "\nSYSTEM You talk like a pirate.\n" in str(shown.modelfile)
    assert "corsair:1b" in {model.model for model in listed.models}
    assert "pirate:latest" not in {model.model for model in listed.models}


async def test_ollama_pull(ollama_client: ollama.AsyncClient) -> None:
    """A pull shows its progress in bytes and leaves the model behind."""
    states = [state async for state in await ollama_client.pull("tiny", stream=True)]
    progress = [(state.completed, state.total) for state in states if state.total]
    listed = await ollama_client.list()
    assert states[-1].status == "success"
    assert progress == [(part or None, 4_000_000) for part in range(0, 4_000_001, 1_000_000)]
    assert {model.model: model.size for model in listed.models}["tiny:latest"] == 4_000_000


async def test_ollama_failed_pull(ollama_client: ollama.AsyncClient, server: OllamaServer) -> None:
    """A pull that fails raises in the client: with 200 in the stream, with 500 without."""
    with pytest.raises(ollama.ResponseError, match="file does not exist"):
        [state async for state in await ollama_client.pull("huge", stream=True)]
    server.registry = None
    with pytest.raises(ollama.ResponseError, match="no such host") as failed:
        await ollama_client.pull("tiny")
    assert failed.value.status_code == 500


async def test_ollama_errors(ollama_client: ollama.AsyncClient) -> None:
    """The client shows the recorded sentence and status of a refusal."""
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as refused:
        await ollama_client.chat("nope", QUESTION)
    assert refused.value.status_code == 404


async def test_openai_chat(server: OllamaServer) -> None:
    """The synchronous client reads a chat, whole and in parts."""
    whole = await _with_openai(
        server, lambda client: client.chat.completions.create(model="smollm2", messages=OPENAI_QUESTION)
    )
    parts = await _with_openai(
        server,
        lambda client: list(client.chat.completions.create(model="smollm2", messages=OPENAI_QUESTION, stream=True)),
    )
    assert whole.choices[0].message.content == SAID
    assert [part.choices[0].delta.content for part in parts] == [*PARTS, ""]
    assert parts[-1].choices[0].finish_reason == "stop"


async def test_openai_chat_async(openai_client: openai.AsyncOpenAI) -> None:
    """The asynchronous client reads a chat, whole and in parts, with usage where asked for."""
    chat = openai_client.chat.completions
    whole = await chat.create(model="smollm2", messages=OPENAI_QUESTION, max_tokens=2)
    stream = await chat.create(
        model="smollm2", messages=OPENAI_QUESTION, stream=True, stream_options={"include_usage": True}
    )
    parts = [part async for part in stream]
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Good day", "length")
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == len(PARTS) + 1
    assert parts[-1].choices == []


async def test_openai_completions(openai_client: openai.AsyncOpenAI) -> None:
    """The client reads a completion, whole and in parts, with usage where asked for."""
    whole = await openai_client.completions.create(model="smollm2", prompt="hi")
    stream = await openai_client.completions.create(
        model="smollm2", prompt="hi", stream=True, stream_options={"include_usage": True}
    )
    parts = [part async for part in stream]
    assert whole.choices[0].text == SAID
    assert "".join(part.choices[0].text for part in parts if part.choices) == SAID
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == len(PARTS) + 1


async def test_openai_tools(openai_client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    """A call of a tool arrives whole, with its arguments as JSON text."""
    server.reply = echo
    stream: Any = await openai_client.chat.completions.create(
        model="toolsy",
        messages=OPENAI_QUESTION,
        tools=[cast("ChatCompletionToolUnionParam", TOOL)],
        stream=True,
    )
    parts = [part async for part in stream]
    (call,) = parts[0].choices[0].delta.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}')
    assert parts[-1].choices[0].finish_reason == "tool_calls"


async def test_openai_content_parts(openai_client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    """A message in parts is read, its pictures left out."""
    server.reply = echo
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    message: Any = {"role": "user", "content": [{"type": "text", "text": "what is this"}, picture]}
    answer = await openai_client.chat.completions.create(model="smollm2", messages=[message])
    assert answer.choices[0].message.content == "You said: what is this"


async def test_openai_embeddings(openai_client: openai.AsyncOpenAI) -> None:
    """The same vector comes as numbers and as base64, which the client decodes."""
    numbers = await openai_client.embeddings.create(model="smollm2", input=["hello"], encoding_format="float")
    decoded = await openai_client.embeddings.create(model="smollm2", input="hello")
    assert len(numbers.data[0].embedding) == 576
    assert decoded.data[0].embedding == pytest.approx(numbers.data[0].embedding, abs=1e-6)


async def test_openai_models(openai_client: openai.AsyncOpenAI) -> None:
    """The client lists the models and finds one by its short name."""
    listed = [model.id async for model in openai_client.models.list()]
    found = await openai_client.models.retrieve("smollm2")
    assert set(listed) == {"smollm2:latest", "thinky:latest", "toolsy:latest"}
    assert (found.id, found.owned_by) == ("smollm2", "library")


async def test_openai_errors(openai_client: openai.AsyncOpenAI) -> None:
    """The client raises its own errors for an unknown model and for a bad request."""
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        await openai_client.chat.completions.create(model="nope", messages=OPENAI_QUESTION)
    with pytest.raises(openai.BadRequestError, match="is too short - 'messages'"):
        await openai_client.chat.completions.create(model="smollm2", messages=[])
    with pytest.raises(openai.BadRequestError, match="encoding_format"):
        await openai_client.embeddings.create(model="smollm2", input="x", encoding_format="hex")  # type: ignore[arg-type]
