"""A second try beside a slow first: who wins, who is stopped, and that no slot stays behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.errors import DeadlineExceeded, FailureKind, InstanceFailure, InvalidRequest, ShuttingDown
from gleitzeit_core.hedging import Leg, Race
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.routing import HedgePolicy, Route
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.scripted import Call, ScriptedHub, ScriptedProvider
from gleitzeit_core.tries import Try

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.requests import FinishedRequest
    from gleitzeit_core.runs import Stream

# Every request earns a second try, which begins after 1 second.
ALWAYS = HedgePolicy(percentile=50.0, budget=1.0, min_samples=1)
SLOW_S = 1.1


class Watcher:
    """An observer of finished requests that remembers."""

    observes_requests = True

    def __init__(self) -> None:
        self.finished: list[FinishedRequest] = []

    def instance_changed(self, change: InstanceChange) -> None:
        """Not looked at."""

    def request_finished(self, finished: FinishedRequest) -> None:
        """Remember."""
        self.finished.append(finished)


class Stage:
    """Instances with four slots each, a clock that stands still, and a first output that takes a second."""

    def __init__(self, instances: dict[str, dict[str, Any]] | Iterable[str], **route: Any) -> None:  # noqa: ANN401 - any field
        self.clock = ManualClock()
        fields = {"name": "all", "methods": ("*",), "strategy": DEFAULT_ROUTE.strategy, "hedge": ALWAYS, **route}
        self.watcher = Watcher()
        self.dispatcher = Dispatcher([Route(**fields)], observers=self.watcher, clock=self.clock, random=Random(0))
        self.hub = ScriptedHub(instances)
        self.provider = ScriptedProvider()
        self.provider.bind(self.dispatcher)
        self.known(1.0)

    def known(self, first_output_s: float, *, model: str = "") -> None:
        """Something has answered like that."""
        outcome = Outcome(result=Result.OK, first_output_s=first_output_s, total_s=first_output_s)
        self.dispatcher.metrics.record("echo/say", "somebody", outcome, route="all", model=model)

    def ask(self, method: str = "echo/say", **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A request, in a task of its own: its answer and who served it."""
        request = self.provider.request(method, options.pop("params", None), **options)
        return asyncio.create_task(_answer(self.dispatcher, self.provider, request))

    def read(self) -> tuple[Stream, asyncio.Task[Any]]:
        """A stream, and the task that waits for its next part."""
        parts = self.provider.stream("echo/parts")
        return parts, asyncio.create_task(_next(parts))

    async def call(self) -> Call:
        """The next piece of work that an instance was given."""
        return await self.provider.calls.next()

    async def both(self) -> tuple[Call, Call]:
        """The first try of what was just asked, and the second beside it."""
        first = await self.call()
        self.clock.advance(SLOW_S)
        second = await self.call()
        assert first.where != second.where
        return first, second

    @property
    def hedges(self) -> tuple[int, int]:
        """Started and won."""
        return self.dispatcher.hedges.started, self.dispatcher.hedges.won

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self.dispatcher.shell.admission.pool.in_flight

    @property
    def results(self) -> dict[str, int]:
        """How the tries here have ended."""
        return dict(self.dispatcher.metrics.sum().results - Counter(ok=1))


async def _answer(dispatcher: Dispatcher, provider: ScriptedProvider, request: Any) -> tuple[Any, int]:  # noqa: ANN401 - a request
    answer = await dispatcher.one(provider, request)
    return answer.value, answer.served.tries


async def _next(parts: Stream) -> Any:  # noqa: ANN401 - a stream's part
    return await anext(parts)


@contextlib.asynccontextmanager
async def stage(
    instances: dict[str, dict[str, Any]] | Iterable[str] = ("a", "b"),
    **route: Any,  # noqa: ANN401 - any field
) -> AsyncIterator[Stage]:
    """Everything set up; at the end nothing may be left, and nothing may have gone wrong unseen."""
    before, unseen = asyncio.all_tasks(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    made = Stage(instances, **route)
    await made.dispatcher.shell.add_hub(made.hub)
    yield made
    await turns()
    assert (made.dispatcher.active, made.in_flight) == (0, 0)
    await made.dispatcher.aclose()
    assert not asyncio.all_tasks() - before
    assert made.clock.pending == 0
    assert not unseen


async def turns(count: int = 8) -> None:
    """Let the others run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait until a task was cancelled."""
    with pytest.raises(asyncio.CancelledError):
        await task


# -- who wins -------------------------------------------------------------------------------------------------------------


async def test_the_second_wins() -> None:
    """Its answer counts, and the first is stopped; that was nobody's fault."""
    async with stage() as on:
        task = on.ask()
        first, second = await on.both()
        second.finish("second")
        assert await task == ("second", 2)
        await first.stopped.wait()
        await turns()
        assert first.cancelled
        assert (on.hedges, on.results) == ((1, 1), {"ok": 1, "cancelled": 1})


async def test_the_first_wins_after_all() -> None:
    """Then the second is stopped."""
    async with stage() as on:
        task = on.ask()
        first, second = await on.both()
        first.finish("first")
        assert await task == ("first", 2)
        await second.stopped.wait()
        assert second.cancelled
        assert on.hedges == (1, 0)


async def test_the_answer_does_not_wait_for_the_loser() -> None:
    """But the loser's slot does: it is free when the work has stopped."""
    async with stage() as on:
        task = on.ask()
        first, second = await on.both()
        first.linger()
        second.finish("second")
        assert await task == ("second", 2)
        await turns()
        assert (on.dispatcher.active, on.in_flight) == (0, 1)
        first.let_go()
        await turns()
        assert on.in_flight == 0


async def test_both_at_once() -> None:
    """One answer counts; both slots are free."""
    async with stage() as on:
        task = on.ask()
        first, second = await on.both()
        first.finish("first")
        second.finish("second")
        assert await task == ("first", 2)
        await turns()
        assert on.results == {"ok": 2}


async def test_served_names_the_winner() -> None:
    """So do observers and headers."""
    async with stage() as on:
        task = asyncio.create_task(on.dispatcher.one(on.provider, on.provider.request("echo/say")))
        _, second = await on.both()
        second.finish()
        assert (await task).served.instance_id == second.instance.id


# -- in parts -------------------------------------------------------------------------------------------------------------


async def test_the_first_part_decides() -> None:
    """The rest comes from whoever sent it."""
    async with stage() as on:
        parts, reading = on.read()
        first, second = await on.both()
        second.part(1)
        assert await reading == 1
        await first.stopped.wait()
        assert (parts.served.instance_id, parts.served.tries) == (second.instance.id, 2)
        second.part(2)
        second.end()
        assert [part async for part in parts] == [2]
        assert (on.hedges, on.results) == ((1, 1), {"ok": 1, "cancelled": 1})


async def test_a_first_part_in_time_needs_no_second_try() -> None:
    """However long the rest takes."""
    async with stage() as on:
        parts, reading = on.read()
        call = await on.call()
        call.part(1)
        await reading
        on.clock.advance(100.0)
        await turns()
        call.end()
        assert [part async for part in parts] == []
        assert (len(on.provider.calls.all), on.hedges) == (1, (0, 0))


async def test_two_first_parts_at_once() -> None:
    """The stream that lost is closed, although its part was there."""
    async with stage() as on:
        parts, reading = on.read()
        first, second = await on.both()
        second.part(2)
        first.part(1)
        assert await reading == 2
        await first.stopped.wait()
        await turns()
        assert on.in_flight == 1
        second.end()
        assert [part async for part in parts] == []


async def test_an_answer_without_parts() -> None:
    """Its end is its first output."""
    async with stage() as on:
        parts, reading = on.read()
        _, second = await on.both()
        second.end()
        with pytest.raises(StopAsyncIteration):
            await reading
        assert parts.served.instance_id == second.instance.id


async def test_leaving_the_winner() -> None:
    """Closing the stream stops its work."""
    async with stage() as on:
        parts, reading = on.read()
        first, second = await on.both()
        second.part(1)
        await reading
        await parts.aclose()
        assert second.stopped.is_set()
        await first.stopped.wait()


async def test_leaving_while_the_winner_works_on_its_next_part() -> None:
    """The same."""
    async with stage() as on:
        parts, reading = on.read()
        _, second = await on.both()
        second.part(1)
        await reading
        reading = asyncio.create_task(_next(parts))
        await turns()
        reading.cancel()
        await ended(reading)
        assert second.stopped.is_set()


async def test_a_winner_that_nobody_reads_ends_with_all() -> None:
    """As any stream that nobody reads."""
    async with stage() as on:
        parts, reading = on.read()
        _, second = await on.both()
        second.part(1)
        await reading
        await on.dispatcher.aclose()
        assert second.stopped.is_set()
        with pytest.raises(ShuttingDown):
            await anext(parts)


async def test_after_its_first_part_nobody_takes_over_from_the_winner() -> None:
    """Its failure is the request's."""
    async with stage() as on:
        parts, reading = on.read()
        _, second = await on.both()
        second.part(1)
        await reading
        second.refuse(FailureKind.LOST)
        with pytest.raises(InstanceFailure):
            await anext(parts)
        assert len(on.provider.calls.all) == 2


# -- one of them fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["echo/say", "echo/parts"])
@pytest.mark.parametrize("failing", [0, 1])
async def test_when_one_fails_the_other_goes_on(failing: int, method: str) -> None:
    """Nothing new is begun; the failure counts against who failed."""
    async with stage(["a", "b", "c"]) as on:
        parts, task = on.read() if method == "echo/parts" else (None, on.ask())
        calls = await on.both()
        calls[failing].refuse(FailureKind.SERVER_ERROR)
        await turns()
        assert not task.done()
        calls[1 - failing].finish("done")
        calls[1 - failing].part("done")
        assert await task in (("done", 2), "done")
        if parts is not None:
            await parts.aclose()
        assert len(on.provider.calls.all) == 2
        assert on.results["server_error"] == 1


async def test_when_both_fail_a_third_is_tried() -> None:
    """Neither of the two again, and no second beside it."""
    async with stage(["a", "b", "c", "d"]) as on:
        task = on.ask()
        first, second = await on.both()
        first.refuse(FailureKind.SERVER_ERROR)
        await turns()
        second.refuse(FailureKind.SERVER_ERROR)
        third = await on.call()
        assert third.where not in (first.where, second.where)
        on.clock.advance(100.0)
        third.finish("third")
        assert await task == ("third", 3)
        assert on.hedges == (1, 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_one_fails_in_the_moment_the_other_answers(order: tuple[int, int]) -> None:
    """The answer counts, whichever came first."""
    async with stage() as on:
        task = on.ask()
        calls = await on.both()
        for number in order:
            if number:
                calls[1].finish("done")
            else:
                calls[0].refuse(FailureKind.SERVER_ERROR)
        assert await task == ("done", 2)


async def test_both_fail_in_the_same_moment() -> None:
    """Neither is tried again."""
    async with stage(["a", "b", "c"]) as on:
        task = on.ask()
        calls = await on.both()
        for call in calls:
            call.refuse(FailureKind.SERVER_ERROR)
        third = await on.call()
        assert third.where not in {call.where for call in calls}
        third.finish("third")
        assert await task == ("third", 3)


async def test_when_both_fail_in_the_end_that_is_told() -> None:
    """Once."""
    async with stage() as on:
        task = on.ask()
        first, second = await on.both()
        second.refuse(FailureKind.SERVER_ERROR)
        await turns()
        first.refuse(FailureKind.SERVER_ERROR)
        with pytest.raises(InstanceFailure, match=f"server_error on {first.where}"):
            await task


async def test_a_failure_before_the_second_try_is_an_ordinary_one() -> None:
    """The next try is the only one then."""
    async with stage(["a", "b", "c"]) as on:
        task = on.ask()
        (await on.call()).refuse(FailureKind.SERVER_ERROR)
        second = await on.call()
        on.clock.advance(100.0)
        await turns()
        second.finish("done")
        assert await task == ("done", 2)
        assert on.hedges == (0, 0)


async def test_the_callers_own_fault_is_told_at_once() -> None:
    """The other would say the same; it is stopped."""
    async with stage() as on:
        task = on.ask()
        first, second = await on.both()
        second.refuse(FailureKind.REJECTED)
        with pytest.raises(InstanceFailure, match="rejected"):
            await task
        await first.stopped.wait()
        task = on.ask()
        first, second = await on.both()
        first.fail(InvalidRequest("no such field"))
        with pytest.raises(InvalidRequest):
            await task
        await second.stopped.wait()
        assert on.hedges == (2, 0)


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


# -- when there is no second try --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instances", "route", "method"),
    [
        (["a", "b"], {"hedge": None}, "echo/say"),
        (["a", "b"], {}, "echo/once"),
        (["a", "b"], {"hedge": HedgePolicy(budget=1.0, min_samples=2)}, "echo/say"),
        (["a", "b"], {"hedge": HedgePolicy(budget=0.9, min_samples=1)}, "echo/say"),
        (["a"], {}, "echo/say"),
        ({"a": {"cancellable": False}, "b": {"cancellable": False}}, {}, "echo/say"),
    ],
    ids=["not wanted", "not to be done twice", "too little is known", "not earned", "nobody else", "not to be stopped"],
)
async def test_no_second_try(instances: Any, route: dict[str, Any], method: str) -> None:  # noqa: ANN401 - a table
    """For each of these reasons."""
    async with stage(instances, **route) as on:
        task = on.ask(method)
        call = await on.call()
        on.clock.advance(100.0)
        await turns()
        call.finish("done")
        assert await task == ("done", 1)
        assert (len(on.provider.calls.all), on.hedges) == (1, (0, 0))


async def test_no_second_try_where_it_could_not_be_stopped() -> None:
    """Its work would go on when the first has won."""
    async with stage({"a": {}, "b": {"cancellable": False}, "c": {}}) as on:
        pool = on.dispatcher.shell.admission.pool
        slots = [pool.take(record) for record in pool if record.instance.endpoint in "bc" for _ in range(2)]
        slots += [pool.take(record) for record in pool if record.instance.endpoint == "c"]
        task = on.ask()
        first, second = await on.both()
        assert (first.where, second.where) == ("a", "c"), "although there is less to do at b"
        second.finish("done")
        assert await task == ("done", 2)
        for slot in slots:
            pool.free(slot)


async def test_no_second_try_in_a_pool_that_is_nearly_full() -> None:
    """Although there is one slot: what comes next may need it more."""
    async with stage({"a": {"max_concurrent": 3}, "b": {"max_concurrent": 3}}) as on:
        tasks = [on.ask() for _ in range(5)]
        calls = await on.provider.calls.take(5)
        on.clock.advance(SLOW_S)
        await turns()
        assert on.hedges == (0, 0)
        for call in calls:
            call.finish("done")
        await asyncio.gather(*tasks)


async def test_no_second_try_on_a_cold_instance() -> None:
    """Loading what it needs takes longer than waiting; one that has it ready gets the second try."""
    can = {"capabilities": frozenset({"x"})}
    async with stage({"cold": can, "warm": {**can, "warm": frozenset({"x"})}}) as on:
        cold, warm = (instance.id for instance in on.hub.instances)
        tasks = [on.ask(params={"needs": "x"}, instances=[cold])]
        calls = [await on.call()]
        tasks.append(on.ask(params={"needs": "x"}))
        calls.append(await on.call())
        on.clock.advance(SLOW_S)
        await turns()
        assert (calls[1].instance.id, on.hedges) == (warm, (0, 0))
        tasks.append(on.ask(params={"needs": "x"}, instances=[warm]))
        calls.append(await on.call())
        calls[0].finish()
        await tasks[0]
        tasks.append(on.ask(params={"needs": "x"}))
        calls += await on.both()
        assert [call.instance.id for call in calls[3:]] == [cold, warm]
        for call in calls:
            call.finish()
        await asyncio.gather(*tasks)


async def test_second_tries_are_earned() -> None:
    """One in four requests, not one more."""
    async with stage(hedge=HedgePolicy(percentile=50.0, budget=0.25, min_samples=1)) as on:
        for number in range(1, 13):
            task = on.ask()
            call = await on.call()
            on.clock.advance(SLOW_S)
            await turns()
            assert on.hedges[0] == number // 4
            call.finish()
            await task
            await turns()
            on.provider.calls._taken = len(on.provider.calls.all)


async def test_what_was_earned_does_not_pile_up() -> None:
    """Ten at once at most, however quiet it was before."""
    async with stage({"a": {"max_concurrent": 64}, "b": {"max_concurrent": 64}}) as on:
        on.provider.auto = True
        await asyncio.gather(*(on.ask() for _ in range(50)))
        on.provider.auto = False
        on.provider.calls._taken = len(on.provider.calls.all)
        on.dispatcher.set_routes(
            [
                Route(
                    name="all",
                    methods=("*",),
                    strategy=DEFAULT_ROUTE.strategy,
                    hedge=HedgePolicy(percentile=100.0, budget=0.0, min_samples=1),
                )
            ]
        )
        tasks = [on.ask() for _ in range(20)]
        calls = await on.provider.calls.take(20)
        on.clock.advance(SLOW_S)
        calls += await on.provider.calls.take(10)
        await turns()
        assert on.hedges[0] == 10
        for call in calls:
            call.finish()
        await asyncio.gather(*tasks)


async def test_what_routes_that_are_gone_have_earned_is_forgotten() -> None:
    """Names of routes come and go."""
    async with stage() as on:
        on.provider.auto = True
        await on.ask()
        assert on.dispatcher.hedges._saved
        on.dispatcher.set_routes([])
        assert not on.dispatcher.hedges._saved


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
