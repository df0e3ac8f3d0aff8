"""A hub whose instances are reached by duplex bytes, in memory, and the provider that drives them.

What goes over the stream is lines of JSON: ``{"id": 1, "count": 3}`` asks for three parts, ``{"id": 1, "part": 0}`` is
one, ``{"id": 1, "done": true}`` ends them, ``{"cancel": 1}`` asks to end them early.
"""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.resources import ChannelKind, ResourceInstance, Speaks, StreamChannel, instance_id
from gleitzeit_core.strategies.base import NoOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import Channel

COUNTER = Speaks("counter", ChannelKind.STREAM)


class MemoryStream:
    """One end of a pipe; see `pipe`."""

    kind = ChannelKind.STREAM

    def __init__(self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamReader) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    async def send(self, data: bytes) -> None:
        """To the other end.

        Raises:
            InstanceFailure: ``LOST`` when it is closed.
        """
        if self._outgoing.at_eof() or self._closed:
            raise InstanceFailure(FailureKind.LOST, "the other end is closed")
        self._outgoing.feed_data(data)
        await asyncio.sleep(0)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """From the other end; nothing once it is closed."""
        return await self._incoming.read(max_bytes)

    @property
    def _closed(self) -> bool:
        return bool(self._outgoing._eof)  # type: ignore[attr-defined]  # noqa: SLF001 - there is no other way to ask

    async def aclose(self) -> None:
        """Both directions."""
        self._incoming.feed_eof()
        self._outgoing.feed_eof()


def pipe() -> tuple[MemoryStream, MemoryStream]:
    """Two ends; what is sent into one is received from the other."""
    there, back = asyncio.StreamReader(), asyncio.StreamReader()
    return MemoryStream(there, back), MemoryStream(back, there)


class Lines:
    """Reads JSON lines from a stream. Whoever waits may be cancelled: nothing that has come is lost."""

    def __init__(self, stream: StreamChannel) -> None:
        self._stream = stream
        self._held = b""

    async def next(self) -> dict[str, Any] | None:
        """The next line; None at the end of the stream."""
        while b"\n" not in self._held:
            data = await self._stream.receive()
            if not data:
                return None
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


async def send_line(stream: StreamChannel, **line: object) -> None:
    """One JSON line."""
    await stream.send(json.dumps(line).encode() + b"\n")


class Counter:
    """What is at the other end: it counts, a part at a time, and stops when it is told to."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream
        self._jobs: dict[int, asyncio.Task[None]] = {}
        self.cancelled: list[int] = []

    async def serve(self) -> None:
        """Until the stream ends."""
        try:
            incoming = Lines(self._stream)
            while line := await incoming.next():
                if "cancel" in line:
                    self.cancelled.append(line["cancel"])
                    self._jobs[line["cancel"]].cancel()
                else:
                    self._jobs[line["id"]] = asyncio.create_task(self._count(line["id"], line["count"]))
        finally:
            for job in self._jobs.values():
                job.cancel()
            await asyncio.gather(*self._jobs.values(), return_exceptions=True)

    async def _count(self, number: int, until: int) -> None:
        try:
            for part in range(until):
                await send_line(self._stream, id=number, part=part)
        finally:
            await send_line(self._stream, id=number, done=True)


class StreamHub(ResourceHub[HubOptions]):
    """Instances at the other end of a pipe."""

    kind = "counter"

    def __init__(self, options: HubOptions | None = None, *, name: str = "", size: int = 1) -> None:
        super().__init__(options or HubOptions(), name=name)
        self._size = size
        self.counters: list[Counter] = []
        self._ends: list[tuple[MemoryStream, asyncio.Task[None]]] = []

    async def discover(self) -> Iterable[ResourceInstance]:
        """As many as were asked for, once."""
        if self._ends:
            return ()
        return [self._make(f"pipe-{number}") for number in range(self._size)]

    def _make(self, endpoint: str) -> ResourceInstance:
        ours, theirs = pipe()
        counter = Counter(theirs)
        self.counters.append(counter)
        self._ends.append((ours, asyncio.create_task(counter.serve())))
        return ResourceInstance(
            id=instance_id(self.kind, endpoint),
            hub=self.name,
            kind=self.kind,
            endpoint=endpoint,
            offers=((COUNTER.api, ours),),
            max_concurrent=1,
        )

    async def close(self) -> None:
        """Close the pipes and wait for those at the other end."""
        ends, self._ends = self._ends, []
        for stream, _ in ends:
            await stream.aclose()
        await asyncio.gather(*(task for _, task in ends))


class StreamProvider(Provider[NoOptions]):
    """Drives what counts at the other end of a stream."""

    protocol = "counter"
    accepts = (COUNTER,)
    methods = (Method(name="counter/count", summary="count up to `to`", replayable=True, streams=True),)

    def __init__(self, options: NoOptions | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        self._numbers = count(1)

    def make_hub(self) -> StreamHub:
        """One instance."""
        return StreamHub()

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401 - a list
        """All parts."""
        return [part async for part in self.stream_on(instance, api, channel, request)]

    async def stream_on(
        self, instance: ResourceInstance, api: str, channel: Channel, request: Request
    ) -> AsyncIterator[Any]:
        """Each part as it comes. Leaving asks the other end to stop, and waits until it has.

        Raises:
            InstanceFailure: The stream ended before the parts did.
        """
        del instance, api
        if not isinstance(channel, StreamChannel):
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"cannot read {channel!r}", started=False)
        number, incoming, at_end = next(self._numbers), Lines(channel), False
        await send_line(channel, id=number, count=request.params.get("to", 3))
        try:
            while line := await incoming.next():
                at_end = "done" in line
                if at_end:
                    return
                yield line["part"]
            at_end = True
            raise InstanceFailure(FailureKind.LOST, "the stream ended before its time")
        finally:
            if not at_end:
                await send_line(channel, cancel=number)
                while (line := await incoming.next()) and "done" not in line:
                    continue
