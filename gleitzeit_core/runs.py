"""One request on its way: who carries it out, what it has seen so far, and the answer in parts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from gleitzeit_core.errors import DeadlineExceeded, ShuttingDown
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
    from types import TracebackType

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.errors import RequestError
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.pool import Record
    from gleitzeit_core.requests import FinishedRequest, Method, Outcome, Request
    from gleitzeit_core.resources import Channel, ResourceInstance, Speaks
    from gleitzeit_core.routing import Ticket


class Executor(Protocol):
    """The part of a provider that the dispatcher calls; see `Provider`."""

    @property
    def accepts(self) -> tuple[Speaks, ...]:
        """The (api, channel) pairs it can drive."""

    def method(self, name: str) -> Method:
        """The method called `name`."""

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry a request out."""

    def stream_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> AsyncIterator[Any]:
        """Carry a request out in parts."""

    async def answer(self, request: Request, instances: tuple[InstanceReport, ...]) -> Any:  # noqa: ANN401 - as above
        """Answer a method without an instance."""


@runtime_checkable
class Closable(Protocol):
    """What can be stopped early, as an async generator can."""

    async def aclose(self) -> None:
        """Stop."""


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
        state: Its state in the pool; ``ejected`` while its breaker is open.
        in_flight: Requests it works on for this process.
        reason: Why it is not ready; empty when it is.
    """

    instance: ResourceInstance
    state: str
    in_flight: int
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method answered, and who gave the answer."""

    value: Any
    served: Served


@dataclass(frozen=True, slots=True)
class OnInstance:
    """What became of a request on one of the instances of `Dispatcher.each`: `value` or `error`."""

    instance_id: str
    value: Any = None
    error: RequestError | None = None


@dataclass(slots=True, eq=False)
class Run:
    """One request on its way, over all its tries."""

    request: Request
    method: Method
    ticket: Ticket
    queued_s: float = 0.0
    wait_s: float = 0.0
    tries: int = 0
    requeued: bool = False
    retrying: bool = False
    own_deadline: bool = False
    instance_id: str = ""
    outcome: Outcome | None = None
    scope: asyncio.Timeout | None = None
    ended_by_close: bool = False

    @property
    def served(self) -> Served:
        """Who serves it, as of now."""
        return Served(instance_id=self.instance_id, queued_s=self.queued_s, tries=self.tries)


class Limit:
    """A request's deadline, and the end of the grace period, as errors. Around every wait for an instance."""

    __slots__ = ("_clock", "_run", "_timeout")

    def __init__(self, run: Run, clock: Clock) -> None:
        self._run, self._clock = run, clock
        deadline = run.ticket.deadline
        delay_s = None if deadline is None else max(0.0, deadline - clock.monotonic())
        self._timeout = asyncio.timeout(0 if run.ended_by_close else delay_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._run.scope = self._timeout

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.scope = None
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._run.ended_by_close:
                raise ShuttingDown("shutting down: the grace period is over") from None
            after_s = self._clock.monotonic() - self._run.ticket.arrived_at
            raise DeadlineExceeded(where="instance", after_s=after_s) from None


class Stream:
    """An answer in parts. Iterate over it; leave it early with `aclose` or by ``async with``, which cancels the work."""

    def __init__(self, parts: AsyncGenerator[Any, None], run: Run) -> None:
        self._parts, self._run = parts, run

    @property
    def served(self) -> Served:
        """Who serves it; right once the first part is there."""
        return self._run.served

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    def __anext__(self) -> Awaitable[Any]:
        """The next part."""
        return self._parts.__anext__()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the work and free its slot. More than once is fine."""
        await self._parts.aclose()


def report(record: Record) -> InstanceReport:
    state = record.state.value
    if record.state is State.READY and record.breaker.until is not None:
        state = "ejected"
    return InstanceReport(record.instance, state, record.in_flight, record.reason)
