"""A circuit breaker: five failures in a row, or half of the last twenty, and an instance is left alone for a while.

    CLOSED ──failures──> OPEN ──its time passes──> HALF_OPEN ──a success──> CLOSED
                          ^                            │
                          └── a failure, for twice as long ──┘

Fast failures are a sinkhole: whoever balances by load sends everything to the server that answers 500 in a millisecond.
The breaker is synchronous and takes its time and randomness from outside. A *success* is the first output, not the end.
After M. Nygard, "Release It!", with Envoy's outlier ejection for the doubling.

On its own it keeps any awaitable from hammering at what is broken; it needs neither a pool nor a timer:

    breaker = CircuitBreaker()
    answer = await breaker.call(lambda: client.get("/"), counts=(OSError,))
    with breaker.guard():                  # or around several steps
        ...
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, TypeVar

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.errors import CircuitOpen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gleitzeit_core.clock import Clock

T = TypeVar("T")

# What is turned away while a try on trial is under way comes back after this long.
_TRIAL_S = 1.0


class BreakerState(StrEnum):
    """Whether work is let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# Looked up once: to look a member up in its enumeration takes as long as a call.
_CLOSED, _HALF_OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN


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
        window_s: Failures are also counted among the ends of about this time,
        window: and among about so many of the last ends.
        min_calls: So many must have ended in there, at most `window`,
        failure_rate: and this part of them failed, for a failure to open it. Above 1 for never.
    """

    failures: int = 5
    open_s: float = 5.0
    open_max_s: float = 300.0
    jitter: float = 0.2
    permits: int = 1
    permit_s: float = 60.0
    window_s: float = 30.0
    window: int = 100
    min_calls: int = 20
    failure_rate: float = 0.5


class CircuitBreaker:
    """One breaker, for one instance.

    A token from `start` goes with each try and comes back with its end; a try that began before the breaker last
    changed its state no longer says anything about it, and is not counted.

    Args:
        policy: When to open; None for the default.
        clock: Time; None for the system's.
        random: For jitter; None for one of its own.
    """

    __slots__ = (
        *("_before", "_calls", "_clock", "_failed", "_failures", "_half", "_half_calls", "_half_s", "_opened_in_a_row"),
        *("_permits", "_policy", "_random", "_stale", "_starts", "_until", "_why", "state"),
    )

    def __init__(
        self, policy: BreakerPolicy | None = None, *, clock: Clock | None = None, random: Random | None = None
    ) -> None:
        self._policy, self._clock, self._random = policy or BreakerPolicy(), clock or SystemClock(), random or Random()
        # As of the last event; `tick` first to let time count.
        self.state = BreakerState.CLOSED
        self._starts = 0
        self._stale = 0
        self._failures = 0
        self._opened_in_a_row = 0
        self._until = 0.0
        self._why = ""
        self._permits: dict[int, float] = {}
        # What ended, and failed, in this half of the window (numbered from the clock's zero) and in the half before it.
        self._half_s, self._half_calls = self._policy.window_s / 2, -(-self._policy.window // 2)
        self._half, self._calls, self._failed, self._before = self._now(), 0, 0, (0, 0)

    def __repr__(self) -> str:
        """State and counts."""
        return f"<CircuitBreaker {self.state.value}, {self._failures} failures, opened {self._opened_in_a_row} times>"

    @property
    def until(self) -> float | None:
        """When it half opens, on the monotonic clock; None unless open."""
        return self._until if self.state is BreakerState.OPEN else None

    @property
    def why(self) -> str:
        """Why it is open, and for how long; empty unless it is."""
        if self.state is not BreakerState.OPEN:
            return ""
        left_s = max(0.0, self._until - self._clock.monotonic())
        return f"{self._why or 'tripped'}; tried again in {left_s:.0f} s"

    @property
    def room(self) -> int | None:
        """Tries it lets through now; None for no limit."""
        if self.state is BreakerState.CLOSED:
            return None
        return self._policy.permits - len(self._permits) if self.state is BreakerState.HALF_OPEN else 0

    @property
    def failure_rate(self) -> float:
        """The part of recent tries that failed, from 0.0, also when there were none, to 1.0."""
        calls, failures = self.recent()
        return failures / calls if calls else 0.0

    @property
    def forgets_at(self) -> float:
        """When all that it has counted until now is too old to count, on the monotonic clock."""
        return (self._half + 2) * self._half_s

    def recent(self) -> tuple[int, int]:
        """Tries that ended of late, and how many of them failed.

        At most the policy's `window`, and of no more than `window_s`. Each half of that is a pair of numbers, and the
        older one goes as a whole: that takes the same time and memory for any window. While nothing fails not even the
        time is looked at: how many of the good ends were recent is worked out later, as if they had come evenly.
        """
        half = self._now()
        if half != self._half or self._calls > self._half_calls:
            self._turn(half)
        return self._calls + self._before[0], self._failed + self._before[1]

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
        self._starts = token = self._starts + 1
        if self.state is _HALF_OPEN:
            self._permits[token] = self._clock.monotonic() + self._policy.permit_s
        return token

    def success(self, token: int) -> bool:
        """The try gave output. True when this closed the breaker, be it half open or open for lack of others."""
        if token <= self._stale:
            return False
        self._failures = 0
        if self._failed or self._before[1]:
            self._count(failed=0)
        else:
            self._calls += 1
        if self.state is _CLOSED:
            return False
        self._opened_in_a_row = 0
        self._enter(BreakerState.CLOSED)
        return True

    def failure(self, token: int, what: str = "") -> bool:
        """The try failed, `what` says how, for people. True when this opened the breaker."""
        if token <= self._stale or self.state is BreakerState.OPEN:
            return False
        self._failures += 1
        self._count(failed=1)
        if self.state is BreakerState.CLOSED:
            in_a_row = self._failures >= self._policy.failures
            if not in_a_row and not self._too_many():
                return False
            calls, failed = self.recent()
            why = f"{self._failures} failures in a row" if in_a_row else f"{failed} of the last {calls} tries failed"
            self._why = f"{why}, the last: {what}" if what else why
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

    # -- on its own --------------------------------------------------------------------------------------------

    async def call(self, work: Callable[[], Awaitable[T]], *, counts: tuple[type[Exception], ...] = (Exception,)) -> T:
        """Begin `work` and wait for its result, under `guard`.

        Raises:
            CircuitOpen: It was not begun.
        """
        with self.guard(counts):
            return await work()

    @contextlib.contextmanager
    def guard(self, counts: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
        """A block that counts as one try. What it raises goes on.

        Args:
            counts: Which exceptions are failures. Others, such as a cancellation, say nothing; an end without any is
                a success.

        Raises:
            CircuitOpen: The block was not begun.
        """
        self.tick()
        if self.room is not None and self.room < 1:
            wait_s = _TRIAL_S if self.until is None else self.until - self._clock.monotonic()
            raise CircuitOpen(retry_after_s=wait_s)
        token = self.start()
        try:
            yield
        except counts:
            self.failure(token)
            raise
        except BaseException:
            self.neutral(token)
            raise
        self.success(token)

    # -- inside ------------------------------------------------------------------------------------------------

    def _count(self, failed: int) -> None:
        half = self._now()
        if half != self._half or self._calls >= self._half_calls:
            self._turn(half)
        self._calls += 1
        self._failed += failed

    def _now(self) -> int:
        return int(self._clock.monotonic() / self._half_s)

    def _turn(self, half: int) -> None:
        """Begin another half of the window; what came before the one until now is forgotten."""
        passed = half - self._half
        if self._failed or self._before[1]:
            self._before = (self._calls, self._failed) if passed <= 1 else (0, 0)
            self._calls = 0
        else:
            each = min(self._calls // max(2, passed + 1), self._half_calls)
            self._before, self._calls = (each, 0), each
        self._half, self._failed = half, 0

    def _too_many(self) -> bool:
        calls, failures = self.recent()
        return calls >= self._policy.min_calls and failures >= self._policy.failure_rate * calls

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self._stale = self._starts
        self._failures = 0
        self._half, self._calls, self._failed, self._before = self._now(), 0, 0, (0, 0)
        self._permits.clear()
