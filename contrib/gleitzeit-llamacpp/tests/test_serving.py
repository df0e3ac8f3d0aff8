from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.resources import HttpChannel, Ownership
from gleitzeit_core.shell import Shell
from gleitzeit_llamacpp.hub import LlamaCppHub
from gleitzeit_llamacpp.options import LlamaCppOptions
from gleitzeit_llm.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.resources import ResourceInstance

pytestmark = pytest.mark.asyncio(loop_scope="module")

# One slot, so that a second request shows whether the first has stopped; room for more tokens than a test waits for.
MODEL = {"path": "smollm2", "name": "tiny:latest", "instances": 1, "slots": 1, "context": 8192}
LONG = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 8000, "ignore_eos": True}
SHORT = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 1}
CHAT = "/v1/chat/completions"


class Served:
    """A hub with one process, and a client for it."""

    def __init__(self, hub: LlamaCppHub, upstream: Upstream) -> None:
        self.hub, self.upstream = hub, upstream

    @property
    def instance(self) -> ResourceInstance:
        """The only one."""
        (one,) = self.hub.instances
        return one

    @property
    def channel(self) -> HttpChannel:
        """How it is reached."""
        ((api, channel),) = self.instance.offers
        assert api == "openai"
        assert isinstance(channel, HttpChannel)
        return channel

    async def post(self, path: str, **payload: object) -> dict[str, Any]:
        """What it answers."""
        answer: dict[str, Any] = (await self.upstream.request(self.channel, "POST", path, payload)).json()
        return answer

    async def at_work(self) -> bool:
        """Whether its slot is taken."""
        (slot,) = (await self.upstream.request(self.channel, "GET", "/slots")).json()
        return bool(slot["is_processing"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    """One process for all tests in this file."""
    shell, upstream = Shell(clock=SystemClock(), random=Random(1)), Upstream()
    hub = LlamaCppHub(LlamaCppOptions.model_validate({"models": [MODEL]}))
    await upstream.open()
    await shell.add_hub(hub)
    yield Served(hub, upstream)
    await upstream.close()
    await shell.aclose()


async def test_it_chats(served: Served) -> None:
    """With the real model, under the name that callers use."""
    answer = await served.post(CHAT, model="tiny", **{**SHORT, "max_tokens": 8})
    assert answer["choices"][0]["message"]["content"]
    assert 0 < answer["usage"]["completion_tokens"] <= 8


async def test_the_packaged_model_samples_at_a_low_temperature(served: Served) -> None:
    """Where a caller says nothing of it; with llama.cpp's own defaults so small a model often does not find an end."""
    response = await served.upstream.request(served.channel, "GET", "/slots")
    (slot,) = response.json()
    assert slot["params"]["temperature"] == pytest.approx(0.2)
    assert slot["params"]["top_p"] == pytest.approx(0.9)


async def test_it_embeds(served: Served) -> None:
    """Several texts at once, alike ones alike; chat works alongside."""
    answer = await served.post("/v1/embeddings", input=["a cat", "a cat", "the stock market"])
    cat, again, market = (item["embedding"] for item in answer["data"])
    assert len(cat) == 576
    assert cat == pytest.approx(again, abs=0.05)
    assert cat != pytest.approx(market, abs=0.05)
    assert (await served.post(CHAT, **SHORT))["usage"]["completion_tokens"] == 1


async def test_an_instance_says_what_it_is(served: Served) -> None:
    """Ours to stop, with its model warm and described by facts."""
    instance = served.instance
    assert (instance.kind, instance.ownership, instance.max_concurrent) == ("llamacpp", Ownership.MANAGED, 1)
    assert instance.capabilities == instance.warm == {"model:tiny"}
    entry = instance.details["models"]["tiny"]
    assert (entry["name"], entry["size"]) == ("tiny:latest", 98362432)
    assert entry["details"]["format"] == "gguf"
    assert (entry["details"]["parameter_size"], entry["details"]["quantization_level"]) == ("134.52M", "Q4_1")


async def test_it_listens_on_loopback_only(served: Served) -> None:
    """What has no key must not be reached from elsewhere."""
    assert served.channel.url.startswith("http://127.0.0.1:")


async def test_a_check_asks_the_process(served: Served) -> None:
    """And changes nothing when it is well."""
    assert await served.hub.check(served.instance) == served.instance


async def test_a_stream_that_is_left_stops(served: Served) -> None:
    """The slot is free again: the next request is answered, long before the first would have ended."""
    stream = served.upstream.stream(served.channel, "POST", CHAT, {**LONG, "stream": True})
    async with stream as response:
        assert await response.content.readany()
    async with asyncio.timeout(20):
        assert (await served.post(CHAT, **SHORT))["usage"]["completion_tokens"] == 1


async def test_an_answer_nobody_waits_for_stops(served: Served) -> None:
    """The same for an answer in one piece, of which nothing has come yet."""
    waiting = asyncio.create_task(served.post(CHAT, **LONG))
    while not await served.at_work():
        continue
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(20):
        assert (await served.post(CHAT, **SHORT))["usage"]["completion_tokens"] == 1
