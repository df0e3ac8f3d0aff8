"""The official clients over the gateway and a real model: the one that the embedded LLM brings along."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import anthropic
import ollama
import openai
import pytest

from gleitzeit_core.manager import ResourceManager
from gleitzeit_gateway.testing import RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.fidelity

MODEL: Final = {"path": "smollm2", "name": "tiny", "instances": 1, "slots": 2, "context": 1024}
ASKED: Final[list[Any]] = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA: Final = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
TOOL: Final[Any] = {"type": "function", "name": "weather", "strict": False, "parameters": SCHEMA}


@pytest.fixture
async def url(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Of a gateway with one model, under two names."""
    monkeypatch.delenv("GLEITZEIT_CONFIG", raising=False)
    data = {
        "hubs": {"tiny": {"type": "llamacpp", "models": [MODEL]}},
        "providers": {"llm": {"aliases": {"gpt-4o": "tiny"}}},
        "gateway": {"port": 0, "access_log": False},
    }
    manager = await asyncio.to_thread(ResourceManager.from_config, overrides=data)
    async with RunningGateway(manager) as gateway:
        yield gateway.url


async def test_every_client_is_answered(url: str) -> None:
    """Whole and in parts, in all four APIs, with counts and a reason why it ended."""
    await asyncio.to_thread(_use_ollama, url)
    await asyncio.to_thread(_use_openai, url)
    await asyncio.to_thread(_use_responses, url)
    await asyncio.to_thread(_use_anthropic, url)


def _use_ollama(url: str) -> None:
    options = {"num_predict": 12, "seed": 1}
    with ollama.Client(host=url) as client:
        answer = client.chat("tiny", ASKED, options=options)
        assert answer.message.content
        assert answer.eval_count
        parts = list(client.chat("gpt-4o", ASKED, options=options, stream=True))
        assert "".join(part.message.content or "" for part in parts)
        assert (parts[-1].done, parts[-1].model) == (True, "tiny")


def _use_openai(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=4, logprobs=True, top_logprobs=2, n=1
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].logprobs is not None
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        assert {model.id for model in client.models.list()} == {"tiny", "gpt-4o"}


def _use_responses(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        whole = client.responses.create(model="tiny", input="Say hi.", instructions="Be brief.", max_output_tokens=4)
        assert whole.output_text
        assert (whole.status, whole.model) == ("incomplete", "tiny")
        assert whole.usage is not None
        assert whole.usage.output_tokens == 4
        events = list(
            client.responses.create(model="gpt-4o", input=ASKED, max_output_tokens=8, stream=True, tools=[TOOL])
        )
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta")
        last = events[-1]
        assert last.type in ("response.completed", "response.incomplete")
        shaped = client.responses.create(
            model="tiny",
            input="Answer in JSON: a city.",
            max_output_tokens=64,
            text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        )
        assert shaped.output_text.lstrip().startswith("{")


def _use_anthropic(url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        message = client.messages.create(model="tiny", max_tokens=4, messages=ASKED)
        assert message.stop_reason == "max_tokens"
        assert message.usage.output_tokens == 4
        assert client.messages.count_tokens(model="gpt-4o", messages=ASKED).input_tokens > 5
