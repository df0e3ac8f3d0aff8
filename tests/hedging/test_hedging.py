"""A second try beside a slow first: who wins, and what becomes of the other."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest, ShuttingDown
from gleitzeit_core.testing.todo import turns
from tests.tasks import ended, next_part

from .stage import stage

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
        reading = asyncio.create_task(next_part(parts))
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
