"""Time that passes when a test says so."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class ManualTimer:
    """A call that was put off.

    Args:
        when: On the clock's monotonic time.
        callback: To be called.
    """

    __slots__ = ("callback", "cancelled", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self) -> None:
        """Forget it."""
        self.cancelled = True


class ManualClock:
    """A `Clock` that stands still until `advance`.

    Args:
        monotonic: Where durations begin, in seconds.
        wall: The Unix time at that moment.
    """

    def __init__(self, monotonic: float = 1_000.0, wall: float = 1_700_000_000.0) -> None:
        self._now = monotonic
        self._wall_offset = wall - monotonic
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._numbers = count()

    def __repr__(self) -> str:
        """Time and timers."""
        return f"<ManualClock {self._now:.3f}, {self.pending} timers>"

    @property
    def pending(self) -> int:
        """Timers that have neither run nor been cancelled."""
        return sum(1 for _, _, timer in self._timers if not timer.cancelled)

    @property
    def next_at(self) -> float | None:
        """When the next timer runs; None when there is none."""
        return min((when for when, _, timer in self._timers if not timer.cancelled), default=None)

    def monotonic(self) -> float:
        """Seconds."""
        return self._now

    def wall(self) -> float:
        """Unix time; it passes in step."""
        return self._now + self._wall_offset

    def call_at(self, when: float, callback: Callable[[], None]) -> ManualTimer:
        """Call `callback` when the clock gets to `when`; what is past is called by the next `advance`, even by 0."""
        timer = ManualTimer(when, callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass. Timers run in order, each at its own moment, those that they set included.

        Raises:
            ValueError: `seconds` is below 0.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._now = max(self._now, when)
                timer.callback()
        self._now = end
