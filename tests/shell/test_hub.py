"""Hubs that are added, search, check and publish."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from gleitzeit_core.errors import ClosedError, FailureKind, InstanceFailure, Unavailable
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.pool import State
from gleitzeit_core.testing.machine import make_instance
from gleitzeit_core.testing.scripted import ScriptedHub

from .shells import shell, states, ticket
from .slow import Slow, started

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gleitzeit_core.resources import ResourceInstance


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
        await hub.reached("discover", 3)
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
