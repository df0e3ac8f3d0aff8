"""Leaving, in every state: no slot, task or request may stay behind, and none may be freed while the work goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import DeadlineExceeded, FailureKind, RequestError, ShuttingDown
from gleitzeit_core.pool import State
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.contract import ContractHub, ContractOptions, ContractProvider
from gleitzeit_core.testing.scripted import ScriptedHub, ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.pool import Record


class Stage:
    """One instance with one slot, and a clock that stands still."""

    def __init__(self, **instance: Any) -> None:  # noqa: ANN401 - any field
        self.clock = ManualClock()
        self.dispatcher = Dispatcher(clock=self.clock, random=Random(0))
        self.hub = ScriptedHub({"a": {"max_concurrent": 1, **instance}})
        self.provider = ScriptedProvider()
        self.provider.bind(self.dispatcher)

    def ask(self, **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A request, in a task of its own."""
        return asyncio.create_task(self.provider.execute("echo/say", **options))

    def read(self) -> tuple[Any, asyncio.Task[Any]]:
        """A stream, and the task that waits for its next part."""
        parts = self.provider.stream("echo/parts")
        return parts, asyncio.create_task(_next(parts))

    @property
    def record(self) -> Record:
        """Of the instance."""
        (record,) = self.dispatcher.shell.admission.pool
        return record

    @property
    def counts(self) -> tuple[int, int, int]:
        """On their way, waiting, in flight."""
        return self.dispatcher.active, self.dispatcher.shell.admission.waiting, self.record.in_flight


@contextlib.asynccontextmanager
async def stage(**instance: Any) -> AsyncIterator[Stage]:  # noqa: ANN401 - any field
    """Everything set up; at the end nothing may be left."""
    before = asyncio.all_tasks()
    made = Stage(**instance)
    await made.dispatcher.shell.add_hub(made.hub)
    yield made
    assert made.counts == (0, 0, 0)
    await made.dispatcher.aclose()
    assert not asyncio.all_tasks() - before
    assert made.clock.pending == 0


async def _next(parts: Any) -> Any:  # noqa: ANN401 - a stream's part
    """In a coroutine of its own, so that a finished task holds the stream no longer."""
    return await anext(parts)


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait until a task was cancelled."""
    with pytest.raises(asyncio.CancelledError):
        await task


async def turns(count: int = 5) -> None:
    """Let the others run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


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


# -- in parts -----------------------------------------------------------------------------------------------------------------


async def test_before_the_first_part() -> None:
    """The work is cancelled."""
    async with stage() as on:
        _, reading = on.read()
        call = await on.provider.calls.next()
        reading.cancel()
        await ended(reading)
        assert call.stopped.is_set()


async def test_between_two_parts() -> None:
    """Closing the stream cancels the work; closing it again is fine."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        assert on.counts == (1, 0, 1)
        await parts.aclose()
        assert call.stopped.is_set()
        await parts.aclose()
        assert [part async for part in parts] == []
        assert on.dispatcher.metrics.sum().results == {"cancelled": 1}


async def test_while_the_next_part_is_awaited() -> None:
    """As for the first one."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        reading = asyncio.create_task(_next(parts))
        await turns()
        reading.cancel()
        await ended(reading)
        assert call.stopped.is_set()


async def test_a_block_that_is_left_closes_the_stream() -> None:
    """Also by an error."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        with pytest.raises(LookupError):
            async with parts:
                raise LookupError
        assert call.stopped.is_set()


async def test_a_stream_keeps_its_slot_until_it_has_stopped() -> None:
    """Closing waits for that."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        call.linger()
        closing = asyncio.create_task(parts.aclose())
        await turns()
        assert on.counts == (1, 0, 1)
        call.let_go()
        await closing


async def test_in_the_middle_of_closing() -> None:
    """Who loses patience with the closing still leaves nothing behind: the provider's own end is cut short, not ours."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        call.linger()
        closing = asyncio.create_task(parts.aclose())
        await turns()
        closing.cancel()
        await ended(closing)
        assert on.counts == (0, 0, 0)


async def test_a_stream_that_is_forgotten() -> None:
    """Whoever breaks out of the loop and drops the stream has left: the collector sees to it."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        assert on.counts == (1, 0, 1)
        del parts, reading
        async with asyncio.timeout(30):
            await call.stopped.wait()
        await turns()


async def test_a_stream_in_the_queue() -> None:
    """It waits like any other, and leaves like any other."""
    async with stage() as on:
        holder = on.ask()
        call = await on.provider.calls.next()
        _, reading = on.read()
        await turns()
        assert on.counts == (2, 1, 1)
        reading.cancel()
        await ended(reading)
        call.finish()
        await holder


# -- work that cannot be cancelled ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["cancel", "deadline"])
async def test_uncancellable_work_keeps_its_slot_until_it_ends(leave: str) -> None:
    """Its caller goes at once; the next one waits for the work."""
    async with stage(cancellable=False) as on:
        task = on.ask(timeout_s=5.0)
        call = await on.provider.calls.next()
        waiting = on.ask()
        await turns()
        if leave == "cancel":
            task.cancel()
            await ended(task)
        else:
            on.clock.advance(5.0)
            with pytest.raises(DeadlineExceeded):
                await task
        assert on.counts == (1, 1, 1)
        assert not call.cancelled
        call.finish("for nobody")
        (await on.provider.calls.next()).finish("next")
        assert await waiting == "next"
        assert on.dispatcher.metrics.sum().results == {"ok": 2}


async def test_uncancellable_work_that_fails_for_nobody_is_quiet() -> None:
    """It counts against the instance, and is no error of ours."""
    async with stage(cancellable=False) as on:
        task = on.ask()
        call = await on.provider.calls.next()
        task.cancel()
        await ended(task)
        call.refuse(FailureKind.SERVER_ERROR)
        await turns()
        assert on.dispatcher.metrics.sum().results == {"server_error": 1}


async def test_uncancellable_work_in_parts_is_one_part() -> None:
    """Leaving does not end it either."""
    async with stage(cancellable=False) as on:
        parts, reading = on.read()
        (await on.provider.calls.next()).finish("whole")
        assert await reading == "whole"
        assert [part async for part in parts] == []
        _, reading = on.read()
        call = await on.provider.calls.next()
        reading.cancel()
        await ended(reading)
        assert on.counts == (0, 0, 1)
        call.finish()
        await turns()


async def test_a_call_that_is_left_ends_before_its_instance_is_recycled() -> None:
    """The contract's whole way: left, ended, recycled, retired."""
    hub = ContractHub()
    async with ContractProvider(hub=hub) as provider:
        task = asyncio.create_task(provider.execute("contract/run"))
        (await hub.creations.next()).finish()
        call = await hub.calls.next()
        task.cancel()
        await ended(task)
        await turns()
        assert (call.cancelled, hub.recycled) == (False, [])
        call.finish(b"1")
        await turns(20)
        assert (hub.recycled, hub.retired) == (["box-1"], ["box-1"])


# -- shutting down --------------------------------------------------------------------------------------------------------------


async def test_a_grace_period_lets_what_runs_finish() -> None:
    """Nothing new is taken, those who wait are sent away, and the end comes as soon as all is done."""
    async with stage() as on:
        running, waiting = on.ask(), on.ask()
        call = await on.provider.calls.next()
        await turns()
        closing = asyncio.create_task(on.dispatcher.aclose(grace_s=1e6))
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await on.provider.execute("echo/say")
        assert not closing.done()
        call.finish("done")
        assert await running == "done"
        await closing
        assert on.hub.closed == 1
        on.dispatcher.shell.admission.put(on.hub.make("a"), State.READY)


async def _after_closing(on: Stage) -> None:
    # `stage` looks at the one instance at its end.
    on.dispatcher.shell.admission.put(on.hub.make("a"), State.READY)


async def test_what_outlives_the_grace_period_ends_with_shutting_down() -> None:
    """Whole answers and streams alike; their work is stopped first."""
    async with stage(max_concurrent=3) as on:
        task = on.ask()
        whole = await on.provider.calls.next()
        parts, reading = on.read()
        stream = await on.provider.calls.next()
        stream.part(1)
        await reading
        reading = asyncio.create_task(_next(parts))
        await turns()
        await on.dispatcher.aclose(grace_s=0)
        for ending in (task, reading):
            with pytest.raises(ShuttingDown):
                await ending
        assert whole.stopped.is_set()
        assert stream.stopped.is_set()
        await _after_closing(on)


async def test_a_stream_nobody_reads_does_not_hold_up_the_end() -> None:
    """Its work is stopped and its slot free although nobody asks for the next part; who does hears why there is none."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        record = on.record
        # It would take as long as what is left may take to stop, which is far beyond this limit.
        async with asyncio.timeout(3):
            await on.dispatcher.aclose(grace_s=0)
        assert call.stopped.is_set()
        assert (on.dispatcher.active, record.in_flight) == (0, 0)
        for _ in range(2):
            with pytest.raises(ShuttingDown):
                await anext(parts)
        await parts.aclose()
        await _after_closing(on)


async def test_closing_a_stream_that_is_being_ended_waits_for_that() -> None:
    """Its slot is free when the closing is done, whoever began it."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        record = on.record
        call.linger()
        ending = asyncio.create_task(on.dispatcher.aclose(grace_s=0))
        await turns()
        closing = asyncio.create_task(parts.aclose())
        await turns()
        assert (closing.done(), record.in_flight) == (False, 1)
        call.let_go()
        await closing
        assert record.in_flight == 0
        await ending
        await _after_closing(on)


async def test_a_stream_being_closed_at_the_end_is_left_alone() -> None:
    """It is being closed already: once is enough."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.provider.calls.next()
        call.part(1)
        await reading
        call.linger()
        closing = asyncio.create_task(parts.aclose())
        await turns()
        ending = asyncio.create_task(on.dispatcher.aclose(grace_s=0))
        await turns()
        call.let_go()
        await asyncio.gather(closing, ending)
        assert [part async for part in parts] == []
        await _after_closing(on)


async def test_uncancellable_work_is_given_up_in_the_end() -> None:
    """The process is going: its caller hears of it, and no task is left."""
    async with stage(cancellable=False) as on:
        task = on.ask()
        call = await on.provider.calls.next()
        await on.dispatcher.aclose(grace_s=0)
        with pytest.raises(ShuttingDown):
            await task
        assert call.cancelled
        await _after_closing(on)


async def test_closing_twice_is_fine() -> None:
    """The hub is closed once."""
    async with stage() as on:
        await asyncio.gather(on.dispatcher.aclose(), on.dispatcher.aclose())
        await on.dispatcher.aclose()
        assert on.hub.closed == 1
        await _after_closing(on)


async def test_a_failure_while_shutting_down_is_not_tried_again() -> None:
    """Nothing new is taken; the caller may ask another replica."""
    async with stage() as on:
        on.hub.publish(on.hub.make("b"))
        task = on.ask()
        call = await on.provider.calls.next()
        closing = asyncio.create_task(on.dispatcher.aclose(grace_s=1e6))
        await turns()
        call.refuse(FailureKind.LOST)
        with pytest.raises(RequestError) as caught:
            await task
        assert caught.value.retryable
        await closing
        await _after_closing(on)


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
