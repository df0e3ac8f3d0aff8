"""How many checks it takes to be out, and to be back."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.health import CheckOptions

from .ward import NEVER_S, Ward, say


async def test_how_many_failures_it_takes_is_an_option(ward: Ward) -> None:
    """In a row; but a refused connection needs no second."""
    ward.extra = {"check_failures": 4}
    instance = ward.watch()
    bad = FailureKind.TIMEOUT
    await say(ward, instance, bad, bad, bad, None, bad, bad, bad)
    assert ward.verdicts == [("ready", "")]
    await say(ward, instance, bad)
    assert ward.verdicts[-1] == ("down", "timeout it is")
    await say(ward, instance, None, FailureKind.REFUSED)
    assert ward.verdicts[-1] == ("down", "refused it is")


async def test_what_was_taken_out_may_need_several_good_checks(ward: Ward) -> None:
    """In a row, and the next one comes soon; what is new needs one."""
    ward.extra = {"check_successes": 3}
    instance = ward.watch(up=False)
    await say(ward, instance, None, FailureKind.REFUSED, None, None)
    assert ward.verdicts == [("ready", ""), ("down", "refused it is")]
    await say(ward, instance, FailureKind.TIMEOUT, None, None)
    assert ward.verdicts[-1][0] == "down"
    await say(ward, instance, None)
    assert ward.verdicts[-1] == ("ready", "")


@pytest.mark.parametrize("kind", [FailureKind.REFUSED, FailureKind.UNAUTHORIZED])
async def test_what_is_not_yet_back_is_asked_again_soon(ward: Ward, kind: FailureKind) -> None:
    """Long before its interval has passed, although its last check was good."""
    ward.extra = {"check_successes": 2}
    instance = ward.watch()
    await say(ward, instance, kind, None)
    (await ward.checks.next()).finish(instance)
    await asyncio.sleep(0)
    assert ward.verdicts[-1] == ("ready", "")


async def test_what_a_request_found_down_needs_as_many(ward: Ward) -> None:
    """It makes no difference who noticed."""
    ward.extra = {"check_successes": 2}
    instance = ward.watch()
    ward.watch(up=False)
    await say(ward, instance, None)
    assert not ward.verdicts
    await say(ward, instance, None)
    assert ward.verdicts == [("ready", "")]


async def test_what_is_found_counts_before_it_is_back(ward: Ward) -> None:
    """A model that is there now is known, although the instance has to prove itself once more."""
    ward.extra = {"check_successes": 2}
    instance = ward.watch()
    await say(ward, instance, FailureKind.REFUSED)
    task, check = await ward.ask(instance)
    found = instance.changed(capabilities=frozenset({"x"}))
    check.finish(found)
    await task
    assert (ward.found, ward.verdicts[-1][0]) == ([found], "down")


async def test_changed_options_count_from_the_next_check_on(ward: Ward) -> None:
    """They are looked at anew each time."""
    instance = ward.watch()
    await say(ward, instance, FailureKind.TIMEOUT)
    ward.options = CheckOptions(check_interval_s=NEVER_S, check_timeout_s=NEVER_S, check_failures=3)
    await say(ward, instance, FailureKind.TIMEOUT)
    assert not ward.verdicts
    await say(ward, instance, FailureKind.TIMEOUT)
    assert ward.verdicts == [("down", "timeout it is")]


@pytest.mark.parametrize(
    "wrong", [{"check_failures": 0}, {"check_successes": 0}, {"check_slow_s": 0}, {"check_interval_s": float("nan")}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    """At once."""
    with pytest.raises(ValidationError):
        CheckOptions.model_validate(wrong)
