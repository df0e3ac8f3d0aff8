"""Uploads of blobs to several servers at once, a part at a time: a blob may be larger than memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp

from gleitzeit_core.errors import FailureKind, InstanceFailure, Unavailable
from gleitzeit_llm import via
from gleitzeit_llm.failures import explaining, refusal, translated
from gleitzeit_llm.server_hub import channel_of
from gleitzeit_ollama.merging import combined

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType
    from typing import Self

    from gleitzeit_core.resources import ResourceInstance

# Parts on their way to one server: one that is being sent, and the next.
_PARTS: Final = 2
_ALWAYS: Final = {"Accept-Encoding": "identity", "Content-Type": "application/octet-stream"}


class _Pipe:
    """Parts on their way to one server."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._ended = False
        self.broken = False
        self._room, self._news = asyncio.Event(), asyncio.Event()
        self._room.set()

    async def put(self, part: bytes) -> None:
        """Add a part once there is room; nothing when nobody reads any more."""
        await self._room.wait()
        if not self.broken:
            self._parts.append(part)
            self._news.set()
            if len(self._parts) >= _PARTS:
                self._room.clear()

    def end(self) -> None:
        """No more will come."""
        self._ended = True
        self._news.set()

    def break_off(self) -> None:
        """Nobody reads any more."""
        self.broken = True
        self._parts.clear()
        self._room.set()

    @property
    def is_full(self) -> bool:
        """Whether the next part would have to wait."""
        return not self._room.is_set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            while self._parts:
                part = self._parts.pop(0)
                self._room.set()
                yield part
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()


class _Upload:
    def __init__(self, session: aiohttp.ClientSession, instance: ResourceInstance, path: str, size: int | None) -> None:
        self.instance, self.pipe = instance, _Pipe()
        self.task = asyncio.create_task(self._send(session, path, size), name=f"blob to {instance.id}")
        self.task.add_done_callback(lambda _: self.pipe.break_off())

    async def _send(self, session: aiohttp.ClientSession, path: str, size: int | None) -> None:
        channel = channel_of(self.instance)
        headers = {**_ALWAYS, **via.headers(), **channel.headers}
        if size is not None:
            headers["Content-Length"] = str(size)
        tls = True if channel.tls is None else channel.tls
        try:
            with explaining("ollama", same_api=True):
                async with session.post(
                    channel.url + path, data=aiter(self.pipe), headers=headers, ssl=tls, allow_redirects=False
                ) as response:
                    if response.status >= 300:  # noqa: PLR2004 - redirects and errors
                        raise await refusal(channel.url, response)
        except InstanceFailure as failure:
            failure.instance_id = self.instance.id
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            broken = translated(channel.url, error)
            broken.instance_id = self.instance.id
            raise broken from None


class Uploads:
    """One blob to several servers. The slowest of them sets the pace; one that fails is left behind.

    Use it as a context, which ends what is not finished::

        async with Uploads(instances, digest, ...) as uploads:
            async for part in parts:
                await uploads.send(part)
            got = await uploads.finish()

    Args:
        instances: Where to.
        digest: Of the blob; servers compare it with what they get.
        size_bytes: What the caller says that it is; None when unknown.
        stall_s: A server that takes nothing for so long has failed, and so has one that does not answer then.
        connect_timeout_s: One that accepts no connection for so long has failed.
    """

    def __init__(
        self,
        instances: Sequence[ResourceInstance],
        digest: str,
        *,
        size_bytes: int | None,
        stall_s: float,
        connect_timeout_s: float,
    ) -> None:
        self._instances, self._path, self._size_bytes = instances, f"/api/blobs/{digest}", size_bytes
        self._stall_s, self._connect_timeout_s = stall_s, connect_timeout_s
        self._uploads: list[_Upload] = []
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        """How many go on."""
        return f"<Uploads {sum(not upload.task.done() for upload in self._uploads)} of {len(self._uploads)} going on>"

    async def __aenter__(self) -> Self:
        """Begin them all."""
        # A session of their own: a connection that was half used must not serve anything else.
        timeout = aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_s)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._uploads = [_Upload(self._session, i, self._path, self._size_bytes) for i in self._instances]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is not finished."""
        tasks = [upload.task for upload in self._uploads]
        try:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if self._session is not None:
                await self._session.close()

    async def send(self, part: bytes) -> bool:
        """Pass a part on to all once they have room for it. False when nobody wants more: all have failed, or answered.

        What an earlier part still holds up is waited for, so that no more than a few parts are in memory.
        """
        going = [upload for upload in self._uploads if not upload.task.done()]
        full = [upload for upload in going if upload.pipe.is_full]
        for upload in going:
            if upload not in full:
                await upload.pipe.put(part)
        if full:
            await self._put_late(full, part)
        return bool(going)

    async def _put_late(self, full: Sequence[_Upload], part: bytes) -> None:
        puts = {asyncio.create_task(upload.pipe.put(part)): upload for upload in full}
        try:
            _, late = await asyncio.wait(puts, timeout=self._stall_s)
            for put in late:
                puts[put].task.cancel()  # It has failed, as `finish` tells.
        finally:
            for put in puts:
                put.cancel()
            await asyncio.gather(*puts, return_exceptions=True)

    async def finish(self, *, every: bool = False) -> list[ResourceInstance]:
        """There are no more parts: wait for the answers, and return those that have the blob now.

        Raises:
            InstanceFailure: None has; with `every`, one has not.
            Unavailable: There was nobody to send it to.
        """
        for upload in self._uploads:
            upload.pipe.end()
        if not self._uploads:
            raise Unavailable("there is no server that a blob could be sent to")
        tasks = [upload.task for upload in self._uploads]
        await asyncio.wait(tasks, timeout=self._stall_s)
        failures = [failure for upload in self._uploads if (failure := self._failure(upload)) is not None]
        if failures and (every or len(failures) == len(self._uploads)):
            raise combined(failures)
        return [upload.instance for upload in self._uploads if self._failure(upload) is None]

    def _failure(self, upload: _Upload) -> BaseException | None:
        if upload.task.done() and not upload.task.cancelled():
            return upload.task.exception()
        text = f"{upload.instance.endpoint} has stalled for {self._stall_s:g} s in an upload"
        return InstanceFailure(FailureKind.TIMEOUT, text, instance_id=upload.instance.id)
