"""A circuit breaker: five failures in a row and an instance is left alone for a while.

    CLOSED ──failures in a row──> OPEN ──its time passes──> HALF_OPEN ──a success──> CLOSED
                                   ^                            │
                                   └── a failure, for twice as long ──┘

Fast failures are a sinkhole: whoever balances by load sends everything to the server that answers 500 in a millisecond.
The breaker is synchronous and takes its time and randomness from outside. A *success* is the first output, not the end.
After M. Nygard, "Release It!", with Envoy's outlier ejection for the doubling.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.clock import Clock


class BreakerState(StrEnum):
    """Whether work is let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens and for how long. Times in seconds.

    Args:
        failures: In a row, from 1.
        open_s: The first time.
        open_max_s: At most, after doubling.
        jitter: Up to this fraction is added at random, so that replicas do not come back in step.
        permits: Tries at once while half open, from 1.
        permit_s: A try that has not come back after this long no longer holds its permit.
    """

    failures: int = 5
    open_s: float = 5.0
    open_max_s: float = 300.0
    jitter: float = 0.2
    permits: int = 1
    permit_s: float = 60.0


class CircuitBreaker:
    """One breaker, for one instance.

    A token from `start` goes with each try and comes back with its end; a try that began before the breaker last
    changed its state no longer says anything about it, and is not counted.

    Args:
        policy: When to open.
        clock: Time.
        random: For jitter.
    """

    def __init__(self, policy: BreakerPolicy, *, clock: Clock, random: Random) -> None:
        self._policy, self._clock, self._random = policy, clock, random
        # As of the last event; `tick` first to let time count.
        self.state = BreakerState.CLOSED
        self._starts = 0
        self._stale = 0
        self._failures = 0
        self._opened_in_a_row = 0
        self._until = 0.0
        self._permits: dict[int, float] = {}

    def __repr__(self) -> str:
        """State and counts."""
        return f"<CircuitBreaker {self.state.value}, {self._failures} failures, opened {self._opened_in_a_row} times>"

    @property
    def until(self) -> float | None:
        """When it half opens, on the monotonic clock; None unless open."""
        return self._until if self.state is BreakerState.OPEN else None

    @property
    def room(self) -> int | None:
        """Tries it lets through now; None for no limit."""
        if self.state is BreakerState.CLOSED:
            return None
        return self._policy.permits - len(self._permits) if self.state is BreakerState.HALF_OPEN else 0

    def next_change(self) -> float | None:
        """When `tick` has something to do, on the monotonic clock; None when only events matter."""
        return self.until if self.state is BreakerState.OPEN else min(self._permits.values(), default=None)

    def tick(self) -> bool:
        """Let time count: half open when it is time, forget expired permits. True when the state changed."""
        now = self._clock.monotonic()
        if self.state is BreakerState.OPEN and now >= self._until:
            self._enter(BreakerState.HALF_OPEN)
            return True
        self._permits = {token: expiry for token, expiry in self._permits.items() if expiry > now}
        return False

    def start(self) -> int:
        """A try begins. Returns the token for `success`, `failure` or `neutral`."""
        self._starts += 1
        if self.state is BreakerState.HALF_OPEN:
            self._permits[self._starts] = self._clock.monotonic() + self._policy.permit_s
        return self._starts

    def success(self, token: int) -> bool:
        """The try gave output. True when this closed the breaker, be it half open or open for lack of others."""
        if token <= self._stale:
            return False
        self._failures = 0
        if self.state is BreakerState.CLOSED:
            return False
        self._opened_in_a_row = 0
        self._enter(BreakerState.CLOSED)
        return True

    def failure(self, token: int) -> bool:
        """The try failed. True when this opened the breaker."""
        if token <= self._stale or self.state is BreakerState.OPEN:
            return False
        self._failures += 1
        if self.state is BreakerState.CLOSED and self._failures < self._policy.failures:
            return False
        self.trip()
        return True

    def neutral(self, token: int) -> None:
        """The try said nothing about the instance: its caller left, or asked for something impossible."""
        self._permits.pop(token, None)

    def trip(self) -> None:
        """Open now, whatever was counted; for twice as long as the last time."""
        base = min(self._policy.open_s * 2.0 ** min(self._opened_in_a_row, 64), self._policy.open_max_s)
        self._until = self._clock.monotonic() + base * (1 + self._policy.jitter * self._random.random())
        self._opened_in_a_row += 1
        self._enter(BreakerState.OPEN)

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self._stale = self._starts
        self._failures = 0
        self._permits.clear()
