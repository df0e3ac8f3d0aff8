"""What a hub may ask and say, and options that change while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.testing.scripted import ScriptedHub

from .handy import Handy, end, named, work
from .shells import shell, states

if TYPE_CHECKING:
    import pytest


# -- what a hub may ask and say ---------------------------------------------------------------------------------------------


async def test_a_hub_learns_how_long_an_instance_was_idle() -> None:
    """Nothing of what drains or is not there, nor before it is started; no time at all of what works."""
    hub = Handy(("a", "b"))
    assert hub.idle_s("a") is None
    async with shell(hub) as on:
        taken = work(on)
        idle = {record.instance.id: hub.idle_s(record.instance.id) for record in on.admission.pool}
        assert idle.pop(taken[1].instance.id) == 0.0
        assert all(seconds is not None and seconds > 0 for seconds in idle.values())
        assert hub.idle_s("nobody") is None
        end(on, taken)
        hub.drain(taken[1].instance.id, "not wanted")
        assert hub.idle_s(taken[1].instance.id) is None
        assert on.admission.pool.records[taken[1].instance.id].why == "not wanted"


async def test_an_instance_in_two_hubs_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each search finds it again; the log is for people."""
    two = ScriptedHub(("a",), name="two")
    async with shell(ScriptedHub(("a",), name="one"), two) as on:
        for _ in range(3):
            await two.search()
        assert caplog.text.count("is in the hubs one and two") == 1
        await on.remove_hub("two")
        await on.add_hub(ScriptedHub(("a",), name="two"))
        assert caplog.text.count("is in the hubs one and two") == 2


# -- options that change ----------------------------------------------------------------------------------------------------


async def test_what_every_hub_has_can_change_while_it_runs() -> None:
    """Checks go by the new options from then on."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        hub.checks["a"] = InstanceFailure(FailureKind.SERVER_ERROR, "broken")
        assert await hub.reconfigure(HubOptions(check_failures=1, discover_interval_s=7.0))
        assert hub.options.discover_interval_s == 7.0
        assert not await on.health.check(named(on, "a"))
        assert states(on) == {"a": "down"}


async def test_what_only_this_hub_has_needs_a_restart() -> None:
    """Unless its author says otherwise; nothing has changed then."""

    class Options(HubOptions):
        rooms: int = 1

    hub = Handy()
    hub.options = Options()
    assert not await hub.reconfigure(Options(rooms=2, check_failures=5))
    assert hub.options == Options()
    assert hub.differing(Options(rooms=2, check_failures=5)) == {"rooms", "check_failures"}
    assert await hub.reconfigure(Options(check_failures=5))
    assert hub.options == Options(check_failures=5)


async def test_three_slow_checks_make_an_instance_count_half() -> None:
    """From the monitor through the shell to the pool, and back."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        await hub.reconfigure(HubOptions(check_slow_s=1e-12))
        for _ in range(3):
            assert states(on) == {"a": "ready"}
            await on.health.check(named(on, "a"))
        record = on.admission.pool.records[named(on, "a")]
        assert (record.condition, record.serving) == ("degraded", True)
        await hub.reconfigure(HubOptions())
        await on.health.check(named(on, "a"))
        assert states(on) == {"a": "ready"}


async def test_what_was_slow_before_it_was_drained_counts_in_full_again() -> None:
    """Until it has been found slow anew."""
    hub = Handy({"a": {"probe": True}})
    async with shell(hub) as on:
        name = named(on, "a")
        await hub.reconfigure(HubOptions(check_slow_s=1e-12))
        for _ in range(3):
            await on.health.check(name)
        assert states(on) == {"a": "degraded"}
        on.drain_instance(name)
        await on.resume_instance(name)
        assert states(on) == {"a": "ready"}
        for _ in range(2):
            await on.health.check(name)
        assert states(on) == {"a": "degraded"}
