"""Work under a lease: one piece at a time, on the leased instance, ended with the lease."""

from __future__ import annotations

import asyncio

import pytest

from gleitzeit_core.errors import (
    DeadlineExceeded,
    FailureKind,
    InstanceFailure,
    LeaseExpired,
    NoCapableInstance,
)
from gleitzeit_core.resources import Requirements
from gleitzeit_core.testing.contract import ContractHub, ContractOptions, ContractProvider
from gleitzeit_core.testing.todo import turns
from tests.tasks import ended

from .stage import ANY, stage


async def test_work_under_a_lease_takes_no_second_slot() -> None:
    """It runs on the leased instance, and counts: in the metrics, for observers."""
    async with stage({"a": {"max_concurrent": 1}, "b": {"max_concurrent": 1}}) as on:
        lease = await on.lease()
        for number in range(3):
            work = on.use(lease, params={"n": number})
            call = await on.provider.calls.next()
            assert (call.instance.id, call.request.params) == (lease.instance.id, {"n": number})
            assert on.in_flight == 1
            call.finish(number)
            assert await work == number
        assert on.dispatcher.metrics.sum(method="echo/say", instance_id=lease.instance.id).results == {"ok": 3}
        assert [finished.request.method for finished in on.watcher.finished] == ["echo/say"] * 3
        assert on.in_flight == 1
        assert not lease._uses
        await lease.release()


async def test_one_piece_of_work_at_a_time() -> None:
    """A lease is one slot; those who come meanwhile wait for their turn, in order."""
    async with stage() as on:
        lease = await on.lease()
        works = [on.use(lease) for _ in range(3)]
        for number in range(3):
            await turns()
            assert len(on.provider.calls.all) == number + 1
            on.provider.calls.all[number].finish(number)
        assert await asyncio.gather(*works) == [0, 1, 2]
        await lease.release()


async def test_a_failure_is_told_and_counts() -> None:
    """Nothing is tried elsewhere; enough of them open the instance's breaker."""
    async with stage({"a": {"max_concurrent": 1}, "b": {"max_concurrent": 1}}) as on:
        lease = await on.lease()
        for _ in range(5):
            work = on.use(lease)
            (await on.provider.calls.next()).refuse(FailureKind.SERVER_ERROR)
            with pytest.raises(InstanceFailure):
                await work
        states = {report.instance.id: report.state for report in on.dispatcher.reports()}
        assert states.pop(lease.instance.id) == "ejected"
        assert list(states.values()) == ["ready"]
        await lease.release()


async def test_a_lease_says_nothing_of_its_instance() -> None:
    """Held and given back without any work, it is neither success nor failure."""
    async with stage({"a": {"max_concurrent": 2}}) as on:
        for _ in range(4):
            task = on.ask()
            (await on.provider.calls.next()).refuse(FailureKind.SERVER_ERROR)
            with pytest.raises(InstanceFailure):
                await task
        async with on.dispatcher.lease(ANY):
            pass
        task = on.ask()
        (await on.provider.calls.next()).refuse(FailureKind.SERVER_ERROR)
        with pytest.raises(InstanceFailure):
            await task
        (report,) = on.dispatcher.reports()
        assert report.state == "ejected", "the fifth in a row"


async def test_what_the_leased_instance_cannot_do() -> None:
    """Is refused before it gets there."""
    async with stage() as on:
        lease = await on.lease()
        with pytest.raises(NoCapableInstance, match="the leased a does not have x"):
            await lease.execute(on.provider, "echo/say", {"needs": "x"})
        assert not on.provider.calls.all
        await lease.release()


async def test_who_leaves_ends_the_work_but_not_the_lease() -> None:
    """The next piece of work follows when it has stopped."""
    async with stage() as on:
        lease = await on.lease()
        leaving, staying, waiting = on.use(lease), on.use(lease), on.use(lease)
        call = await on.provider.calls.next()
        await turns()
        call.linger()
        leaving.cancel()
        staying.cancel()
        await ended(staying)
        await turns()
        assert len(on.provider.calls.all) == 1
        call.let_go()
        await ended(leaving)
        (await on.provider.calls.next()).finish("last")
        assert await waiting == "last"
        assert lease.active
        await lease.release()


async def test_a_deadline_ends_the_work_but_not_the_lease() -> None:
    """That of the work, in or out of its turn."""
    async with stage() as on:
        lease = await on.lease()
        works = [on.use(lease, timeout_s=5.0), on.use(lease, timeout_s=5.0)]
        call = await on.provider.calls.next()
        on.clock.advance(5.0)
        for work in works:
            with pytest.raises(DeadlineExceeded):
                await work
        assert call.stopped.is_set()
        assert (lease.active, on.in_flight) == (True, 1)
        await lease.release()


async def test_those_whose_turn_has_not_come_are_sent_away_at_its_end() -> None:
    """Nothing of theirs begins."""
    async with stage() as on:
        lease = await on.lease()
        works = [on.use(lease) for _ in range(3)]
        await on.provider.calls.next()
        await turns()
        await lease.release()
        for work in works:
            with pytest.raises(LeaseExpired):
                await work
        assert len(on.provider.calls.all) == 1


async def test_an_end_between_two_turns() -> None:
    """Who was about to begin does not."""
    async with stage() as on:
        lease = await on.lease(ttl_s=5.0)
        works = [on.use(lease), on.use(lease)]
        call = await on.provider.calls.next()
        await turns()
        call.finish("first")
        while not works[0].done():
            await asyncio.sleep(0)
        on.clock.advance(5.0)
        assert await works[0] == "first"
        with pytest.raises(LeaseExpired):
            await works[1]


async def test_a_method_without_an_instance_needs_no_turn() -> None:
    """It is answered from what is known."""
    async with stage() as on:
        lease = await on.lease()
        work = on.use(lease)
        call = await on.provider.calls.next()
        assert await lease.execute(on.provider, "echo/names") == ["a"]
        call.finish()
        await work
        await lease.release()


async def test_work_that_cannot_be_cancelled_keeps_slot_and_turn_until_it_ends() -> None:
    """Its caller and the lease go at once."""
    async with stage({"a": {"max_concurrent": 1, "cancellable": False}}) as on:
        lease = await on.lease()
        leaving, next_one = on.use(lease), on.use(lease)
        call = await on.provider.calls.next()
        leaving.cancel()
        await ended(leaving)
        await turns()
        assert len(on.provider.calls.all) == 1, "its turn is not over"
        await lease.release()
        with pytest.raises(LeaseExpired):
            await next_one
        assert (on.in_flight, call.cancelled) == (1, False)
        call.finish("for nobody")
        await turns()
        assert on.in_flight == 0


async def test_an_instance_that_is_used_up_is_recycled_after_the_lease() -> None:
    """Once, whatever was done under it; not after each piece of work."""
    hub = ContractHub(ContractOptions(auto=True))
    async with ContractProvider(hub=hub) as provider:
        async with provider.dispatcher.lease(Requirements(accepts=(), kind="contract")) as lease:
            for _ in range(2):
                await lease.execute(provider, "contract/run")
            assert hub.recycled == []
        await turns(20)
        assert (hub.recycled, hub.retired) == (["box-1"], ["box-1"])


async def test_a_lease_that_was_not_used_is_recycled_too() -> None:
    """What its holder did with the instance, nobody knows."""
    hub = ContractHub(ContractOptions(auto=True))
    async with ContractProvider(hub=hub) as provider:
        async with provider.dispatcher.lease(Requirements(accepts=(), kind="contract")):
            pass
        await turns(20)
        assert hub.recycled == ["box-1"]
