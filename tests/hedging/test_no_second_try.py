"""When there is no second try: it would help nobody, cost too much, or has not been earned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE
from gleitzeit_core.routing import HedgePolicy, Route
from gleitzeit_core.testing.todo import turns

from .stage import SLOW_S, stage


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
