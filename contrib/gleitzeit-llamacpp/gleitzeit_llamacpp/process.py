"""One child process, from its start to the end of all that belongs to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import deque
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Sequence

GRACE_S: Final = 2.0
_LAST_LINES: Final = 4
_REASON_CHARACTERS: Final = 600


class StartFailed(Exception):
    """It did not begin to serve.

    Args:
        reason: Why, for a person.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ServerProcess:
    """A running child, in a session of its own. Made by `start`; `stop` must be called in the end.

    Args:
        process: Started with pipes for all three of its streams.
        log: Gets each line it writes to standard error.
    """

    def __init__(self, process: Process, log: Callable[[bytes], None]) -> None:
        self._process = process
        self._log = log
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._reading = asyncio.create_task(self._read_log(), name=f"log of process {process.pid}")

    def __repr__(self) -> str:
        """Its number, and how it ended."""
        code = self._process.returncode
        return f"<ServerProcess {self.pid}{' runs' if code is None else f' ended with {code}'}>"

    @property
    def pid(self) -> int:
        """The number of the process, and of its group."""
        return self._process.pid

    @classmethod
    async def start(cls, command: Sequence[str], log: Callable[[bytes], None]) -> Self:
        """Start it. Cancelled, it leaves nothing behind.

        Raises:
            OSError: The system refuses.
        """
        pipe = asyncio.subprocess.PIPE
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        )
        try:
            return cls(await asyncio.shield(starting), log)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await cls(await starting, log).stop(grace_s=0)
            raise

    async def listening(self) -> str:
        """Wait until it listens. Returns its URL.

        Raises:
            StartFailed: It says that it cannot, or ends.
        """
        assert self._process.stdout is not None  # noqa: S101 - started with a pipe
        line = await self._process.stdout.readline()
        try:
            message = json.loads(line) if line else {}
        except ValueError:
            message = {}
        if not isinstance(message, dict):
            message = {}
        if "url" in message:
            return str(message["url"])
        await self.wait()
        raise StartFailed(self.ended(str(message.get("error", ""))))

    async def wait(self) -> None:
        """Wait until it has ended and all that it wrote is read."""
        await self._process.wait()
        # Not for ever: if it had children that live on, they hold the other end.
        await asyncio.wait((self._reading,), timeout=GRACE_S)

    def ended(self, why: str = "") -> str:
        """How it ended, and its last words.

        Args:
            why: What it said about it itself.
        """
        code = self._process.returncode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        words = "; ".join(filter(None, (why, *self._last)))
        return f"the process {how}{': ' if words else ''}{words[:_REASON_CHARACTERS]}"

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Ask it to end, make it end, and wait until it is gone. More than once is fine.

        Args:
            grace_s: Between asking and making, in seconds; 0: it is not asked. A cancellation ends the waiting at once.
        """
        try:
            if grace_s > 0:
                self._signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await self._process.wait()
        finally:
            self._signal(signal.SIGKILL)
            await self._process.wait()
            assert self._process.stdin is not None  # noqa: S101 - started with a pipe
            self._process.stdin.close()
            await asyncio.wait((self._reading,), timeout=GRACE_S)
            self._reading.cancel()

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group: it may have started processes of its own."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - started with a pipe
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than anybody reads
                continue
            if not line:
                return
            self._log(line)
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._last.append(text)
