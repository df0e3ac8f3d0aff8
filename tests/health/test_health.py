"""When instances are checked, and what a check makes of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.testing.todo import turns

from .ward import SOON_S, Check, Ward

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.resources import ResourceInstance


async def test_what_is_well_is_ready(ward: Ward) -> None:
    """Unchanged, it is not published again."""
    instance = ward.watch()
    task, check = await ward.ask(instance)
    check.finish(instance)
    assert await task
    assert (ward.verdicts, ward.found) == ([("ready", "")], [])


async def test_what_has_changed_is_published(ward: Ward) -> None:
    """Once: the next check compares with it."""
    instance = ward.watch()
    now = instance.changed(capabilities=frozenset({"x"}))
    for _ in range(2):
        task, check = await ward.ask(instance)
        check.finish(now)
        await task
    assert ward.found == [now]


async def test_one_refused_connection_is_down(ward: Ward) -> None:
    """There is nothing more to learn."""
    task, check = await ward.ask(ward.watch())
    check.fails(FailureKind.REFUSED)
    assert not await task
    assert ward.verdicts == [("down", "refused it is")]


@pytest.mark.parametrize("kind", [FailureKind.SERVER_ERROR, FailureKind.TIMEOUT, FailureKind.BUSY, FailureKind.LOST])
async def test_anything_else_is_down_after_two_in_a_row(ward: Ward, kind: FailureKind) -> None:
    """One bad answer may be chance; a good one in between begins the count anew."""
    instance = ward.watch()
    for fails in (True, False, True):
        task, check = await ward.ask(instance)
        if fails:
            check.fails(kind)
        else:
            check.finish(instance)
        await task
    assert ward.verdicts == [("ready", "")]
    task, check = await ward.ask(instance)
    check.fails(kind)
    await task
    assert ward.verdicts[-1] == ("down", f"{kind} it is")


async def test_what_was_never_well_is_down_with_its_first_failure(ward: Ward) -> None:
    """There is nothing to be patient with, and the reason is wanted; once it was well, it takes two."""
    instance = ward.watch(up=False)
    for kind in (FailureKind.SERVER_ERROR, None, FailureKind.TIMEOUT, FailureKind.TIMEOUT):
        task, check = await ward.ask(instance)
        if kind is None:
            check.finish(instance)
        else:
            check.fails(kind)
        await task
    assert ward.verdicts == [("down", "server_error it is"), ("ready", ""), ("down", "timeout it is")]


async def test_a_check_by_hand_that_fails_makes_the_next_one_soon(ward: Ward) -> None:
    """The pause that was begun was for an instance that is well; there is one such pause at a time."""
    before = len(asyncio.all_tasks())
    instance = ward.watch()
    for _ in range(3):
        task, check = await ward.ask(instance)
        check.fails(FailureKind.REFUSED)
        await task
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before + 1
    (await ward.checks.next()).finish(instance)


async def test_refused_credentials_are_a_configuration_error(ward: Ward) -> None:
    """Said at once."""
    task, check = await ward.ask(ward.watch())
    check.fails(FailureKind.UNAUTHORIZED)
    await task
    assert ward.verdicts == [("misconfigured", "unauthorized it is")]


async def test_a_hub_that_raises_something_else_is_logged(ward: Ward, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake in a plugin is a failed check, not the end of all checks."""
    instance = ward.watch()
    for _ in range(2):
        task, check = await ward.ask(instance)
        check.fail(LookupError("oops"))
        assert not await task
    assert ward.verdicts == [("down", "health check failed: oops")]
    assert "oops" in caplog.text


async def test_a_check_that_hangs_has_failed(ward: Ward) -> None:
    """It is cancelled."""
    instance = ward.watch(timeout_s=SOON_S)
    for _ in range(2):
        task, check = await ward.ask(instance)
        assert not await task
        assert check.cancelled
    assert ward.verdicts == [("down", "no answer to a check within 0.01 s")]


async def test_it_goes_on_by_itself(ward: Ward) -> None:
    """Again and again, in its interval."""
    instance = ward.watch(interval_s=SOON_S)
    for _ in range(5):
        (await ward.checks.next()).finish(instance)


async def test_what_fails_is_asked_again_soon(ward: Ward) -> None:
    """Long before its interval has passed."""
    instance = ward.watch()
    task, check = await ward.ask(instance)
    check.fails(FailureKind.REFUSED)
    await task
    ward.monitor.suspect(instance.id)
    (await ward.checks.next()).fails(FailureKind.REFUSED)
    (await ward.checks.next()).finish(instance)


async def test_a_suspect_is_checked_at_once(ward: Ward) -> None:
    """However often it is suspected meanwhile, once more is enough."""
    instance = ward.watch()
    await asyncio.sleep(0)
    for _ in range(10):
        ward.monitor.suspect(instance.id)
    (await ward.checks.next()).finish(instance)
    await asyncio.sleep(0)
    assert len(ward.checks.all) == 1


async def test_what_must_not_be_probed_is_left_alone(ward: Ward) -> None:
    """Nothing but users' requests is sent to it."""
    instance = ward.watch(probe=False)
    ward.monitor.suspect(instance.id)
    assert not await ward.monitor.check(instance.id)
    assert not ward.checks.all
    assert repr(ward.monitor) == "<HealthMonitor watches 0, 0 failing>"


async def test_what_is_forgotten_is_checked_no_more(ward: Ward) -> None:
    """A check under way is cancelled, and its verdict would not count."""
    instance = ward.watch()
    ward.monitor.suspect(instance.id)
    check = await ward.checks.next()
    ward.monitor.forget(instance.id)
    check.finish(instance)
    await asyncio.sleep(0)
    assert not ward.verdicts
    ward.monitor.forget(instance.id)
    ward.monitor.suspect(instance.id)
    assert not await ward.monitor.check(instance.id)


def _well(check: Check) -> None:
    check.finish(check.instance.changed(capabilities=frozenset({"old"})))


def _dead(check: Check) -> None:
    check.fails(FailureKind.REFUSED)


@pytest.mark.parametrize("verdict", [_well, _dead])
async def test_a_verdict_on_what_was_started_anew_does_not_count(ward: Ward, verdict: Callable[[Check], None]) -> None:
    """The answer is that of the old one."""
    task, check = await ward.ask(ward.watch())
    ward.watch(generation=1)
    verdict(check)
    await task
    assert (ward.verdicts, ward.found) == ([], [])


async def test_what_was_started_anew_begins_without_a_record(ward: Ward) -> None:
    """One failure before and one after are not two in a row."""
    task, check = await ward.ask(ward.watch())
    check.fails(FailureKind.TIMEOUT)
    await task
    task, check = await ward.ask(ward.watch(generation=1))
    check.fails(FailureKind.TIMEOUT)
    await task
    assert not ward.verdicts


async def test_a_newer_record_of_the_hub_is_not_overwritten(ward: Ward) -> None:
    """What the hub published while the instance answered is right."""
    task, check = await ward.ask(ward.watch())
    ward.watch(tags=frozenset({"new"}))
    check.finish(check.instance.changed(capabilities=frozenset({"x"})))
    assert await task
    assert (ward.verdicts, ward.found) == ([("ready", "")], [])


async def test_not_all_are_checked_at_once(ward: Ward) -> None:
    """A thousand instances do not mean a thousand connections."""
    instances = [ward.watch(name=f"i{number}") for number in range(200)]
    tasks = [asyncio.create_task(ward.monitor.check(instance.id)) for instance in instances]
    running = await ward.checks.take(64)
    await turns(5)
    assert len(ward.checks.all) == 64
    for _ in range(200 - 64):
        check = running.pop()
        check.finish(check.instance)
        running.append(await ward.checks.next())
    for check in running:
        check.finish(check.instance)
    assert all(await asyncio.gather(*tasks))


async def test_closing_ends_all_checks(ward: Ward) -> None:
    """Nothing is begun afterwards."""
    before = asyncio.all_tasks()
    instance = ward.watch(name="late")
    ward.monitor.suspect(instance.id)
    check = await ward.checks.next()
    await ward.monitor.aclose()
    assert check.cancelled
    assert asyncio.all_tasks() == before
    ward.watch(name="too late")
    assert repr(ward.monitor) == "<HealthMonitor watches 0, 0 failing>"


async def test_closing_leaves_no_check_that_was_forgotten() -> None:
    """It may have had something to put away, and has ended when all is closed."""
    examining = asyncio.Event()

    class Slow(Ward):
        async def examine(self, instance: ResourceInstance) -> ResourceInstance:
            examining.set()
            try:
                return await super().examine(instance)
            finally:
                await asyncio.Event().wait()

    before, ward = asyncio.all_tasks(), Slow()
    instance = ward.watch()
    ward.monitor.suspect(instance.id)
    await examining.wait()
    ward.monitor.forget(instance.id)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() > before
    await ward.monitor.aclose()
    assert asyncio.all_tasks() == before
