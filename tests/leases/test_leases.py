"""Leases: an instance held through its slot, waited for, renewed, and freed once, whatever its holder does or forgets."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE
from gleitzeit_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LeaseExpired,
    NoCapableInstance,
    QueueFull,
    ShuttingDown,
)
from gleitzeit_core.resources import Requirements
from gleitzeit_core.routing import Route
from gleitzeit_core.testing.todo import turns
from tests.tasks import ended

from .stage import ANY, Stage, stage

# -- holding --------------------------------------------------------------------------------------------------------------


async def test_a_lease_holds_a_slot() -> None:
    """Nobody else gets it until it is given back."""
    async with stage() as on:
        async with on.dispatcher.lease(ANY) as lease:
            assert lease.instance.endpoint == "a"
            assert (lease.active, on.in_flight) == (True, 1)
            waiting = on.ask()
            await turns()
            assert on.waiting == 1
        assert (lease.active, on.in_flight) == (False, 1)
        (await on.provider.calls.next()).finish("next")
        assert await waiting == "next"


async def test_a_lease_that_was_awaited_can_be_a_block_too() -> None:
    """Left by an error, it is given back as well."""
    async with stage() as on:
        with pytest.raises(LookupError):
            async with await on.lease():
                raise LookupError
        assert on.in_flight == 0


async def test_a_request_that_is_awaited_twice_gives_two_leases() -> None:
    """Each with a slot of its own."""
    async with stage({"a": {}}) as on:
        request = on.dispatcher.lease(ANY)
        first, second = await request, await request
        assert on.in_flight == 2
        await first.release()
        assert second.active
        await second.release()


async def test_a_lease_says_when_it_ends() -> None:
    """In Unix time; and what it is, for people."""
    async with stage() as on:
        lease = await on.lease(ttl_s=30.0)
        assert lease.expires_at == on.clock.wall() + 30.0
        assert repr(lease) == f"<Lease of {lease.instance.id}, fence {lease.fence}, active>"
        await lease.release()
        assert repr(lease).endswith("it was given back>")


async def test_fences_grow() -> None:
    """With every lease, in every dispatcher, and above what an earlier process can have given."""
    async with stage() as on, stage() as other:
        fences = []
        for one in (on, other, on):
            async with one.dispatcher.lease(ANY) as lease:
                fences.append(lease.fence)
        assert fences == sorted(set(fences))
        assert fences[0] >= on.clock.wall() * 1000


async def test_giving_back_twice_is_fine() -> None:
    """Also at the same time, and after its end; the slot is freed once."""
    async with stage({"a": {"max_concurrent": 2}}) as on:
        other = await on.lease()
        lease = await on.lease()
        await asyncio.gather(lease.release(), lease.release())
        await lease.release()
        on.clock.advance(10.0)
        assert on.in_flight == 1
        await other.release()


async def test_a_lease_is_a_request_to_observers() -> None:
    """Of the method `lease`, from its asking to its end."""
    async with stage() as on:
        async with on.dispatcher.lease(ANY, tenant="t"):
            on.clock.advance(3.0)
            assert on.dispatcher.active == 1
        (finished,) = on.watcher.finished
        assert (finished.request.method, finished.request.tenant, finished.error_code) == ("lease", "t", "")
        assert finished.total_s == 3.0
        assert finished.served is not None


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"ttl_s": 0.0}, "ttl_s"),
        ({"ttl_s": -1.0}, "ttl_s"),
        ({"ttl_s": float("nan")}, "ttl_s"),
        ({"ttl_s": float("inf")}, "ttl_s"),
        ({"ttl_s": "abc"}, "ttl_s"),
        ({"ttl_s": None}, "ttl_s"),
        ({"timeout_s": "abc"}, "timeout_s"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
async def test_options_that_make_no_sense_are_refused(options: dict[str, object], param: str) -> None:
    """At once, with their name."""
    async with stage() as on:
        with pytest.raises(InvalidRequest) as caught:
            on.dispatcher.lease(ANY, **options)  # type: ignore[arg-type]
        assert caught.value.param == param


# -- its end --------------------------------------------------------------------------------------------------------------


async def test_a_forgotten_lease_frees_itself() -> None:
    """When its time has run out, although nobody does anything; who waits gets the slot."""
    async with stage() as on:
        await on.lease(ttl_s=20.0)
        waiting = on.ask()
        await turns()
        on.clock.advance(19.9)
        await turns()
        assert on.waiting == 1
        on.clock.advance(0.1)
        (await on.provider.calls.next()).finish("next")
        assert await waiting == "next"


async def test_an_expired_lease_cannot_be_used() -> None:
    """Nor one that was given back."""
    async with stage() as on:
        late, back = await on.lease(ttl_s=5.0), None
        on.clock.advance(5.0)
        back = await on.lease()
        await back.release()
        for lease, why in ((late, "its time has run out"), (back, "it was given back")):
            with pytest.raises(LeaseExpired, match=f"the lease of a has ended: {why}") as caught:
                await lease.execute(on.provider, "echo/say")
            assert (caught.value.code, caught.value.instance_id) == ("lease_expired", lease.instance.id)
            with pytest.raises(LeaseExpired):
                await lease.renew()
        assert not on.provider.calls.all


async def test_a_timer_that_is_late_makes_no_lease_last_longer() -> None:
    """In a loop that was blocked it is over all the same, and whoever finds out ends it."""
    async with stage() as on:
        lease = await on.lease(ttl_s=5.0)
        on.clock._now += 5.0
        assert not lease.active
        with pytest.raises(LeaseExpired):
            await lease.execute(on.provider, "echo/say")
        assert on.in_flight == 0


async def test_a_turn_that_comes_after_the_end_is_none() -> None:
    """Also when its timer is late."""
    async with stage() as on:
        lease = await on.lease(ttl_s=5.0)
        works = [on.use(lease), on.use(lease)]
        call = await on.provider.calls.next()
        await turns()
        on.clock._now += 5.0
        call.finish("first")
        with pytest.raises(LeaseExpired):
            await works[1]
        assert await works[0] == "first"
        assert len(on.provider.calls.all) == 1


async def test_its_time_ends_the_work_under_it() -> None:
    """The slot is free when that has stopped, not before."""
    async with stage() as on:
        lease = await on.lease(ttl_s=5.0)
        work = on.use(lease)
        call = await on.provider.calls.next()
        call.linger()
        waiting = on.ask()
        await turns()
        on.clock.advance(5.0)
        await turns()
        assert (call.cancelled, on.in_flight, on.waiting) == (True, 1, 1)
        call.let_go()
        with pytest.raises(LeaseExpired):
            await work
        (await on.provider.calls.next()).finish("next")
        assert await waiting == "next"


async def test_giving_it_back_ends_the_work_under_it() -> None:
    """And waits until it has stopped."""
    async with stage() as on:
        lease = await on.lease()
        work = on.use(lease)
        call = await on.provider.calls.next()
        call.linger()
        releasing = asyncio.create_task(lease.release())
        await turns()
        assert (releasing.done(), on.in_flight) == (False, 1)
        call.let_go()
        await releasing
        assert on.in_flight == 0
        with pytest.raises(LeaseExpired, match="given back"):
            await work


async def test_who_loses_patience_with_giving_back() -> None:
    """The slot is freed all the same."""
    async with stage() as on:
        lease = await on.lease()
        work = on.use(lease)
        call = await on.provider.calls.next()
        call.linger()
        releasing = asyncio.create_task(lease.release())
        await turns()
        releasing.cancel()
        await ended(releasing)
        call.let_go()
        with pytest.raises(LeaseExpired):
            await work


async def test_a_lease_of_an_instance_that_is_gone() -> None:
    """Ends like any other."""
    async with stage() as on:
        lease = await on.lease()
        on.hub.withdraw(lease.instance.id, "gone")
        await lease.release()
        assert on.dispatcher.active == 0


# -- renewal --------------------------------------------------------------------------------------------------------------


async def test_renewal() -> None:
    """From now on, for as long as at first or as told, longer or shorter."""
    async with stage() as on:
        lease = await on.lease(ttl_s=10.0)
        on.clock.advance(8.0)
        await lease.renew()
        on.clock.advance(8.0)
        assert (lease.active, lease.expires_at) == (True, on.clock.wall() + 2.0)
        fence = lease.fence
        await lease.renew(100.0)
        on.clock.advance(99.0)
        assert lease.active
        await lease.renew(1.0)
        assert lease.fence == fence
        on.clock.advance(1.0)
        assert not lease.active


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_renewal_that_makes_no_sense(ttl_s: float) -> None:
    """Is refused and changes nothing."""
    async with stage() as on:
        lease = await on.lease(ttl_s=10.0)
        with pytest.raises(InvalidRequest):
            await lease.renew(ttl_s)
        assert lease.expires_at == on.clock.wall() + 10.0
        await lease.release()


# -- waiting for it ---------------------------------------------------------------------------------------------------------


async def test_it_is_waited_for_in_the_queue() -> None:
    """By priority, like any request."""
    async with stage() as on:
        first = await on.lease()
        low, high = on.wait(), on.wait(priority=1)
        await turns()
        await first.release()
        lease = await high
        assert not low.done()
        await lease.release()
        await (await low).release()


async def test_the_wait_has_an_end() -> None:
    """That ends the wait, not a lease that was got in time."""
    async with stage() as on:
        first = await on.lease(timeout_s=5.0)
        task = on.wait(timeout_s=5.0)
        await turns()
        on.clock.advance(5.0)
        with pytest.raises(DeadlineExceeded):
            await task
        assert first.active
        await first.release()


async def test_its_route_limits_the_queue() -> None:
    """And the time, when the caller names none."""
    route = Route(name="leases", methods=("lease",), strategy=DEFAULT_ROUTE.strategy, max_queue=1, timeout_s=7.0)
    async with stage(routes=[route]) as on:
        first = await on.lease()
        task = on.wait(timeout_s=None)
        await turns()
        with pytest.raises(QueueFull):
            await on.lease()
        on.clock.advance(7.0)
        with pytest.raises(DeadlineExceeded):
            await task
        await first.release()


async def test_who_leaves_the_queue_holds_nothing() -> None:
    """Also in the moment of the grant."""
    async with stage() as on:
        first = await on.lease()
        task = on.wait()
        await turns()
        task.cancel()
        await ended(task)
        task = on.wait()
        await turns()
        await first.release()
        task.cancel()
        await ended(task)


@pytest.mark.parametrize(
    "needs",
    [Requirements(accepts=(), kind="other"), Requirements(accepts=(), capabilities=frozenset({"x"}))],
)
async def test_what_there_is_not_cannot_be_leased(needs: Requirements) -> None:
    """The error says what there is."""
    async with stage() as on:
        with pytest.raises(NoCapableInstance):
            await on.dispatcher.lease(needs)


async def test_kind_and_capabilities_choose_the_instance() -> None:
    """So do tags."""
    async with stage({"a": {}, "b": {"capabilities": frozenset({"x"}), "tags": frozenset({"gpu"})}}) as on:
        needs = Requirements(accepts=(), kind="echo", capabilities=frozenset({"x"}), tags=frozenset({"gpu"}))
        async with on.dispatcher.lease(needs) as lease:
            assert lease.instance.endpoint == "b"


# -- shutting down ----------------------------------------------------------------------------------------------------------


async def test_a_grace_period_lets_holders_finish() -> None:
    """Work under a lease is not new: it was let in with the lease."""
    async with stage() as on:
        lease = await on.lease()
        closing = asyncio.create_task(on.dispatcher.drain(1e6))
        await turns()
        work = on.use(lease)
        (await on.provider.calls.next()).finish("done")
        assert await work == "done"
        with pytest.raises(ShuttingDown):
            await on.lease()
        assert not closing.done()
        await lease.release()
        await closing


async def test_the_end_of_all_ends_leases() -> None:
    """What runs under them is stopped, the slot freed, and nothing waits for their time to run out."""
    async with stage() as on:
        lease = await on.lease(ttl_s=1e6)
        record = on.dispatcher.shell.admission.pool.records[lease.instance.id]
        work = on.use(lease)
        call = await on.provider.calls.next()
        async with asyncio.timeout(3):
            await on.dispatcher.aclose()
        assert call.stopped.is_set()
        assert (record.in_flight, on.dispatcher.active) == (0, 0)
        with pytest.raises((LeaseExpired, ShuttingDown)):
            await work
        with pytest.raises(LeaseExpired, match="shutting down"):
            await lease.renew()
        await lease.release()


# -- with a store -----------------------------------------------------------------------------------------------------------


async def test_a_request_is_one_block_at_a_time() -> None:
    """Or the end of one would give back the lease of the other. One after the other is fine."""
    async with stage({"a": {}}) as on:
        request = on.dispatcher.lease(ANY)
        async with request as lease:
            with pytest.raises(InvalidRequest, match="in use"):
                async with request:
                    pytest.fail("it must not begin")
            assert lease.active
        assert not lease.active
        async with request as lease:
            assert lease.active


async def test_a_request_that_found_nothing_can_be_used_again() -> None:
    """It is not in use."""
    async with stage() as on:
        request = on.dispatcher.lease(ANY, timeout_s=5.0)
        async with request:
            pass
        first = await on.lease()
        entering = asyncio.create_task(request.__aenter__())
        await turns()
        on.clock.advance(5.0)
        with pytest.raises(DeadlineExceeded):
            await entering
        await first.release()
        async with request as lease:
            assert lease.active


# -- everything at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_leases_and_requests_at_random_leave_nothing(seed: int) -> None:
    """Held, used, renewed, left, given back and forgotten."""
    random = Random(seed)

    async def hold(on: Stage) -> None:
        async with on.dispatcher.lease(ANY, ttl_s=random.uniform(1.0, 20.0), timeout_s=30.0) as lease:
            for _ in range(random.randrange(4)):
                if random.random() < 0.3:
                    await lease.renew()
                await lease.execute(on.provider, "echo/say")

    async def forget(on: Stage) -> None:
        await on.lease(ttl_s=random.uniform(1.0, 20.0))

    async with stage({"a": {"max_concurrent": 3}, "b": {"max_concurrent": 2, "cancellable": False}}) as on:
        tasks: list[asyncio.Task[Any]] = []
        for _ in range(400):
            tasks.append(
                random.choice(
                    [lambda: asyncio.create_task(hold(on)), lambda: asyncio.create_task(forget(on)), on.ask]
                )()
            )
            tasks[-1].add_done_callback(lambda done: done.cancelled() or done.exception())
            for call in on.provider.calls.all[-random.randrange(1, 8) :]:
                if random.random() < 0.3:
                    call.finish()
            if random.random() < 0.3:
                random.choice(tasks).cancel()
            on.clock.advance(random.uniform(0.0, 2.0))
            await turns(random.randrange(4))
        while not all(task.done() for task in tasks) or on.in_flight:
            for call in on.provider.calls.all:
                call.finish()
            on.clock.advance(1.0)
            await asyncio.sleep(0)
