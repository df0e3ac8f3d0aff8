"""Pulls that several want, and callers that leave in the middle."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import ClosedError, InstanceFailure
from gleitzeit_ollama.downloads import PullProgress
from gleitzeit_ollama.pulls import Feed, Pulls
from gleitzeit_ollama.testing import ErrorLineAfter, Gate, OllamaServer

from .seen import pulled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    StartPool = Callable[..., Awaitable[Any]]


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaServer]:
    """A server that sends each step of a download when it is told to."""
    async with OllamaServer(models=["tiny"], registry={"big": 4000, "huge": 8000}, gate=Gate()) as server:
        yield server


def _gate(server: OllamaServer) -> Gate:
    assert isinstance(server.gate, Gate)
    return server.gate


async def _held(server: OllamaServer, pulls: int = 1) -> None:
    """Wait until so many downloads stand before the gate."""
    await server.wait_for(lambda _: _gate(server).waiting == pulls)


def _statuses(steps: list[PullProgress]) -> list[str]:
    """What was said, without repetitions."""
    return list(dict.fromkeys(step.status.partition(" ")[0] for step in steps))


ALL = ["pulling", "verifying", "writing", "success"]


async def test_two_callers_share_one_pull(pool: StartPool, ollama: OllamaServer) -> None:
    """The server is asked once; both hear every step, and both know the model at the end."""
    pooled = await pool(ollama.url)
    first: list[PullProgress] = []
    second: list[PullProgress] = []
    callers = [
        asyncio.create_task(pooled.hub.ensure_model("big", progress=first.append)),
        asyncio.create_task(pooled.hub.ensure_model("big:latest", progress=second.append)),
    ]
    await _held(ollama)
    _gate(ollama).open()
    identity = pooled.instance(ollama.url).id
    assert await asyncio.gather(*callers) == [(identity,), (identity,)]
    assert first == second
    assert _statuses(first) == ALL
    assert len(pulled(ollama)) == 1


async def test_who_comes_late_is_told_what_happened(pool: StartPool, ollama: OllamaServer) -> None:
    """A caller that joins in the middle first hears how far the pull is, then goes along."""
    pooled = await pool(ollama.url)
    early: list[PullProgress] = []
    late: list[PullProgress] = []
    joined = asyncio.Event()

    def hear_late(step: PullProgress) -> None:
        late.append(step)
        joined.set()

    first = asyncio.create_task(pooled.hub.ensure_model("big", progress=early.append))
    await _held(ollama)
    _gate(ollama).allow(2)
    await ollama.wait_for(lambda server: server.requests[-1].tokens == 2)
    second = asyncio.create_task(pooled.hub.ensure_model("big", progress=hear_late))
    await joined.wait()
    _gate(ollama).open()
    await asyncio.gather(first, second)
    assert _statuses(late) == ALL
    assert late[-1] == early[-1]
    assert len(pulled(ollama)) == 1


async def test_who_wants_it_anywhere_joins_the_pull_under_way(pool: StartPool) -> None:
    """A second caller does not begin the same pull on the next server, though that one now has more room."""
    async with (
        OllamaServer(models=[], registry={"big": 4000}, gate=Gate()) as one,
        OllamaServer(models=["tiny"], registry={"big": 4000}) as two,
    ):
        pooled = await pool(one.url, two.url)
        first = asyncio.create_task(pooled.hub.ensure_model("big"))
        await _held(one)
        joined = asyncio.Event()
        second = asyncio.create_task(pooled.hub.ensure_model("big", progress=lambda _: joined.set()))
        await joined.wait()
        assert repr(pooled.hub.pulls) == "<Pulls 1 running, 2 waiting>"
        _gate(one).open()
        assert await first == await second == (pooled.instance(one.url).id,)
        assert (pulled(one), pulled(two)) == (["big"], [])


async def test_different_models_are_different_pulls(pool: StartPool, ollama: OllamaServer) -> None:
    """What two callers do not share runs side by side."""
    pooled = await pool(ollama.url)
    callers = [asyncio.create_task(pooled.hub.ensure_model(model)) for model in ("big", "huge")]
    await _held(ollama, 2)
    _gate(ollama).open()
    await asyncio.gather(*callers)
    assert sorted(pulled(ollama)) == ["big", "huge"]
    assert pooled.models(ollama.url) == {"model:tiny", "model:big", "model:huge"}


@pytest.mark.parametrize("leaver", [0, 1])
async def test_a_caller_that_leaves_does_not_end_it(pool: StartPool, ollama: OllamaServer, leaver: int) -> None:
    """Neither the one who began it nor the one who joined takes the pull away from the other."""
    pooled = await pool(ollama.url)
    callers = [asyncio.create_task(pooled.hub.ensure_model("big")) for _ in range(2)]
    await _held(ollama)
    leaving, staying = callers[leaver], callers[1 - leaver]
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert ollama.disconnects == 0
    _gate(ollama).open()
    await staying
    assert ollama.disconnects == 0
    assert len(pulled(ollama)) == 1
    assert "model:big" in pooled.models(ollama.url)


async def test_the_last_to_leave_ends_it(pool: StartPool, ollama: OllamaServer) -> None:
    """When nobody waits any more the connection is closed, and whoever asks again begins anew."""
    pooled = await pool(ollama.url)
    callers = [asyncio.create_task(pooled.hub.ensure_model("big")) for _ in range(2)]
    await _held(ollama)
    for caller in callers:
        caller.cancel()
    assert [type(end) for end in await asyncio.gather(*callers, return_exceptions=True)] == [
        asyncio.CancelledError,
        asyncio.CancelledError,
    ]
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("pull of")]
    await ollama.wait_for(lambda server: server.disconnects == 1)
    assert repr(pooled.hub.pulls) == "<Pulls 0 running, 0 waiting>"
    _gate(ollama).open()
    await pooled.hub.ensure_model("big")
    assert len(pulled(ollama)) == 2


async def test_who_asks_while_it_ends_begins_anew(pool: StartPool, ollama: OllamaServer) -> None:
    """A caller that comes in the moment the last one leaves gets a pull of its own, not the dying one."""
    pooled = await pool(ollama.url)
    first = asyncio.create_task(pooled.hub.ensure_model("big"))
    await _held(ollama)
    instance = pooled.instance(ollama.url)
    first.cancel()
    await asyncio.sleep(0)  # The cancellation is on its way, the connection still open.
    second = asyncio.create_task(pooled.hub.pulls.follow(instance, "big", lambda _: None))
    _gate(ollama).open()
    await second
    assert first.cancelled() or await asyncio.wait([first])
    assert len(pulled(ollama)) == 2


async def test_a_failure_is_told_to_all(pool: StartPool, ollama: OllamaServer) -> None:
    """Every caller gets the error, the one who joined as well."""
    pooled = await pool(ollama.url)
    ollama.script.next(ErrorLineAfter(3, "disk is full"), on="/api/pull")
    callers = [asyncio.create_task(pooled.hub.ensure_model("big")) for _ in range(3)]
    await _held(ollama)
    _gate(ollama).open()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(end) for end in ends] == [InstanceFailure] * 3
    assert len(pulled(ollama)) == 1


async def test_a_callback_that_fails_fails_its_caller_alone(pool: StartPool, ollama: OllamaServer) -> None:
    """Who cannot hear the progress is out with his own error; the others go on."""
    pooled = await pool(ollama.url)

    def deaf(step: PullProgress) -> None:
        if step.completed_bytes:
            raise ValueError("cannot hear")

    broken = asyncio.create_task(pooled.hub.ensure_model("big", progress=deaf))
    sound = asyncio.create_task(pooled.hub.ensure_model("big"))
    await _held(ollama)
    _gate(ollama).open()
    with pytest.raises(ValueError, match="cannot hear"):
        await broken
    await sound
    with pytest.raises(ValueError, match="cannot hear"):
        await pooled.hub.ensure_model("huge", progress=deaf)
    assert repr(pooled.hub.pulls) == "<Pulls 0 running, 0 waiting>"


async def test_a_pull_that_never_began_is_ended_cleanly() -> None:
    """Closing in the very moment of the first call leaves nobody waiting."""
    began = asyncio.Event()

    async def download(*_: object) -> None:
        began.set()

    pulls = Pulls(download)
    caller = asyncio.create_task(pulls.follow(_FakeInstance(), "big", lambda _: None))  # type: ignore[arg-type]
    await asyncio.sleep(0)  # The caller has joined; its download has not run yet.
    await pulls.aclose()
    with pytest.raises(ClosedError, match="the pull of 'big' was ended: its hub is closed"):
        await caller
    assert not began.is_set()


async def test_leaving_takes_as_long_as_closing() -> None:
    """The last to leave returns when the download has ended, not when it was told to."""
    began, ending, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def download(*_: object) -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            ending.set()
            await ended.wait()

    pulls = Pulls(download)
    caller = asyncio.create_task(pulls.follow(_FakeInstance(), "big", lambda _: None))  # type: ignore[arg-type]
    await began.wait()
    caller.cancel()
    await ending.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not caller.done()
    ended.set()
    with pytest.raises(asyncio.CancelledError):
        await caller


class _FakeInstance:
    """All that `Pulls` looks at."""

    id = "gpu1"


async def test_a_slow_reader_misses_nothing_but_what_is_outdated() -> None:
    """Steps that wait are bounded by the number of parts: of each part only the newest is kept, in order."""
    feed = Feed()

    def step(status: str, completed: int | None = None, instance: str = "a") -> PullProgress:
        return PullProgress(instance_id=instance, status=status, digest=status, completed_bytes=completed)

    for completed in range(1000):
        feed.put(step("one", completed))
        feed.put(step("one", completed, "b"))
    feed.put(step("two"))
    feed.end()
    assert [item async for item in feed] == [step("one", 999), step("one", 999, "b"), step("two")]


async def test_a_feed_is_read_as_it_is_written() -> None:
    """A reader that waits gets each step when it comes, and ends with the feed."""
    feed = Feed()
    reader = aiter(feed)
    for status in ("one", "two"):
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)  # The reader waits.
        step = PullProgress(instance_id="a", status=status)
        feed.put(step)
        assert await waiting == step
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    feed.end()
    with pytest.raises(StopAsyncIteration):
        await waiting
