"""Requests with two tries that are left, run out of time or are stopped: nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import Any

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE
from gleitzeit_core.errors import DeadlineExceeded, FailureKind, ShuttingDown
from gleitzeit_core.hedging import Leg, Race
from gleitzeit_core.requests import Result
from gleitzeit_core.routing import Route
from gleitzeit_core.testing.todo import turns
from gleitzeit_core.tries import Try
from tests.tasks import ended

from .stage import ALWAYS, SLOW_S, stage

# -- leaving --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["echo/say", "echo/parts"])
async def test_who_leaves_stops_both(method: str) -> None:
    """And has left when both have stopped."""
    async with stage() as on:
        task = on.read()[1] if method == "echo/parts" else on.ask()
        calls = await on.both()
        for call in calls:
            call.linger()
        task.cancel()
        await turns()
        calls[0].let_go()
        await turns()
        assert (task.done(), on.dispatcher.active, on.in_flight) == (False, 1, 1)
        calls[1].let_go()
        await ended(task)
        assert on.results == {"cancelled": 2}


async def test_who_leaves_before_the_second_try_stops_the_first() -> None:
    """No second one comes."""
    async with stage() as on:
        task = on.ask()
        call = await on.call()
        task.cancel()
        await ended(task)
        assert call.stopped.is_set()
        on.clock.advance(100.0)
        await turns()
        assert on.hedges == (0, 0)


async def test_who_leaves_in_the_moment_of_the_second_try_has_none() -> None:
    """And no timer is left of it."""
    async with stage() as on:
        task = on.ask()
        await on.call()
        task.cancel()
        on.clock.advance(SLOW_S)
        await ended(task)
        task = on.ask()
        await on.call()
        task.cancel()
        await ended(task)
        assert on.hedges == (0, 0)


async def test_who_loses_patience_with_leaving() -> None:
    """Leaves at once; the slots are free when the work has stopped."""
    async with stage() as on:
        task = on.ask()
        calls = await on.both()
        for call in calls:
            call.linger()
        task.cancel()
        await turns()
        task.cancel()
        await ended(task)
        assert (on.dispatcher.active, on.in_flight) == (0, 2)
        for call in calls:
            call.let_go()
        await turns()


@pytest.mark.parametrize("method", ["echo/say", "echo/parts"])
@pytest.mark.parametrize("moment", range(8))
async def test_who_leaves_in_the_moment_of_the_answer(moment: int, method: str) -> None:
    """Has it or has left; nothing stays behind, neither of the winner nor of the loser."""
    async with stage() as on:
        parts, task = on.read() if method == "echo/parts" else (None, on.ask())
        first, second = await on.both()
        second.finish("done")
        second.part("done")
        await turns(moment)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await task in (("done", 2), "done")
        if parts is not None:
            await parts.aclose()
        await first.stopped.wait()


@pytest.mark.parametrize("method", ["echo/say", "echo/parts"])
async def test_a_deadline_stops_both(method: str) -> None:
    """Only the first had all the time there was: it has failed, the second has not."""
    async with stage(timeout_s=10.0) as on:
        task = on.read()[1] if method == "echo/parts" else on.ask()
        calls = await on.both()
        calls[1].linger()
        on.clock.advance(10.0)
        await turns()
        assert (task.done(), on.dispatcher.active) == (False, 1)
        calls[1].let_go()
        with pytest.raises(DeadlineExceeded):
            await task
        assert all(call.stopped.is_set() for call in calls)
        assert on.results == {"timeout": 1, "cancelled": 1}
        (finished,) = on.watcher.finished
        assert finished.error_code == "deadline_exceeded"
        assert finished.outcome is not None
        assert finished.outcome.kind is FailureKind.TIMEOUT


async def test_what_becomes_of_the_loser_changes_nothing() -> None:
    """Of what observers are told: that is of the winner, also when the loser ended first."""
    async with stage() as on:
        parts, reading = on.read()
        first, second = await on.both()
        second.part(1)
        await reading
        await first.stopped.wait()
        await turns()
        second.end()
        assert [part async for part in parts] == []
        (finished,) = on.watcher.finished
        assert finished.served is not None
        assert finished.served.instance_id == second.instance.id
        assert finished.outcome is not None
        assert finished.outcome.result is Result.OK


async def test_the_end_of_all_stops_both() -> None:
    """Those whose grace period is over."""
    async with stage() as on:
        tasks = [on.ask(), on.read()[1]]
        calls = await on.provider.calls.take(2)
        on.clock.advance(SLOW_S)
        calls += await on.provider.calls.take(2)
        await on.dispatcher.aclose()
        for task in tasks:
            with pytest.raises(ShuttingDown):
                await task
        assert all(call.stopped.is_set() for call in calls)


async def test_no_second_try_while_all_shuts_down() -> None:
    """What runs may end; nothing is begun."""
    async with stage() as on:
        task = on.ask()
        call = await on.call()
        closing = asyncio.create_task(on.dispatcher.aclose(grace_s=1e6))
        await turns()
        on.clock.advance(SLOW_S)
        call.finish("done")
        assert await task == ("done", 1)
        await closing


async def test_a_try_that_is_stopped_before_it_began() -> None:
    """Its slot is free all the same."""
    async with stage() as on:
        run = on.dispatcher._prepare(on.provider.method("echo/say"), on.provider.request("echo/say"))
        for in_parts in (False, True):
            slot = on.dispatcher.shell.admission.submit(run)
            assert slot is not None
            shell, metrics = on.dispatcher.shell, on.dispatcher.metrics
            attempt = Try(on.provider, run, slot, shell=shell, metrics=metrics)
            await asyncio.wait([Leg(attempt, run, shell, in_parts=in_parts).stop()])
            await turns()
            assert (slot.freed, on.in_flight) == (True, 0)
        assert not on.provider.calls.all


async def test_a_request_that_was_ended_before_its_first_try_began() -> None:
    """Its slot is free, although nothing was done with it."""
    async with stage() as on:
        run = on.dispatcher._prepare(on.provider.method("echo/parts"), on.provider.request("echo/parts"))
        race = on.dispatcher.hedges.attempt(on.provider, run, await on.dispatcher.slot(run))
        assert isinstance(race, Race)
        run.end(ShuttingDown("the end"))
        with pytest.raises(ShuttingDown):
            await anext(race.parts())
        await turns()
        assert on.in_flight == 0


# -- everything at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_a_thousand_requests_leave_nothing(seed: int) -> None:
    """Slow, failing, left and hedged at random, while routes and instances change."""
    random = Random(seed)
    routes = [
        Route(name=name, methods=("*",), strategy=DEFAULT_ROUTE.strategy, timeout_s=60.0, hedge=hedge)
        for name in ("all", "other")
        for hedge in (ALWAYS, None)
    ]
    async with stage({name: {"max_concurrent": 8} for name in "abc"}, timeout_s=60.0) as on:
        tasks: list[asyncio.Task[Any]] = []
        for _ in range(1000):
            task = on.ask() if random.random() < 0.6 else on.read()[1]
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            tasks.append(task)
            for call in on.provider.calls.all[-random.randrange(1, 12) :]:
                what = random.random()
                if what < 0.25:
                    call.finish()
                    call.part(1)
                elif what < 0.3:
                    call.refuse(random.choice([FailureKind.SERVER_ERROR, FailureKind.LOST, FailureKind.REJECTED]))
            if random.random() < 0.4:
                random.choice(tasks).cancel()
            if random.random() < 0.3:
                on.clock.advance(SLOW_S)
            if random.random() < 0.02:
                on.dispatcher.set_routes([random.choice(routes)])
            if random.random() < 0.02:
                changing = on.hub.make("c", max_concurrent=8)
                on.hub.withdraw(changing.id, "gone")
                on.hub.publish(changing)
            await turns(random.randrange(4))
        while not all(task.done() for task in tasks):
            for call in on.provider.calls.all:
                call.finish()
                call.part(1)
                call.end()
            on.clock.advance(1.0)
            await asyncio.sleep(0)
        await turns(20)
        assert on.hedges[0] > 10
        assert on.hedges[1] > 1
