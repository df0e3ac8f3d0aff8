"""Hubs that clean up after a use, and that are asked for more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.testing.machine import make_instance
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import turns

from .shells import OUTCOME, shell, states, ticket
from .slow import Slow, started


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
        await hub.reached("recycle")
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
        await hub.reached("scale 1")
        on.admission.submit(ticket())
        on.admission.submit(ticket())
        await turns(5)
        assert [entry for entry in hub.log if entry.startswith("scale")] == ["scale 1"]
        next(step for step in hub.steps.all if step.what == "scale 1").finish()
        await hub.reached("scale 3")
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
        await hub.reached("scale 1", 3)
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
        await hub.reached("scale 1")
        on.admission.close()
