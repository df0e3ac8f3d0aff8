"""The end of a shell and of its hubs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.resources import Ownership
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.testing.contract import ContractHub, ContractOptions, ContractProvider
from gleitzeit_core.testing.machine import Machine, make_instance
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import turns

from .shells import shell, states, ticket, until
from .slow import Slow, started

if TYPE_CHECKING:
    import pytest

    from gleitzeit_core.testing.todo import Todo


async def test_closing_waits_for_what_is_being_retired() -> None:
    """A container half removed is one that stays."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub, make_instance("a", ownership=Ownership.MANAGED))
        on.admission.drain(hub.instances[0].id)
        await hub.reached("retire a")
        closing = asyncio.create_task(on.aclose())
        await turns(50)
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
        await hub.reached("retire a")
        await on.aclose()
        assert kept == ["a"]


async def test_creating_is_stopped_before_the_hub_is_closed() -> None:
    """Or something might be created that nobody stops."""
    async with shell() as on:
        hub = Slow()
        await started(on, hub)
        hub.offers = Offer(OfferKind.CREATABLE)
        on.admission.submit(ticket())
        await hub.reached("scale 1")
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
