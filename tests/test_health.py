from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.health import CheckOptions, CheckResult, HealthMonitor
from gleitzeit_core.pool import State
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.machine import make_instance
from gleitzeit_core.testing.todo import Todo, Todos

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gleitzeit_core.resources import ResourceInstance

# Long: a check that a test waits for comes because something asked for it, not because time has passed.
NEVER_S = 1e6
# Short: a check that has not ended by then is one that never will.
SOON_S = 0.01


class Check(Todo):
    """One check that was asked for."""

    def __init__(self, instance: ResourceInstance) -> None:
        super().__init__(f"check of {instance.endpoint}")
        self.instance = instance

    def fails(self, kind: FailureKind) -> None:
        """The instance is not well."""
        self.fail(InstanceFailure(kind, f"{kind} it is"))


class Ward:
    """A sink that remembers, and a hub whose checks end when a test says so."""

    def __init__(self) -> None:
        self.checks: Todos[Check] = Todos()
        self.verdicts: list[tuple[str, str]] = []
        self.found: list[ResourceInstance] = []
        self.degraded: list[str] = []
        self.extra: dict[str, Any] = {}
        self.clock = ManualClock()
        self.monitor = HealthMonitor(self, random=Random(0), clock=self.clock)

    async def examine(self, instance: ResourceInstance) -> ResourceInstance:
        """As a hub."""
        found: ResourceInstance = await self.checks.add(Check(instance)).wait()
        return found

    def put(self, instance: ResourceInstance, state: State) -> None:
        """As a sink."""
        assert state is State.READY
        self.found.append(instance)

    def set_state(self, instance_id: str, state: State, reason: str) -> None:
        """As a sink."""
        assert instance_id
        self.verdicts.append((state.value, reason))

    def set_degraded(self, instance_id: str, source: str, reason: str) -> None:
        """As a sink."""
        assert (bool(instance_id), source) == (True, "latency")
        self.degraded.append(reason)

    def watch(
        self,
        interval_s: float = NEVER_S,
        timeout_s: float = NEVER_S,
        *,
        up: bool = True,
        **changes: Any,  # noqa: ANN401 - any field
    ) -> ResourceInstance:
        """Begin to check, or learn of a change."""
        instance = make_instance(changes.pop("name", "a"), **{"probe": True, **changes})
        self.options = CheckOptions(check_interval_s=interval_s, check_timeout_s=timeout_s, **self.extra)
        self.monitor.watch(instance, self, up=up)
        return instance

    async def ask(self, instance: ResourceInstance) -> tuple[asyncio.Task[bool], Check]:
        """A check now: the task that waits for its verdict, and what the hub has to do."""
        task = asyncio.create_task(self.monitor.check(instance.id))
        return task, await self.checks.next()


@pytest.fixture
async def ward() -> AsyncIterator[Ward]:
    """Closed at the end."""
    made = Ward()
    yield made
    await made.monitor.aclose()


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
    for _ in range(5):
        await asyncio.sleep(0)
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


# -- thresholds -------------------------------------------------------------------------------------------------------------


async def say(ward: Ward, instance: ResourceInstance, *verdicts: FailureKind | None, took_s: float = 0.0) -> None:
    """Checks, one after another, that find what is said; None for well."""
    for kind in verdicts:
        task, check = await ward.ask(instance)
        ward.clock.advance(took_s)
        if kind is None:
            check.finish(instance)
        else:
            check.fails(kind)
        await task


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


# -- slow, and history --------------------------------------------------------------------------------------------------------


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
