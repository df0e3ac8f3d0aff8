from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.pool import State
from gleitzeit_core.resources import HttpChannel
from gleitzeit_llamacpp.files import ModelError, locate
from gleitzeit_llamacpp.options import ModelOptions
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_llm.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from conftest import Pool
    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_llamacpp.hub import LlamaCppHub

CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi."}], "options": {"num_predict": 4}}


@pytest.fixture
def cut_off(tmp_path: Path) -> Path:
    """A file that begins like a model and ends too soon, as one does whose download was interrupted."""
    file = tmp_path / "cut.gguf"
    with locate(ModelOptions(path="smollm2")).open("rb") as whole:
        file.write_bytes(whole.read(2_000_000))
    return file


def kill(instance: ResourceInstance) -> None:
    """As the kernel does when memory runs out."""
    os.kill(instance.details["pid"], signal.SIGKILL)


def channel_of(instance: ResourceInstance) -> HttpChannel:
    """How it is reached."""
    ((_, channel),) = instance.offers
    assert isinstance(channel, HttpChannel)
    return channel


async def test_a_killed_process_is_started_anew(pool: Pool, make_hub: Callable[..., LlamaCppHub]) -> None:
    """The same instance in a new generation: out at once, back when it listens, and it answers."""
    await pool.shell.add_hub(make_hub())
    (before,) = await pool.ready()
    kill(before)
    await pool.until(lambda: pool.records[0].state is State.STARTING)
    starting = pool.records[0].instance
    assert (starting.id, starting.generation) == (before.id, before.generation + 1)
    (after,) = await pool.ready()
    assert (after.id, after.endpoint, after.generation) == (before.id, before.endpoint, before.generation + 1)
    assert after.details["pid"] != before.details["pid"]
    upstream = Upstream()
    await upstream.open()
    try:
        payload = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 1}
        assert (await upstream.request(channel_of(after), "POST", "/v1/chat/completions", payload)).status == 200
    finally:
        await upstream.close()


async def test_a_request_waits_for_the_new_process(
    make_hub: Callable[..., LlamaCppHub], until: Callable[[Callable[[], object]], Awaitable[None]]
) -> None:
    """While the only process is started anew, requests wait instead of failing."""
    hub = make_hub()
    async with LLMProvider(hub=hub) as llm:
        (before,) = hub.instances
        kill(before)
        await until(lambda: hub.instances[0].generation > before.generation)
        answer = await llm.execute("llm/chat", CHAT)
    assert answer["done"]
    assert answer["message"]["content"]


@pytest.mark.parametrize("instances", [1, 2])
async def test_a_request_is_not_lost_with_its_process(make_hub: Callable[..., LlamaCppHub], instances: int) -> None:
    """What a process was working on when it died is done by another one, or by the one that follows it."""
    hub = make_hub({"instances": instances})
    upstream = Upstream()
    async with LLMProvider(hub=hub) as llm:
        asked = asyncio.create_task(llm.execute("llm/chat", {**CHAT, "options": {"num_predict": 60}}))
        await upstream.open()
        try:
            kill(await at_work(hub, upstream))
        finally:
            await upstream.close()
        answer = await asked
    assert answer["done"]
    assert answer["message"]["content"]


async def at_work(hub: LlamaCppHub, upstream: Upstream) -> ResourceInstance:
    """Waits for a process to have work, and tells which."""
    while True:
        for instance in hub.instances:
            slots = (await upstream.request(channel_of(instance), "GET", "/slots")).json()
            if any(slot["is_processing"] for slot in slots):
                return instance


async def test_a_damaged_file_is_told_of_at_once(
    pool: Pool, make_hub: Callable[..., LlamaCppHub], cut_off: Path
) -> None:
    """A hub none of whose processes starts does not open, says why in llama.cpp's words, and leaves nothing running."""
    with pytest.raises(ModelError, match="model is corrupted or incomplete"):
        await pool.shell.add_hub(make_hub({"path": str(cut_off)}))
    assert pool.shell.hubs == {}
    assert pool.records == []


async def test_a_file_that_is_none_is_told_of_at_once(
    pool: Pool, make_hub: Callable[..., LlamaCppHub], tmp_path: Path
) -> None:
    """Before anything is started, also where another model is good."""
    with pytest.raises(ModelError, match=r"none\.gguf: No such file"):
        await pool.shell.add_hub(make_hub({"name": "good"}, {"path": str(tmp_path / "none.gguf")}))
    assert pool.seen == []


async def test_one_damaged_file_takes_nothing_from_the_others(
    pool: Pool, make_hub: Callable[..., LlamaCppHub], cut_off: Path
) -> None:
    """The good model serves; the other is down after a few tries, with the reason, and is not asked."""
    hub = make_hub({"name": "good"}, {"path": str(cut_off), "name": "bad"})
    await pool.shell.add_hub(hub)
    await pool.until(lambda: {record.state for record in pool.records} == {State.READY, State.DOWN})
    (bad,) = (record for record in pool.records if record.state is State.DOWN)
    assert bad.instance.capabilities == {"model:bad"}
    assert "corrupted or incomplete" in bad.reason
    with pytest.raises(InstanceFailure, match="corrupted or incomplete") as caught:
        await hub.check(bad.instance)
    assert (caught.value.kind, caught.value.started) == (FailureKind.REFUSED, False)
