"""From a request to its answer, on one instance or on all, along routes that may change."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.errors import (
    FailureKind,
    InstanceFailure,
    NoCapableInstance,
    QueueFull,
    RequestError,
    ShuttingDown,
    Unavailable,
)
from gleitzeit_core.pool import State
from gleitzeit_core.resources import Requirements
from gleitzeit_core.routing import Route

from .stage import stage

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


async def test_who_holds_something_is_told_that_nothing_new_is_taken() -> None:
    """Before what runs is waited for: it may be theirs."""
    async with stage({"a": {"max_concurrent": 1}}) as on:
        lease = await on.dispatcher.lease(Requirements(accepts=()))
        releases: list[asyncio.Task[None]] = []
        on.dispatcher.draining.append(lambda: releases.append(asyncio.create_task(lease.release())))
        await on.dispatcher.drain(1e6)
        assert len(releases) == 1
        assert on.dispatcher.active == 0
        await releases[0]


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
