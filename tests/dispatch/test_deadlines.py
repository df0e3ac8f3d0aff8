"""Deadlines: what they end, in the queue, at work and in a stream, and whose fault that is."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.errors import (
    DeadlineExceeded,
    FailureKind,
    InstanceFailure,
    InvalidRequest,
)

from .stage import stage


async def test_a_deadline_ends_the_wait_in_the_queue() -> None:
    """And says that it was there."""
    async with stage({"a": {"max_concurrent": 1}}) as on:
        on.ask()
        call = await on.call()
        waiting = on.ask(timeout_s=5.0)
        await asyncio.sleep(0)
        on.clock.advance(5.0)
        with pytest.raises(DeadlineExceeded) as caught:
            await waiting
        assert (caught.value.where, caught.value.after_s) == ("queue", 5.0)
        assert on.dispatcher.shell.admission.waiting == 0
        call.finish()


async def test_a_deadline_ends_the_work() -> None:
    """It is cancelled, and its slot is free when it has stopped."""
    async with stage(["a"]) as on:
        task = on.ask(timeout_s=5.0)
        call = await on.call()
        on.clock.advance(4.9)
        await asyncio.sleep(0)
        assert not task.done()
        on.clock.advance(0.1)
        with pytest.raises(DeadlineExceeded) as caught:
            await task
        assert caught.value.where == "instance"
        assert call.cancelled
        assert call.stopped.is_set()
        assert on.outcomes() == [("cancelled", None)], "the caller's own, short deadline is no failure"


async def test_our_own_long_deadline_without_any_output_is_a_failure() -> None:
    """An instance that says nothing for so long is not well."""
    async with stage(["a"], timeout_s=600.0) as on:
        task = on.ask()
        await on.call()
        on.clock.advance(600.0)
        with pytest.raises(DeadlineExceeded):
            await task
        assert on.outcomes() == [("failed", "timeout")]


async def test_with_output_it_is_none() -> None:
    """A long answer is not a bad one."""
    async with stage(["a"], timeout_s=600.0) as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        (await on.call()).part(1)
        assert await reading == 1
        reading = asyncio.create_task(anext(parts))
        await asyncio.sleep(0)
        on.clock.advance(600.0)
        with pytest.raises(DeadlineExceeded):
            await reading
        assert on.outcomes() == [("cancelled", None)]


async def test_a_deadline_that_has_passed_takes_no_slot() -> None:
    """No instance is troubled with it."""
    async with stage(["a"]) as on:
        request = on.provider.request("echo/say").changed(deadline=on.clock.wall() - 1.0)
        with pytest.raises(DeadlineExceeded) as caught:
            await on.dispatcher.one(on.provider, request)
        assert caught.value.where == "queue"
        assert not on.provider.calls.all


async def test_between_two_tries_the_deadline_brings_what_the_last_one_said() -> None:
    """That is more use than the time."""
    async with stage({"a": {}, "b": {"max_concurrent": 1, "capabilities": frozenset({"x"})}}) as on:
        on.ask(params={"needs": "x"})
        holder = await on.call()
        task = on.ask(timeout_s=5.0)
        failing = await on.call()
        assert failing.where == "a"
        failing.refuse(FailureKind.SERVER_ERROR)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert on.dispatcher.shell.admission.waiting == 1
        on.clock.advance(5.0)
        with pytest.raises(InstanceFailure, match="server_error on a"):
            await task
        holder.finish()


async def test_a_stream_nobody_reads_ends_at_its_deadline() -> None:
    """Its slot is free then; a reader is not interrupted in what it does meanwhile, and hears of it when it reads on."""
    async with stage(["a"], timeout_s=600.0) as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        call = await on.call()
        call.part(1)
        await reading
        on.clock.advance(600.0)
        await call.stopped.wait()
        await asyncio.sleep(0)
        assert (on.in_flight, on.dispatcher.active) == (0, 0)
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await anext(parts)
        await parts.aclose()
        assert [finished.error_code for finished in on.watcher.finished] == ["deadline_exceeded"]


async def test_a_stream_that_is_just_read_on_ends_at_its_deadline_too(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is first, reader or deadline; nobody gets in the other's way."""
    async with stage(["a"], timeout_s=600.0) as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        call = await on.call()
        call.part(1)
        await reading
        reading = asyncio.create_task(anext(parts))
        on.clock.advance(600.0)
        with pytest.raises(DeadlineExceeded):
            await reading
        await call.stopped.wait()
        await asyncio.sleep(0)
        assert on.in_flight == 0
        assert not caplog.records


async def test_one_timer_serves_all_deadlines() -> None:
    """A thousand requests, one timer; each ends at its own time."""
    async with stage({"a": {"max_concurrent": 1000}}) as on:
        tasks = [on.ask(timeout_s=float(seconds)) for seconds in range(1000, 0, -1)]
        await on.provider.calls.take(1000)
        assert on.clock.pending == 1
        for seconds in range(1, 1001):
            on.clock.advance(1.0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert sum(1 for task in tasks if task.done()) >= seconds - 1
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, DeadlineExceeded) for error in done)


async def test_without_a_limit_there_is_no_timer() -> None:
    """None means none."""
    async with stage(["a"], timeout_s=None) as on:
        task = on.ask()
        call = await on.call()
        assert on.clock.pending == 0
        on.clock.advance(1e9)
        call.finish("late")
        assert await task == "late"


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"timeout_s": -1.0}, {"timeout_s": float("nan")}, {"cost": 0}])
async def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    """With their name."""
    async with stage(["a"]) as on:
        with pytest.raises(InvalidRequest) as caught:
            await on.provider.execute("echo/say", **options)  # type: ignore[arg-type]
        assert caught.value.param == next(iter(options))
