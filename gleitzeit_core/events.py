"""What happens, as it happens: for `ResourceManager.events`.

A reader who is slow loses the oldest events, hears how many, and holds up nobody. Nothing is made that nobody reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.requests import FinishedRequest
    from gleitzeit_core.runs import Observers

BACKLOG: Final = 1024
"""Events that are kept for one reader."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Args:
        kind: ``instance``, ``hub``, ``reload``, ``request``, or ``dropped``: some are missing here.
        at: When, in Unix time.
        data: What, as plain data.
    """

    kind: str
    at: float
    data: Mapping[str, Any]


class EventStream:
    """Events from now on, as an asynchronous iterator. One that is dropped or closed gets no more.

    Args:
        requests: Whether finished requests are wanted, too.
        tenant: Only this tenant's; None for everybody's.
        leave: Called when it is closed.
    """

    def __init__(self, *, requests: bool, tenant: str | None, leave: Callable[[EventStream], None]) -> None:
        self.requests, self.tenant, self._leave = requests, tenant, leave
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._ended = False
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        """Counts."""
        return f"<EventStream {len(self._events)} waiting, {self._dropped} dropped>"

    def put(self, event: Event) -> None:
        """Keep `event` for whoever reads."""
        if len(self._events) >= BACKLOG:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._news.set()

    def end(self) -> None:
        """Nothing comes after what is kept."""
        self._ended = True
        self._news.set()

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event; how many are missing comes before the first that is not."""
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        if self._dropped:
            count, self._dropped = self._dropped, 0
            return Event("dropped", self._events[0].at, {"count": count})
        return self._events.popleft()

    async def aclose(self) -> None:
        """Stop listening, and forget what is kept. More than once is fine."""
        self._leave(self)
        self._events.clear()
        self.end()


class Events:
    """Hands events to all who listen; stands before other observers as an observer of the dispatcher.

    Args:
        others: Who else observes.
        wall: Tells the time.
    """

    def __init__(self, others: Observers, wall: Callable[[], float]) -> None:
        self._others, self._wall = others, wall
        self._streams: WeakSet[EventStream] = WeakSet()
        self.observes_requests = others.observes_requests

    def __repr__(self) -> str:
        """How many listen."""
        return f"<Events, {len(self._streams)} readers>"

    def listen(self, *, requests: bool = False, tenant: str | None = None) -> EventStream:
        """A new reader."""
        stream = EventStream(requests=requests, tenant=tenant, leave=self._streams.discard)
        self._streams.add(stream)
        self.observes_requests |= requests
        return stream

    def emit(self, kind: str, data: Mapping[str, Any]) -> None:
        """Tell all who listen."""
        if self._streams:
            self._put(Event(kind, self._wall(), data))

    def end(self) -> None:
        """Nothing more will happen."""
        for stream in tuple(self._streams):
            stream.end()
        self._streams.clear()

    def instance_changed(self, change: InstanceChange) -> None:
        """See ``gleitzeit_instance_changed``."""
        self._others.instance_changed(change)
        instance = change.after or change.before
        if self._streams and instance is not None:
            what = "changed" if change.before and change.after else "added" if change.after else "removed"
            data = {name: getattr(instance, name) for name in ("id", "hub", "kind", "endpoint")}
            self.emit("instance", {**data, "change": what, "state": str(change.state), "reason": change.reason})

    def request_finished(self, finished: FinishedRequest) -> None:
        """See ``gleitzeit_request_finished``."""
        if self._others.observes_requests:
            self._others.request_finished(finished)
        wanted = any(stream.requests for stream in self._streams)
        if wanted:
            self._put(Event("request", self._wall(), _described(finished)))
        self.observes_requests = wanted or self._others.observes_requests

    def _put(self, event: Event) -> None:
        for stream in tuple(self._streams):
            if event.kind != "request" or (stream.requests and stream.tenant in (None, event.data["tenant"])):
                stream.put(event)


def _described(finished: FinishedRequest) -> dict[str, Any]:
    request, served = finished.request, finished.served
    return {
        **{name: getattr(request, name) for name in ("id", "method", "tenant", "priority")},
        "model": request.requirements.model,
        "instance": served.instance_id if served else None,
        "tries": served.tries if served else 0,
        "queued_s": round(served.queued_s, 6) if served else 0.0,
        "total_s": round(finished.total_s, 6),
        "error": finished.error_code or None,
    }
