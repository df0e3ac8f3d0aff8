from __future__ import annotations

import asyncio
from collections import deque
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.breaker import BreakerPolicy, BreakerState, CircuitBreaker
from gleitzeit_core.errors import CircuitOpen
from gleitzeit_core.testing.clock import ManualClock

STILL = BreakerPolicy(jitter=0.0)


class Bench:
    """A breaker and its clock."""

    def __init__(self, policy: BreakerPolicy = STILL, seed: int = 0) -> None:
        self.clock = ManualClock()
        self.breaker = CircuitBreaker(policy, clock=self.clock, random=Random(seed))

    def fail(self, times: int = 1) -> None:
        """Tries that fail, one after another."""
        for _ in range(times):
            self.breaker.failure(self.breaker.start())

    def pass_until_half_open(self) -> None:
        """As long as it is open."""
        until = self.breaker.until
        assert until is not None
        self.clock.advance(until - self.clock.monotonic())
        assert self.breaker.tick()


@pytest.fixture
def bench() -> Bench:
    """Without jitter."""
    return Bench()


def test_four_failures_in_a_row_are_not_enough(bench: Bench) -> None:
    """It stays closed below the limit, and limits nothing."""
    bench.fail(4)
    assert (bench.breaker.state, bench.breaker.room, bench.breaker.until) == (BreakerState.CLOSED, None, None)
    assert repr(bench.breaker) == "<CircuitBreaker closed, 4 failures, opened 0 times>"


def test_the_fifth_failure_in_a_row_opens_it(bench: Bench) -> None:
    """It lets nothing through for five seconds."""
    bench.fail(5)
    assert (bench.breaker.state, bench.breaker.room) == (BreakerState.OPEN, 0)
    assert bench.breaker.until == bench.clock.monotonic() + 5.0
    assert bench.breaker.next_change() == bench.breaker.until


def test_it_says_why_it_is_open(bench: Bench) -> None:
    """Failures in a row, or too many of the last; or that somebody wanted it so."""
    assert bench.breaker.why == ""
    bench.breaker.trip()
    assert bench.breaker.why == "tripped; tried again in 5 s"
    bench.pass_until_half_open()
    assert bench.breaker.why == ""
    bench.breaker.success(bench.breaker.start())
    for _ in range(10):
        bench.breaker.success(bench.breaker.start())
        bench.fail()
    assert bench.breaker.why == "10 of the last 20 tries failed; tried again in 5 s"


def test_a_success_between_them_begins_the_count_anew(bench: Bench) -> None:
    """In a row means in a row."""
    bench.fail(4)
    assert not bench.breaker.success(bench.breaker.start())
    bench.fail(4)
    assert bench.breaker.state is BreakerState.CLOSED


def test_neither_a_caller_that_leaves_nor_time_changes_the_count(bench: Bench) -> None:
    """What says nothing about the instance neither helps nor harms it."""
    bench.fail(4)
    bench.breaker.neutral(bench.breaker.start())
    bench.clock.advance(1e6)
    assert not bench.breaker.tick()
    bench.fail()
    assert bench.breaker.state is BreakerState.OPEN


def test_it_half_opens_when_its_time_has_passed_and_not_before(bench: Bench) -> None:
    """A moment too early changes nothing."""
    bench.fail(5)
    bench.clock.advance(4.999)
    assert not bench.breaker.tick()
    bench.clock.advance(0.001)
    assert bench.breaker.tick()
    assert (bench.breaker.state, bench.breaker.room) == (BreakerState.HALF_OPEN, 1)


def test_half_open_lets_one_through(bench: Bench) -> None:
    """The second has to wait for what the first says."""
    bench.fail(5)
    bench.pass_until_half_open()
    token = bench.breaker.start()
    assert bench.breaker.room == 0
    assert bench.breaker.success(token)
    assert (bench.breaker.state, bench.breaker.room) == (BreakerState.CLOSED, None)


def test_a_neutral_end_gives_its_own_permit_back(bench: Bench) -> None:
    """A caller that leaves while its instance is on trial does not use up the trial; nor does it give back another's."""
    bench.fail(5)
    bench.pass_until_half_open()
    first = bench.breaker.start()
    bench.breaker.neutral(first)
    assert bench.breaker.room == 1
    bench.breaker.start()
    bench.breaker.neutral(first)
    assert bench.breaker.room == 0


def test_a_permit_expires(bench: Bench) -> None:
    """A try that never comes back does not keep the instance out for ever."""
    bench.fail(5)
    bench.pass_until_half_open()
    bench.breaker.start()
    assert bench.breaker.next_change() == bench.clock.monotonic() + 60.0
    bench.clock.advance(60.0)
    assert not bench.breaker.tick()
    assert (bench.breaker.state, bench.breaker.room) == (BreakerState.HALF_OPEN, 1)
    assert bench.breaker.next_change() is None


def test_a_failure_on_trial_opens_it_for_twice_as_long(bench: Bench) -> None:
    """5, 10, 20 ... seconds, 300 at most, however often."""
    bench.fail(5)
    seen = []
    for _ in range(1100):
        until = bench.breaker.until
        assert until is not None
        seen.append(until - bench.clock.monotonic())
        bench.pass_until_half_open()
        bench.fail()
    assert seen[:7] == pytest.approx([5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0])
    assert max(seen) == pytest.approx(300.0)


def test_a_success_begins_the_doubling_anew(bench: Bench) -> None:
    """What has recovered and fails again much later is out for the first, short time."""
    bench.fail(5)
    bench.pass_until_half_open()
    bench.fail()
    bench.pass_until_half_open()
    bench.breaker.success(bench.breaker.start())
    bench.fail(5)
    assert bench.breaker.until == bench.clock.monotonic() + 5.0


def test_what_began_before_it_opened_says_nothing_any_more(bench: Bench) -> None:
    """Late failures do not lengthen the time, and a late success does not end it."""
    old = [bench.breaker.start() for _ in range(3)]
    bench.fail(5)
    assert not bench.breaker.failure(old[0])
    assert not bench.breaker.success(old[1])
    bench.pass_until_half_open()
    assert not bench.breaker.success(old[2])
    assert not bench.breaker.failure(old[2])
    assert bench.breaker.state is BreakerState.HALF_OPEN


def test_what_began_while_it_was_open_counts_when_it_succeeds(bench: Bench) -> None:
    """With nobody else left work goes on (panic): if it succeeds there, the breaker was wrong; failures change nothing."""
    bench.fail(5)
    bench.fail(20)
    assert repr(bench.breaker) == "<CircuitBreaker open, 0 failures, opened 1 times>"
    assert bench.breaker.success(bench.breaker.start())
    assert bench.breaker.state is BreakerState.CLOSED


def test_jitter_keeps_replicas_out_of_step() -> None:
    """Up to a fifth is added at random, never taken away."""
    spans = []
    for seed in range(50):
        bench = Bench(BreakerPolicy(), seed)
        bench.fail(5)
        assert bench.breaker.until is not None
        spans.append(bench.breaker.until - bench.clock.monotonic())
    assert min(spans) >= 5.0
    assert max(spans) <= 6.0
    assert len(set(spans)) == 50


def test_more_permits_let_more_through() -> None:
    """As many tries at once as the policy says."""
    bench = Bench(BreakerPolicy(failures=1, permits=3, jitter=0.0))
    bench.fail()
    bench.pass_until_half_open()
    bench.breaker.start()
    assert bench.breaker.room == 2


# -- how many of the last, not only how many in a row ---------------------------------------------------------------------


def ends(bench: Bench, pattern: str, pause_s: float = 0.0) -> str:
    """Tries that end well (``+``) or badly (``-``); how far it came before the breaker opened."""
    for number, end in enumerate(pattern):
        token = bench.breaker.start()
        if end == "+":
            bench.breaker.success(token)
        elif bench.breaker.failure(token):
            return pattern[: number + 1]
        bench.clock.advance(pause_s)
    return pattern


def test_half_of_twenty_open_it_although_never_five_fail_in_a_row(bench: Bench) -> None:
    """With fewer than twenty there is no saying; then the failure that makes it half opens it."""
    assert ends(bench, "+-" * 50) == "+-" * 10
    assert (bench.breaker.state, bench.breaker.recent()) == (BreakerState.OPEN, (0, 0))


def test_fewer_than_half_do_not(bench: Bench) -> None:
    """However many there are."""
    assert len(ends(bench, "++-" * 500)) == 1500
    assert bench.breaker.failure_rate == pytest.approx(1 / 3, abs=0.02)


def test_a_success_never_opens_it(bench: Bench) -> None:
    """Although with it there are twenty, more than half of which have failed."""
    assert ends(bench, "---+" * 4 + "---+") == "---+" * 5
    assert (bench.breaker.state, bench.breaker.recent()) == (BreakerState.CLOSED, (20, 15))
    assert ends(bench, "-") == "-"
    assert bench.breaker.state is BreakerState.OPEN


def test_what_is_older_than_the_window_does_not_count(bench: Bench) -> None:
    """Slow failures, one in four seconds, never come to twenty within thirty."""
    assert len(ends(bench, "+-" * 100, pause_s=4.0)) == 200
    assert bench.breaker.recent()[0] <= 8
    bench.clock.advance(30.0)
    assert (bench.breaker.recent(), bench.breaker.failure_rate) == ((0, 0), 0.0)


def test_what_went_well_long_ago_does_not_hide_what_fails_now(bench: Bench) -> None:
    """Of a thousand good ends at most the last hundred count."""
    ends(bench, "+" * 1000)
    assert bench.breaker.recent() == (100, 0)
    opened = ends(bench, "+----" * 60)
    assert opened.count("-") <= 75


@pytest.mark.parametrize(("pause_s", "counted"), [(0.0, 100), (0.5, 60), (5.0, 6), (100.0, 0)])
def test_good_ends_count_as_if_they_had_come_evenly(bench: Bench, pause_s: float, counted: int) -> None:
    """Until something fails they cost next to nothing: neither memory nor a look at the clock."""
    ends(bench, "+" * 1000, pause_s)
    assert bench.breaker.recent()[0] == pytest.approx(counted, rel=0.2, abs=2)


def test_good_ends_of_yesterday_do_not_hide_what_fails_today(bench: Bench) -> None:
    """They are too old, however many they were."""
    ends(bench, "+" * 10_000)
    bench.clock.advance(86_400.0)
    assert len(ends(bench, "+--" * 50)) <= 21


def test_a_rate_above_one_counts_only_what_fails_in_a_row() -> None:
    """The window can be switched off."""
    bench = Bench(BreakerPolicy(failure_rate=1.1))
    assert len(ends(bench, "----+" * 100)) == 500


def test_a_change_of_state_begins_the_window_anew(bench: Bench) -> None:
    """What has recovered is not judged by how it was."""
    ends(bench, "+-" * 10)
    bench.pass_until_half_open()
    bench.breaker.success(bench.breaker.start())
    assert (bench.breaker.state, bench.breaker.recent()) == (BreakerState.CLOSED, (0, 0))
    assert ends(bench, "+-" * 9) == "+-" * 9


def test_it_says_when_all_is_forgotten(bench: Bench) -> None:
    """A moment before, some still counts; then nothing."""
    ends(bench, "+-+-")
    bench.clock.advance(bench.breaker.forgets_at - bench.clock.monotonic() - 0.001)
    assert bench.breaker.recent() == (4, 2)
    bench.clock.advance(0.001)
    assert bench.breaker.recent() == (0, 0)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.01, 0.7, 2.0, 14.9, 15.0, 30.0, 1e5])), max_size=200),
    st.integers(1, 12),
)
def test_failures_count_as_the_window_says(tries: list[tuple[bool, float]], window: int) -> None:
    """None but the last ends of the last thirty seconds; and all among half as many in this half of the time."""
    bench = Bench(BreakerPolicy(failures=10**6, failure_rate=2.0, window=2 * window, min_calls=1))
    seen: deque[tuple[float, bool]] = deque(maxlen=2 * window)
    for failed, pause_s in tries:
        token = bench.breaker.start()
        (bench.breaker.failure if failed else bench.breaker.success)(token)
        seen.append((bench.clock.monotonic(), failed))
        bench.clock.advance(pause_s)
        now = bench.clock.monotonic()
        calls, failures = bench.breaker.recent()
        assert failures <= calls <= 2 * window
        assert failures <= sum(failed for at, failed in seen if now - at <= 30.0)
        assert failures >= sum(failed for at, failed in list(seen)[-window:] if at // 15.0 == now // 15.0)


# -- on its own -------------------------------------------------------------------------------------------------------------


async def returns(value: object) -> object:
    """Something to await."""
    return value


async def fails(error: BaseException) -> None:
    """Something to await that ends badly."""
    raise error


async def open_up(bench: Bench) -> None:
    """Five failures, through `call`."""
    for _ in range(5):
        with pytest.raises(OSError, match="no"):
            await bench.breaker.call(lambda: fails(OSError("no")))


async def test_any_awaitable_can_be_called_through_it(bench: Bench) -> None:
    """What it returns comes back, what it raises goes on, and both count."""
    assert await bench.breaker.call(lambda: returns("x")) == "x"
    await open_up(bench)
    assert bench.breaker.state is BreakerState.OPEN


async def test_an_open_breaker_lets_nothing_begin(bench: Bench) -> None:
    """The error says when to come back; the awaitable is not even made."""
    await open_up(bench)
    begun: list[int] = []
    bench.clock.advance(2.0)
    with pytest.raises(CircuitOpen, match="retry after 3 s") as raised:
        await bench.breaker.call(lambda: returns(begun.append(1)))
    assert not begun
    assert (raised.value.code, raised.value.retryable, raised.value.retry_after_s) == ("circuit_open", True, 3.0)


async def test_time_counts_without_ticking(bench: Bench) -> None:
    """When its time has passed one try is let through, the others are still turned away, and its success closes it."""
    await open_up(bench)
    bench.clock.advance(5.0)
    with bench.breaker.guard():
        assert bench.breaker.state is BreakerState.HALF_OPEN
        with pytest.raises(CircuitOpen) as raised, bench.breaker.guard():
            pytest.fail("it was let through")
        assert raised.value.retry_after_s == 1.0
    assert bench.breaker.state is BreakerState.CLOSED


async def test_only_what_counts_is_a_failure(bench: Bench) -> None:
    """A caller's own mistake says nothing about what it calls."""
    for _ in range(10):
        with pytest.raises(LookupError):
            await bench.breaker.call(lambda: fails(LookupError()), counts=(OSError,))
    assert (bench.breaker.state, bench.breaker.recent()) == (BreakerState.CLOSED, (0, 0))
    for _ in range(5):
        with pytest.raises(ConnectionError), bench.breaker.guard((OSError, ValueError)):
            raise ConnectionError
    assert bench.breaker.state is BreakerState.OPEN


async def test_a_cancelled_call_says_nothing(bench: Bench) -> None:
    """On trial it gives its permit back, so that the next may try."""
    await open_up(bench)
    bench.clock.advance(5.0)
    task = asyncio.create_task(bench.breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    assert bench.breaker.room == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (bench.breaker.state, bench.breaker.room) == (BreakerState.HALF_OPEN, 1)


async def test_calls_at_once_are_told_apart(bench: Bench) -> None:
    """Each block is a try of its own, however they overlap."""
    doors: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(6)]
    calls = [asyncio.create_task(bench.breaker.call(lambda door=door: door)) for door in doors]  # type: ignore[misc]
    await asyncio.sleep(0)
    for door in doors[:5]:
        door.set_exception(OSError())
    await asyncio.wait(calls[:5])
    assert bench.breaker.state is BreakerState.OPEN
    doors[5].set_result("late")
    assert await calls[5] == "late"
    assert bench.breaker.state is BreakerState.OPEN, "it began before the breaker opened"
    assert all(isinstance(call.exception(), OSError) for call in calls[:5])


async def test_it_needs_nothing_to_begin_with() -> None:
    """Policy, clock and randomness have defaults."""
    breaker = CircuitBreaker()
    assert await breaker.call(lambda: returns(1)) == 1
    assert (breaker.state, breaker.recent()) == (BreakerState.CLOSED, (1, 0))
