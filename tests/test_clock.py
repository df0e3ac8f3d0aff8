from __future__ import annotations

import asyncio
import time

import pytest

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.testing.clock import ManualClock


def test_timers_run_in_order_each_at_its_moment() -> None:
    """Also those that are set meanwhile, if they are due."""
    clock, seen = ManualClock(monotonic=0.0), []

    def note(name: str) -> None:
        seen.append((name, clock.monotonic()))
        if name == "b":
            clock.call_at(2.5, lambda: note("set by b"))
            clock.call_at(9.0, lambda: note("too late"))

    clock.call_at(3.0, lambda: note("c"))
    clock.call_at(2.0, lambda: note("b"))
    clock.call_at(1.0, lambda: note("a"))
    clock.advance(4.0)
    assert seen == [("a", 1.0), ("b", 2.0), ("set by b", 2.5), ("c", 3.0)]
    assert (clock.monotonic(), clock.pending, clock.next_at) == (4.0, 1, 9.0)
    assert repr(clock) == "<ManualClock 4.000, 1 timers>"


def test_a_cancelled_timer_does_not_run() -> None:
    """Cancelling again is fine."""
    clock, seen = ManualClock(), []
    timer = clock.call_at(clock.monotonic() + 1, lambda: seen.append(1))
    timer.cancel()
    timer.cancel()
    clock.advance(2)
    assert (seen, clock.pending, clock.next_at) == ([], 0, None)


def test_what_is_past_runs_with_the_next_advance() -> None:
    """Not inside the call that sets it."""
    clock, seen = ManualClock(), []
    clock.call_at(0.0, lambda: seen.append(1))
    assert seen == []
    clock.advance(0)
    assert seen == [1]


def test_the_wall_clock_goes_in_step() -> None:
    """And time does not go back."""
    clock = ManualClock(monotonic=5.0, wall=100.0)
    clock.advance(1.5)
    assert (clock.monotonic(), clock.wall()) == (6.5, 101.5)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


async def test_the_system_clock_is_the_systems() -> None:
    """What is past is called soon, and not inside the call."""
    clock, called = SystemClock(), asyncio.Event()
    assert time.monotonic() <= clock.monotonic() <= time.monotonic()
    assert time.time() <= clock.wall() <= time.time()
    clock.call_at(0.0, called.set)
    assert not called.is_set()
    await called.wait()


async def test_a_timer_of_the_system_clock_can_be_cancelled() -> None:
    """It does not run then."""
    clock, seen = SystemClock(), []
    clock.call_at(clock.monotonic(), lambda: seen.append(1)).cancel()
    later = asyncio.Event()
    clock.call_at(clock.monotonic() + 0.001, later.set)
    await later.wait()
    assert seen == []


def test_without_a_loop_there_are_no_timers() -> None:
    """It says so."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        SystemClock().call_at(0.0, lambda: None)
