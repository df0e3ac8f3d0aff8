"""Sessions: an interpreter on a leased instance, kept for a caller between calls.

A session begins with its first call. It ends when it is closed, when it was not used for a while, and when its
interpreter does: by itself, by a limit, or because a call was cancelled. The next call of that name begins another.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.background import Background
from gleitzeit_core.errors import InvalidRequest, ShuttingDown
from gleitzeit_core.leases import LEASE, Lease, acquire
from gleitzeit_core.requests import Request
from gleitzeit_core.runs import Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_core.dispatch import Dispatcher

# The lease outlasts a call and the session, which must have been cleaned up when its slot is free again.
_MARGIN_S: Final = 60.0
# What is being ended when all is closed gets so long.
_END_S: Final = 5.0
OPEN, ENDED = "open", "ended"


class _Session:
    """One session. One call at a time: the others wait for their turn."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.lease: Lease | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.over = False


class Sessions:
    """All that are open.

    Args:
        reset: Ends the interpreter on a leased instance and cleans up after it. It closes the instance's channel when
            it cannot, and raises nothing.
        most: Open at once for one tenant.
        ttl_s: One that is not used for so long is closed.
        call_s: No call takes longer.
    """

    def __init__(self, reset: Callable[[Lease], Awaitable[None]], *, most: int, ttl_s: float, call_s: float) -> None:
        self._reset, self._most, self._ttl_s = reset, most, ttl_s
        self._lease_s = call_s + ttl_s + _MARGIN_S
        self._open: dict[tuple[str, str], _Session] = {}
        self._closed = False
        self._background = Background()

    def __repr__(self) -> str:
        """How many there are."""
        return f"<Sessions {len(self._open)} open>"

    async def execute(
        self, dispatcher: Dispatcher, request: Request, name: str, use: Callable[[Lease], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """A call in the session `name` of the request's tenant, which begins with it if there is none.

        Args:
            dispatcher: Where instances are leased.
            request: With the requirements on an instance.
            name: Of the session.
            use: Carries the call out under the lease. Its answer's ``session`` is `OPEN` or `ENDED`.

        Raises:
            InvalidRequest: The tenant has too many.
            RequestError: There is no instance to be had, or the call failed.
        """
        key = (request.tenant, name)
        while True:
            session = self._open.get(key) or self._new(key)
            async with session.turn:
                if session.over:
                    continue  # it ended while this waited for its turn
                return await self._call(dispatcher, request, key, session, use)

    def _new(self, key: tuple[str, str]) -> _Session:
        if self._closed:
            raise ShuttingDown("the provider of sessions is closed")
        if self._most == 0:
            raise InvalidRequest("there are no sessions here: the option max_sessions is 0", param="session")
        mine = [name for tenant, name in self._open if tenant == key[0]]
        if len(mine) >= self._most:
            text = f"{len(mine)} sessions are open already; at most {self._most} may be: close one first"
            raise InvalidRequest(text, param="session")
        made = self._open[key] = _Session()
        return made

    async def _call(
        self,
        dispatcher: Dispatcher,
        request: Request,
        key: tuple[str, str],
        session: _Session,
        use: Callable[[Lease], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        if session.expiry is not None:
            session.expiry.cancel()
        try:
            answer = await use(await self._held(dispatcher, request, session))
        except InvalidRequest:
            # Refused before anything began: the session is what it was.
            self._expect(key, session)
            raise
        except BaseException:
            await self._shielded(self._end(key, session))
            raise
        if answer["session"] == ENDED:
            await self._shielded(self._end(key, session))
        else:
            self._expect(key, session)
        return answer

    async def _held(self, dispatcher: Dispatcher, request: Request, session: _Session) -> Lease:
        """The session's lease, for one call more."""
        if session.lease is None:
            session.lease = await _lease(dispatcher, request, self._lease_s)
        else:
            await session.lease.renew()
        if self._closed:
            raise ShuttingDown("the session's provider was closed meanwhile")
        return session.lease

    async def _shielded(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        """Do it to the end, although the caller may leave."""
        await asyncio.shield(self._background.spawn(work, lasting=True))

    def _expect(self, key: tuple[str, str], session: _Session) -> None:
        """Close it after a while without another call."""
        loop = asyncio.get_running_loop()
        session.expiry = loop.call_later(self._ttl_s, lambda: self._background.spawn(self.close(*key)))

    async def close(self, tenant: str, name: str) -> bool:
        """Close a session, once the call that runs in it has ended. Whether there was one."""
        session = self._open.get((tenant, name))
        if session is None:
            return False
        async with session.turn:
            if session.over:
                return False
            await self._shielded(self._end((tenant, name), session))
        return True

    async def _end(self, key: tuple[str, str], session: _Session) -> None:
        session.over = True
        if session.expiry is not None:
            session.expiry.cancel()
        if self._open.get(key) is session:
            del self._open[key]
        if session.lease is not None:
            try:
                if session.lease.active:
                    await self._reset(session.lease)
            finally:
                await session.lease.release()

    def drain(self) -> None:
        """Close each as soon as nothing runs in it: nobody comes any more."""
        for key in self._open:
            self._background.spawn(self.close(*key))

    async def close_all(self) -> None:
        """Close all, whatever runs in them: nobody may call any more."""
        self._closed = True
        for key, session in tuple(self._open.items()):
            if session.lease is not None:
                if session.turn.locked():
                    # The call ends with it.
                    await session.lease.release()
                await self.close(*key)
        await self._background.settle(_END_S)
        await self._background.cancel()


async def _lease(dispatcher: Dispatcher, request: Request, ttl_s: float) -> Lease:
    """A lease of an instance on the route of `request`, which it waits for like any other request."""
    now, route = dispatcher.clock.monotonic(), dispatcher.route(request.method)
    deadline = None if request.deadline is None else now + request.deadline - dispatcher.clock.wall()
    asked = Request(
        method=LEASE.name,
        requirements=request.requirements,
        tenant=request.tenant,
        priority=request.priority,
        deadline=request.deadline,
    )
    run = Run(asked, route, now, deadline, method=LEASE)
    return await acquire(dispatcher, run, ttl_s, None)
