"""A child process that runs an agent, and the pipes to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.processes import signal_group
from gleitzeit_core.resources import ChannelKind
from gleitzeit_python import runner
from gleitzeit_python.agent import files

if TYPE_CHECKING:
    from gleitzeit_python.runner import AgentOptions, RunnerHello

logger = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 1 << 16
_LINES: Final = 100
# An agent whose standard input has ended has this long to end what it has started.
_GRACE_S: Final = 5.0


class PipeChannel:
    """Bytes to and from a process, by its standard input and output.

    Args:
        process: None for one that is not there yet: a closed channel.
    """

    def __init__(self, process: asyncio.subprocess.Process | None = None) -> None:
        self._process = process
        self.closed = process is None

    def __repr__(self) -> str:
        """Whose it is."""
        pid = None if self._process is None else self._process.pid
        return f"<PipeChannel to process {pid}{', closed' if self.closed else ''}>"

    @property
    def kind(self) -> ChannelKind:
        """Always ``stream``."""
        return ChannelKind.STREAM

    async def send(self, data: bytes) -> None:
        """See `StreamChannel`."""
        pipe = None if self._process is None else self._process.stdin
        if self.closed or pipe is None:
            raise InstanceFailure(FailureKind.LOST, "the process is gone")
        try:
            pipe.write(data)
            await pipe.drain()
        except OSError as error:
            raise InstanceFailure(FailureKind.LOST, "the process is gone") from error

    async def receive(self, max_bytes: int = _CHUNK_BYTES) -> bytes:
        """See `StreamChannel`."""
        pipe = None if self._process is None else self._process.stdout
        return b"" if self.closed or pipe is None else await pipe.read(max_bytes)

    async def aclose(self) -> None:
        """Close standard input: the agent ends then, and all that it has started."""
        self.closed = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def _make_folder(parent: str) -> str:
    folder = tempfile.mkdtemp(prefix="gleitzeit-", dir=parent or None)
    Path(folder).chmod(0o711)
    return folder


async def _made_folder(parent: str) -> str:
    """A new one. Who is cancelled meanwhile leaves none: the thread that makes it goes on."""
    making = asyncio.create_task(asyncio.to_thread(_make_folder, parent))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.to_thread(files.remove, await making)
        raise


class Child:
    """An agent's process. Made by `start`; must be stopped.

    Args:
        process: Leader of a group of its own.
        folder: Its payloads' folders are in here; removed in the end.
    """

    def __init__(self, process: asyncio.subprocess.Process, folder: str) -> None:
        self._process, self._folder = process, folder
        self.channel = PipeChannel(process)
        self._reading = asyncio.create_task(self._read(), name=f"log of process {process.pid}")

    def __repr__(self) -> str:
        """Process id and status."""
        return f"<Child {self.pid}, status {self.status}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.returncode

    @classmethod
    async def start(
        cls, python: str, options: AgentOptions, parent: str = "", *, timeout_s: float
    ) -> tuple[Child, RunnerHello]:
        """Start one, and wait until it is ready.

        Args:
            python: The interpreter.
            options: For the agent, but for its folder.
            parent: Where that is made; empty for the usual place of temporary files.
            timeout_s: How long that may take.

        Raises:
            InstanceFailure: It is not ready.
            OSError: The interpreter cannot be run.
        """
        pipe = asyncio.subprocess.PIPE
        # Nothing of our own environment, which may hold keys: its program could look there.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        folder = await _made_folder(parent)
        try:
            process = await asyncio.create_subprocess_exec(
                *runner.command(python), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, env=environment
            )
        except BaseException:
            await asyncio.to_thread(files.remove, folder)
            raise
        child = cls(process, folder)
        try:
            own = replace(options, directory=folder)
            return child, await runner.start(child.channel, options=own, timeout_s=timeout_s)
        except BaseException:
            await child.stop()
            raise

    async def stop(self) -> None:
        """Let it end, and all that it has started with it; at once when cancelled. More than once is fine."""
        await self.channel.aclose()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self._process.wait()
        finally:
            signal_group(self.pid, signal.SIGKILL)
            await self._process.wait()
            await self._reading
            # The agent has done so, unless it was killed.
            await asyncio.to_thread(files.remove, self._folder)

    async def _read(self) -> None:
        """Pass on what the agent complains of, so long as it is not too much."""
        stderr, lines = self._process.stderr, 0
        while stderr is not None and (data := await stderr.read(_CHUNK_BYTES)):
            for line in data.decode(errors="replace").splitlines():
                lines += 1
                if lines <= _LINES:
                    logger.warning("process %d: %s", self.pid, line[:500])
