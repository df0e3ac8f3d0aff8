"""Hubs, and the shell that keeps them."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.errors import ClosedError, FailureKind, InstanceFailure, NoCapableInstance, Unavailable
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Ownership
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.shell import Shell
from gleitzeit_core.testing.contract import ContractHub, ContractOptions, ContractProvider
from gleitzeit_core.testing.machine import Machine, make_instance
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import PATIENCE_S, Todo, Todos

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.resources import Requirements, ResourceInstance
    from gleitzeit_core.routing import Ticket

OUTCOME = Outcome(result=Result.OK)


@contextlib.asynccontextmanager
async def shell() -> AsyncIterator[Shell]:
    """Closed at the end, with no task left."""
    before = asyncio.all_tasks()
    made = Shell(clock=SystemClock(), random=Random(0))
    yield made
    async with asyncio.timeout(PATIENCE_S):
        await made.aclose()
    assert not asyncio.all_tasks() - before


def states(shell: Shell) -> dict[str, str]:
    """Of all instances."""
    return {record.instance.endpoint: record.condition for record in shell.admission.pool}


def ticket() -> Ticket:
    """Of a request for any of the instances here."""
    return Machine().ticket()


async def until(shell: Shell, state: str) -> InstanceChange:
    """The next change to a state."""
    seen: asyncio.Future[InstanceChange] = asyncio.get_running_loop().create_future()
    shell.listen(lambda change: None if change.state != state or seen.done() else seen.set_result(change))
    async with asyncio.timeout(PATIENCE_S):
        return await seen


class Slow(ResourceHub[HubOptions]):
    """Every step ends when a test says so."""

    kind = "echo"

    def __init__(self, *, fails: str = "", recycles: bool = False) -> None:
        super().__init__(HubOptions(discover_interval_s=0.01))
        self.recycles = recycles  # type: ignore[misc]  # each test its own
        self.steps: Todos[Todo] = Todos()
        self.fails = fails
        self.offers = Offer(OfferKind.READY)
        self.log: list[str] = []

    async def step(self, name: str) -> Any:  # noqa: ANN401 - as told
        """Wait for the test."""
        self.log.append(name)
        if self.fails == name:
            raise LookupError(f"{name} failed")
        return await self.steps.add(Todo(name)).wait()

    async def open(self) -> None:
        """Counted."""
        self.log.append("open")

    async def discover(self) -> Iterable[ResourceInstance]:
        """Whatever the test gives."""
        found: Iterable[ResourceInstance] = await self.step("discover")
        return found

    def offer(self, requirements: Requirements) -> Offer:
        """As set."""
        del requirements
        return self.offers

    async def scale(self, requirements: Requirements, wanted: int) -> None:
        """Remembered with its number."""
        del requirements
        await self.step(f"scale {wanted}")

    async def recycle(self, instance: ResourceInstance, outcome: Outcome) -> bool:
        """As told."""
        del instance, outcome
        return bool(await self.step("recycle"))

    async def retire(self, instance: ResourceInstance) -> None:
        """Remembered."""
        await self.step(f"retire {instance.endpoint}")

    async def close(self) -> None:
        """Remembered."""
        self.log.append("close")


async def started(on: Shell, hub: Slow, *instances: ResourceInstance) -> None:
    """With what its first search found."""
    adding = asyncio.create_task(on.add_hub(hub))
    (await hub.steps.next()).finish(instances)
    await adding


# -- life -----------------------------------------------------------------------------------------------------------------


async def test_what_a_hub_finds_is_ready_when_it_is_added() -> None:
    """Its first checks are waited for; what fails them is down."""
    async with shell() as on:
        hub = ScriptedHub({"a": {"probe": True}, "b": {"probe": True}, "c": {"probe": False}})
        hub.checks["b"] = InstanceFailure(FailureKind.REFUSED, "nobody there")
        await on.add_hub(hub)
        assert states(on) == {"a": "ready", "b": "down", "c": "ready"}
        assert repr(hub) == "<ScriptedHub echo, 3 instances>"


async def test_two_hubs_of_one_name_are_refused() -> None:
    """The first one stays."""
    async with shell() as on:
        hub = ScriptedHub()
        await on.add_hub(hub)
        with pytest.raises(ValueError, match="a hub 'echo' already"):
            await on.add_hub(ScriptedHub())
        await on.add_hub(ScriptedHub(("b",), name="other"))
        assert list(on.hubs) == ["echo", "other"]


async def test_an_instance_in_two_hubs_is_the_firsts(caplog: pytest.LogCaptureFixture) -> None:
    """Its slots are counted once; when the first hub is removed, the second one's next search finds it."""
    async with shell() as on:
        await on.add_hub(ScriptedHub(("a", "b"), name="one"))
        other = ScriptedHub(("b", "c"), name="two")
        await on.add_hub(other)
        assert "b is in the hubs one and two" in caplog.text
        assert {r.instance.endpoint: r.instance.hub for r in on.admission.pool} == {"a": "one", "b": "one", "c": "two"}
        assert [instance.endpoint for instance in other.instances] == ["c"]
        other.withdraw(next(iter(on.hubs["one"].instances)).id, "not its own")
        await on.remove_hub("one")
        await other.search()
        assert {r.instance.endpoint: r.instance.hub for r in on.admission.pool} == {"b": "two", "c": "two"}


async def test_a_hub_that_runs_elsewhere_is_left_alone() -> None:
    """Adding it here fails, and there it goes on."""
    async with shell() as on, shell() as elsewhere:
        hub = ScriptedHub()
        await elsewhere.add_hub(hub)
        with pytest.raises(ClosedError):
            await on.add_hub(hub)
        assert hub.running
        assert hub.closed == 0
        assert not on.hubs


@pytest.mark.parametrize("step", ["open", "discover"])
async def test_a_hub_that_cannot_start_is_closed(step: str) -> None:
    """What it acquired so far is released; it may be started later."""

    class Failing(ScriptedHub):
        async def open(self) -> None:
            if step == "open":
                raise LookupError(step)

        async def discover(self) -> Iterable[ResourceInstance]:
            raise LookupError(step)

    async with shell() as on:
        hub = Failing()
        for _ in range(2):
            with pytest.raises(LookupError, match=step):
                await on.add_hub(hub)
        assert (hub.closed, on.hubs, on.admission.suppliers) == (2, {}, {})


async def test_a_start_that_is_cancelled_during_the_first_checks_is_undone() -> None:
    """The hub is stopped again."""

    class Silent(ScriptedHub):
        async def check(self, instance: ResourceInstance) -> ResourceInstance:
            await asyncio.Event().wait()
            return instance

    async with shell() as on:
        hub = Silent({"a": {"probe": True}})
        adding = asyncio.create_task(on.add_hub(hub))
        while not hub.instances:
            await asyncio.sleep(0)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert (hub.closed, on.hubs, states(on)) == (1, {}, {})


@pytest.mark.parametrize("found", [[], [make_instance("a")]])
async def test_a_hub_that_is_stopped_while_it_starts_is_closed(found: list[ResourceInstance]) -> None:
    """What it has acquired since is released as well, and nothing goes on searching."""
    async with shell() as on:
        hub = Slow()
        adding = asyncio.create_task(on.add_hub(hub))
        step = await hub.steps.next()
        await on.aclose()
        step.finish(found)
        with pytest.raises(ClosedError):
            await adding
        assert hub.log == ["open", "discover", "close", "close"]
        assert (hub.running, hub.instances, on.hubs) == (False, (), {})


async def test_a_hub_goes_on_searching() -> None:
    """What is new is published, what is known stays, an error is logged and the next search tries again."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub, make_instance("a"))
        hub.fails = "discover"
        while hub.log.count("discover") < 3:
            await asyncio.sleep(0)
        hub.fails = ""
        (await hub.steps.next()).finish([make_instance("a", weight=9.0), make_instance("b")])
        await hub.steps.next()
        assert states(on) == {"a": "ready", "b": "ready"}
        assert hub.instances[0].weight == 1.0


async def test_publishing_is_for_started_hubs() -> None:
    """Before that nobody would hear of it; withdrawing and reporting say nothing then."""
    hub = ScriptedHub()
    with pytest.raises(ClosedError, match="'echo' is not started"):
        hub.publish(hub.make("a"))
    hub.withdraw("a", "gone")
    hub.report_down("a", "dead")
    hub.supply_changed()


async def test_a_hub_publishes_its_own_only() -> None:
    """An instance of another name would neither be checked nor drained with it."""
    async with shell() as on:
        hub = ScriptedHub()
        await on.add_hub(hub)
        with pytest.raises(ValueError, match="names hub 'other'"):
            hub.publish(hub.make("b").changed(hub="other"))
        assert states(on) == {"a": "ready"}


@pytest.mark.parametrize("found", [None, make_instance("another")])
async def test_a_check_that_returns_no_instance_is_an_error_of_its_hub(
    found: ResourceInstance | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The instance is down and the log says why; the next check is another chance."""

    class Forgetful(ScriptedHub):
        forgets = True

        async def check(self, instance: ResourceInstance) -> ResourceInstance:
            return found if self.forgets else instance  # type: ignore[return-value]

    async with shell() as on:
        hub = Forgetful({"a": {"probe": True}})
        await on.add_hub(hub)
        assert states(on) == {"a": "down"}
        assert "Forgetful.check must return the instance as it is now, not " in caplog.text
        hub.forgets = False
        assert await on.health.check(hub.instances[0].id)
        assert states(on) == {"a": "ready"}


async def test_a_hub_knows_what_its_checks_have_found() -> None:
    """So that it does not publish an older record later."""
    async with shell() as on:
        hub = ScriptedHub({"a": {"probe": True}})
        found = frozenset({"model:x"})
        hub.check = lambda instance: _found(instance, found)  # type: ignore[assignment,method-assign]
        await on.add_hub(hub)
        assert hub.instances[0].capabilities == found
        hub.publish(hub.instances[0].changed(generation=5))
        hub.publish(hub.make("a"))
        assert hub.instances[0].generation == 5


async def _found(instance: ResourceInstance, capabilities: frozenset[str]) -> ResourceInstance:
    return instance.changed(capabilities=capabilities)


async def test_what_a_hub_reports_down_is_down_until_a_check_passes() -> None:
    """Without waiting for a request to fail."""
    async with shell() as on:
        hub = ScriptedHub({"a": {"probe": True}})
        await on.add_hub(hub)
        hub.report_down(hub.instances[0].id, "its process ended")
        with pytest.raises(Unavailable, match="its process ended"):
            on.admission.submit(ticket())
        assert await on.health.check(hub.instances[0].id)
        assert states(on) == {"a": "ready"}


async def test_a_restart_is_a_new_generation() -> None:
    """Starting, it is not checked; ready, it is, from the beginning."""
    async with shell() as on:
        hub = ScriptedHub({"a": {"probe": True}})
        await on.add_hub(hub)
        instance = hub.instances[0]
        hub.publish(instance.changed(generation=1), State.STARTING)
        assert states(on) == {"a": "starting"}
        assert not await on.health.check(instance.id)
        hub.publish(instance.changed(generation=1), State.READY)
        assert states(on) == {"a": "ready"}
        assert await on.health.check(instance.id)


async def test_unknown_options_are_refused() -> None:
    """And times that are none."""
    for wrong in ({"check_intervall_s": 1}, {"check_timeout_s": 0}, {"discover_interval_s": -1}):
        with pytest.raises(ValidationError):
            HubOptions.model_validate(wrong)


# -- removing ---------------------------------------------------------------------------------------------------------------


async def test_a_hub_is_removed_when_its_work_is_done() -> None:
    """It takes nothing new meanwhile, and its instances are gone afterwards."""
    async with shell() as on:
        hub = ScriptedHub(("a", "b"))
        await on.add_hub(hub)
        work = ticket()
        slot = on.admission.submit(work)
        assert slot is not None
        removing = asyncio.create_task(on.remove_hub("echo", grace_s=1e6))
        gone = await until(on, "gone")
        assert gone.before is not None
        assert gone.before.endpoint != slot.instance.endpoint
        with pytest.raises(Unavailable):
            on.admission.submit(ticket())
        assert not hub.running
        on.admission.release(work, slot, OUTCOME)
        await removing
        assert (states(on), on.hubs, hub.closed) == ({}, {}, 1)


async def test_a_hub_is_removed_at_the_end_of_its_grace() -> None:
    """Work that takes longer ends on its own."""
    async with shell() as on:
        await on.add_hub(ScriptedHub())
        work = ticket()
        slot = on.admission.submit(work)
        assert slot is not None
        await on.remove_hub("echo", grace_s=0)
        assert states(on) == {}
        on.admission.release(work, slot, OUTCOME)
        assert slot.freed
        with pytest.raises(KeyError):
            await on.remove_hub("echo")


async def test_an_empty_hub_is_removed_at_once() -> None:
    """There is nothing to wait for."""
    async with shell() as on:
        await on.add_hub(ScriptedHub(()))
        await on.remove_hub("echo", grace_s=1e6)
        assert not on.hubs


async def test_a_hub_that_is_removed_creates_no_more() -> None:
    """Those who wait for it are sent away; what was being created is given up."""
    async with shell() as on:
        hub = ContractHub()
        await on.add_hub(hub)
        provider = ContractProvider()
        waiting = Machine().ticket(requirements=provider.request("contract/run").requirements)
        assert on.admission.submit(waiting) is None
        creation = await hub.creations.next()
        await on.remove_hub("contract", grace_s=1e6)
        with pytest.raises((Unavailable, NoCapableInstance)):
            await on.wait(waiting)
        assert creation.cancelled
        assert hub.retired == ["box-1"]


async def test_those_who_wait_for_a_hub_that_is_removed_are_told() -> None:
    """Also if it had not begun to create anything."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub)
        hub.offers = Offer(OfferKind.CREATABLE)
        waiting = ticket()
        assert on.admission.submit(waiting) is None
        while "scale 1" not in hub.log:
            await asyncio.sleep(0)
        await on.remove_hub("echo")
        with pytest.raises(NoCapableInstance):
            await on.wait(waiting)


async def test_what_comes_while_its_hub_is_removed_goes_again() -> None:
    """A creation that cannot be stopped may end after all."""
    async with shell() as on:
        hub = ScriptedHub(("a",))
        await on.add_hub(hub)
        work = ticket()
        slot = on.admission.submit(work)
        assert slot is not None
        removing = asyncio.create_task(on.remove_hub("echo", grace_s=1e6))
        await until(on, "draining")
        hub.publish(hub.make("late"))
        on.admission.release(work, slot, OUTCOME)
        await removing
        assert states(on) == {}


async def test_external_instances_are_never_stopped() -> None:
    """Drained, they stay known as such; their hub is not even asked."""
    async with shell() as on:
        hub = Slow()
        ours = [make_instance(name, ownership=name) for name in (Ownership.MANAGED, Ownership.ADOPTED)]
        await started(on, hub, make_instance("external"), *ours)
        for instance in hub.instances:
            on.admission.drain(instance.id)
        for _ in range(2):
            step = await hub.steps.next()
            while not step.what.startswith("retire"):
                step = await hub.steps.next()
            step.finish()
        while len(hub.instances) > 1:
            await asyncio.sleep(0)
        assert [entry for entry in hub.log if entry.startswith("retire")] == ["retire managed", "retire adopted"]
        assert states(on) == {"external": "drained"}


async def test_an_instance_that_cannot_be_retired_is_gone_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged; nobody waits for it."""
    async with shell() as on:
        hub = Slow(fails="retire a")
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        on.admission.drain(hub.instances[0].id)
        await until(on, "gone")
        assert "retiring" in caplog.text


async def test_what_was_started_anew_while_it_was_retired_stays() -> None:
    """The retirement was the old one's."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        on.admission.drain(hub.instances[0].id)
        while "retire a" not in hub.log:
            await asyncio.sleep(0)
        hub.publish(hub.instances[0].changed(generation=1))
        for step in hub.steps.all:
            step.finish(())
        for _ in range(10):
            await asyncio.sleep(0)
        assert states(on) == {"a": "ready"}


async def test_what_was_started_anew_is_retired_on_its_own() -> None:
    """Also while the old one's retirement still goes on: that ends neither the new one's life nor its retirement."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        for generation in (0, 1):
            hub.publish(hub.instances[0].changed(generation=generation))
            on.admission.drain(hub.instances[0].id)
            while hub.log.count("retire a") <= generation:
                await asyncio.sleep(0)
        old, new = (step for step in hub.steps.all if step.what == "retire a")
        old.finish()
        for _ in range(10):
            await asyncio.sleep(0)
        assert states(on) == {"a": "draining"}
        new.finish()
        await until(on, "gone")


# -- recycling and scaling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [True, False, None])
async def test_a_use_is_cleaned_up_after(answer: bool | None) -> None:  # noqa: FBT001 - a table
    """Kept, spent, or failed to be cleaned: which is spent as well."""
    async with shell() as on:
        hub = Slow(recycles=True)
        await started(on, hub, make_instance("a", max_concurrent=1))
        work = ticket()
        slot = on.admission.submit(work)
        assert slot is not None
        slot.used = True
        on.admission.release(work, slot, OUTCOME)
        while "recycle" not in hub.log:
            await asyncio.sleep(0)
        assert not slot.freed
        todo = next(step for step in hub.steps.all if step.what == "recycle")
        if answer is None:
            todo.fail(LookupError("dirt"))
        else:
            todo.finish(answer)
        while not slot.freed:
            await asyncio.sleep(0)
        assert states(on) == {"a": "ready" if answer else "drained"}


async def test_a_hub_is_asked_once_at_a_time_and_again_for_what_came_meanwhile() -> None:
    """The latest number counts, also if it is the same as before."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub)
        hub.offers = Offer(OfferKind.CREATABLE)
        first = ticket()
        on.admission.submit(first)
        while "scale 1" not in hub.log:
            await asyncio.sleep(0)
        on.admission.submit(ticket())
        on.admission.submit(ticket())
        for _ in range(5):
            await asyncio.sleep(0)
        assert [entry for entry in hub.log if entry.startswith("scale")] == ["scale 1"]
        next(step for step in hub.steps.all if step.what == "scale 1").finish()
        while "scale 3" not in hub.log:
            await asyncio.sleep(0)
        assert "scale 2" not in hub.log
        on.admission.close()


async def test_a_hub_whose_scaling_fails_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """After a pause; those who wait go on waiting."""
    async with shell() as on:
        hub = Slow(fails="scale 1")
        await started(on, hub)
        hub.offers = Offer(OfferKind.CREATABLE)
        on.clock = _Hasty()
        on.admission.submit(ticket())
        while hub.log.count("scale 1") < 3:
            await asyncio.sleep(0)
        assert "scale 1 failed" in caplog.text
        assert on.admission.waiting == 1
        on.admission.close()


class _Hasty(SystemClock):
    """Its timers come at once."""

    def call_at(self, when: float, callback: Any) -> Any:  # noqa: ANN401 - as the real one
        del when
        return asyncio.get_running_loop().call_soon(callback)


async def test_a_hub_is_not_asked_before_it_has_started() -> None:
    """It could not create anything yet; when it can, it is asked for those who wait."""
    async with shell() as on:
        await on.add_hub(ScriptedHub({"a": {"max_concurrent": 1}}, name="first"))
        on.admission.submit(ticket())
        waiting = ticket()
        assert on.admission.submit(waiting) is None
        hub = Slow()
        hub.offers = Offer(OfferKind.CREATABLE)
        adding = asyncio.create_task(on.add_hub(hub))
        discovering = await hub.steps.next()
        on.admission.supply_changed()
        await asyncio.sleep(0)
        assert hub.log == ["open", "discover"]
        discovering.finish(())
        await adding
        while "scale 1" not in hub.log:
            await asyncio.sleep(0)
        on.admission.close()


# -- closing ------------------------------------------------------------------------------------------------------------------


async def test_closing_waits_for_what_is_being_retired() -> None:
    """A container half removed is one that stays."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        on.admission.drain(hub.instances[0].id)
        while "retire a" not in hub.log:
            await asyncio.sleep(0)
        closing = asyncio.create_task(on.aclose())
        for _ in range(50):
            await asyncio.sleep(0)
        assert "close" not in hub.log
        next(step for step in hub.steps.all if step.what == "retire a").finish()
        await closing
        assert hub.log[-1] == "close"


async def test_what_could_not_be_retired_in_time_is_left_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is still in its books when it closes."""
    monkeypatch.setattr("gleitzeit_core.shell._END_S", 0.01)
    kept: list[str] = []

    class Careful(Slow):
        async def close(self) -> None:
            kept.extend(instance.endpoint for instance in self.instances)

    async with shell() as on:
        hub = Careful()
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        on.admission.drain(hub.instances[0].id)
        while "retire a" not in hub.log:
            await asyncio.sleep(0)
        await on.aclose()
        assert kept == ["a"]


async def test_creating_is_stopped_before_the_hub_is_closed() -> None:
    """Or something might be created that nobody stops."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub)
        hub.offers = Offer(OfferKind.CREATABLE)
        on.admission.submit(ticket())
        while "scale 1" not in hub.log:
            await asyncio.sleep(0)
        scaling = next(step for step in hub.steps.all if step.what == "scale 1")
        cancelled: list[bool] = []
        hub.close = lambda: _note(cancelled, scaling)  # type: ignore[method-assign]
        on.admission.close()
        await on.aclose()
        assert cancelled == [True]


async def _note(cancelled: list[bool], todo: Todo) -> None:
    cancelled.append(todo.cancelled)


async def test_a_hub_that_fails_to_close_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and its instances are gone all the same."""

    class Failing(ScriptedHub):
        async def close(self) -> None:
            raise LookupError("stuck")

    async with shell() as on:
        await on.add_hub(Failing(name="failing"))
        other = ScriptedHub(("b",))
        await on.add_hub(other)
        await on.aclose()
        assert (other.closed, states(on), on.hubs) == (1, {}, {})
        assert "did not stop cleanly" in caplog.text


async def test_background_work_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Unless it is a request's own failure, which its caller has heard of."""

    async def fails(error: Exception) -> None:
        raise error

    async with shell() as on:
        for error in (LookupError("oops"), InstanceFailure(FailureKind.LOST, "quiet")):
            await asyncio.wait([on.spawn(fails(error))])
        await asyncio.sleep(0)
        assert "oops" in caplog.text
        assert "quiet" not in caplog.text


async def test_a_contract_hub_leaves_nothing_when_it_is_closed_at_work() -> None:
    """Creations are given up, instances are stopped."""
    async with shell() as on:
        hub = ContractHub(ContractOptions(limit=3))
        await on.add_hub(hub)
        needs = ContractProvider().request("contract/run").requirements
        for _ in range(3):
            on.admission.submit(Machine().ticket(requirements=needs))
        first, second, third = await hub.creations.take(3)
        first.finish()
        await until(on, "ready")
        on.admission.close()
        await on.aclose()
        assert (second.cancelled, third.cancelled) == (True, True)
        assert sorted(hub.retired) == ["box-1", "box-2", "box-3"]
