"""Leases: an instance held for a while, through its slot.

A lease ends when its holder gives it back, when its time runs out, or when all shuts down. Then nothing new begins
under it, what runs is cancelled, and its slot is freed once that has stopped.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gleitzeit_core.errors import InvalidRequest, LeaseExpired, NoCapableInstance, Unavailable
from gleitzeit_core.needs import positive
from gleitzeit_core.persistence import StoredLease
from gleitzeit_core.requests import Method, Outcome, Result, new_request_id
from gleitzeit_core.tries import Try

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
    from typing import Unpack

    from gleitzeit_core.dispatch import Dispatcher
    from gleitzeit_core.persistence import Leases
    from gleitzeit_core.pool import Slot
    from gleitzeit_core.provider import Provider, RequestOptions
    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.runs import Executor, Run
    from gleitzeit_core.shell import Shell

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEASE = Method(name="lease", summary="hold an instance", replayable=True)
_UNUSED = Outcome(result=Result.CANCELLED)
# A store that has not taken a lease back after so long is not waited for.
_GIVE_BACK_S = 5.0
# A store does not say when those that others hold end, so it is asked again after this long.
_ASK_AGAIN_S = 1.0
# Stands for all that was tried in vain: who has tried keeps its place at the front, and may use any instance again.
_TRIED = frozenset({("", 0)})
_OVER = "its time has run out"
_fence = 0


class LeaseRequest:
    """A lease that is asked for: ``lease = await request``, or ``async with request as lease``, which gives it back.

    Args:
        acquire: Waits for it. Each call is for another one.
    """

    def __init__(self, acquire: Callable[[], Coroutine[Any, Any, Lease]]) -> None:
        self._acquire = acquire
        self._in_use = False
        self._lease: Lease | None = None

    def __await__(self) -> Generator[Any, Any, Lease]:
        """Wait for it.

        Raises:
            RequestError: There is none to be had, or none in time.
        """
        return self._acquire().__await__()

    async def __aenter__(self) -> Lease:
        """Wait for it, as above. For one block at a time.

        Raises:
            InvalidRequest: Another block has it.
        """
        if self._in_use:
            raise InvalidRequest("this request for a lease is in use; make another")
        self._in_use = True
        try:
            self._lease = await self._acquire()
        finally:
            self._in_use = self._lease is not None
        return self._lease

    async def __aexit__(self, *exc_info: object) -> None:
        """Give it back."""
        lease, self._lease, self._in_use = self._lease, None, False
        if lease is not None:
            await lease.release()


async def acquire(dispatcher: Dispatcher, run: Run, ttl_s: float, store: Leases | None) -> Lease:
    """Wait for a slot, in the queue like any request, and hold it for `ttl_s` seconds.

    Raises:
        RequestError: There is none to be had, or none in time.
    """
    dispatcher.running.begin(run)
    try:
        with run:
            return await _acquire(dispatcher, run, ttl_s, store)
    except BaseException as error:
        dispatcher.running.finish(run, error)
        raise


async def _acquire(dispatcher: Dispatcher, run: Run, ttl_s: float, store: Leases | None) -> Lease:
    clock, shell = dispatcher.clock, dispatcher.shell
    while True:
        try:
            slot = await dispatcher.slot(run)
        except Unavailable as refusal:
            if refusal is not run.last_failure:
                raise
            # Some of those that others have leased may be free by now.
            run.excluded, run.last_failure = _TRIED, None
            continue
        since = clock.monotonic()
        stored = await _hold(dispatcher, run, slot, ttl_s, store)
        if stored is not None:
            slot.used = True  # its holder does with it what it wants
            return Lease(dispatcher, run, slot, stored, store=store, ttl_s=ttl_s, since=since)
        # All its places are leased by other processes: look for another instance, and here again after a while.
        shell.admission.release(run, slot, _UNUSED)
        run.excluded |= {(slot.instance.id, slot.instance.generation)}
        if run.last_failure is None:
            run.patient_until = clock.monotonic() + _ASK_AGAIN_S
            clock.call_at(run.patient_until, partial(_again, shell, run, run.patient_until))
        text = f"{slot.instance.endpoint} is leased by others"
        run.last_failure = Unavailable(text, instances=[slot.instance.id], retry_after_s=ttl_s)


def _again(shell: Shell, run: Run, when: float) -> None:
    """Let `run` no longer wait for an instance that nobody else has leased, if it has done so until now."""
    if run.patient_until == when and run.last_failure is not None:
        shell.turn_away(run, run.last_failure)


def next_fence(wall: float) -> int:
    """Above all before it, those of an earlier process included: an instance may outlive one."""
    global _fence  # noqa: PLW0603 - one sequence for all dispatchers of a process
    _fence = max(_fence + 1, int(wall * 1000))
    return _fence


async def _hold(dispatcher: Dispatcher, run: Run, slot: Slot, ttl_s: float, store: Leases | None) -> StoredLease | None:
    """A lease of one of the places on an instance, by the store; None when others have all of them."""
    if store is None:
        wall = dispatcher.clock.wall()
        return StoredLease(slot.instance.id, "", wall + ttl_s, next_fence(wall))
    taking = dispatcher.shell.spawn(_take(store, slot, ttl_s))
    try:
        return await asyncio.shield(taking)
    except BaseException:
        # What the store still gives to who has left is given back, and only then the slot.
        undoing = dispatcher.shell.spawn(_undo(store, taking))
        undoing.add_done_callback(lambda _: dispatcher.shell.admission.release(run, slot, _UNUSED))
        raise


async def _take(store: Leases, slot: Slot, ttl_s: float) -> StoredLease | None:
    holder = new_request_id()
    for number in range(slot.instance.max_concurrent):
        found = await _answer(store.acquire(f"{slot.instance.id}:{number}", holder, ttl_s))
        if found is not None:
            return found
    return None


async def _undo(store: Leases, taking: asyncio.Task[StoredLease | None]) -> None:
    found = await taking
    if found is not None:
        await _answer(store.release(found))


async def _answer(answer: Awaitable[T]) -> T:
    """What a store answers. Whatever it raises, callers see only our own errors."""
    try:
        return await answer
    except Exception as error:
        logger.exception("the store of the leases failed")
        raise Unavailable("the store that keeps the leases does not answer") from error


class Lease:
    """A hold on an instance. Give it back with `release`, or use it in an ``async with`` block.

    Args:
        dispatcher: Where it comes from.
        run: Its request; on its way until the lease has ended.
        slot: Freed once, when the lease has ended and the work under it has stopped.
        stored: Its fence and its end.
        store: Where others see that; None for nowhere.
        ttl_s: How long it lasts, in seconds, unless it is renewed.
        since: From when on, on the monotonic clock.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        run: Run,
        slot: Slot,
        stored: StoredLease,
        *,
        store: Leases | None,
        ttl_s: float,
        since: float,
    ) -> None:
        self._dispatcher, self._run, self._slot, self._ttl_s = dispatcher, run, slot, ttl_s
        self._stored, self._store = stored, store
        self._ended = ""
        self._until = since + ttl_s
        self._timer = dispatcher.clock.call_at(self._until, partial(self._end, _OVER))
        # The deadline was for the wait.
        run.deadline, run.on_end = None, partial(self._end, "shutting down")
        self._uses: set[Run] = set()
        # One slot, one piece of work at a time. Taken by who begins one, given back when it has stopped.
        self._turn = asyncio.Lock()
        self._well = False
        self._done = asyncio.Event()

    def __repr__(self) -> str:
        """Instance, fence and state."""
        return f"<Lease of {self.instance.id}, fence {self.fence}, {self._ended or 'active'}>"

    @property
    def instance(self) -> ResourceInstance:
        """What is held, as its hub last published it."""
        return self._slot.record.instance

    @property
    def fence(self) -> int:
        """Grows with every lease of an instance: what is sent with a lower one than was seen is refused."""
        return self._stored.fence

    @property
    def expires_at(self) -> float:
        """When it ends unless it is renewed, in Unix time."""
        return self._stored.expires_at

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return not self._ended and self._dispatcher.clock.monotonic() < self._until

    async def renew(self, ttl_s: float | None = None) -> None:
        """Let it last `ttl_s` seconds from now on; None for as long as at first.

        Raises:
            InvalidRequest: `ttl_s` is not a number above 0.
            LeaseExpired: It has ended, or ends now because somebody else has it in the store.
            Unavailable: The store does not answer; the lease ends when it would have.
        """
        self._check()
        ttl_s, clock = self._ttl_s if ttl_s is None else checked_ttl_s(ttl_s), self._dispatcher.clock
        since = clock.monotonic()
        found: StoredLease | None = replace(self._stored, expires_at=clock.wall() + ttl_s)
        if self._store is not None:
            found = await _answer(self._store.acquire(self._stored.name, self._stored.holder, ttl_s))
        # With another fence it had run out there and was taken anew: in between it may have been somebody else's.
        if found is None or found.fence != self.fence:
            self._end("somebody else has it")
        if found is not None and not self.active:
            await self._give_back(found)
        self._check()
        self._stored = found or self._stored
        self._timer.cancel()
        self._until = since + ttl_s
        self._timer = clock.call_at(self._until, partial(self._end, _OVER))

    async def execute(
        self,
        provider: Provider[Any],
        method: str,
        params: Mapping[str, Any] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry `method` out on the leased instance, under the lease's slot: one at a time, no second try.

        Raises:
            LeaseExpired: The lease has ended, before or meanwhile.
            RequestError: It failed.
        """
        self._check()
        return (await self._dispatcher.one(provider, provider.request(method, params, **options), self)).value

    async def release(self) -> None:
        """Give it back: cancel what runs under it, and free its slot when that has stopped. More than once is fine.

        Work that cannot be cancelled is not waited for; it keeps the slot until it ends.
        """
        self._end("it was given back")
        if self.instance.cancellable:
            await self._done.wait()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Give it back."""
        await self.release()

    # -- for the dispatcher --------------------------------------------------------------------------------------

    async def use(self, provider: Executor, run: Run) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry `run` out on the leased instance."""
        needs = run.request.requirements
        if not needs.allow(self.instance):
            message = f"the leased {self.instance.endpoint} does not have {needs.describe()}"
            raise NoCapableInstance(message, needed=sorted(needs.capabilities))
        self._uses.add(run)
        try:
            await self._turn.acquire()
            if not self.active:
                self._turn.release()
                self._check()
            shell, metrics = self._dispatcher.shell, self._dispatcher.metrics
            use = _Use(provider, run, shell.admission.pool.use(self._slot.record), shell=shell, metrics=metrics)
            use.stopped = partial(self._stopped, run)
            run.tries, run.instance_id = 1, self.instance.id
            return await use.whole()
        finally:
            self._uses.discard(run)

    # -- its end -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if not self.active:
            self._end(_OVER)  # a busy loop's timers are late
            raise self._expired()

    def _expired(self) -> LeaseExpired:
        text = f"the lease of {self.instance.endpoint} has ended: {self._ended}"
        return LeaseExpired(text, instance_id=self.instance.id)

    def _end(self, why: str) -> None:
        if self._ended:
            return
        self._ended = why
        self._timer.cancel()
        for run in tuple(self._uses):
            run.end(self._expired())
        if not self._turn.locked():
            self._free()

    def _stopped(self, run: Run) -> None:
        """A piece of work has stopped."""
        self._well = run.outcome is not None and run.outcome.result is Result.OK
        self._turn.release()
        if self._ended:
            self._free()

    def _free(self) -> None:
        if self._store is None:
            self._finish()
        else:
            # First the place in the store: who gets the slot asks for it.
            self._dispatcher.shell.spawn(self._give_back(self._stored)).add_done_callback(self._finish)

    async def _give_back(self, stored: StoredLease) -> None:
        try:
            async with asyncio.timeout(_GIVE_BACK_S):
                if self._store is not None:
                    await self._store.release(stored)
        except Exception:
            logger.exception("%s was not given back in the store, where it runs out", stored.name)

    def _finish(self, _: object = None) -> None:
        run, dispatcher = self._run, self._dispatcher
        # We know only in part what its holder did. It speaks for the instance if the last that we know of went well.
        result = Result.OK if self._well else Result.CANCELLED
        total_s = dispatcher.clock.monotonic() - self._slot.taken_at
        tenant = run.request.requirements.tenant
        run.outcome = Outcome(result=result, wait_s=run.wait_s, total_s=total_s, tenant=tenant)
        dispatcher.shell.admission.release(run, self._slot, run.outcome)
        dispatcher.running.finish(run, None)
        self._done.set()


class _Use(Try):
    """Work under a lease: it counts for and against its instance, and its slot stays the lease's."""

    stopped: Callable[[], None]

    def _release(self, failure: BaseException | None) -> None:
        try:
            super()._release(failure)
        finally:
            self.stopped()


def checked_ttl_s(ttl_s: float) -> float:
    """`ttl_s`, if a lease can last so long.

    Raises:
        InvalidRequest: It is not a number above 0.
    """
    if positive("ttl_s", ttl_s) == math.inf:
        raise InvalidRequest(f"ttl_s must be a number above 0, not {ttl_s!r}", param="ttl_s")
    return ttl_s
