from __future__ import annotations

from random import Random

import pytest

from gleitzeit_core.breaker import BreakerPolicy, BreakerState, CircuitBreaker
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
