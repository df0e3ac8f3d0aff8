"""What goes to another instance when a try fails, rule by rule, and what does not."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.errors import (
    FailureKind,
    InstanceFailure,
    InvalidRequest,
    QueueFull,
    RequestError,
    Unavailable,
)
from gleitzeit_core.pool import State

from .stage import Stage, stage

UNSTARTED = [
    *(FailureKind.REFUSED, FailureKind.BUSY, FailureKind.DECLINED, FailureKind.UNAUTHORIZED),
    FailureKind.SERVER_ERROR,
]


async def test_the_callers_own_fault_is_never_tried_again() -> None:
    """Whether or not it may be repeated."""
    async with stage() as on:
        for method in ("echo/say", "echo/once"):
            task = on.ask(method)
            (await on.call()).refuse(FailureKind.REJECTED, started=False)
            with pytest.raises(InstanceFailure):
                await task
        assert len(on.provider.calls.all) == 2
        assert on.dispatcher.metrics.sum().success_rate == 1.0


async def test_a_request_that_cannot_be_put_to_an_api_is_the_callers_fault() -> None:
    """It is passed on as it is, and the instance is not blamed."""
    async with stage() as on:
        for _ in range(6):
            task = on.ask()
            (await on.call()).fail(InvalidRequest("no such field", param="field"))
            with pytest.raises(InvalidRequest, match="no such field"):
                await task
        assert on.outcomes()[-1] == ("failed", "rejected")
        assert {report.state for report in on.dispatcher.reports()} == {"ready"}


@pytest.mark.parametrize("kind", UNSTARTED)
async def test_work_that_never_began_goes_elsewhere_even_if_it_must_not_be_done_twice(kind: FailureKind) -> None:
    """Nothing is done twice by that."""
    async with stage() as on:
        task = on.ask("echo/once")
        first = await on.call()
        first.refuse(kind, started=False)
        second = await on.call()
        assert second.where != first.where
        assert (first.request.attempt, second.request.attempt) == (0, 1)
        second.finish("done")
        assert await task == "done"


@pytest.mark.parametrize("kind", [FailureKind.LOST, FailureKind.TIMEOUT, FailureKind.SERVER_ERROR])
async def test_work_that_may_have_begun_goes_nowhere_if_it_must_not_be_done_twice(kind: FailureKind) -> None:
    """Better an error than two payments."""
    async with stage() as on:
        task = on.ask("echo/once")
        (await on.call()).refuse(kind, started=True)
        with pytest.raises(InstanceFailure) as caught:
            await task
        assert caught.value.kind is kind
        assert len(on.provider.calls.all) == 1


@pytest.mark.parametrize("kind", [FailureKind.LOST, FailureKind.TIMEOUT, FailureKind.SERVER_ERROR])
async def test_work_that_may_be_repeated_goes_elsewhere(kind: FailureKind) -> None:
    """Even if it may have begun."""
    async with stage() as on:
        task = on.ask()
        first = await on.call()
        first.refuse(kind)
        second = await on.call()
        assert second.where != first.where
        second.finish("done")
        assert await task == "done"


async def test_lost_work_is_repeated_once_whatever_the_limits_say() -> None:
    """Once: the second time it counts like everything else."""
    async with stage([f"i{n}" for n in range(9)], max_tries=1) as on:
        task = on.ask()
        (await on.call()).refuse(FailureKind.LOST)
        (await on.call()).refuse(FailureKind.LOST)
        with pytest.raises(InstanceFailure) as caught:
            await task
        assert caught.value.kind is FailureKind.LOST
        assert len(on.provider.calls.all) == 2


@pytest.mark.parametrize("news", [True, False])
async def test_work_lost_with_the_last_instance_waits_a_moment_for_news(news: bool) -> None:  # noqa: FBT001 - a table
    """Its hub may be starting another; if it says nothing, what happened is told."""
    async with stage(["a"]) as on:
        task = on.ask()
        first = await on.call()
        first.refuse(FailureKind.LOST)
        for _ in range(5):
            await asyncio.sleep(0)
        assert on.dispatcher.shell.admission.waiting == 1
        if not news:
            on.clock.advance(0.25)
            with pytest.raises(InstanceFailure, match="lost on a"):
                await task
            return
        on.hub.publish(first.instance.changed(generation=1), State.STARTING)
        on.clock.advance(10.0)
        on.hub.publish(first.instance.changed(generation=1), State.READY)
        (await on.call()).finish("done")
        assert await task == "done"


async def test_lost_work_is_not_paid_from_the_budget() -> None:
    """An instance with twenty requests dies: all twenty are repeated."""
    async with stage({"a": {"max_concurrent": 20}}) as on:
        tasks = [on.ask() for _ in range(20)]
        calls = await on.provider.calls.take(20)
        on.hub.publish(on.hub.make("b", max_concurrent=20))
        for call in calls:
            call.refuse(FailureKind.LOST)
        for call in await on.provider.calls.take(20):
            assert call.where == "b"
            call.finish("done")
        assert await asyncio.gather(*tasks) == ["done"] * 20


async def test_what_was_declined_is_not_paid_from_the_budget() -> None:
    """It made no work: all twenty go to the other one, and the one that declined stays as it was."""
    async with stage({"a": {"max_concurrent": 20}}) as on:
        tasks = [on.ask() for _ in range(20)]
        calls = await on.provider.calls.take(20)
        on.hub.publish(on.hub.make("b", max_concurrent=20))
        for call in calls:
            call.refuse(FailureKind.DECLINED, started=False)
        for call in await on.provider.calls.take(20):
            assert call.where == "b"
            call.finish("done")
        assert await asyncio.gather(*tasks) == ["done"] * 20
        assert {report.state for report in on.dispatcher.reports()} == {"ready"}


async def test_tries_are_limited() -> None:
    """Three instances, however many there are."""
    async with stage([f"i{n}" for n in range(9)]) as on:
        task = on.ask()
        for _ in range(3):
            (await on.call()).refuse(FailureKind.SERVER_ERROR)
        with pytest.raises(InstanceFailure):
            await task
        assert len({call.where for call in on.provider.calls.all}) == 3


async def _refuse_all(on: Stage, count: int) -> tuple[int, int]:
    """So many requests at once, each refused at first: how many were repeated, how many failed."""
    tasks = [on.ask() for _ in range(count)]
    for call in await on.provider.calls.take(count):
        call.refuse(FailureKind.SERVER_ERROR)
    failed = 0
    while failed + len(on.provider.calls.all) - count < count:
        await asyncio.sleep(0)
        failed = sum(1 for task in tasks if task.done())
    repeated = len(on.provider.calls.all) - count
    for call in on.provider.calls.all[count:]:
        call.finish()
    await asyncio.gather(*tasks, return_exceptions=True)
    return repeated, failed


@pytest.mark.parametrize(("count", "repeated"), [(2, 2), (4, 3), (10, 3), (30, 6), (100, 20)])
async def test_retries_share_a_budget(count: int, repeated: int) -> None:
    """A fifth of those on their way, three at least: a pool in trouble does not get twice the work."""
    async with stage({f"i{n}": {"max_concurrent": 200} for n in range(2)}, failures=1000) as on:
        assert await _refuse_all(on, count) == (repeated, count - repeated)


async def test_the_budget_is_given_back() -> None:
    """When those that were repeated have ended, others may be."""
    async with stage({f"i{n}": {"max_concurrent": 200} for n in range(2)}) as on:
        assert await _refuse_all(on, 4) == (3, 1)
        on.provider.calls = type(on.provider.calls)()
        assert (await _refuse_all(on, 4))[0] == 3


async def test_an_instance_that_was_tried_is_not_tried_again() -> None:
    """The last answer is given when none is left."""
    async with stage(["a", "b"]) as on:
        task = on.ask()
        first = await on.call()
        first.refuse(FailureKind.SERVER_ERROR)
        second = await on.call()
        second.refuse(FailureKind.TIMEOUT)
        with pytest.raises(InstanceFailure) as caught:
            await task
        assert caught.value.kind is FailureKind.TIMEOUT
        assert caught.value.instance_id == second.instance.id
        assert first.where != second.where


async def test_a_busy_instance_is_left_alone() -> None:
    """Until the time it asked for has passed; it is not blamed."""
    async with stage(["a", "b"]) as on:
        task = on.ask()
        busy = await on.call()
        busy.refuse(FailureKind.BUSY, started=False, retry_after_s=10.0)
        (await on.call()).finish()
        await task
        on.provider.auto = True
        served = {await on.provider.execute("echo/say") for _ in range(20)}
        assert busy.where not in served
        on.clock.advance(10.0)
        assert busy.where in {await on.provider.execute("echo/say") for _ in range(20)}
        assert {report.state for report in on.dispatcher.reports()} == {"ready"}


async def test_a_busy_answer_of_the_only_instance_is_passed_on() -> None:
    """With what it said of when to come back; those who come later wait for that."""
    async with stage(["a"]) as on:
        task = on.ask()
        (await on.call()).refuse(FailureKind.BUSY, started=False, retry_after_s=10.0)
        with pytest.raises(InstanceFailure) as caught:
            await task
        assert (caught.value.kind, caught.value.retry_after_s) == (FailureKind.BUSY, 10.0)
        later = on.ask()
        await asyncio.sleep(0)
        assert on.in_flight == 0
        on.clock.advance(10.0)
        (await on.call()).finish("done")
        assert await later == "done"


async def test_refused_credentials_are_shown() -> None:
    """In the state of the instance, and to the caller when nobody else is left."""
    async with stage(["a", "b"]) as on:
        task = on.ask()
        first = await on.call()
        first.refuse(FailureKind.UNAUTHORIZED, started=False)
        second = await on.call()
        assert on.state(first.where) == "misconfigured"
        second.refuse(FailureKind.UNAUTHORIZED, started=False)
        with pytest.raises(InstanceFailure) as caught:
            await task
        assert caught.value.kind is FailureKind.UNAUTHORIZED
        assert not caught.value.retryable
        with pytest.raises(Unavailable, match=r"a is misconfigured .*refuses our credentials"):
            await on.provider.execute("echo/say")


async def test_what_a_provider_should_not_raise_is_translated(caplog: pytest.LogCaptureFixture) -> None:
    """Callers see our errors only, and of the cause its type alone; what it says is in the log."""
    async with stage(["a"]) as on:
        task = on.ask()
        (await on.call()).fail(LookupError("oops"))
        with pytest.raises(InstanceFailure, match=r"^provider failed: LookupError$") as caught:
            await task
        assert "LookupError: oops" in caplog.text
        assert caught.value.kind is FailureKind.SERVER_ERROR
        assert isinstance(caught.value.__cause__, LookupError)


async def test_an_instance_that_no_longer_offers_what_was_asked_for_is_passed_over() -> None:
    """Its hub may have changed it while the request waited: the work never began."""
    async with stage({"a": {"max_concurrent": 1}}) as on:
        on.ask()
        first = await on.call()
        waiting = on.ask("echo/once")
        await asyncio.sleep(0)
        other = on.hub.make("a", max_concurrent=1, offers=(("other", first.instance.offers[0][1]),))
        on.hub.publish(other)
        with pytest.raises(RequestError, match="no instance"):
            await waiting
        first.finish()


async def test_a_full_queue_is_told_to_the_caller() -> None:
    """Those who wait are not disturbed."""
    async with stage({"a": {"max_concurrent": 1}}, max_queue=1) as on:
        first, second = on.ask(), on.ask()
        call = await on.call()
        with pytest.raises(QueueFull):
            await on.provider.execute("echo/say")
        call.finish(1)
        (await on.call()).finish(2)
        assert await asyncio.gather(first, second) == [1, 2]
