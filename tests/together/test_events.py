"""Events: who listens hears what happens, who does not costs nothing, and who is slow holds up nobody."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import ClosedError, NoCapableInstance
from gleitzeit_core.events import BACKLOG, Event, Events
from gleitzeit_core.hookspecs import InstanceChange
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.requests import FinishedRequest, Request, Served
from gleitzeit_core.resources import HttpChannel, ResourceInstance

if TYPE_CHECKING:
    from gleitzeit_ollama.testing import OllamaServer

QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}


class Others:
    """Other observers, who remember what they were told."""

    def __init__(self, *, observes_requests: bool = False) -> None:
        self.observes_requests = observes_requests
        self.told: list[Any] = []

    def instance_changed(self, change: InstanceChange) -> None:
        """Remember it."""
        self.told.append(change)

    def request_finished(self, finished: FinishedRequest) -> None:
        """Remember it."""
        self.told.append(finished)


def instance(endpoint: str = "http://gpu1:11434") -> ResourceInstance:
    """One at `endpoint`."""
    return ResourceInstance(
        id="a", hub="lan", kind="ollama", endpoint=endpoint, offers=(("ollama", HttpChannel(endpoint)),)
    )


def finished(error_code: str = "") -> FinishedRequest:
    """A request that ended."""
    served = None if error_code else Served(instance_id="a", queued_s=0.5, tries=1)
    return FinishedRequest(
        request=Request(method="llm/chat", tenant="t"), served=served, outcome=None, error_code=error_code, total_s=2.0
    )


@pytest.fixture
def others() -> Others:
    """Observers who want no requests."""
    return Others()


@pytest.fixture
def events(others: Others) -> Events:
    """At a time that stands still."""
    return Events(others, lambda: 7.0)


async def test_a_reader_hears_of_instances(events: Events, others: Others) -> None:
    """That one came, changed and went; so do the other observers."""
    stream, its = events.listen(), instance()
    changes = [
        InstanceChange(before=None, after=its, state="down", reason="new"),
        InstanceChange(before=its, after=its, state="ready", reason=""),
        InstanceChange(before=its, after=None, state="down", reason="gone"),
    ]
    for change in changes:
        events.instance_changed(change)
    heard = [await anext(stream) for _ in changes]
    assert [(event.kind, event.at, event.data["change"], event.data["state"]) for event in heard] == [
        ("instance", 7.0, "added", "down"),
        ("instance", 7.0, "changed", "ready"),
        ("instance", 7.0, "removed", "down"),
    ]
    assert heard[2].data["reason"] == "gone"
    assert heard[2].data["endpoint"] == its.endpoint
    assert others.told == changes


async def test_requests_are_told_to_those_who_ask(events: Events, others: Others) -> None:
    """And only while somebody does is anything made of them."""
    plain = events.listen()
    assert not events.observes_requests
    wanting = events.listen(requests=True)
    assert events.observes_requests
    events.request_finished(finished())
    events.request_finished(finished("queue_full"))
    first, second = await anext(wanting), await anext(wanting)
    assert (first.kind, first.data["method"], first.data["instance"], first.data["error"]) == (
        "request",
        "llm/chat",
        "a",
        None,
    )
    assert (second.data["instance"], second.data["error"], second.data["tries"]) == (None, "queue_full", 0)
    events.end()
    assert [event async for event in plain] == []
    assert not others.told


async def test_a_reader_may_hear_of_one_tenant_only(events: Events) -> None:
    """Of its requests, that is; nothing of others' takes up room or counts as missing. The rest is told to all."""
    hers, every = events.listen(requests=True, tenant="u"), events.listen(requests=True)
    for _ in range(BACKLOG + 1):
        events.request_finished(finished())
    events.emit("reload", {})
    events.end()
    assert [event.kind async for event in hers] == ["reload"]
    assert (await anext(every)).kind == "dropped"


async def test_a_reader_who_leaves_costs_nothing_any_more(events: Events) -> None:
    """Closed or just dropped: the next request notices, and none after it is looked at."""
    closed, dropped = events.listen(requests=True), events.listen(requests=True)
    await closed.aclose()
    await closed.aclose()
    assert [event async for event in closed] == []
    del closed, dropped
    gc.collect()
    assert events.observes_requests
    events.request_finished(finished())
    assert not events.observes_requests
    assert repr(events) == "<Events, 0 readers>"


async def test_a_closed_reader_keeps_nothing(events: Events) -> None:
    """What comes after it was closed is not kept for it, even while somebody holds it."""
    stream = events.listen()
    await stream.aclose()
    events.emit("hub", {})
    assert [event async for event in stream] == []
    assert repr(events) == "<Events, 0 readers>"


async def test_other_observers_of_requests_are_told_whoever_listens() -> None:
    """The plugins' observers go on when the last reader has left."""
    others = Others(observes_requests=True)
    events = Events(others, lambda: 7.0)
    stream = events.listen(requests=True)
    await stream.aclose()
    del stream
    for _ in range(2):
        events.request_finished(finished())
    assert len(others.told) == 2
    assert events.observes_requests


async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many(events: Events) -> None:
    """Nobody waits for it, memory is bounded, and another reader who is quick loses nothing."""
    slow, quick = events.listen(), events.listen()
    for number in range(BACKLOG + 3):
        events.emit("hub", {"number": number})
        assert (await anext(quick)).data == {"number": number}
    assert repr(slow) == f"<EventStream {BACKLOG} waiting, 3 dropped>"
    first, second = await anext(slow), await anext(slow)
    assert (first.kind, first.data) == ("dropped", {"count": 3})
    assert second.data == {"number": 3}
    events.end()
    rest = [event async for event in slow]
    assert (len(rest), rest[-1].data) == (BACKLOG - 1, {"number": BACKLOG + 2})


async def test_a_reader_who_waits_is_woken(events: Events) -> None:
    """By an event, and by the end."""
    stream = events.listen()
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    events.emit("hub", {"name": "lan"})
    assert await waiting == Event("hub", 7.0, {"name": "lan"})
    waiting = asyncio.create_task(anext(stream, None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    events.end()
    assert await waiting is None


async def test_a_reader_who_is_cancelled_loses_nothing(events: Events) -> None:
    """What comes after the cancelled wait is there for the next one."""
    stream = events.listen()
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    events.emit("hub", {"name": "lan"})
    assert (await anext(stream)).data == {"name": "lan"}


# -- of a manager


def manager_over(server: OllamaServer) -> ResourceManager:
    """With one hub."""
    return ResourceManager.from_config(overrides={"hubs": {"lan": {"type": "ollama", "instances": [server.url]}}})


async def test_a_manager_tells_what_happens(server: OllamaServer) -> None:
    """Requests, good and bad, what is drained, hubs that go; the end comes with the manager's."""
    async with manager_over(server) as manager:
        events = manager.events(requests=True)
        await manager.execute("llm/chat", QUESTION)
        with pytest.raises(NoCapableInstance):
            await manager.execute("llm/chat", {**QUESTION, "model": "nope"})
        (report,) = manager.instances()
        manager.drain_instance(report.instance.id)
        await manager.remove_hub("lan")
    heard = [event async for event in events]
    requests = [event.data for event in heard if event.kind == "request"]
    assert [(data["model"], data["instance"], data["error"]) for data in requests] == [
        ("smollm2", report.instance.id, None),
        ("nope", None, "no_capable_instance"),
    ]
    assert next(event.data["state"] for event in heard if event.kind == "instance") == "drained"
    assert [event.data for event in heard if event.kind == "hub"] == [
        {"name": "lan", "kind": "ollama", "change": "removed"}
    ]
    assert all(event.at > 1e9 for event in heard)


async def test_only_a_manager_that_runs_has_events(server: OllamaServer) -> None:
    """Before its start and after its end it says so."""
    manager = manager_over(server)
    with pytest.raises(ClosedError):
        manager.events()
    async with manager:
        pass
    with pytest.raises(ClosedError):
        manager.events()
