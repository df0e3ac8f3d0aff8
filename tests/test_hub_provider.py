"""A provider that brings its own hub: created, bounded, replaced and destroyed, each thing by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.errors import InstanceFailure, InvalidRequest, NoCapableInstance, Unavailable
from gleitzeit_core.hub_provider import HubProvider, PoolOptions
from gleitzeit_core.requests import Method
from gleitzeit_core.resources import CallChannel, Requirements
from gleitzeit_core.testing.todo import Todo, Todos

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import ResourceInstance


class StepsOptions(PoolOptions):
    """Options of the one below."""

    capabilities: frozenset[str] = frozenset()


class Steps(HubProvider[StepsOptions]):
    """Everything it is asked for ends when a test says so."""

    protocol = "steps"
    options_type = StepsOptions
    methods = (Method(name="steps/do", summary="as told", replayable=False, streams=True),)

    def __init__(self, options: StepsOptions | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        self.creations: Todos[Todo] = Todos()
        self.works: Todos[Todo] = Todos()
        self.destructions: Todos[Todo] = Todos()
        self.destroyed: list[Any] = []
        self.unwell: set[Any] = set()
        self.there: list[ResourceInstance] = []
        self.log: list[str] = []
        self.slow_end = False

    async def open(self) -> None:
        """Noted."""
        self.log.append("open")

    async def close(self) -> None:
        """Noted."""
        self.log.append("close")

    async def create_resource(self, config: StepsOptions) -> Any:  # noqa: ANN401 - a number
        """Waits; the handle is what the test gives."""
        del config
        self.log.append("create")
        return await self.creations.add(Todo("create")).wait()

    async def execute_on_resource(self, instance: ResourceInstance, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as told
        """Waits."""
        del method, params
        return await self.works.add(Todo(instance.endpoint)).wait()

    async def check_resource(self, instance: ResourceInstance) -> bool:
        """Unless it is among the unwell."""
        return instance.handle not in self.unwell

    async def destroy_resource(self, instance: ResourceInstance) -> None:
        """Noted; waits when it is to be slow."""
        self.log.append("destroy")
        if self.slow_end:
            await self.destructions.add(Todo(instance.endpoint)).wait()
        self.destroyed.append(instance.handle)

    async def discover(self) -> Iterable[ResourceInstance]:
        """What the test put there."""
        return self.there

    def capabilities(self) -> frozenset[str]:
        """As configured."""
        return self.options.capabilities

    def requirements(self, request: Request) -> Requirements:
        """A capability, when the parameters name one."""
        wanted = request.params.get("needs")
        capabilities = frozenset() if wanted is None else frozenset((wanted,))
        return Requirements(accepts=self.accepts, capabilities=capabilities)

    def ask(self, **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A request, in a task of its own."""
        return asyncio.create_task(self.execute("steps/do", options.pop("params", None), **options))

    @property
    def states(self) -> list[str]:
        """Of all instances."""
        return [str(report.state) for report in self.dispatcher.reports()]


@contextlib.asynccontextmanager
async def steps(**options: Any) -> AsyncIterator[Steps]:  # noqa: ANN401 - any option
    """Open; at the end nothing is left, and all that was created is destroyed, once."""
    before = asyncio.all_tasks()
    provider = Steps(StepsOptions(**options))
    async with provider:
        yield provider
        provider.slow_end = False
    assert sorted(provider.destroyed) == sorted(set(provider.destroyed))
    assert not provider.make_hub()._owned  # type: ignore[attr-defined]
    for _ in range(3):
        await asyncio.sleep(0)
    assert not asyncio.all_tasks() - before


async def turns(count: int = 10) -> None:
    """Let the others run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


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
        on.make_hub()._may_retry()  # type: ignore[attr-defined]
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
            hub._retry.cancel()
            hub._may_retry()
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
    provider.make_hub()._may_retry()  # type: ignore[attr-defined]
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


async def test_what_it_raises_counts_against_the_resource_unless_the_caller_is_wrong() -> None:
    """`InvalidRequest` is the caller's."""
    async with steps(max_total=1) as on:
        for error, expected in ((InvalidRequest("no"), InvalidRequest), (LookupError("oops"), InstanceFailure)):
            task = on.ask()
            if not on.make_hub().instances:
                (await on.creations.next()).finish(1)
            (await on.works.next()).fail(error)
            with pytest.raises(expected):
                await task
        assert on.dispatcher.metrics.sum().results == {"rejected": 1, "server_error": 1}


async def test_without_a_stream_of_its_own_the_answer_is_one_part() -> None:
    """A method may be asked for in parts all the same."""
    async with steps() as on:
        reading = asyncio.create_task(_all(on.stream("steps/do")))
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish("whole")
        assert await reading == ["whole"]


async def _all(parts: Any) -> list[Any]:  # noqa: ANN401 - a stream
    return [part async for part in parts]


async def test_others_may_call_its_resources() -> None:
    """A provider of the same api reaches them by call: JSON there, JSON back."""
    async with steps() as on:
        task = on.ask()
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish()
        await task
        (instance,) = on.make_hub().instances
        _, channel = instance.offers[0]
        assert isinstance(channel, CallChannel)
        calling = asyncio.create_task(channel.call(json.dumps({"method": "steps/do"}).encode()))
        (await on.works.next()).finish([1])
        assert await calling == b"[1]"
        for wrong in (b"no", b"[]", b"{}"):
            with pytest.raises(InvalidRequest, match="not a call"):
                await channel.call(wrong)
        on.make_hub().withdraw(instance.id, "gone")
        with pytest.raises(InstanceFailure, match="is gone") as caught:
            await channel.call(b'{"method": "steps/do"}')
        assert not caught.value.started


async def test_it_can_be_opened_again() -> None:
    """Also after a creation had failed."""
    provider = Steps(StepsOptions(max_total=1))
    for handle in (1, 2):
        async with provider:
            task = provider.ask()
            (await provider.creations.next()).finish(handle)
            (await provider.works.next()).finish("done")
            assert await task == "done"
            provider.dispatcher.shell.admission.drain(provider.make_hub().instances[0].id)
            task = provider.ask()
            (await provider.creations.next()).fail(LookupError("no"))
            with pytest.raises(Unavailable):
                await task
    assert provider.destroyed == [1, 2]


@pytest.mark.parametrize("wrong", [{"min_total": 3, "max_total": 2}, {"max_total": 0}, {"size": 3}])
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    """Before anything is created."""
    with pytest.raises(ValidationError):
        PoolOptions(**wrong)
