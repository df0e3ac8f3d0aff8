"""Watches instances from outside the request path.

A check re-admits what is down and watches what is idle. It never resets a breaker's counts (requests do that), and an
instance that nobody has asked for a while is not for that reason unwell. One refused connection is down; anything else
is down after two in a row. What is down is asked again soon, then less and less often.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict, Field

from gleitzeit_core.background import Background
from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.pool import State

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.resources import ResourceInstance

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.5
_AT_ONCE = 64
# Degraded after so many slow checks in a row.
_SLOW_CHECKS = 3
_HISTORY = 32


class CheckOptions(BaseModel):
    """When and how instances are checked. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check_interval_s: float = Field(default=10.0, gt=0, description="Between two health checks of an instance.")
    check_timeout_s: float = Field(default=5.0, gt=0, description="A health check that takes longer has failed.")
    check_failures: int = Field(
        default=2,
        ge=1,
        description="Failed checks in a row that take an instance out, or one refused connection.",
    )
    check_successes: int = Field(
        default=1, ge=1, description="Good checks in a row that bring back an instance that was taken out."
    )
    check_slow_s: float | None = Field(
        default=None,
        gt=0,
        description="After three checks in a row slower than this an instance counts half; null: never.",
    )


class Checked(Protocol):
    """The part of a hub that knows how to check."""

    @property
    def options(self) -> CheckOptions:
        """When and how. Looked at anew for each check."""

    async def examine(self, instance: ResourceInstance) -> ResourceInstance:
        """See `ResourceHub.examine`."""


class HealthSink(Protocol):
    """Where verdicts go."""

    def put(self, instance: ResourceInstance, state: State) -> None:
        """The instance as it is now."""

    def set_state(self, instance_id: str, state: State, reason: str) -> None:
        """Its state."""

    def set_degraded(self, instance_id: str, source: str, reason: str) -> None:
        """Why it counts half; empty when it no longer does."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check has found.

    Args:
        at: When it ended, in Unix time.
        ok: Whether the instance was well.
        took_s: How long it took, in seconds.
        reason: What was wrong; empty when nothing was.
    """

    at: float
    ok: bool
    took_s: float
    reason: str = ""


@dataclass(slots=True, eq=False)
class _Watch:
    instance: ResourceInstance
    hub: Checked
    up: bool
    task: asyncio.Task[None] = field(init=False)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    # In a row.
    failures: int = 0
    successes: int = 0
    slow: int = 0
    # It was up once and was taken out: a first good check after that may not be enough.
    fell: bool = False
    history: deque[CheckResult] = field(default_factory=lambda: deque(maxlen=_HISTORY))


class HealthMonitor:
    """Checks every watched instance, each in its own rhythm.

    Args:
        sink: Gets the verdicts.
        random: For jitter, so that many instances are not checked in step.
        clock: For the history.
    """

    def __init__(self, sink: HealthSink, *, random: Random, clock: Clock) -> None:
        self._sink, self._random, self._clock = sink, random, clock
        self._watches: dict[str, _Watch] = {}
        self._tasks = Background()
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._closed = False

    def __repr__(self) -> str:
        """Counts."""
        failing = sum(1 for watch in self._watches.values() if watch.failures)
        return f"<HealthMonitor watches {len(self._watches)}, {failing} failing>"

    def watch(self, instance: ResourceInstance, hub: Checked, *, up: bool = True) -> None:
        """Begin to check an instance, or learn that it has changed. Those that must not be probed are left alone.

        Args:
            instance: As it is now.
            hub: Knows how to check it.
            up: Whether it counts as well until a check says otherwise; if not, its first failure is told already.
        """
        known = self._watches.get(instance.id)
        if known is not None:
            # A new start, perhaps of something else: what went wrong before says nothing about it.
            if known.instance.generation != instance.generation:
                known.failures, known.slow, known.up, known.fell = 0, 0, up, False
            elif known.up and not up:
                self._down(known)
            known.instance = instance
        elif instance.probe and not self._closed:
            watch = self._watches[instance.id] = _Watch(instance, hub, up)
            self._begin(watch)

    def _begin(self, watch: _Watch) -> None:
        watch.task = self._tasks.spawn(self._run(watch))
        watch.task.set_name(f"health of {watch.instance.id}")

    def forget(self, instance_id: str) -> None:
        """Check it no more."""
        watch = self._watches.pop(instance_id, None)
        if watch is not None:
            watch.task.cancel()
            if watch.slow >= _SLOW_CHECKS:
                self._sink.set_degraded(instance_id, "latency", "")

    def suspect(self, instance_id: str) -> None:
        """Check it soon: a request failed there."""
        watch = self._watches.get(instance_id)
        if watch is not None:
            watch.wake.set()

    def history(self, instance_id: str) -> tuple[CheckResult, ...]:
        """Its last checks, 32 at most, the oldest first; none when it is not watched."""
        watch = self._watches.get(instance_id)
        return tuple(watch.history) if watch is not None else ()

    async def check(self, instance_id: str) -> bool:
        """Check it now. Whether it is well; False also when it is not watched."""
        watch = self._watches.get(instance_id)
        if watch is None:
            return False
        if await self._check(watch):
            return True
        if self._watches.get(instance_id) is watch:
            # Its pause was for an instance that is well; what is not is asked again sooner.
            watch.task.cancel()
            self._begin(watch)
        return False

    async def aclose(self) -> None:
        """Stop all checks and wait until they have stopped."""
        self._closed = True
        self._watches.clear()
        await self._tasks.cancel()

    async def _run(self, watch: _Watch) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(watch)):
                    await watch.wake.wait()
            watch.wake.clear()
            await self._check(watch)

    def _pause_s(self, watch: _Watch) -> float:
        pause = watch.hub.options.check_interval_s
        if watch.failures or watch.fell:
            pause = min(pause, _FIRST_RETRY_S * 1.5 ** min(max(watch.failures - 1, 0), 20))
        return pause * self._random.uniform(0.9, 1.1)

    async def _check(self, watch: _Watch) -> bool:
        async with self._at_once:
            asked, timeout_s, begun = watch.instance, watch.hub.options.check_timeout_s, self._clock.monotonic()
            kind: FailureKind | None = None
            reason = ""
            try:
                async with asyncio.timeout(timeout_s):
                    now = await watch.hub.examine(asked)
            except InstanceFailure as failure:
                kind, reason = failure.kind, failure.message
            except TimeoutError:
                kind, reason = FailureKind.TIMEOUT, f"no answer to a check within {timeout_s:g} s"
            except Exception as error:
                logger.exception("health check of %s failed", asked.id)
                kind, reason = FailureKind.SERVER_ERROR, f"health check failed: {error}"
        # Neither gone nor started anew while it answered?
        if self._watches.get(asked.id) is not watch or watch.instance.generation != asked.generation:
            return kind is None
        took_s = self._clock.monotonic() - begun
        watch.history.append(CheckResult(self._clock.wall(), kind is None, took_s, reason))
        if kind is not None:
            self._failed(watch, kind, reason)
            return False
        self._well(watch, asked, now)
        self._timed(watch, took_s)
        return True

    def _well(self, watch: _Watch, asked: ResourceInstance, now: ResourceInstance) -> None:
        watch.failures = 0
        watch.successes += 1
        # The hub may have published a newer record while the instance answered; that one is right.
        if watch.instance is asked and now != asked:
            watch.instance = now
            self._sink.put(now, State.READY)
        if not watch.fell or watch.successes >= watch.hub.options.check_successes:
            watch.up, watch.fell = True, False
            self._sink.set_state(asked.id, State.READY, "")

    def _failed(self, watch: _Watch, kind: FailureKind, reason: str) -> None:
        watch.failures += 1
        watch.successes = 0
        if kind is FailureKind.UNAUTHORIZED:
            watch.fell |= watch.up
            self._sink.set_state(watch.instance.id, State.MISCONFIGURED, reason)
        elif kind is FailureKind.REFUSED or watch.failures >= watch.hub.options.check_failures or not watch.up:
            self._down(watch)
            self._sink.set_state(watch.instance.id, State.DOWN, reason)

    def _down(self, watch: _Watch) -> None:
        watch.fell, watch.up, watch.successes = watch.fell or watch.up, False, 0

    def _timed(self, watch: _Watch, took_s: float) -> None:
        """A check has gone well, but how fast?"""
        limit_s, before = watch.hub.options.check_slow_s, watch.slow
        watch.slow = before + 1 if limit_s is not None and took_s > limit_s else 0
        if watch.slow >= _SLOW_CHECKS:
            self._sink.set_degraded(watch.instance.id, "latency", f"checks take longer than {limit_s:g} s")
        elif before >= _SLOW_CHECKS:
            self._sink.set_degraded(watch.instance.id, "latency", "")
