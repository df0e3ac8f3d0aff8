"""Carries requests to instances.

    one        carry a request out on one instance, trying others when that is safe
    stream     the same, in parts
    each       carry it out on every instance that can, an outcome for each
    lease      hold an instance for a while

Rules kept here: a slot is freed exactly once and only when the work has stopped; a failure goes to another instance
only if the work never started or may be replayed; retries share a budget; an instance that was tried is not tried
again.
"""

from __future__ import annotations

import asyncio
import logging
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
from gleitzeit_core.hedging import Hedging
from gleitzeit_core.leases import LEASE, Lease, LeaseRequest, acquire, checked_ttl_s
from gleitzeit_core.metrics import ResourceMetrics
from gleitzeit_core.needs import of_tenant, positive
from gleitzeit_core.pool import State
from gleitzeit_core.records import DRAINED
from gleitzeit_core.requests import Request
from gleitzeit_core.routing import Route
from gleitzeit_core.running import Running
from gleitzeit_core.runs import Answer, InstanceReport, OnInstance, Run, Stream
from gleitzeit_core.shell import Shell
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.strategies.simple import LeastLoaded
from gleitzeit_core.tries import sentence

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from gleitzeit_core.breaker import BreakerPolicy
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.persistence import Leases
    from gleitzeit_core.pool import Record, Slot
    from gleitzeit_core.requests import Method
    from gleitzeit_core.resources import Requirements
    from gleitzeit_core.runs import Executor, Observers

logger = logging.getLogger(__name__)

# What is left after the grace period is cancelled, and gets this long to put things right.
_END_S = 5.0
# So long work that was lost with the last instance waits for news of another.
_NOTICE_S = 0.25
_OUT = (State.DOWN, State.MISCONFIGURED, State.DRAINING, DRAINED)
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
        self.metrics = ResourceMetrics(self.clock)
        self.hedges = Hedging(self.shell, self.metrics)
        self._routes = (*routes, DEFAULT_ROUTE)
        self.shell.admission.set_routes(self._routes)
        self._route_of: dict[str, Route] = {}
        self._observers = observers
        self.running = Running(self.clock, observers)
        self.draining: list[Callable[[], None]] = []
        """Called when nothing new is taken any more, for those who hold leases that nobody would use again."""

    def __repr__(self) -> str:
        """Counts."""
        return f"<Dispatcher {self.active} requests, {self.shell!r}>"

    # -- life --------------------------------------------------------------------------------------------------

    async def aclose(self, *, grace_s: float = 0.0) -> None:
        """Take nothing new, wait for what runs, end what is left, stop the hubs. More than once is fine.

        Args:
            grace_s: How long what runs may go on.
        """
        await self.drain(grace_s)
        self.running.end_all(ShuttingDown("shutting down: the grace period is over"))
        await self.running.until_idle(_END_S)
        await self.shell.aclose()
        self.running.close()

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, send away those who wait, and let what runs, and who holds a lease, go on to the end.

        Args:
            grace_s: At most so long; what is left then goes on.
        """
        self.shell.admission.close()
        for tell in tuple(self.draining):
            tell()
        await self.running.until_idle(grace_s)

    def set_routes(self, routes: Sequence[Route]) -> None:
        """Serve by other routes from now on. Nothing is dropped: what runs goes on, those who wait keep their places.

        Args:
            routes: In order, as at first; the one for all that is left comes last by itself.

        Raises:
            ValueError: The shares of a route are more than there is. Nothing has changed then.
        """
        every = (*routes, DEFAULT_ROUTE)
        self.shell.admission.set_routes(every)
        self._routes = every
        self._route_of.clear()
        self.hedges.keep(route.name for route in every)

    def _changed(self, change: InstanceChange) -> None:
        if change.after is None and change.before is not None:
            self.metrics.forget(change.before.id)
        if self._observers is not None:
            self._observers.instance_changed(change)

    # -- requests ----------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests on their way or running."""
        return len(self.running)

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

    async def one(self, provider: Executor, request: Request, lease: Lease | None = None) -> Answer:
        """Carry `request` out on one instance.

        Args:
            provider: Who has the method.
            request: With its requirements.
            lease: Do it under this lease, on its instance; None: on any.

        Raises:
            RequestError: It failed, everywhere it could be tried.
        """
        run = self._prepare(provider.method(request.method), request)
        self.running.begin(run)
        try:
            with run:
                if run.method.local:
                    value = await self._local(provider, run)
                elif lease is not None:
                    value = await lease.use(provider, run)
                else:
                    while True:
                        # One step less than `slot` on the way of every request.
                        slot = self._slot_now(run) or await self._slot_later(run)
                        attempt = self.hedges.attempt(provider, run, slot)
                        try:
                            value = await attempt.whole()
                            break
                        except InstanceFailure as failure:
                            self._retry_or_raise(run, attempt.slot, failure)
        except BaseException as error:
            self.running.finish(run, error)
            raise
        self.running.finish(run, None)
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
        return Stream(self._parts(provider, run), run, self.shell.spawn)

    def lease(
        self,
        requirements: Requirements,
        *,
        ttl_s: float = 60.0,
        timeout_s: float | None = 30.0,
        tenant: str = "",
        priority: int = 0,
        store: Leases | None = None,
    ) -> LeaseRequest:
        """Ask for a lease of an instance; await it, or use it in an ``async with`` block.

        It waits in the queue like any request, of the method ``lease``, and holds one slot.

        Args:
            requirements: What the instance must have.
            ttl_s: How long the lease lasts unless it is renewed; above 0.
            timeout_s: How long to wait for it; None for as long as its route allows.
            tenant: On whose behalf.
            priority: Higher goes first.
            store: Keeps the lease for other processes too, and numbers its fences; None for this process alone.

        Raises:
            InvalidRequest: `ttl_s` or `timeout_s` is not a number above 0.
        """
        checked_ttl_s(ttl_s)
        requirements = of_tenant(requirements, tenant, self.shell.hubs.values())
        if timeout_s is not None:
            positive("timeout_s", timeout_s)

        async def wait() -> Lease:
            deadline = None if timeout_s is None else self.clock.wall() + timeout_s
            request = Request(
                method=LEASE.name, requirements=requirements, tenant=tenant, priority=priority, deadline=deadline
            )
            return await acquire(self, self._prepare(LEASE, request), ttl_s, store)

        return LeaseRequest(wait)

    async def each(self, provider: Executor, request: Request) -> list[OnInstance]:
        """Carry `request` out on every instance that can, at once. Those that are down are in the result, as errors."""
        reports = self.reports(request.requirements, request.method)
        return list(await asyncio.gather(*(self._on(provider, request, report) for report in reports)))

    async def _on(self, provider: Executor, request: Request, report: InstanceReport) -> OnInstance:
        name = report.instance.id
        if report.state in _OUT:
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

    # -- one request and its tries ----------------------------------------------------------------------------------

    def _prepare(self, method: Method, request: Request) -> Run:
        route, now = self._route_of.get(method.name) or self.route(method.name), self.clock.monotonic()
        deadline = None if route.timeout_s is None else now + route.timeout_s
        if request.deadline is not None:
            deadline = now + request.deadline - self.clock.wall()
        return Run(request, route, now, deadline, method=method)

    async def _local(self, provider: Executor, run: Run) -> Any:  # noqa: ANN401 - what a method answers is its own
        try:
            return await provider.answer(run.request, self.reports(run.request.requirements, run.request.method))
        except Exception as error:
            if isinstance(error, RequestError):
                raise
            logger.exception("%r failed", provider)
            raise RequestError(sentence(error)) from error

    async def _parts(self, provider: Executor, run: Run) -> AsyncGenerator[Any, None]:
        self.running.begin(run)
        try:
            while True:
                with run:
                    slot = self._slot_now(run) or await self._slot_later(run)
                    attempt = self.hedges.attempt(provider, run, slot)
                parts = attempt.parts()
                try:
                    async for part in parts:
                        yield part
                    break
                except InstanceFailure as failure:
                    self._retry_or_raise(run, attempt.slot, failure)
                finally:
                    await parts.aclose()
        except BaseException as error:
            self.running.finish(run, error)
            raise
        self.running.finish(run, None)

    async def slot(self, run: Run) -> Slot:
        """Wait for a slot for `run`, which must be in its block.

        Raises:
            RequestError: It gets none.
        """
        return self._slot_now(run) or await self._slot_later(run)

    def _slot_now(self, run: Run) -> Slot | None:
        if run.deadline is not None and run.deadline <= self.clock.monotonic():
            raise run.late(self.clock.monotonic(), queued=True)
        run.wait_s = 0.0
        slot = self.shell.admission.submit(run)
        if slot is not None:
            run.tries, run.instance_id = run.tries + 1, slot.instance.id
        return slot

    async def _slot_later(self, run: Run) -> Slot:
        slot = await self.shell.wait(run)
        run.wait_s = slot.taken_at - run.queued_at
        run.queued_s += run.wait_s
        run.tries, run.instance_id = run.tries + 1, slot.instance.id
        return slot

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
        #    What was declined has made none.
        elif run.tries >= run.route.max_tries or (
            failure.kind is not FailureKind.DECLINED and not self.running.retry(run)
        ):
            raise failure
        run.excluded |= {(slot.instance.id, slot.instance.generation)}
        run.last_failure = failure
        run.request = run.request.changed(attempt=run.request.attempt + 1)


def _report(record: Record) -> InstanceReport:
    breaker = record.breaker.state.value
    return InstanceReport(
        record.instance, record.condition, record.in_flight, record.why, limit=record.capacity, breaker=breaker
    )


def _bound_to(request: Request, instance_id: str) -> Request:
    needs = request.requirements.narrowed(instances=frozenset((instance_id,)))
    return request.changed(requirements=needs)
