"""All requests on their way: their deadlines, the tries they share, and when the last of them has ended."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

from gleitzeit_core.errors import RequestError
from gleitzeit_core.requests import FinishedRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.clock import Clock, TimerHandle
    from gleitzeit_core.runs import Observers, Run

_RETRY_SHARE = 0.2
_RETRY_LEAST = 3
# One timer serves all deadlines; it comes at most this often.
_LATE_S = 0.005


class Running:
    """The requests on their way.

    Args:
        clock: Time.
        observers: Who hears of each that has finished.
    """

    def __init__(self, clock: Clock, observers: Observers | None) -> None:
        self._clock, self._observers = clock, observers
        self._runs: set[Run] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        # How many of them are tried again, on a budget that all share.
        self.retrying = 0
        self.watchers: tuple[Callable[[Run, BaseException | None], None], ...] = ()
        """Called with each request that has ended, and its error if it had one. They are quick, and never raise."""
        self._idle = asyncio.Event()
        self._next_late = math.inf
        self._timer: TimerHandle | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._runs)

    def __repr__(self) -> str:
        """Counts."""
        return f"<Running {len(self._runs)} requests, {self.retrying} tried again>"

    def begin(self, run: Run) -> None:
        """A request is on its way."""
        if not self._runs:
            self._loop = asyncio.get_running_loop()
        run.loop = self._loop
        self._runs.add(run)
        if run.deadline is not None and run.deadline < self._next_late:
            self._arm(run.deadline)

    def finish(self, run: Run, error: BaseException | None) -> None:
        """It has ended, well or not; nothing of it is left."""
        self._runs.discard(run)
        self.retrying -= run.retrying
        if not self._runs:
            self._idle.set()
        for watch in self.watchers:
            watch(run, error)
        if self._observers is not None and self._observers.observes_requests:
            self._observers.request_finished(self._finished(run, error))

    def _finished(self, run: Run, error: BaseException | None) -> FinishedRequest:
        if isinstance(error, GeneratorExit):
            error = run.ending or error  # nobody was there to be told of it
        code = error.code if isinstance(error, RequestError) else "cancelled"
        return FinishedRequest(
            request=run.request,
            served=run.served if run.tries else None,
            outcome=run.outcome,
            error_code="" if error is None else code,
            total_s=self._clock.monotonic() - run.arrived_at,
        )

    def retry(self, run: Run) -> bool:
        """Let `run` be tried again from the budget: a fifth of what is on its way, at least three. False when spent."""
        if not run.retrying:
            if self.retrying >= max(_RETRY_LEAST, _RETRY_SHARE * len(self._runs)):
                return False
            run.retrying = True
            self.retrying += 1
        return True

    async def until_idle(self, limit_s: float) -> None:
        """Wait until none is left, at most `limit_s` seconds."""
        if not self._runs:
            return
        self._idle.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._idle.wait()

    def end_all(self, error: RequestError) -> None:
        """End each of them with `error`."""
        for run in tuple(self._runs):
            run.end(error)

    def close(self) -> None:
        """Watch no deadline any more."""
        self._arm(math.inf)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_late = when
        self._timer = None if when == math.inf else self._clock.call_at(when, self._end_late)

    def _end_late(self) -> None:
        now = self._clock.monotonic()
        for run in tuple(self._runs):
            if run.deadline is not None and run.deadline <= now:
                run.end(run.late(now, queued=run.waits))
        left = (run.deadline for run in self._runs if run.deadline is not None and run.ending is None)
        self._arm(max(min(left, default=math.inf), now + _LATE_S))
