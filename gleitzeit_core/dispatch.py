"""Carries requests to instances.

    one        carry a request out on one instance, trying others when that is safe
    stream     the same, in parts
    each       carry it out on every instance that can, an outcome for each

Rules kept here: a slot is freed exactly once and only when the work has stopped; a failure goes to another instance
only if the work never started or may be replayed; retries share a budget; an instance that was tried is not tried
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.errors import (
    FailureKind,
    InstanceFailure,
    InvalidRequest,
    RequestError,
    ShuttingDown,
    Unavailable,
)
from gleitzeit_core.metrics import ResourceMetrics
from gleitzeit_core.pool import State
from gleitzeit_core.requests import FinishedRequest
from gleitzeit_core.routing import Route
from gleitzeit_core.runs import Answer, InstanceReport, OnInstance, Run, Stream
from gleitzeit_core.shell import Shell
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.strategies.simple import LeastLoaded
from gleitzeit_core.tries import Try, sentence

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from gleitzeit_core.breaker import BreakerPolicy
    from gleitzeit_core.clock import Clock, TimerHandle
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.pool import Record, Slot
    from gleitzeit_core.requests import Method, Request
    from gleitzeit_core.resources import Requirements
    from gleitzeit_core.runs import Executor, Observers

logger = logging.getLogger(__name__)

_RETRY_SHARE = 0.2
_RETRY_LEAST = 3
# What is left after the grace period is cancelled, and gets this long to put things right.
_END_S = 5.0
# So long work that was lost with the last instance waits for news of another.
_NOTICE_S = 0.25
# One timer serves all deadlines; it comes at most this often.
_LATE_S = 0.005
_END = object()

DEFAULT_ROUTE = Route(
    name="default",
    methods=("*",),
    strategy=lambda random, clock: LeastLoaded(NoOptions(), random=random, clock=clock),
)


class Dispatcher:
    """Carries requests to the instances of its hubs.

    Args:
        routes: In order; the first that matches a method serves it. A route for all that is left comes last by itself.
        observers: Who hears of changes.
        policy: Of the instances' breakers.
        clock: Time.
        random: For strategies and jitter.
    """

    def __init__(
        self,
        routes: Sequence[Route] = (),
        *,
        observers: Observers | None = None,
        policy: BreakerPolicy | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.shell = Shell(clock=self.clock, random=random or Random(), policy=policy)
        self.shell.listen(self._changed)
        self.metrics = ResourceMetrics()
        self._routes = (*routes, DEFAULT_ROUTE)
        self._route_of: dict[str, Route] = {}
        self._observers = observers
        self._runs: set[Run] = set()
        self._retrying = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._next_late = math.inf
        self._timer: TimerHandle | None = None

    def __repr__(self) -> str:
        """Counts."""
        return f"<Dispatcher {len(self._runs)} requests, {self.shell!r}>"

    # -- life --------------------------------------------------------------------------------------------------

    async def aclose(self, *, grace_s: float = 0.0) -> None:
        """Take nothing new, wait for what runs, end what is left, stop the hubs. More than once is fine.

        Args:
            grace_s: How long what runs may go on.
        """
        self.shell.admission.close()
        await self._until_idle(grace_s)
        for run in tuple(self._runs):
            run.end(ShuttingDown("shutting down: the grace period is over"))
        await self._until_idle(_END_S)
        await self.shell.aclose()
        self._arm(math.inf)

    async def _until_idle(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._idle.wait()

    def _changed(self, change: InstanceChange) -> None:
        if change.after is None and change.before is not None:
            self.metrics.forget(change.before.id)
        if self._observers is not None:
            self._observers.instance_changed(change)

    # -- requests ----------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests on their way or running."""
        return len(self._runs)

    def route(self, method: str) -> Route:
        """The route that serves `method`."""
        found = self._route_of.get(method)
        if found is None:
            found = next(r for r in self._routes if any(fnmatchcase(method, pattern) for pattern in r.methods))
            self._route_of[method] = found
        return found

    def reports(self, requirements: Requirements | None = None, method: str = "") -> tuple[InstanceReport, ...]:
        """All instances, or those that `method` with `requirements` could run on, in order of id."""
        pool = self.shell.admission.pool
        if requirements is None:
            return tuple(_report(record) for record in sorted(pool, key=lambda record: record.instance.id))
        return tuple(_report(record) for record in pool.snapshot(self.route(method).hubs, requirements).records)

    async def one(self, provider: Executor, request: Request) -> Answer:
        """Carry `request` out on one instance.

        Raises:
            RequestError: It failed, everywhere it could be tried.
        """
        run = self._prepare(provider.method(request.method), request)
        self._begin(run)
        try:
            with run:
                value = await (self._local(provider, run) if run.method.local else self._tries(provider, run))
        except BaseException as error:
            self._finish(run, error)
            raise
        self._finish(run, None)
        return Answer(value, run)

    def stream(self, provider: Executor, request: Request) -> Stream:
        """Carry `request` out on one instance, in parts. Nothing happens before the first part is asked for.

        Raises:
            UnknownMethod: There is no such method.
            InvalidRequest: It does not answer in parts.
        """
        method = provider.method(request.method)
        if not method.streams:
            raise InvalidRequest(f"{request.method} does not answer in parts", param="stream")
        run = self._prepare(method, request)
        return Stream(self._parts(provider, run), run)

    async def each(self, provider: Executor, request: Request) -> list[OnInstance]:
        """Carry `request` out on every instance that can, at once. Those that are down are in the result, as errors."""
        reports = self.reports(request.requirements, request.method)
        return list(await asyncio.gather(*(self._on(provider, request, report) for report in reports)))

    async def _on(self, provider: Executor, request: Request, report: InstanceReport) -> OnInstance:
        name = report.instance.id
        if report.state in (State.DOWN, State.MISCONFIGURED, State.DRAINING):
            down = Unavailable(f"{report.instance.endpoint} is {report.state}: {report.reason}", instances=[name])
            return OnInstance(name, error=down)
        try:
            answer = await self.one(provider, _bound_to(request, name))
        except RequestError as error:
            return OnInstance(name, error=error)
        return OnInstance(name, answer.value)

    async def stream_each(self, provider: Executor, request: Request) -> AsyncIterator[tuple[str, Any | RequestError]]:
        """The same in parts, merged as they come: (instance id, part), and for one that fails (instance id, error)."""
        reports = self.reports(request.requirements, request.method)
        merged: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(maxsize=max(1, len(reports)))

        async def feed(name: str) -> None:
            try:
                async with self.stream(provider, _bound_to(request, name)) as parts:
                    async for part in parts:
                        await merged.put((name, part))
            except RequestError as error:
                await merged.put((name, error))
            await merged.put((name, _END))

        feeds = [asyncio.create_task(feed(report.instance.id)) for report in reports]
        try:
            open_feeds = len(feeds)
            while open_feeds:
                name, part = await merged.get()
                if part is _END:
                    open_feeds -= 1
                else:
                    yield name, part
        finally:
            for task in feeds:
                task.cancel()
            await asyncio.gather(*feeds, return_exceptions=True)

    # -- one request: its beginning, its deadline and its end -----------------------------------------------------

    def _prepare(self, method: Method, request: Request) -> Run:
        route, now = self.route(request.method), self.clock.monotonic()
        deadline = None if route.timeout_s is None else now + route.timeout_s
        if request.deadline is not None:
            deadline = now + request.deadline - self.clock.wall()
        return Run(request, route, now, deadline, method=method)

    def _begin(self, run: Run) -> None:
        self._runs.add(run)
        self._idle.clear()
        if run.deadline is not None and run.deadline < self._next_late:
            self._arm(run.deadline)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_late = when
        self._timer = None if when == math.inf else self.clock.call_at(when, self._end_late)

    def _end_late(self) -> None:
        now = self.clock.monotonic()
        for run in tuple(self._runs):
            if run.deadline is not None and run.deadline <= now:
                run.end(run.late(now, queued=run.waits))
        left = (run.deadline for run in self._runs if run.deadline is not None and run.ending is None)
        self._arm(max(min(left, default=math.inf), now + _LATE_S))

    def _finish(self, run: Run, error: BaseException | None) -> None:
        """A request has ended, well or not."""
        self._runs.discard(run)
        self._retrying -= run.retrying
        if not self._runs:
            self._idle.set()
        if self._observers is not None and self._observers.observes_requests:
            self._observers.request_finished(self._finished(run, error))

    def _finished(self, run: Run, error: BaseException | None) -> FinishedRequest:
        code = error.code if isinstance(error, RequestError) else "cancelled"
        return FinishedRequest(
            request=run.request,
            served=run.served if run.tries else None,
            outcome=run.outcome,
            error_code="" if error is None else code,
            total_s=self.clock.monotonic() - run.arrived_at,
        )

    # -- its tries ---------------------------------------------------------------------------------------------

    async def _local(self, provider: Executor, run: Run) -> Any:  # noqa: ANN401 - what a method answers is its own
        try:
            return await provider.answer(run.request, self.reports(run.request.requirements, run.request.method))
        except Exception as error:
            if isinstance(error, RequestError):
                raise
            logger.exception("%r failed", provider)
            raise RequestError(sentence(error)) from error

    async def _tries(self, provider: Executor, run: Run) -> Any:  # noqa: ANN401 - as above
        while True:
            attempt = await self._next_try(provider, run)
            try:
                return await attempt.whole()
            except InstanceFailure as failure:
                self._retry_or_raise(run, attempt.slot, failure)

    async def _parts(self, provider: Executor, run: Run) -> AsyncGenerator[Any, None]:
        self._begin(run)
        try:
            while True:
                with run:
                    attempt = await self._next_try(provider, run)
                try:
                    async with contextlib.aclosing(attempt.parts()) as parts:
                        async for part in parts:
                            yield part
                    break
                except InstanceFailure as failure:
                    self._retry_or_raise(run, attempt.slot, failure)
        except BaseException as error:
            self._finish(run, error)
            raise
        self._finish(run, None)

    async def _next_try(self, provider: Executor, run: Run) -> Try:
        """Wait for a slot."""
        if run.deadline is not None and run.deadline <= self.clock.monotonic():
            raise run.late(self.clock.monotonic(), queued=True)
        slot = self.shell.admission.submit(run)
        run.wait_s = 0.0
        if slot is None:
            slot = await self.shell.wait(run)
            run.wait_s = slot.taken_at - run.queued_at
            run.queued_s += run.wait_s
        run.tries += 1
        run.instance_id = slot.instance.id
        run.first_output_s = None
        return Try(provider, run, slot, shell=self.shell, metrics=self.metrics)

    def _retry_or_raise(self, run: Run, slot: Slot, failure: InstanceFailure) -> None:
        """Make ready for another try, or raise `failure`."""
        # 1. Its own fault, or it has begun to answer, or begun at all and must not be done twice.
        if failure.kind is FailureKind.REJECTED or slot.progressed or (failure.started and not run.method.replayable):
            raise failure
        # 2. It was lost with its instance: once more, whatever the budget says. If that was the last one, its hub,
        #    which may be starting another, gets a moment to notice.
        if failure.kind in (FailureKind.LOST, FailureKind.REFUSED) and not run.requeued:
            run.requeued = True
            run.patient_until = self.clock.monotonic() + (_NOTICE_S if failure.kind is FailureKind.LOST else 0.0)
        # 3. Tried often enough, or too many are being tried again: a pool in trouble must not get more work for it.
        elif run.tries >= run.route.max_tries or not self._within_budget(run):
            raise failure
        # 4. From the budget.
        elif not run.retrying:
            run.retrying = True
            self._retrying += 1
        run.excluded |= {(slot.instance.id, slot.instance.generation)}
        run.last_failure = failure
        run.request = run.request.changed(attempt=run.request.attempt + 1)

    def _within_budget(self, run: Run) -> bool:
        return run.retrying or self._retrying < max(_RETRY_LEAST, _RETRY_SHARE * len(self._runs))


def _report(record: Record) -> InstanceReport:
    return InstanceReport(record.instance, record.condition, record.in_flight, record.reason)


def _bound_to(request: Request, instance_id: str) -> Request:
    needs = request.requirements.narrowed(instances=frozenset((instance_id,)))
    return request.changed(requirements=needs)
