"""Resources are created when they are wanted, within bounds, and not again and again where creating fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gleitzeit_core.errors import NoCapableInstance, Unavailable
from gleitzeit_core.testing.todo import turns

from .steps import Steps, StepsOptions, steps


async def test_resources_are_created_when_they_are_wanted() -> None:
    """Each request that waits may have one, up to the limit."""
    async with steps(max_total=2) as on:
        tasks = [on.ask() for _ in range(3)]
        first, second = await on.creations.take(2)
        await turns()
        assert on.states == ["starting", "starting"]
        first.finish(1)
        second.finish(2)
        works = await on.works.take(2)
        assert on.dispatcher.shell.admission.waiting == 1
        for work in works:
            work.finish("done")
        (await on.works.next()).finish("done")
        assert await asyncio.gather(*tasks) == ["done"] * 3
        assert len(on.creations.all) == 2
    assert sorted(on.destroyed) == [1, 2]


async def test_the_provider_is_open_while_its_resources_live() -> None:
    """What it acquires in `open` is there for creating and for destroying."""
    async with steps() as on:
        task = on.ask()
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish()
        await task
    assert on.log == ["open", "create", "destroy", "close"]


async def test_the_lower_bound_is_created_at_start() -> None:
    """And waited for."""
    provider = Steps(StepsOptions(min_total=2, max_total=3))
    opening = asyncio.create_task(provider.__aenter__())
    first, second = await provider.creations.take(2)
    first.finish(1)
    await turns()
    assert not opening.done()
    second.finish(2)
    await opening
    assert provider.states == ["ready", "ready"]
    await provider.__aexit__(None, None, None)
    assert sorted(provider.destroyed) == [1, 2]


async def test_exclusive_resources_take_one_request_others_many() -> None:
    """Many requests do not mean many resources when each can take sixty-four."""

    class Shared(Steps):
        exclusive = False

    async with Shared(StepsOptions(max_total=4)) as on:
        tasks = [on.ask() for _ in range(65)]
        for creation in await on.creations.take(2):
            creation.finish(creation)
        for work in await on.works.take(65):
            work.finish()
        await asyncio.gather(*tasks)
        assert len(on.creations.all) == 2


async def test_a_creation_that_fails_is_told_to_those_who_wait() -> None:
    """With the reason; later it is tried again."""
    async with steps() as on:
        task = on.ask()
        (await on.creations.next()).fail(LookupError("no disk left"))
        with pytest.raises(Unavailable, match="creating failed: LookupError: no disk left"):
            await task
        with pytest.raises(Unavailable, match="no disk left"):
            await on.execute("steps/do")
        assert on.states == []
        on.make_hub().retry_now()  # type: ignore[attr-defined]
        task = on.ask()
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish("done")
        assert await task == "done"


async def test_one_that_fails_does_not_take_the_others_with_it() -> None:
    """Who waits goes on waiting while another is being created."""
    async with steps(max_total=2) as on:
        tasks = [on.ask(), on.ask()]
        first, second = await on.creations.take(2)
        first.fail(LookupError("no"))
        await turns()
        assert not any(task.done() for task in tasks)
        second.finish(2)
        (await on.works.next()).finish(1)
        (await on.works.next()).finish(2)
        assert await asyncio.gather(*tasks) == [1, 2]


async def test_failed_creations_are_tried_less_and_less_often() -> None:
    """1, 2, 4 ... seconds; several that fail together count once."""
    async with steps(max_total=3) as on:
        pauses = []
        for _ in range(3):
            tasks = [on.ask() for _ in range(3)]
            for creation in await on.creations.take(3):
                creation.fail(LookupError("no"))
            await asyncio.gather(*tasks, return_exceptions=True)
            hub: Any = on.make_hub()
            pauses.append(round(hub._retry.when() - asyncio.get_running_loop().time()))
            hub.retry_now()
        assert pauses == [1, 2, 4]
        task = on.ask()
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish()
        await task
        tasks = [on.ask(), on.ask()]
        (await on.creations.next()).fail(LookupError("no"))
        await turns()
        assert round(hub._retry.when() - asyncio.get_running_loop().time()) == 1, "a success begins it anew"
        (await on.works.next()).finish()
        (await on.works.next()).finish()
        await asyncio.gather(*tasks)


async def test_the_lower_bound_is_not_filled_while_creating_fails() -> None:
    """The pause holds for all that is created."""
    provider = Steps(StepsOptions(min_total=1, max_total=2))
    opening = asyncio.create_task(provider.__aenter__())
    (await provider.creations.next()).finish(1)
    await opening
    task = provider.ask()
    work = await provider.works.next()
    waiting = provider.ask()
    (await provider.creations.next()).fail(LookupError("no"))
    work.finish()
    await task
    (await provider.works.next()).finish()
    await waiting
    provider.dispatcher.shell.admission.drain(provider.make_hub().instances[0].id)
    await turns()
    assert len(provider.creations.all) == 2
    provider.make_hub().retry_now()  # type: ignore[attr-defined]
    (await provider.creations.next()).finish(3)
    await turns()
    await provider.__aexit__(None, None, None)
    assert provider.destroyed == [1, 3]


async def test_a_creation_that_hangs_is_given_up() -> None:
    """After its time it is cancelled, and has failed."""
    async with steps(create_timeout_s=0.01) as on:
        with pytest.raises(Unavailable, match=r"not within 0\.01 s"):
            await on.execute("steps/do")
        assert on.creations.all[0].cancelled


async def test_a_creation_under_way_is_cancelled_when_all_is_closed() -> None:
    """Nothing is created afterwards, nothing is destroyed that never was."""
    async with steps(max_total=2) as on:
        task = on.ask()
        creation = await on.creations.next()
    assert creation.cancelled
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], Exception)
    assert on.destroyed == []


async def test_a_creation_that_fails_while_all_is_closed_is_not_tried_again() -> None:
    """Authors turn a cancellation into all kinds of errors."""

    class Clumsy(Steps):
        async def create_resource(self, config: StepsOptions) -> Any:  # noqa: ANN401 - never
            try:
                return await super().create_resource(config)
            except asyncio.CancelledError:
                raise LookupError("cancelled") from None

    async with Clumsy(StepsOptions(min_total=0, max_total=1)) as on:
        task = on.ask()
        await on.creations.next()
    await asyncio.gather(task, return_exceptions=True)
    assert on.make_hub()._retry is None  # type: ignore[attr-defined]
    await turns()
    assert on.log.count("create") == 1


async def test_nothing_is_created_for_what_it_could_not_do() -> None:
    """Neither for another capability, nor for one instance by name, nor for tags it has not."""
    async with steps(capabilities=frozenset({"x"})) as on:
        with pytest.raises(NoCapableInstance):
            await on.execute("steps/do", {"needs": "y"})
        with pytest.raises(NoCapableInstance):
            await on.execute("steps/do", instances=["steps-somebody"])
        with pytest.raises(NoCapableInstance):
            await on.execute("steps/do", tags=["gpu"])
        assert not on.creations.all
        task = on.ask(params={"needs": "x"})
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish("done")
        assert await task == "done"


async def test_capabilities_that_differ_share_one_limit() -> None:
    """Two requirements at the same moment do not get one instance more than there may be."""
    async with steps(max_total=1, capabilities=frozenset({"x", "y"})) as on:
        tasks = [on.ask(params={"needs": name}) for name in "xy"]
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish()
        (await on.works.next()).finish()
        await asyncio.gather(*tasks)
        assert len(on.creations.all) == 1
