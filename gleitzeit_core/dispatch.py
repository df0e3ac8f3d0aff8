"""Carries requests to instances.

    one        carry a request out on one instance, trying others when that is safe
    stream     the same, in parts
    each       carry it out on every instance that can, an outcome for each

Rules kept here: a slot is freed exactly once and only when the work has stopped; a failure goes to another instance only
if the work never started or may be replayed; retries share a budget; an instance that was tried is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.errors import FailureKind, InstanceFailure, RequestError, Unavailable, UnknownMethod
from gleitzeit_core.metrics import ResourceMetrics
from gleitzeit_core.pool import State
from gleitzeit_core.requests import FinishedRequest, Outcome, Result
from gleitzeit_core.routing import Route, Ticket
from gleitzeit_core.runs import Answer, Closable, InstanceReport, Limit, OnInstance, Run, Stream, report
from gleitzeit_core.shell import Shell
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.strategies.simple import LeastLoaded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from gleitzeit_core.breaker import BreakerPolicy
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.pool import Slot
    from gleitzeit_core.requests import Method, Request
    from gleitzeit_core.resources import Channel, Requirements
    from gleitzeit_core.runs import Executor, Observers

logger = logging.getLogger(__name__)

_RETRY_SHARE = 0.2
_RETRY_LEAST = 3
# What is left after the grace period is cancelled, and gets this long to put things right.
_END_S = 5.0
_END = object()

DEFAULT_ROUTE = Route(
    name="default",
    methods=("*",),
    strategy=lambda random, clock: LeastLoaded(NoOptions(), random=random, clock=clock),
)


class Dispatcher:
    """Carries requests to the instances of its hubs. Is itself the hubs' and the health monitor's sink.

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
        random = random or Random()
        self.shell = Shell(clock=self.clock, random=random, policy=policy)
        self.shell.listen(self._changed)
        self.metrics = ResourceMetrics()
        self._routes = (*routes, DEFAULT_ROUTE)
        self._route_of: dict[str, Route] = {}
        self._observers = observers
        self._runs: set[Run] = set()
        self._retrying = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._users = 0

    def __repr__(self) -> str:
        """Counts."""
        return f"<Dispatcher {len(self._runs)} requests, {self.shell!r}>"

    # -- life --------------------------------------------------------------------------------------------------

    @classmethod
    async def shared(cls, hub: ResourceHub[Any]) -> Dispatcher:
        """The dispatcher of a hub that is used without a manager, made for its first user.

        Each call must be matched by one of `leave`.
        """
        found = _SHARED.get(hub)
        if found is None:
            found = _SHARED[hub] = cls()
            try:
                await found.shell.add_hub(hub)
            except BaseException:
                del _SHARED[hub]
                raise
        found._users += 1
        return found

    async def leave(self) -> None:
        """One user fewer; the last one closes it."""
        self._users -= 1
        if self._users == 0:
            for hub in self.shell.hubs.values():
                _SHARED.pop(hub, None)
            await self.aclose()

    async def aclose(self, *, grace_s: float = 0.0) -> None:
        """Take nothing new, wait for what runs, end what is left, stop the hubs. More than once is fine.

        Args:
            grace_s: How long what runs may go on.
        """
        self.shell.admission.close()
        await self._until_idle(grace_s)
        self._end_runs()
        await self._until_idle(_END_S)
        await self.shell.aclose()

    async def _until_idle(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._idle.wait()

    def _end_runs(self) -> None:
        """What outlives the grace period ends with `ShuttingDown`, in whatever task it runs."""
        now = asyncio.get_running_loop().time()
        for run in self._runs:
            run.ended_by_close = True
            if run.scope is not None:
                with contextlib.suppress(RuntimeError):  # It may be ending already.
                    run.scope.reschedule(now)

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
        if requirements is None:
            records = sorted(self.shell.admission.pool, key=lambda record: record.instance.id)
        else:
            records = list(self.shell.admission.pool.snapshot(self.route(method).hubs, requirements).records)
        return tuple(report(record) for record in records)

    async def one(self, provider: Executor, request: Request) -> Answer:
        """Carry `request` out on one instance.

        Raises:
            RequestError: It failed, everywhere it could be tried.
        """
        method = provider.method(request.method)
        run = self._prepare(method, request)
        self._begin(run)
        try:
            if method.local:
                value = await provider.answer(request, self.reports(request.requirements, request.method))
            else:
                value = await self._tries(provider, run)
        except BaseException as error:
            self._finish(run, error)
            raise
        self._finish(run, None)
        return Answer(value, run.served)

    async def _tries(self, provider: Executor, run: Run) -> Any:  # noqa: ANN401 - what a method answers is its own
        while True:
            slot = await self._slot(run)
            try:
                return await self._work(provider, run, slot)
            except InstanceFailure as failure:
                self._retry_or_raise(run, slot, failure)

    def stream(self, provider: Executor, request: Request) -> Stream:
        """Carry `request` out on one instance, in parts. Nothing happens before the first part is asked for.

        Raises:
            UnknownMethod: There is no such method, or it does not answer in parts.
        """
        method = provider.method(request.method)
        if not method.streams:
            raise UnknownMethod(f"{request.method} in parts", ())
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

    # -- one request -------------------------------------------------------------------------------------------

    def _prepare(self, method: Method, request: Request) -> Run:
        route, now = self.route(request.method), self.clock.monotonic()
        deadline = None if route.timeout_s is None else now + route.timeout_s
        if request.deadline is not None:
            deadline = now + request.deadline - self.clock.wall()
        ticket = Ticket(request, route, now, deadline)
        return Run(request, method, ticket, own_deadline=request.deadline is not None)

    def _begin(self, run: Run) -> None:
        self._runs.add(run)
        self._idle.clear()

    def _finish(self, run: Run, error: BaseException | None) -> None:
        """A request has ended, well or not."""
        self._runs.discard(run)
        self._retrying -= run.retrying
        if not self._runs:
            self._idle.set()
        if self._observers is not None and self._observers.observes_requests:
            self._observers.request_finished(self._finished(run, error))

    def _finished(self, run: Run, error: BaseException | None) -> FinishedRequest:
        return FinishedRequest(
            request=run.request,
            served=run.served if run.tries else None,
            outcome=run.outcome,
            error_code="" if error is None else getattr(error, "code", "cancelled"),
            total_s=self.clock.monotonic() - run.ticket.arrived_at,
        )

    async def _slot(self, run: Run) -> Slot:
        """A slot for the next try."""
        slot, run.wait_s = await self.shell.acquire(run.ticket)
        run.queued_s += run.wait_s
        run.tries += 1
        run.instance_id = slot.instance.id
        return slot

    async def _work(self, provider: Executor, run: Run, slot: Slot) -> Any:  # noqa: ANN401 - what a method answers is its own
        """One try. The slot is freed when the work has stopped, which a work that cannot be cancelled decides itself."""
        attempt = self._attempt(provider, run, slot)
        if slot.instance.cancellable:
            async with Limit(run, self.clock):
                return await attempt
        task = self.shell.spawn(attempt)
        async with Limit(run, self.clock):
            return await asyncio.shield(task)

    async def _attempt(self, provider: Executor, run: Run, slot: Slot) -> Any:  # noqa: ANN401 - as above
        failure: BaseException | None = None
        try:
            api, channel = self._reach(run, slot)
            return await provider.execute_on(slot.instance, api, channel, run.request)
        except BaseException as error:
            failure = self._translated(provider, slot, error)
            if failure is error:
                raise
            raise failure from error
        finally:
            self._release(run, slot, failure)

    async def _parts(self, provider: Executor, run: Run) -> AsyncGenerator[Any, None]:
        self._begin(run)
        error: BaseException | None = None
        try:
            while True:
                slot = await self._slot(run)
                try:
                    async with contextlib.aclosing(self._parts_of(provider, run, slot)) as parts:
                        async for part in parts:
                            yield part
                except InstanceFailure as failure:
                    self._retry_or_raise(run, slot, failure)
                else:
                    return
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._finish(run, error)

    async def _parts_of(self, provider: Executor, run: Run, slot: Slot) -> AsyncGenerator[Any, None]:
        """One try in parts."""
        if not slot.instance.cancellable:
            yield await self._work(provider, run, slot)
            return
        failure: BaseException | None = None
        source: AsyncIterator[Any] | None = None
        try:
            api, channel = self._reach(run, slot)
            source = provider.stream_on(slot.instance, api, channel, run.request)
            while True:
                async with Limit(run, self.clock):
                    part = await anext(source, _END)
                if part is _END:
                    return
                if not slot.progressed:
                    self.shell.admission.progress(slot)
                    run.outcome = self._outcome(run, slot, None)
                yield part
        except BaseException as error:
            failure = self._translated(provider, slot, error)
            if failure is error:
                raise
            raise failure from error
        finally:
            try:
                if isinstance(source, Closable):
                    await source.aclose()
            finally:
                self._release(run, slot, failure)

    @staticmethod
    def _reach(run: Run, slot: Slot) -> tuple[str, Channel]:
        found = slot.instance.channel_for(run.request.requirements.accepts)
        if found is None:
            raise InstanceFailure(
                FailureKind.SERVER_ERROR, f"{slot.instance.endpoint} no longer offers what was asked for", started=False
            )
        return found

    @staticmethod
    def _translated(provider: Executor, slot: Slot, error: BaseException) -> BaseException:
        """What a provider raised, as one of our errors; cancellations and our own pass."""
        if isinstance(error, InstanceFailure):
            error.instance_id = slot.instance.id
        if isinstance(error, RequestError) or not isinstance(error, Exception):
            return error
        logger.error("%r failed on %s", provider, slot.instance.id, exc_info=error)
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return InstanceFailure(FailureKind.SERVER_ERROR, f"provider failed: {text}", instance_id=slot.instance.id)

    def _release(self, run: Run, slot: Slot, failure: BaseException | None) -> None:
        run.outcome = outcome = self._outcome(run, slot, failure)
        self.metrics.record(run.request.method, slot.instance.id, outcome)
        self.shell.admission.release(run.ticket, slot, outcome)

    def _outcome(self, run: Run, slot: Slot, failure: BaseException | None) -> Outcome:
        now = self.clock.monotonic()
        total_s = now - slot.taken_at
        first_s = run.outcome.first_output_s if run.outcome is not None and slot.progressed else None
        result, kind, retry_after_s = Result.OK, None, None
        if isinstance(failure, InstanceFailure):
            result, kind, retry_after_s = Result.FAILED, failure.kind, failure.retry_after_s
        elif failure is not None:
            result, kind = self._ended_early(run, slot, now)
        else:
            first_s = total_s if first_s is None else first_s
        return Outcome(
            result=result,
            kind=kind,
            wait_s=run.wait_s,
            first_output_s=first_s,
            total_s=total_s,
            retry_after_s=retry_after_s,
        )

    @staticmethod
    def _ended_early(run: Run, slot: Slot, now: float) -> tuple[Result, FailureKind | None]:
        """Its caller left, or its time ran out. Only our own, long deadline without any output counts as a failure."""
        deadline = run.ticket.deadline
        silent = deadline is not None and now >= deadline and not slot.progressed and not run.own_deadline
        return (Result.FAILED, FailureKind.TIMEOUT) if silent else (Result.CANCELLED, None)

    def _retry_or_raise(self, run: Run, slot: Slot, failure: InstanceFailure) -> None:
        """Make ready for another try, or raise `failure`."""
        # 1. Its own fault, or it has begun to answer, or begun at all and must not be done twice.
        if failure.kind is FailureKind.REJECTED or slot.progressed or (failure.started and not run.method.replayable):
            raise failure
        # 2. It was lost with its instance: once more, whatever the budget says.
        if failure.kind in (FailureKind.LOST, FailureKind.REFUSED) and not run.requeued:
            run.requeued = True
        # 3. Tried often enough, or too many are being tried again: a pool in trouble must not get more work than without.
        elif run.tries >= run.ticket.route.max_tries or not self._within_budget(run):
            raise failure
        # 4. From the budget.
        elif not run.retrying:
            run.retrying = True
            self._retrying += 1
        run.ticket.excluded.add((slot.instance.id, slot.instance.generation))
        run.ticket.last_failure = failure
        run.request = run.ticket.request = run.request.changed(attempt=run.request.attempt + 1)

    def _within_budget(self, run: Run) -> bool:
        return run.retrying or self._retrying < max(_RETRY_LEAST, _RETRY_SHARE * len(self._runs))


_SHARED: WeakKeyDictionary[ResourceHub[Any], Dispatcher] = WeakKeyDictionary()


def _bound_to(request: Request, instance_id: str) -> Request:
    needs = request.requirements.narrowed(instances=frozenset((instance_id,)))
    return request.changed(requirements=needs)
