"""One request on its way: who carries it out, what it has seen so far, and the answer in parts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, cast
from weakref import ref

from gleitzeit_core.errors import DeadlineExceeded
from gleitzeit_core.records import DEGRADED, State
from gleitzeit_core.requests import Served
from gleitzeit_core.routing import Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
    from types import AsyncGeneratorType

    from gleitzeit_core.errors import RequestError
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.requests import FinishedRequest, Method, Outcome, Request, Usage
    from gleitzeit_core.resources import Channel, ResourceInstance, Speaks
    from gleitzeit_core.routing import Route
    from gleitzeit_core.tries import Try


class Executor(Protocol):
    """The part of a provider that the dispatcher calls; see `Provider`."""

    @property
    def accepts(self) -> tuple[Speaks, ...]:
        """The (api, channel) pairs it can drive."""

    @property
    def parts_apart(self) -> bool:
        """Whether it answers in parts also where work cannot be cancelled."""

    def method(self, name: str) -> Method:
        """The method called `name`."""

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry a request out."""

    def stream_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> AsyncIterator[Any]:
        """Carry a request out in parts."""

    def usage(self, request: Request, part: Any) -> Usage | None:  # noqa: ANN401 - as above
        """What an answer, or a part of it, says of the work it took."""

    def lingering(self, instance: ResourceInstance, request: Request) -> asyncio.Future[Any] | None:
        """What of a request goes on although its caller has left."""

    def is_last(self, request: Request, part: Any) -> bool:  # noqa: ANN401 - as above
        """Whether nothing comes after a part."""

    async def answer(self, request: Request, instances: tuple[InstanceReport, ...]) -> Any:  # noqa: ANN401 - as above
        """Answer a method without an instance."""


class Observers(Protocol):
    """Who hears of changes and finished requests; the plugin host is one."""

    @property
    def observes_requests(self) -> bool:
        """Whether anybody listens to finished requests."""

    def instance_changed(self, change: InstanceChange) -> None:
        """See ``gleitzeit_instance_changed``."""

    def request_finished(self, finished: FinishedRequest) -> None:
        """See ``gleitzeit_request_finished``."""


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """An instance and how it is, for listings.

    Args:
        instance: As its hub last published it.
        state: Its condition in the pool: ``ready``, ``degraded``, ``ejected`` while its breaker is open, ...
        in_flight: Requests it works on for this process.
        reason: Why it is not ready; empty when it is.
        limit: Requests it gets at once: its ``max_concurrent``, or less where its busy answers have taught us so.
        breaker: The state of its breaker: ``closed``, ``open`` or ``half_open``.
    """

    instance: ResourceInstance
    state: str
    in_flight: int
    reason: str
    limit: int
    breaker: str

    @property
    def serving(self) -> bool:
        """Whether it is given work as a matter of course."""
        return self.state in (State.READY, DEGRADED)


@dataclass(frozen=True, slots=True)
class OnInstance:
    """What became of a request on one of the instances of `Dispatcher.each`: `value` or `error`."""

    instance_id: str
    value: Any = None
    error: RequestError | None = None


class Run(Ticket):
    """One request on its way, over all its tries.

    In a ``with run:`` block its task can be ended from outside: `end` cancels it, and the block turns the cancellation
    into the run's error. That is what `asyncio.timeout` does, without a timer for each request. Outside the block, as
    while nobody reads the next part of a stream, `end` calls `on_end` instead.

    Args:
        request: What is asked for.
        route: How it is served.
        arrived_at: On the monotonic clock.
        deadline: On the monotonic clock; None for no limit.
        method: What is asked for.
    """

    instance_id: str = ""
    queued_s: float = 0.0
    wait_s: float = 0.0
    first_output_s: float | None = None
    tries: int = 0
    requeued: bool = False
    retrying: bool = False
    outcome: Outcome | None = None
    ending: RequestError | None = None
    on_end: Callable[[], None] | None = None
    _task: asyncio.Task[Any] | None = None
    _cancelled: bool = False
    _cancelling: int = 0
    direct: Try | None = None
    """The try whose parts can be read past the generators around it: from its first part to its end."""
    at_end: bool = False
    """Whether it is known that nothing follows the part that came last."""
    loop: asyncio.AbstractEventLoop | None = None
    """The running one, where that is known: to look it up takes longer than all else in its block."""

    def __init__(
        self, request: Request, route: Route, arrived_at: float, deadline: float | None = None, *, method: Method
    ) -> None:
        # All of a ticket's, without another call.
        self.request, self.route, self.arrived_at, self.deadline = request, route, arrived_at, deadline
        self.method = method

    @property
    def served(self) -> Served:
        """Who serves it, as of now."""
        values = (self.instance_id, self.queued_s, self.tries, self.position, self.expected_wait_s)
        # Past the call that a named tuple's own way to make one is.
        return tuple.__new__(Served, values)

    @property
    def in_block(self) -> bool:
        """Whether it is in its block."""
        return self._task is not None

    def take_over(self, other: Run) -> None:
        """What has happened to `other`, on its way for the same request, counts as having happened to this."""
        self.instance_id, self.first_output_s = other.instance_id, other.first_output_s
        self.outcome, self.charge, self.strategy = other.outcome, other.charge, other.strategy

    def end(self, error: RequestError) -> None:
        """End it with `error`: now, if it is in its block; otherwise when it comes to the next one."""
        if self.ending is None:
            self.ending = error
            if self._task is not None:
                self._cancelled = True
                self._task.cancel()
            elif self.on_end is not None:
                self.on_end()

    def late(self, now: float, *, queued: bool) -> RequestError:
        """The error of a run whose time ran out: between two tries, what the last instance said."""
        if queued and self.last_failure is not None:
            return self.last_failure
        return DeadlineExceeded(where="queue" if queued else "instance", after_s=now - self.arrived_at)

    def __enter__(self) -> None:
        if self.ending is not None:
            raise self.ending
        self._task = task = asyncio.current_task(self.loop)
        self._cancelling = task.cancelling() if task is not None else 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        task, self._task = self._task, None
        if self._cancelled and task is not None:
            self._cancelled = False
            # Cancelled by its own caller as well, it stays cancelled.
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError and self.ending is not None:
                raise self.ending from None


class Answer:
    """What a method answered, and who gave the answer.

    Args:
        value: The answer.
        run: What has it.
    """

    __slots__ = ("run", "value")

    def __init__(self, value: Any, run: Run) -> None:  # noqa: ANN401 - what a method answers is its own
        self.value, self.run = value, run

    def __repr__(self) -> str:
        """The answer."""
        return f"Answer(value={self.value!r})"

    @property
    def served(self) -> Served:
        """Who gave it."""
        return self.run.served


class Stream:
    """An answer in parts. Iterate over it; leave it early with `aclose` or ``async with``, which cancels the work.

    Args:
        parts: Them.
        run: The request.
        spawn: Runs work in the background.
    """

    def __init__(
        self,
        parts: AsyncGenerator[Any, None],
        run: Run,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._parts, self._run, self._spawn = cast("AsyncGeneratorType[Any, None]", parts), run, spawn
        self._ending: asyncio.Task[None] | None = None
        # A stream that is dropped must go, and its work with it: the request, which others hold, does not hold it.
        run.on_end = partial(_end_unread, ref(self))

    @property
    def served(self) -> Served:
        """Who serves it; right once the first part is there."""
        return self._run.served

    @property
    def at_end(self) -> bool:
        """Whether it is known that nothing follows the last part, but for an error perhaps; False says nothing."""
        return self._run.at_end

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    def __anext__(self) -> Awaitable[Any]:
        """The next part."""
        if self._ending is not None and self._run.ending is not None:
            raise self._run.ending
        attempt = self._run.direct
        return self._parts.__anext__() if attempt is None else self._next(attempt)

    async def _next(self, attempt: Try) -> Any:  # noqa: ANN401 - as above
        """The next part, without a step through the generator: that only has to know how it ends."""
        try:
            return await attempt.__anext__()
        except StopAsyncIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by the generator, unless that was closed meanwhile
            await self._parts.athrow(error)
        return await self._parts.__anext__()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the work and free its slot. More than once is fine."""
        if self._ending is None:
            await self._parts.aclose()
        else:
            await asyncio.wait((self._ending,))

    def end_unread(self) -> None:
        """Stop the work in the background, as nobody reads; who reads on later gets the request's error."""
        if self._ending is None and not self._is_read:
            self._ending = self._spawn(self._end())

    async def _end(self) -> None:
        # A reader who was about to go on has: the request's block is where that ends.
        if not self._is_read:
            await self._parts.aclose()

    @property
    def _is_read(self) -> bool:
        return self._run.in_block or self._parts.ag_running


def _end_unread(stream: ref[Stream]) -> None:
    found = stream()
    if found is not None:
        found.end_unread()
