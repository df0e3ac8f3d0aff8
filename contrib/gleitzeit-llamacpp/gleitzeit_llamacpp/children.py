"""Child processes: started, watched, and stopped with everything they have started."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

from gleitzeit_llamacpp.files import ModelError
from gleitzeit_llm.processes import stop_group

if TYPE_CHECKING:
    from gleitzeit_llamacpp.server import Settings

_GRACE_S: Final = 2.0
_LAST_LINES: Final = 20
_LINE_BYTES: Final = 64 * 1024


class Child:
    """One running server. Made by `start`; must be stopped.

    Args:
        process: The process, leader of a group of its own.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._reading = asyncio.create_task(self._read(), name=f"log of process {process.pid}")
        self.url = ""

    def __repr__(self) -> str:
        """Process id, address and status."""
        return f"<Child {self.pid} {self.url or 'starting'}, status {self._process.returncode}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """The last lines it wrote to standard error."""
        return " | ".join(self._lines)

    @classmethod
    async def start(cls, settings: Settings, *, timeout_s: float) -> Child:
        """Start a server and wait until it listens.

        Args:
            settings: What to serve, and how.
            timeout_s: How long that may take.

        Raises:
            ModelError: It does not listen; with the reason and the last of its log.
        """
        # -P keeps the working directory out of its import path.
        command = (sys.executable, "-P", "-m", "gleitzeit_llamacpp.server", settings.as_argument())
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, limit=_LINE_BYTES
        )
        child = cls(process)
        try:
            async with asyncio.timeout(timeout_s):
                child.url = await child._greeting()
        except TimeoutError:
            await child.stop()
            raise ModelError(f"{settings.name}: does not listen after {timeout_s:g} s: {child.log}") from None
        except BaseException:
            await child.stop()
            raise
        return child

    async def _greeting(self) -> str:
        stdout = self._process.stdout
        line = await stdout.readline() if stdout is not None else b""
        try:
            said = dict(json.loads(line))
        except (TypeError, ValueError):
            status = await self._process.wait()
            await self._reading
            raise ModelError(f"ended with status {status} before it listened: {self.log}") from None
        if "url" not in said:
            raise ModelError(f"cannot serve: {said.get('error', line)}; {self.log}")
        return str(said["url"])

    async def wait(self) -> int:
        """Wait until it ends. Its exit status; negative for a signal."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End it and all its descendants, gently if they let us, at once when cancelled. More than once is fine."""
        try:
            await stop_group(self.pid, self._process.wait, grace_s=_GRACE_S)
        finally:
            await self._tidy()

    async def _tidy(self) -> None:
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._reading

    async def _read(self) -> None:
        stderr = self._process.stderr
        while stderr is not None:
            try:
                line = await stderr.readline()
            except ValueError:  # Longer than the limit: dropped.
                continue
            if not line:
                return
            self._lines.append(line.decode(errors="replace").strip())
