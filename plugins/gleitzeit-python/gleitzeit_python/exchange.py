"""One piece of work on a runner: frames there, frames back, and an end in any case."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final, Self

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_python.agent import frames

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.resources import StreamChannel

_STOP_S: Final = 5.0
# What an agent takes to begin; and to end a payload and clean up after it, beyond the payload's own time.
_GRACE_S: Final = 15.0


class Exchange:
    """One piece of work. Use it in an ``async with`` block: nothing of it runs on after that.

    When the agent does not confirm that, the channel is closed: then its hub ends the instance.

    Args:
        channel: To the agent. Nobody else uses it meanwhile.
        fence: Higher than any before, or that of the session that goes on.
        timeout_s: What the payload gets; the agent ends it then, and is itself given up a while later.
    """

    def __init__(self, channel: StreamChannel, fence: int, timeout_s: float) -> None:
        self._channel, self.fence, self._timeout_s = channel, fence, timeout_s
        # At first only so long: an agent that lives says soon that it has begun.
        self._until = asyncio.get_running_loop().time() + _GRACE_S
        self._decoder = frames.Decoder()
        self._waiting: list[tuple[int, int, bytes]] = []
        self._message = bytearray()
        self._begun = self._over = False

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """See to it that nothing runs any more, cancelled or not."""
        if not self._begun or self._over:
            return
        stopping = asyncio.create_task(self._stop())
        cancelled = False
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                cancelled = True
        stopping.result()
        if cancelled and exc_info[0] is None:
            raise asyncio.CancelledError

    async def begin(self, asked: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Send all that the agent needs.

        Raises:
            InstanceFailure: It is gone, and nothing has begun.
            InvalidRequest: It is more than an agent takes.
        """
        message = json.dumps(asked).encode("utf-8", "surrogatepass")
        if len(message) > frames.MAX_MESSAGE_BYTES:
            text = f"all but the files are {len(message)} bytes as JSON; at most {frames.MAX_MESSAGE_BYTES} are taken"
            raise InvalidRequest(text)
        parts = [frames.file_frames(name, self.fence, content) for name, content in files.items()]
        parts.append(frames.frames(frames.RUN, self.fence, message))
        self._begun = True
        await self._send(b"".join(parts))

    async def reset(self) -> dict[str, Any]:
        """End whatever runs and remove what it has left. What the agent says of that."""
        self._begun = True
        await self._send(frames.frame(frames.RESET, self.fence))
        while not self._over:
            kind, content = await self.next()
            if kind == frames.DONE:
                return dict(json.loads(content))
        return {"clean": False}

    async def _send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout_at(self._until):
                await self._channel.send(data)
        except InstanceFailure as failure:
            await self._give_up()
            failure.started = False
            raise
        except BaseException:
            # The agent has got a part of a frame: nothing more can be said.
            await self._give_up()
            raise

    async def next(self) -> tuple[int, bytes]:
        """The next frame, put together: its kind and content. The last one is a ``DONE``.

        Raises:
            InstanceFailure: The agent refuses, is gone, or does not answer any more.
            InvalidRequest: It refuses what no agent would take.
        """
        while True:
            kind, content = await self._frame()
            if kind == frames.MORE:
                self._message += content
                continue
            whole, self._message = bytes(self._message) + content, bytearray()
            self._over = self._over or kind == frames.DONE
            if kind == frames.STARTED:
                self._until = asyncio.get_running_loop().time() + self._timeout_s + _GRACE_S
            if kind == frames.REFUSED:
                await self._refused(json.loads(whole))
            return kind, whole

    async def _frame(self) -> tuple[int, bytes]:
        while not self._waiting:
            try:
                async with asyncio.timeout_at(self._until):
                    data = await self._channel.receive()
            except TimeoutError:
                await self._give_up()
                raise InstanceFailure(FailureKind.LOST, "the runner does not answer any more") from None
            if not data:
                await self._give_up()
                raise InstanceFailure(FailureKind.LOST, "the runner is gone")
            try:
                # What is left of somebody else's turn has another fence.
                self._waiting += [found for found in self._decoder.feed(data) if found[1] == self.fence]
            except frames.BadFrame as error:
                await self._give_up()
                raise InstanceFailure(FailureKind.LOST, f"the runner answers with {error}") from error
        kind, _, content = self._waiting.pop(0)
        return kind, content

    async def _refused(self, said: Mapping[str, Any]) -> None:
        self._over = True
        if not said.get("clean"):
            await self._channel.aclose()
        reason = str(said.get("reason"))
        if said.get("code") == "invalid":
            raise InvalidRequest(reason)
        raise InstanceFailure(FailureKind.SERVER_ERROR, f"the runner refuses: {reason}", started=False)

    async def _stop(self) -> None:
        """Have the agent end it, and wait until it says that it has."""
        self._until = asyncio.get_running_loop().time() + _STOP_S
        try:
            await self._send(frames.frame(frames.CANCEL, self.fence))
            while not self._over:
                kind, content = await self.next()
                if kind == frames.DONE and not json.loads(content).get("clean"):
                    await self._channel.aclose()
        except (InstanceFailure, InvalidRequest, TimeoutError, ValueError):
            await self._give_up()

    async def _give_up(self) -> None:
        """Close the channel: nobody knows what the agent does."""
        self._over = True
        await self._channel.aclose()
