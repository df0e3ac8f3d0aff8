from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.breaker import BreakerPolicy
from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.errors import (
    DeadlineExceeded,
    FailureKind,
    InstanceFailure,
    InvalidRequest,
    NoCapableInstance,
    QueueFull,
    RequestError,
    ShuttingDown,
    Unavailable,
)
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Result
from gleitzeit_core.routing import Route
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.scripted import Call, ScriptedHub, ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.requests import FinishedRequest

UNSTARTED = [FailureKind.REFUSED, FailureKind.BUSY, FailureKind.UNAUTHORIZED, FailureKind.SERVER_ERROR]


class Watcher:
    """An observer that remembers."""

    observes_requests = True

    def __init__(self) -> None:
        self.changes: list[InstanceChange] = []
        self.finished: list[FinishedRequest] = []

    def instance_changed(self, change: InstanceChange) -> None:
        """Remember."""
        self.changes.append(change)

    def request_finished(self, finished: FinishedRequest) -> None:
        """Remember."""
        self.finished.append(finished)


class Stage:
    """A dispatcher, its clock, and work that does what the test says."""

    def __init__(self, instances: dict[str, dict[str, Any]] | Iterable[str], **route: Any) -> None:  # noqa: ANN401 - any field
        self.clock = ManualClock()
        self.watcher = Watcher()
        policy = BreakerPolicy(failures=route.pop("failures", 5))
        routes = [Route(**{"name": "all", "methods": ("*",), "strategy": DEFAULT_ROUTE.strategy, **route})]
        self.dispatcher = Dispatcher(routes, observers=self.watcher, clock=self.clock, random=Random(0), policy=policy)
        self.hub = ScriptedHub(instances)
        self.provider = ScriptedProvider()
        self.provider.bind(self.dispatcher)
        self.tasks: list[asyncio.Task[Any]] = []

    def ask(self, method: str = "echo/say", **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A request, in a task of its own."""
        params = options.pop("params", None)
        task = asyncio.create_task(self.provider.execute(method, params, **options))
        self.tasks.append(task)
        return task

    async def call(self) -> Call:
        """The next piece of work that an instance was given."""
        return await self.provider.calls.next()

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self.dispatcher.shell.admission.pool.in_flight

    def outcomes(self) -> list[tuple[str, str | None]]:
        """How the last try of each finished request ended."""
        found = [finished.outcome for finished in self.watcher.finished]
        return [(o.result.value, o.kind.value if o.kind else None) for o in found if o]

    def state(self, endpoint: str) -> str:
        """Of an instance."""
        return next(r.state for r in self.dispatcher.reports() if r.instance.endpoint == endpoint)


@contextlib.asynccontextmanager
async def stage(
    instances: dict[str, dict[str, Any]] | Iterable[str] = ("a", "b"),
    **route: Any,  # noqa: ANN401 - any field
) -> AsyncIterator[Stage]:
    """Everything set up; at the end nothing may be left."""
    made = Stage(instances, **route)
    await made.dispatcher.shell.add_hub(made.hub)
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    assert made.in_flight == 0
    assert made.dispatcher.active == 0
    assert made.dispatcher.running.retrying == 0
    await made.dispatcher.aclose()
    assert made.clock.pending == 0


# -- the simple way -------------------------------------------------------------------------------------------------------


async def test_an_answer_says_who_gave_it() -> None:
    """Which instance, how long it waited, how many tries."""
    async with stage(["a"]) as on:
        task = asyncio.create_task(on.dispatcher.one(on.provider, on.provider.request("echo/say", {"n": 1})))
        call = await on.call()
        assert call.request.params == {"n": 1}
        call.finish("hello")
        answer = await task
        assert answer.value == "hello"
        assert (answer.served.instance_id, answer.served.tries) == (call.instance.id, 1)
        assert answer.served.queued_s == 0.0


async def test_the_wait_in_the_queue_is_measured() -> None:
    """Also over several tries."""
    async with stage({"a": {"max_concurrent": 1}}) as on:
        on.ask()
        first = await on.call()
        waiting = asyncio.create_task(on.dispatcher.one(on.provider, on.provider.request("echo/say")))
        on.tasks.append(waiting)
        await asyncio.sleep(0)
        on.clock.advance(3.0)
        first.finish()
        (await on.call()).finish()
        assert (await waiting).served.queued_s == 3.0
        assert on.dispatcher.metrics.sum().wait_s.percentile(99) == pytest.approx(3.0, rel=0.01)


async def test_observers_hear_of_every_request_once() -> None:
    """With its end, who served it, and the error's code."""
    async with stage(["a"]) as on:
        good, bad = on.ask(), on.ask()
        (await on.call()).finish()
        (await on.call()).refuse(FailureKind.REJECTED)
        await asyncio.gather(good, bad, return_exceptions=True)
        with pytest.raises(NoCapableInstance):
            await on.provider.execute("echo/say", {"needs": "more"})
        found = [(finished.error_code, finished.served is not None) for finished in on.watcher.finished]
        assert found == [("", True), ("rejected", True), ("no_capable_instance", False)]
        assert on.outcomes() == [("ok", None), ("failed", "rejected")]


async def test_observers_hear_of_instances() -> None:
    """That they come, and that they go."""
    async with stage(["a"]) as on:
        pass
    assert [(str(change.state), change.reason) for change in on.watcher.changes] == [
        ("ready", ""),
        ("gone", "its hub is closed"),
    ]


async def test_an_observer_that_raises_harms_nobody() -> None:
    """Listeners are plugins, too."""
    async with stage(["a"]) as on:
        on.dispatcher.shell.listen(lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
        on.hub.publish(on.hub.make("b"))
        assert on.state("b") == "ready"


async def test_the_first_route_that_matches_serves() -> None:
    """And there is always one."""
    dispatcher = Dispatcher([Route(name="one", methods=("llm/*", "x/y"), strategy=DEFAULT_ROUTE.strategy)])
    assert [dispatcher.route(method).name for method in ("llm/chat", "x/y", "x/z")] == ["one", "one", "default"]


async def test_a_method_without_an_instance_is_answered_from_what_is_known() -> None:
    """What a provider raises there is translated, too; its text, which may hold anything, is for the log alone."""
    async with stage(["a", "b"]) as on:
        assert await on.provider.execute("echo/names") == ["a", "b"]
        with pytest.raises(RequestError, match=r"^provider failed: LookupError$") as caught:
            await on.provider.execute("echo/names", {"fail": True})
        assert isinstance(caught.value.__cause__, LookupError)
        assert [finished.error_code for finished in on.watcher.finished] == ["", "request"]


async def test_numbers_of_what_is_gone_are_kept_together() -> None:
    """Also those of work that outlives its instance."""
    async with stage(["a"]) as on:
        first, second = on.ask(), on.ask()
        (await on.call()).finish()
        await first
        on.hub.withdraw(on.hub.instances[0].id, "gone")
        (await on.call()).finish()
        await second
        assert [labels.instance for labels, _ in on.dispatcher.metrics] == ["(gone)"]
        assert on.dispatcher.metrics.sum().results == {"ok": 2}


# -- what goes to another instance, rule by rule ---------------------------------------------------------------------------


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


# -- deadlines --------------------------------------------------------------------------------------------------------------


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


# -- in parts ---------------------------------------------------------------------------------------------------------------


async def test_parts_come_as_they_are_made() -> None:
    """Each before the next one exists; the time to the first is measured."""
    async with stage(["a"]) as on:
        parts = on.provider.stream("echo/parts")
        for number in range(3):
            reading = asyncio.create_task(anext(parts))
            if not number:
                call = await on.call()
                on.clock.advance(2.0)
            call.part(number)
            assert await reading == number
        assert parts.served.instance_id == call.instance.id
        call.end()
        assert [part async for part in parts] == []
        (finished,) = on.watcher.finished
        assert finished.outcome is not None
        assert (finished.outcome.first_output_s, finished.outcome.result) == (2.0, Result.OK)


async def test_an_answer_without_parts_is_one() -> None:
    """An empty stream is no failure."""
    async with stage(["a"]) as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts, None))
        (await on.call()).end()
        assert await reading is None
        assert on.outcomes() == [("ok", None)]


async def test_before_the_first_part_another_instance_may_take_over() -> None:
    """Nobody has seen anything yet."""
    async with stage() as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        (await on.call()).refuse(FailureKind.LOST)
        second = await on.call()
        second.part("first")
        assert await reading == "first"
        assert (parts.served.tries, parts.served.instance_id) == (2, second.instance.id)
        second.end()
        assert [part async for part in parts] == []


async def test_after_the_first_part_nobody_takes_over() -> None:
    """Half an answer cannot be continued by another."""
    async with stage() as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        call = await on.call()
        call.part("first")
        await reading
        call.refuse(FailureKind.LOST)
        with pytest.raises(InstanceFailure) as caught:
            await anext(parts)
        assert caught.value.kind is FailureKind.LOST
        assert len(on.provider.calls.all) == 1


async def test_a_stream_need_not_be_a_generator() -> None:
    """Whatever can be iterated will do; what can be closed is closed."""

    class Parts:
        closed = 0

        def __aiter__(self) -> Parts:
            return self

        async def __anext__(self) -> int:
            return 1

    class Closable(Parts):
        async def aclose(self) -> None:
            Parts.closed += 1

    class Other(ScriptedProvider):
        kind: type[Parts] = Parts

        def stream_on(self, *_: object) -> Any:  # noqa: ANN401 - parts
            return self.kind()

    async with stage(["a"]) as on:
        provider = Other()
        provider.bind(on.dispatcher)
        for provider.kind, closed in ((Parts, 0), (Closable, 1)):  # type: ignore[misc]
            async with provider.stream("echo/parts") as parts:
                assert await anext(parts) == 1
            assert Parts.closed == closed


async def test_what_a_stream_should_not_raise_is_translated() -> None:
    """As for a whole answer."""
    async with stage(["a"]) as on:
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        (await on.call())._parts.put_nowait(LookupError("oops"))
        with pytest.raises(InstanceFailure, match=r"^provider failed: LookupError$"):
            await reading


async def test_the_first_part_lets_others_in() -> None:
    """An instance on trial has proved itself, long before its answer ends."""
    async with stage({"a": {"max_concurrent": 4}}) as on:
        name = on.hub.instances[0].id
        on.dispatcher.shell.admission.set_state(name, State.DOWN)
        on.dispatcher.shell.admission.set_state(name, State.READY)
        parts = on.provider.stream("echo/parts")
        reading = asyncio.create_task(anext(parts))
        call = await on.call()
        waiting = on.ask()
        await asyncio.sleep(0)
        assert on.dispatcher.shell.admission.waiting == 1
        call.part(1)
        await reading
        (await on.call()).finish("in")
        assert await waiting == "in"
        await parts.aclose()


async def test_a_method_that_does_not_stream_says_so() -> None:
    """At once."""
    async with stage(["a"]) as on:
        with pytest.raises(InvalidRequest, match="echo/say does not answer in parts"):
            on.provider.stream("echo/say")


async def test_a_stream_that_is_never_read_takes_nothing() -> None:
    """Nothing happens before the first part is asked for."""
    async with stage(["a"]) as on:
        parts = on.provider.stream("echo/parts")
        await asyncio.sleep(0)
        assert (on.in_flight, on.dispatcher.active) == (0, 0)
        await parts.aclose()


# -- on every instance --------------------------------------------------------------------------------------------------------


async def test_each_asks_everyone_and_has_an_outcome_for_each() -> None:
    """Also for those that fail, and for those that are down."""
    async with stage({name: {"probe": False} for name in "abc"}) as on:
        on.dispatcher.shell.admission.set_state(on.hub.instances[2].id, State.DOWN, "no power")
        task = asyncio.create_task(on.provider.each("echo/say"))
        for call in await on.provider.calls.take(2):
            if call.where == "a":
                call.finish("A")
            else:
                call.refuse(FailureKind.SERVER_ERROR)
        a, b, c = await task
        assert (a.value, a.error) == ("A", None)
        assert isinstance(b.error, InstanceFailure)
        assert isinstance(c.error, Unavailable)
        assert "no power" in c.error.message
        assert len(on.provider.calls.all) == 2, "no instance does another's work"


async def test_each_asks_only_those_that_can() -> None:
    """And none is an empty list."""
    async with stage({"a": {"capabilities": frozenset({"x"})}, "b": {}}) as on:
        on.provider.auto = True
        assert [one.value for one in await on.provider.each("echo/say", {"needs": "x"})] == ["a"]
        assert await on.provider.each("echo/say", {"needs": "y"}) == []
        only = on.hub.instances[1].id
        assert [one.value for one in await on.provider.each("echo/say", instances=[only])] == ["b"]


async def test_streams_of_all_are_merged_as_they_come() -> None:
    """Each part with its instance; an error is the last of its instance, not of all."""
    async with stage(["a", "b"]) as on:
        request = on.provider.request("echo/parts")
        merged = on.dispatcher.stream_each(on.provider, request)
        reading: asyncio.Task[Any] = asyncio.create_task(anext(merged))  # type: ignore[arg-type]
        calls = {call.where: call for call in await on.provider.calls.take(2)}
        calls["b"].part(1)
        assert await reading == (calls["b"].instance.id, 1)
        calls["a"].refuse(FailureKind.SERVER_ERROR)
        name, error = await anext(merged)
        assert name == calls["a"].instance.id
        assert isinstance(error, InstanceFailure)
        calls["b"].part(2)
        assert await anext(merged) == (calls["b"].instance.id, 2)
        calls["b"].end()
        assert [part async for part in merged] == []


async def test_merged_streams_that_are_left_stop_everywhere() -> None:
    """No instance goes on for nobody."""
    async with stage(["a", "b"]) as on:
        merged = on.dispatcher.stream_each(on.provider, on.provider.request("echo/parts"))
        reading: asyncio.Task[Any] = asyncio.create_task(anext(merged))  # type: ignore[arg-type]
        calls = await on.provider.calls.take(2)
        calls[0].part(1)
        await reading
        await merged.aclose()  # type: ignore[attr-defined]
        assert all(call.stopped.is_set() for call in calls)
        assert on.in_flight == 0


# -- what is shown ------------------------------------------------------------------------------------------------------------


async def test_reports_show_every_instance() -> None:
    """In order of id, with state, work and reason; or those that could serve something."""
    async with stage({"b": {}, "a": {"capabilities": frozenset({"x"})}}) as on:
        on.ask(params={"needs": "x"})
        await on.call()
        on.dispatcher.shell.admission.set_state(on.hub.instances[0].id, State.DOWN, "dead")
        found = [(r.instance.endpoint, str(r.state), r.in_flight, r.reason) for r in on.dispatcher.reports()]
        assert found == [("a", "ready", 1, ""), ("b", "down", 0, "dead")]
        assert {(r.limit, r.breaker) for r in on.dispatcher.reports()} == {(4, "closed")}
        needs = on.provider.request("echo/say", {"needs": "x"}).requirements
        assert [r.instance.endpoint for r in on.dispatcher.reports(needs, "echo/say")] == ["a"]
        assert repr(on.dispatcher).startswith("<Dispatcher 1 requests, <Shell 1 hubs, 0 tasks, <Admission 0 waiting")


async def test_reports_show_what_was_learned_of_an_instance() -> None:
    """How much it takes at once, from its busy answers, and how its breaker is."""
    async with stage({"a": {"max_concurrent": 4}}, failures=1, max_tries=1) as on:
        tasks = [on.ask() for _ in range(3)]
        calls = await on.provider.calls.take(3)
        calls[0].refuse(FailureKind.BUSY, started=False)
        await asyncio.gather(tasks[0], return_exceptions=True)
        (report,) = on.dispatcher.reports()
        assert (report.limit, report.breaker) == (2, "closed")
        calls[1].refuse(FailureKind.SERVER_ERROR)
        await asyncio.gather(tasks[1], return_exceptions=True)
        (report,) = on.dispatcher.reports()
        assert (report.state, report.breaker) == ("ejected", "open")
        calls[2].finish()


# -- other routes -----------------------------------------------------------------------------------------------------------


def a_route(**changes: Any) -> Route:  # noqa: ANN401 - any field
    """One for all, with `changes`."""
    return Route(**{"name": "all", "methods": ("*",), "strategy": DEFAULT_ROUTE.strategy, **changes})


async def test_other_routes_serve_from_now_on() -> None:
    """Also methods that were routed before."""
    async with stage(["a"]) as on:
        assert on.dispatcher.route("echo/say").name == "all"
        on.dispatcher.set_routes([a_route(name="one", methods=("echo/say",))])
        names = [on.dispatcher.route(method).name for method in ("echo/say", "echo/once")]
        assert names == ["one", "default"]


async def test_other_routes_drop_nothing() -> None:
    """What runs is answered, who waits keeps the place, and who comes goes by the new ones."""
    async with stage({"a": {"max_concurrent": 1}}) as on:
        running = on.ask()
        first = await on.call()
        waiting = [on.ask(), on.ask("echo/once")]
        await asyncio.sleep(0)
        on.dispatcher.set_routes([a_route(max_queue=0), a_route(name="more", methods=("x/*",))])
        with pytest.raises(QueueFull):
            await on.provider.execute("echo/say")
        assert on.dispatcher.shell.admission.waiting == 2
        first.finish(1)
        (await on.call()).finish(2)
        (await on.call()).finish(3)
        assert await asyncio.gather(running, *waiting) == [1, 2, 3]


async def test_a_request_whose_route_is_gone_is_served_all_the_same() -> None:
    """Also when it is tried again."""
    async with stage() as on:
        task = on.ask()
        call = await on.call()
        on.dispatcher.set_routes([])
        call.refuse(FailureKind.LOST)
        (await on.call()).finish("done")
        assert await task == "done"


async def test_a_request_knows_its_place_in_the_queue() -> None:
    """The place it had when it began to wait, and how long that was expected to take; 0 for one that did not wait."""
    async with stage({"a": {"max_concurrent": 1}}) as on:
        asked = [on.provider.request("echo/say") for _ in range(3)]
        tasks = [asyncio.create_task(on.dispatcher.one(on.provider, request)) for request in asked]
        on.tasks.extend(tasks)
        for _ in range(3):
            (await on.call()).finish()
        served = [(await task).served for task in tasks]
        assert [one.position for one in served] == [0, 1, 2]
        assert [one.expected_wait_s > 0 for one in served] == [False, True, True]


# -- the end ----------------------------------------------------------------------------------------------------------------


async def test_draining_waits_for_what_runs_and_ends_nothing() -> None:
    """Nothing new is taken, those who wait are sent away; what runs goes on, also beyond the grace period."""
    async with stage({"a": {"max_concurrent": 1}}) as on:
        running, waiting = on.ask(), on.ask()
        call = await on.call()
        await on.dispatcher.drain(0)
        for refused in (waiting, on.ask()):
            with pytest.raises(ShuttingDown):
                await refused
        draining = asyncio.create_task(on.dispatcher.drain(1e6))
        await asyncio.sleep(0)
        assert not draining.done()
        assert not running.done()
        call.finish("done")
        await draining
        assert await running == "done"
