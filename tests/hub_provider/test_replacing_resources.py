"""Resources that are unwell, drained or found are replaced, or left alone, each thing once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from gleitzeit_core.errors import InstanceFailure
from gleitzeit_core.testing.todo import turns

from .steps import Steps, StepsOptions, steps

if TYPE_CHECKING:
    import pytest

    from gleitzeit_core.resources import ResourceInstance


async def test_what_is_not_well_is_replaced() -> None:
    """It is withdrawn at once, destroyed, and made anew to the lower bound."""
    provider = Steps(StepsOptions(min_total=1, max_total=1))
    opening = asyncio.create_task(provider.__aenter__())
    (await provider.creations.next()).finish(1)
    await opening
    async with contextlib.aclosing(_Leaving(provider)):
        (instance,) = provider.make_hub().instances
        provider.unwell.add(1)
        provider.slow_end = True
        assert not await provider.dispatcher.shell.health.check(instance.id)
        waiting = provider.ask()
        destruction = await provider.destructions.next()
        await turns()
        assert len(provider.creations.all) == 1, "the old one still takes its place"
        assert provider.states == []
        provider.slow_end = False
        destruction.finish()
        (await provider.creations.next()).finish(2)
        (await provider.works.next()).finish("by the new one")
        assert await waiting == "by the new one"
    assert provider.destroyed == [1, 2]


class _Leaving:
    """Closes a provider that was opened by hand."""

    def __init__(self, provider: Steps) -> None:
        self._provider = provider

    async def aclose(self) -> None:
        """Leave."""
        await self._provider.__aexit__(None, None, None)


async def test_what_is_found_unwell_twice_is_destroyed_once() -> None:
    """Two checks at the same time are one finding."""
    async with steps(max_total=1) as on:
        task = on.ask()
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish()
        await task
        (instance,) = on.make_hub().instances
        on.unwell.add(1)
        on.slow_end = True
        check = on.make_hub().check
        results = await asyncio.gather(check(instance), check(instance), return_exceptions=True)
        assert all(isinstance(result, InstanceFailure) for result in results)
        destruction = await on.destructions.next()
        await turns()
        assert len(on.destructions.all) == 1
        destruction.finish()


async def test_those_who_wait_get_the_replacement() -> None:
    """Without a lower bound as well: when the old one is gone, they ask again."""
    async with steps(max_total=1) as on:
        task = on.ask()
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish()
        await task
        on.unwell.add(1)
        on.slow_end = True
        assert not await on.dispatcher.shell.health.check(on.make_hub().instances[0].id)
        destruction = await on.destructions.next()
        task = on.ask()
        await turns()
        destruction.finish()
        (await on.creations.next()).finish(2)
        (await on.works.next()).finish("done")
        assert await task == "done"
        on.slow_end = False


async def test_what_was_not_made_here_is_not_destroyed() -> None:
    """A resource that was found is used, may be down, and is left alone in the end."""
    provider = Steps(StepsOptions(max_total=1))
    provider.there = [provider.resource_instance("found", 7)]
    async with provider:
        task = provider.ask()
        (await provider.works.next()).finish("done")
        assert await task == "done"
        provider.unwell.add(7)
        assert not await provider.dispatcher.shell.health.check(provider.there[0].id)
        assert provider.states == ["down"]
        await turns()
    assert (provider.destroyed, provider.log) == ([], ["open", "close"])


async def test_a_resource_that_is_drained_is_destroyed_and_replaced() -> None:
    """The lower bound holds."""
    provider = Steps(StepsOptions(min_total=1, max_total=2))
    opening = asyncio.create_task(provider.__aenter__())
    (await provider.creations.next()).finish(1)
    await opening
    provider.dispatcher.shell.admission.drain(provider.make_hub().instances[0].id)
    (await provider.creations.next()).finish(2)
    await turns()
    assert (provider.destroyed, provider.states) == ([1], ["ready"])
    await provider.__aexit__(None, None, None)
    assert provider.destroyed == [1, 2]


async def test_a_resource_that_cannot_be_destroyed_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and makes room for another."""

    class Sticky(Steps):
        async def destroy_resource(self, instance: ResourceInstance) -> None:
            raise LookupError(f"{instance.endpoint} is stuck")

    async with Sticky(StepsOptions(max_total=1)) as on:
        task = on.ask()
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish()
        await task
        on.dispatcher.shell.admission.drain(on.make_hub().instances[0].id)
        task = on.ask()
        (await on.creations.next()).finish(2)
        (await on.works.next()).finish("done")
        assert await task == "done"
    assert "steps-1 is stuck" in caplog.text
