"""Leases: an instance held through its slot, freed once, whatever its holder does or forgets."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.errors import (
    DeadlineExceeded,
    FailureKind,
    InstanceFailure,
    InvalidRequest,
    LeaseExpired,
    NoCapableInstance,
    QueueFull,
    ShuttingDown,
    Unavailable,
)
from gleitzeit_core.persistence import MemoryStore, StoredLease
from gleitzeit_core.resources import Requirements
from gleitzeit_core.routing import Route
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.contract import ContractHub, ContractOptions, ContractProvider
from gleitzeit_core.testing.scripted import ScriptedHub, ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.leases import Lease
    from gleitzeit_core.persistence import Leases
    from gleitzeit_core.requests import FinishedRequest

ANY = Requirements(accepts=(), kind="echo")


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
    """One instance with one slot, unless told otherwise, and a clock that stands still."""

    def __init__(self, instances: dict[str, dict[str, Any]], routes: list[Route], clock: ManualClock) -> None:
        self.clock, self.watcher = clock, Watcher()
        self.dispatcher = Dispatcher(routes, observers=self.watcher, clock=clock, random=Random(0))
        self.hub = ScriptedHub(instances)
        self.provider = ScriptedProvider()
        self.provider.bind(self.dispatcher)

    async def lease(self, **options: Any) -> Lease:  # noqa: ANN401 - any option
        """One of any instance."""
        return await self.dispatcher.lease(ANY, **options)

    def wait(self, **options: Any) -> asyncio.Task[Lease]:  # noqa: ANN401 - any option
        """One that must be waited for."""
        return asyncio.create_task(self.lease(**options))

    def ask(self, **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """An ordinary request."""
        return asyncio.create_task(self.provider.execute("echo/say", **options))

    def use(self, lease: Lease, method: str = "echo/say", **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - any option
        """A piece of work under a lease."""
        return asyncio.create_task(lease.execute(self.provider, method, **options))

    async def pass_time(self, seconds: float) -> None:
        """Second by second; what is asked of a store in each is answered."""
        for _ in range(round(seconds)):
            await turns(20)
            self.clock.advance(1.0)
        await turns(20)

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self.dispatcher.shell.admission.pool.in_flight

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self.dispatcher.shell.admission.waiting


@contextlib.asynccontextmanager
async def stage(
    instances: dict[str, dict[str, Any]] | None = None,
    routes: list[Route] | None = None,
    clock: ManualClock | None = None,
) -> AsyncIterator[Stage]:
    """Everything set up; at the end nothing may be left, and nothing may have gone wrong unseen."""
    before, unseen = asyncio.all_tasks(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    made = Stage(instances or {"a": {"max_concurrent": 1}}, routes or [], clock or ManualClock())
    await made.dispatcher.shell.add_hub(made.hub)
    yield made
    await turns()
    assert (made.dispatcher.active, made.waiting, made.in_flight) == (0, 0, 0)
    await made.dispatcher.aclose()
    assert not asyncio.all_tasks() - before
    assert clock is not None or made.clock.pending == 0
    assert not unseen


async def turns(count: int = 8) -> None:
    """Let the others run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait until a task was cancelled."""
    with pytest.raises(asyncio.CancelledError):
        await task


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
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
async def test_options_that_make_no_sense_are_refused(options: dict[str, float], param: str) -> None:
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


# -- work under it ----------------------------------------------------------------------------------------------------------


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


def a_store(clock: ManualClock) -> Leases:
    """That of a process of its own."""
    store = MemoryStore(clock=clock).leases
    assert store is not None
    return store


async def test_a_store_numbers_the_fences() -> None:
    """Under the instance's id and the number of the place; given back, the place is free there."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = a_store(clock)
        for number in range(1, 4):
            async with on.dispatcher.lease(ANY, store=store) as lease:
                assert lease.fence == number
                assert await store.acquire(f"{lease.instance.id}:0", "somebody else", 1.0) is None
            assert lease.instance.id in repr(lease)


async def test_what_others_have_leased_is_passed_over() -> None:
    """Another instance serves; when there is none, that is said."""
    clock = ManualClock()
    async with stage({"a": {"max_concurrent": 1}, "b": {"max_concurrent": 2}}, clock=clock) as on:
        store = a_store(clock)
        for name in ("a:0", "b:0"):
            endpoint, _, number = name.partition(":")
            found = next(i.id for i in on.hub.instances if i.endpoint == endpoint)
            assert await store.acquire(f"{found}:{number}", "somebody else", 600.0) is not None
        lease = await on.lease(store=store)
        assert lease.instance.endpoint == "b"
        waiting = on.wait(store=store, timeout_s=5.0)
        await on.pass_time(5.0)
        with pytest.raises(Unavailable, match="is leased by others"):
            await waiting
        await lease.release()
        assert on.in_flight == 0


async def leased_by_others(on: Stage, store: Leases, endpoint: str, ttl_s: float = 600.0) -> StoredLease:
    """The first place of an instance."""
    name = next(i.id for i in on.hub.instances if i.endpoint == endpoint)
    found = await store.acquire(f"{name}:0", "somebody else", ttl_s)
    assert found is not None
    return found


@pytest.mark.parametrize("how", ["given back", "run out"])
async def test_what_others_have_leased_is_waited_for(how: str) -> None:
    """The store is asked again until its time is over; meanwhile no slot is held, and no place in the queue counts."""
    clock = ManualClock()
    route = Route(name="leases", methods=("lease",), strategy=DEFAULT_ROUTE.strategy, max_queue=0)
    async with stage(routes=[route], clock=clock) as on:
        store = a_store(clock)
        others = await leased_by_others(on, store, "a", ttl_s=20.0)
        waiting = on.wait(store=store, timeout_s=30.0)
        await on.pass_time(10.0)
        assert (waiting.done(), on.in_flight, on.waiting) == (False, 0, 1)
        working = on.ask()
        (await on.provider.calls.next()).finish("in between")
        assert await working == "in between"
        if how == "given back":
            await store.release(others)
            await on.pass_time(1.0)
        else:
            await on.pass_time(10.0)
        lease = await waiting
        assert lease.fence > others.fence
        await lease.release()
        await on.pass_time(5.0)


async def test_what_others_have_leased_is_asked_for_again_while_another_is_waited_for() -> None:
    """Whichever is free first; and nothing that came later overtakes it."""
    clock = ManualClock()
    async with stage({"a": {"max_concurrent": 1}, "b": {"max_concurrent": 1}}, clock=clock) as on:
        store = a_store(clock)
        others = await leased_by_others(on, store, "a")
        busy = await on.lease(store=store, ttl_s=1e6)
        assert busy.instance.endpoint == "b"
        waiting, later = on.wait(store=store), on.wait(store=store)
        await on.pass_time(3.0)
        assert (waiting.done(), later.done(), on.waiting) == (False, False, 2)
        await store.release(others)
        await on.pass_time(1.0)
        assert (waiting.done(), later.done()) == (True, False)
        assert (await waiting).instance.endpoint == "a"
        await busy.release()
        assert (await later).instance.endpoint == "b"
        await (await waiting).release()
        await (await later).release()


async def test_what_goes_down_while_others_have_leased_it_is_said_to_be_down() -> None:
    """That it is leased is no longer what matters."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = a_store(clock)
        await leased_by_others(on, store, "a")
        waiting = on.wait(store=store)
        await on.pass_time(2.0)
        on.hub.report_down(on.hub.instances[0].id, "its power is off")
        await on.pass_time(1.0)
        with pytest.raises(Unavailable, match="its power is off"):
            await waiting


async def test_who_leaves_while_others_have_leased_it_waits_no_more() -> None:
    """The store is not asked for nobody."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        await leased_by_others(on, store, "a")
        waiting = on.wait(store=store)
        await on.pass_time(2.0)
        waiting.cancel()
        await ended(waiting)
        store.asked.clear()
        await on.pass_time(3.0)
        assert not store.asked.is_set()


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


async def test_a_renewal_counts_in_the_store() -> None:
    """There it lasts as long as here."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = a_store(clock)
        lease = await on.lease(store=store, ttl_s=10.0)
        clock.advance(8.0)
        await lease.renew()
        clock.advance(8.0)
        assert await store.acquire(f"{lease.instance.id}:0", "somebody else", 1.0) is None
        assert lease.expires_at == clock.wall() + 2.0
        await lease.release()


class Slow:
    """A store that answers when a test says so, or fails."""

    def __init__(self, store: Leases) -> None:
        self.store = store
        self.asked, self.answers, self.releases = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.answers.set()
        self.releases.set()
        self.failure: Exception | None = None
        self.released: list[StoredLease] = []

    async def acquire(self, name: str, holder: str, ttl_s: float) -> StoredLease | None:
        """As the store, later."""
        self.asked.set()
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return await self.store.acquire(name, holder, ttl_s)

    async def release(self, lease: StoredLease) -> bool:
        """As the store, later."""
        await self.releases.wait()
        if self.failure is not None:
            raise self.failure
        self.released.append(lease)
        return await self.store.release(lease)


async def test_a_store_that_fails_gives_no_lease() -> None:
    """The slot is free again, and callers see none of its own errors."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        store.failure = LookupError("secret")
        with pytest.raises(Unavailable, match=r"^the store that keeps the leases does not answer$"):
            await on.lease(store=store)
        await turns()
        assert on.in_flight == 0


async def test_who_leaves_while_the_store_is_asked_holds_nothing() -> None:
    """The same for a deadline."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        store.answers.clear()
        leaving = on.wait(store=store)
        await store.asked.wait()
        leaving.cancel()
        await ended(leaving)
        assert (on.dispatcher.active, on.in_flight) == (0, 1)
        store.answers.set()
        await turns()
        assert on.in_flight == 0
        assert len(store.released) == 1
        store.asked.clear()
        store.answers.clear()
        late = on.wait(store=store, timeout_s=5.0)
        await store.asked.wait()
        clock.advance(5.0)
        with pytest.raises(DeadlineExceeded):
            await late
        store.answers.set()
        async with on.dispatcher.lease(ANY, store=store) as lease:
            assert lease.active


async def test_a_store_that_never_answers_does_not_hold_up_the_end() -> None:
    """Nor does it keep a slot."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        store.answers.clear()
        waiting = on.wait(store=store)
        await store.asked.wait()
        async with asyncio.timeout(3):
            await on.dispatcher.aclose()
        with pytest.raises(ShuttingDown):
            await waiting


async def test_a_store_that_takes_nothing_back_keeps_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the slot is free all the same; there it runs out."""
    monkeypatch.setattr("gleitzeit_core.leases._GIVE_BACK_S", 0.0)
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        lease = await on.lease(store=store)
        store.releases.clear()
        await lease.release()
        assert on.in_flight == 0


async def test_who_waits_gets_slot_and_place() -> None:
    """The place in the store is free before the slot is, however the lease before it ends."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        first = await on.lease(store=store, ttl_s=5.0)
        second, third = on.wait(store=store, ttl_s=5.0), on.wait(store=store)
        await turns()
        store.releases.clear()
        clock.advance(5.0)
        await turns()
        assert (first.active, on.in_flight, on.waiting) == (False, 1, 2)
        store.releases.set()
        assert (await second).fence > first.fence
        await (await second).release()
        await (await third).release()


async def test_a_store_that_fails_a_renewal_leaves_the_lease_as_it_was() -> None:
    """It ends when it would have; what cannot be given back runs out there."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        lease = await on.lease(store=store, ttl_s=10.0)
        store.failure = OSError("away")
        with pytest.raises(Unavailable):
            await lease.renew()
        assert lease.active
        clock.advance(10.0)
        await turns()
        assert (lease.active, on.in_flight) == (False, 0)


async def test_a_lease_that_somebody_else_has_now_ends() -> None:
    """A store whose clock runs faster may have given it away; what runs under it is stopped."""
    clock, fast = ManualClock(), ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(fast))
        lease = await on.lease(store=store, ttl_s=10.0)
        work = on.use(lease)
        await on.provider.calls.next()
        fast.advance(10.0)
        await store.store.acquire(f"{lease.instance.id}:0", "somebody else", 600.0)
        with pytest.raises(LeaseExpired, match="somebody else has it"):
            await lease.renew()
        with pytest.raises(LeaseExpired):
            await work


async def test_a_lease_that_had_run_out_in_the_store_ends() -> None:
    """In between somebody else may have had it: its new fence is given back."""
    clock, fast = ManualClock(), ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(fast))
        lease = await on.lease(store=store, ttl_s=10.0)
        fast.advance(10.0)
        with pytest.raises(LeaseExpired):
            await lease.renew()
        await turns()
        assert await store.store.acquire(f"{lease.instance.id}:0", "somebody else", 1.0) is not None


async def test_an_end_while_the_store_is_asked_to_renew() -> None:
    """It has ended, and what the store has kept since is given back."""
    clock = ManualClock()
    async with stage(clock=clock) as on:
        store = Slow(a_store(clock))
        lease = await on.lease(store=store, ttl_s=10.0)
        store.answers.clear()
        store.asked.clear()
        renewing = asyncio.create_task(lease.renew())
        await store.asked.wait()
        await lease.release()
        store.answers.set()
        with pytest.raises(LeaseExpired):
            await renewing
        assert await store.store.acquire(f"{lease.instance.id}:0", "somebody else", 1.0) is not None


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
