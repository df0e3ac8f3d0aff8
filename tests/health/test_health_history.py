"""Checks that are slow, and what is remembered of the last ones."""

from __future__ import annotations

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.health import CheckResult

from .ward import Ward, say


async def test_three_slow_checks_are_degraded(ward: Ward) -> None:
    """Two are not, nor are three with a fast one between; the first fast one ends it."""
    ward.extra = {"check_slow_s": 2.0}
    instance = ward.watch()
    await say(ward, instance, None, None, took_s=3.0)
    await say(ward, instance, None, took_s=2.0)
    await say(ward, instance, None, None, took_s=3.0)
    assert not ward.degraded
    await say(ward, instance, None, None, took_s=3.0)
    assert set(ward.degraded) == {"checks take longer than 2 s"}
    await say(ward, instance, None, None, took_s=0.1)
    assert ward.degraded[-1:] == [""]
    assert ward.degraded.count("") == 1


async def test_what_was_slow_before_it_was_started_anew_does_not_count(ward: Ward) -> None:
    """It takes three slow checks again."""
    ward.extra = {"check_slow_s": 2.0}
    await say(ward, ward.watch(), None, None, took_s=3.0)
    anew = ward.watch(generation=1)
    await say(ward, anew, None, None, took_s=3.0)
    assert not ward.degraded
    await say(ward, anew, None, took_s=3.0)
    assert ward.degraded


async def test_nothing_is_slow_unless_an_option_says_so(ward: Ward) -> None:
    """How long is long depends on what is asked."""
    await say(ward, ward.watch(), *[None] * 5, took_s=1000.0)
    assert not ward.degraded


async def test_the_last_checks_are_remembered(ward: Ward) -> None:
    """With their time, how long they took, and what was wrong: 32 at most."""
    instance = ward.watch()
    await say(ward, instance, None, took_s=0.5)
    await say(ward, instance, FailureKind.TIMEOUT, took_s=1.5)
    at = ward.clock.wall()
    assert ward.monitor.history(instance.id) == (
        CheckResult(at - 1.5, ok=True, took_s=0.5),
        CheckResult(at, ok=False, took_s=1.5, reason="timeout it is"),
    )
    await say(ward, instance, *[None] * 50)
    assert [result.ok for result in ward.monitor.history(instance.id)] == [True] * 32


async def test_a_failure_without_a_reason_is_a_failure(ward: Ward) -> None:
    """A plugin may have nothing to say."""
    task, check = await ward.ask(ward.watch())
    check.fail(InstanceFailure(FailureKind.REFUSED, ""))
    assert not await task
    assert ward.verdicts == [("down", "")]
    assert not ward.monitor.history(check.instance.id)[0].ok


async def test_what_is_not_watched_has_no_history(ward: Ward) -> None:
    """Neither what nobody knows nor what is watched no more; and what was said of it meanwhile does not count."""
    instance = ward.watch()
    await say(ward, instance, None)
    assert len(ward.monitor.history(instance.id)) == 1
    ward.monitor.forget(instance.id)
    assert ward.monitor.history(instance.id) == ward.monitor.history("nobody") == ()
