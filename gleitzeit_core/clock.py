"""Time, injected: the same machine runs on a real clock, in property tests and in a simulator."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class TimerHandle(Protocol):
    """A call that was put off."""

    def cancel(self) -> None:
        """Forget it; more than once is fine."""


class Clock(Protocol):
    """Where time comes from. All values in seconds."""

    def monotonic(self) -> float:
        """A clock that never goes back; for durations."""

    def wall(self) -> float:
        """Unix time; for deadlines that leave this process."""

    def call_at(self, when: float, callback: Callable[[], None]) -> TimerHandle:
        """Call `callback` at `when` on the monotonic clock; at once, but not inside this call, if that is past."""


class SystemClock:
    """The real clocks; timers run on the running event loop."""

    # Without a call of our own around it: every request asks several times.
    monotonic = staticmethod(time.monotonic)
    """What asyncio's loops use, too."""
    wall = staticmethod(time.time)

    def call_at(self, when: float, callback: Callable[[], None]) -> TimerHandle:
        """On the running event loop.

        Raises:
            RuntimeError: No event loop is running.
        """
        loop = asyncio.get_running_loop()
        # A loop may have a clock of its own (uvloop counts whole milliseconds), so the delay counts, not the instant.
        return loop.call_later(max(0.0, when - time.monotonic()), callback)
