"""Watches instances from outside the request path.

A probe re-admits what is down and watches what is idle. It never resets a breaker's counts (requests do that), and an
instance that nobody has asked for a while is not for that reason unwell. One refused connection is down; anything else
is down after two in a row. What is down is asked again soon, then less and less often.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.pool import State

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.resources import ResourceInstance

logger = logging.getLogger(__name__)

_DOWN_AFTER = 2
_FIRST_RETRY_S = 0.5
_AT_ONCE = 64


class Checked(Protocol):
    """The part of a hub that knows how to check."""

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """See `ResourceHub.check`."""


class HealthSink(Protocol):
    """Where verdicts go."""

    def put(self, instance: ResourceInstance, state: State) -> None:
        """The instance as it is now."""

    def set_state(self, instance_id: str, state: State, reason: str) -> None:
        """Its state."""


@dataclass(slots=True, eq=False)
class _Watch:
    instance: ResourceInstance
    hub: Checked
    interval_s: float
    timeout_s: float
    up: bool
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    failures: int = 0


class HealthMonitor:
    """Checks every watched instance, each in its own rhythm.

    Args:
        sink: Gets the verdicts.
        random: For jitter, so that many instances are not checked in step.
    """

    def __init__(self, sink: HealthSink, *, random: Random) -> None:
        self._sink, self._random = sink, random
        self._watches: dict[str, _Watch] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._closed = False

    def __repr__(self) -> str:
        """Counts."""
        failing = sum(1 for watch in self._watches.values() if watch.failures)
        return f"<HealthMonitor watches {len(self._watches)}, {failing} failing>"

    def watch(
        self, instance: ResourceInstance, hub: Checked, *, interval_s: float, timeout_s: float, up: bool = True
    ) -> None:
        """Begin to check an instance, or learn that it has changed. Those that must not be probed are left alone.

        Args:
            instance: As it is now.
            hub: Knows how to check it.
            interval_s: Between two checks.
            timeout_s: A check that takes longer has failed.
            up: Whether it counts as well until a check says otherwise; if not, its first failure is told already.
        """
        known = self._watches.get(instance.id)
        if known is not None:
            # A new start, perhaps of something else: what went wrong before says nothing about it.
            known.failures *= known.instance.generation == instance.generation
            known.instance = instance
        elif instance.probe and not self._closed:
            watch = self._watches[instance.id] = _Watch(instance, hub, interval_s, timeout_s, up)
            self._begin(watch)

    def _begin(self, watch: _Watch) -> None:
        watch.task = asyncio.create_task(self._run(watch), name=f"health of {watch.instance.id}")

    def forget(self, instance_id: str) -> None:
        """Check it no more."""
        watch = self._watches.pop(instance_id, None)
        if watch is not None and watch.task is not None:
            watch.task.cancel()

    def suspect(self, instance_id: str) -> None:
        """Check it soon: a request failed there."""
        watch = self._watches.get(instance_id)
        if watch is not None:
            watch.wake.set()

    async def check(self, instance_id: str) -> bool:
        """Check it now. Whether it is well; False also when it is not watched."""
        watch = self._watches.get(instance_id)
        if watch is None or await self._check(watch):
            return watch is not None
        if watch.task is not None and self._watches.get(instance_id) is watch:
            # Its pause was for an instance that is well; what is not is asked again sooner.
            watch.task.cancel()
            self._begin(watch)
        return False

    async def aclose(self) -> None:
        """Stop all checks and wait until they have stopped."""
        self._closed = True
        tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
        self._watches.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, watch: _Watch) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(watch)):
                    await watch.wake.wait()
            watch.wake.clear()
            await self._check(watch)

    def _pause_s(self, watch: _Watch) -> float:
        pause = watch.interval_s
        if watch.failures:
            pause = min(pause, _FIRST_RETRY_S * 1.5 ** min(watch.failures - 1, 20))
        return pause * self._random.uniform(0.9, 1.1)

    async def _check(self, watch: _Watch) -> bool:
        async with self._at_once:
            asked = watch.instance
            try:
                async with asyncio.timeout(watch.timeout_s):
                    now = await watch.hub.check(asked)
            except InstanceFailure as failure:
                self._failed(watch, asked, failure.kind, failure.message)
            except TimeoutError:
                self._failed(watch, asked, FailureKind.TIMEOUT, f"no answer to a check within {watch.timeout_s:g} s")
            except Exception as error:
                logger.exception("health check of %s failed", asked.id)
                self._failed(watch, asked, FailureKind.SERVER_ERROR, f"health check failed: {error}")
            else:
                self._well(watch, asked, now)
                return True
        return False

    def _current(self, watch: _Watch, asked: ResourceInstance) -> bool:
        """Whether what was asked is still there: neither gone nor started anew while it answered."""
        return self._watches.get(asked.id) is watch and watch.instance.generation == asked.generation

    def _well(self, watch: _Watch, asked: ResourceInstance, now: ResourceInstance) -> None:
        if not self._current(watch, asked):
            return
        watch.failures, watch.up = 0, True
        # The hub may have published a newer record while the instance answered; that one is right.
        if watch.instance is asked and now != asked:
            watch.instance = now
            self._sink.put(now, State.READY)
        self._sink.set_state(asked.id, State.READY, "")

    def _failed(self, watch: _Watch, asked: ResourceInstance, kind: FailureKind, reason: str) -> None:
        if not self._current(watch, asked):
            return
        watch.failures += 1
        if kind is FailureKind.UNAUTHORIZED:
            self._sink.set_state(asked.id, State.MISCONFIGURED, reason)
        elif kind is FailureKind.REFUSED or watch.failures >= _DOWN_AFTER or not watch.up:
            watch.up = False
            self._sink.set_state(asked.id, State.DOWN, reason)
