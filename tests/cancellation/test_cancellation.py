"""Leaving, in every state: no slot, task or request may stay behind, and none may be freed while the work goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from random import Random
from typing import Any

import pytest

from gleitzeit_core.errors import DeadlineExceeded, FailureKind
from gleitzeit_core.pool import State
from gleitzeit_core.testing.contract import ContractHub, ContractOptions, ContractProvider
from gleitzeit_core.testing.scripted import ScriptedProvider
from gleitzeit_core.testing.todo import turns
from tests.tasks import ended

from .stage import Stage, stage

# -- before the work ------------------------------------------------------------------------------------------------------


async def test_before_it_began() -> None:
    """A task that never ran has taken nothing."""
    async with stage() as on:
        task = on.ask()
        task.cancel()
        await ended(task)
        assert not on.provider.calls.all


async def test_in_the_queue() -> None:
    """The place is free, and the next one gets the slot."""
    async with stage() as on:
        first = on.ask()
        call = await on.provider.calls.next()
        leaving, staying = on.ask(), on.ask()
        await turns()
        assert on.counts == (3, 2, 1)
        leaving.cancel()
        await ended(leaving)
        assert on.counts == (2, 1, 1)
        call.finish(1)
        (await on.provider.calls.next()).finish(2)
        assert await asyncio.gather(first, staying) == [1, 2]


@pytest.mark.parametrize("order", ["grant, cancel", "cancel, grant"])
async def test_in_the_moment_of_the_grant(order: str) -> None:
    """A slot that was given to somebody who leaves is given back, and to the next."""
    async with stage() as on:
        first = on.ask()
        call = await on.provider.calls.next()
        leaving, staying = on.ask(), on.ask()
        await turns()
        if order == "grant, cancel":
            call.finish()
            while on.dispatcher.shell.admission.waiting == 2:
                await asyncio.sleep(0)
            leaving.cancel()
        else:
            leaving.cancel()
            call.finish()
        await ended(leaving)
        await first
        (await on.provider.calls.next()).finish("next")
        assert await staying == "next"
        assert len(on.provider.calls.all) == 2, "nothing was begun for who left"


@pytest.mark.parametrize("first", ["reject", "cancel"])
async def test_in_the_moment_of_the_refusal(first: str) -> None:
    """Who leaves and is sent away at the same time has left; nobody complains of an error that nobody heard."""
    async with stage() as on:
        holder = on.ask()
        call = await on.provider.calls.next()
        leaving = on.ask()
        await turns()
        if first == "cancel":
            leaving.cancel()
        on.dispatcher.shell.admission.set_state(on.record.instance.id, State.DOWN, "dead")
        leaving.cancel()
        await ended(leaving)
        gc.collect()
        call.finish()
        await holder
        on.dispatcher.shell.admission.set_state(on.record.instance.id, State.READY)


async def test_while_it_waits_for_an_instance_to_be_created() -> None:
    """The creation goes on; the instance is there for the next."""
    hub = ContractHub(ContractOptions(uses=0))
    async with ContractProvider(hub=hub) as provider:
        task = asyncio.create_task(provider.execute("contract/run"))
        creation = await hub.creations.next()
        task.cancel()
        await ended(task)
        creation.finish()
        again = asyncio.create_task(provider.execute("contract/run"))
        (await hub.calls.next()).finish(b"1")
        assert await again == 1
        assert len(hub.creations.all) == 1


# -- while it works -----------------------------------------------------------------------------------------------------------


async def test_while_it_runs() -> None:
    """The work is cancelled, and its end says nothing about the instance."""
    async with stage() as on:
        task = on.ask()
        call = await on.provider.calls.next()
        task.cancel()
        await ended(task)
        assert call.cancelled
        assert on.dispatcher.metrics.sum().results == {"cancelled": 1}


async def test_the_slot_is_free_only_when_the_work_has_stopped() -> None:
    """Cancelling takes as long as it takes; until then nobody else gets in."""
    async with stage() as on:
        task, waiting = on.ask(), on.ask()
        call = await on.provider.calls.next()
        call.linger()
        task.cancel()
        await turns()
        assert on.counts == (2, 1, 1)
        call.let_go()
        await ended(task)
        second = await on.provider.calls.next()
        assert call.stopped.is_set()
        second.finish("next")
        assert await waiting == "next"


async def test_a_deadline_frees_the_slot_only_when_the_work_has_stopped() -> None:
    """As if its caller had left."""
    async with stage() as on:
        task = on.ask(timeout_s=5.0)
        call = await on.provider.calls.next()
        call.linger()
        on.clock.advance(5.0)
        await turns()
        assert on.counts == (1, 0, 1)
        call.let_go()
        with pytest.raises(DeadlineExceeded):
            await task


async def test_who_leaves_at_the_deadline_has_left() -> None:
    """A cancellation by the caller is never turned into an error."""
    async with stage() as on:
        task = on.ask(timeout_s=5.0)
        await on.provider.calls.next()
        task.cancel()
        on.clock.advance(5.0)
        await ended(task)
        assert task.cancelled()


async def test_a_deadline_inside_another_timeout_leaves_that_alone() -> None:
    """Both are cancellations of one task, and each belongs to its own."""
    async with stage() as on:
        with pytest.raises(TimeoutError):  # noqa: PT012 - the block is what is tested
            async with asyncio.timeout(None) as outer:
                with pytest.raises(DeadlineExceeded):
                    await asyncio.gather(on.ask(timeout_s=5.0), _advance(on))
                outer.reschedule(0)
                await asyncio.Event().wait()


async def _advance(on: Stage) -> None:
    await on.provider.calls.next()
    on.clock.advance(5.0)


async def test_a_timeout_of_the_callers_own_works_as_ever() -> None:
    """`asyncio.timeout` around a request ends it."""
    async with stage() as on:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await on.provider.execute("echo/say")


async def test_work_that_refuses_to_stop_has_its_answer_used() -> None:
    """Who swallows a cancellation and answers has answered; the slot is free all the same."""

    class Stubborn(ScriptedProvider):
        async def execute_on(self, *args: Any) -> Any:  # noqa: ANN401 - as told
            with contextlib.suppress(asyncio.CancelledError):
                await super().execute_on(*args)
            return "all the same"

    async with stage() as on:
        on.provider = Stubborn()
        on.provider.bind(on.dispatcher)
        task = on.ask(timeout_s=5.0)
        await on.provider.calls.next()
        on.clock.advance(5.0)
        assert await task == "all the same"
        assert not task.cancelling()


async def test_between_two_tries() -> None:
    """Who leaves while the request waits for its second instance leaves nothing there."""
    async with stage() as on:
        on.hub.publish(on.hub.make("b", max_concurrent=1))
        tasks = [on.ask(), on.ask()]
        failing, other = await on.provider.calls.take(2)
        leaving = tasks[0]
        failing.refuse(FailureKind.SERVER_ERROR)
        await turns()
        assert on.dispatcher.shell.admission.waiting == 1
        leaving.cancel()
        await ended(leaving)
        other.finish()
        await tasks[1]
        on.hub.withdraw(on.hub.instances[1].id, "enough")


# -- everything at once -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_a_thousand_requests_that_leave_at_random_leave_nothing(seed: int) -> None:
    """Wherever each of them is at that moment."""
    random = Random(seed)
    async with stage(max_concurrent=7) as on:
        tasks: list[asyncio.Task[Any]] = []
        for _ in range(1000):
            task = on.ask() if random.random() < 0.6 else on.read()[1]
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            tasks.append(task)
            for call in on.provider.calls.all[-random.randrange(1, 8) :]:
                if random.random() < 0.3:
                    call.finish()
                    call.part(1)
            if random.random() < 0.5:
                random.choice(tasks).cancel()
            await turns(random.randrange(4))
        while not all(task.done() for task in tasks):
            for call in on.provider.calls.all:
                call.finish()
                call.part(1)
                call.end()
            await asyncio.sleep(0)
        await turns(20)
