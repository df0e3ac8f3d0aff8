"""Ollama servers as processes of our own: started, found again, watched, and stopped with all they have started."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from gleitzeit_core.errors import GleitzeitError
from gleitzeit_llm.processes import stop_group
from gleitzeit_ollama.claims import Claim, Note, peek, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from gleitzeit_ollama.options import ManagedOptions

T = TypeVar("T")

LOOPBACK: Final = "127.0.0.1"
_TAIL_BYTES: Final = 4096
_LINE_MAX: Final = 300
# So many logs of servers that have ended stay, each of which may be at another port.
_LOGS_KEPT: Final = 16
# Settings of our own, keys among them, which are not for others.
_PRIVATE: Final = "GLEITZEIT_"


class ServerError(GleitzeitError):
    """A server of our own does not start."""

    code = "managed_server"


class Server:
    """One running server. Made by `Servers`; must be stopped.

    Args:
        pid: The process, leader of a group of its own.
        port: Where it listens on loopback.
        claim: Our hold on it.
        log: Where it writes.
        end: Waits for its end, and says how it ended.

    Attributes:
        ended: Done when it has ended.
        stopping: Whether it was told to end.
    """

    def __init__(self, pid: int, port: int, claim: Claim, *, log: Path, end: Coroutine[None, None, str]) -> None:
        self.pid, self.port, self.log = pid, port, log
        self.ended = asyncio.create_task(end, name=f"end of process {pid}")
        self.stopping = False
        self._claim = claim

    def __repr__(self) -> str:
        """Process id, port and status."""
        return f"<Server {self.pid} at port {self.port}{', ended' if self.ended.done() else ''}>"

    async def wait(self) -> None:
        """Wait until it has ended."""
        await asyncio.wait((self.ended,))

    async def why(self) -> str:
        """How it ended, with the last line of its log."""
        last = await asyncio.to_thread(_last_line, self.log)
        return f"process {self.pid} {self.ended.result()}: {last or 'it wrote nothing'} ({self.log})"

    async def stop(self, grace_s: float) -> None:
        """End it and all its descendants, gently if they let us, at once when cancelled. More than once is fine."""
        self.stopping = True
        try:
            await stop_group(self.pid, self.wait, grace_s=grace_s)
        finally:
            await asyncio.to_thread(self._claim.drop)


class Servers:
    """Starts servers, and finds those that an earlier process of ours has left behind.

    Args:
        options: How to start them.
        hub: The name of the hub they are for; only what was started for it is found again.
    """

    def __init__(self, options: ManagedOptions, hub: str) -> None:
        self._options = options
        self._dir = options.log_dir or _state_dir()
        self._prefix = f"{quote(hub, safe='').replace('.', '%2E')}-"
        settings = {name: value.get_secret_value() for name, value in options.environment.items()}
        if options.models_dir is not None:
            settings["OLLAMA_MODELS"] = str(options.models_dir)
        self._settings = settings
        text = json.dumps([options.command, settings], sort_keys=True)
        self._made = hashlib.sha256(text.encode()).hexdigest()

    def __repr__(self) -> str:
        """What it runs."""
        return f"<Servers {self._options.command[0]}>"

    async def open(self) -> None:
        """Make the directory for logs and notes.

        Raises:
            OSError: It cannot be made, or no file can be made in it.
        """
        await asyncio.to_thread(self._make_directory)

    def _make_directory(self) -> None:
        self._dir.mkdir(0o700, parents=True, exist_ok=True)
        # Better said now than at each start of a server.
        with tempfile.TemporaryFile(dir=self._dir):
            return

    # -- starting ----------------------------------------------------------------------------------------------

    def port(self, number: int, taken: Collection[int]) -> int:
        """A port that is free now, and none of `taken`. When none is, one all the same: starting there will say so.

        Args:
            number: Where in the range to begin, so that one that only seems free is not tried again and again.
            taken: Given out already.
        """
        if self._options.ports is None:
            return next(port for port in iter(_any_port, None) if port not in taken)
        first, last = self._options.ports
        count = last - first + 1
        in_turn = [first + (number + step) % count for step in range(count)]
        return next((port for port in in_turn if port not in taken and _is_free(port)), in_turn[0])

    async def start(self, port: int) -> Server:
        """Start a server; it may not listen yet.

        Raises:
            OSError: The command cannot be run.
            ServerError: Another process of ours has the port.
        """
        claim = await _in_thread(lambda: Claim.take(self._note(port)), _drop)
        if claim is None:
            raise ServerError(f"port {port} is taken: {self._note(port)} is locked by another process")
        try:
            process = await self._spawn(port)
        except BaseException:
            await asyncio.to_thread(claim.drop)
            raise
        server = Server(process.pid, port, claim, log=self._log(port), end=_status(process))
        try:
            note = Note(process.pid, await asyncio.to_thread(start_of, process.pid), port, self._made)
            await asyncio.to_thread(claim.write, note)
        except BaseException:
            await server.stop(0)
            raise
        return server

    async def _spawn(self, port: int) -> asyncio.subprocess.Process:
        log = await _in_thread(lambda: self._new_log(port), os.close)
        try:
            return await asyncio.create_subprocess_exec(
                *self._options.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(port),
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _environment(self, port: int) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
        return {**inherited, **self._settings, "OLLAMA_HOST": f"{LOOPBACK}:{port}"}

    # -- finding again -----------------------------------------------------------------------------------------

    async def left_over(self) -> list[tuple[Server, bool]]:
        """The servers whose owner is gone, ours from now on, each with whether it was started as one would be now."""
        claims = await _in_thread(self._abandoned, _drop_all)
        found = []
        for claim, note in claims:
            descriptor = _pidfd(note)
            if descriptor is None:
                await asyncio.to_thread(claim.drop)
                continue
            server = Server(note.pid, note.port, claim, log=self._log(note.port), end=_end_of(descriptor))
            found.append((server, note.made == self._made))
        return found

    def in_use(self) -> list[int]:
        """The ports of servers that run for this hub, whoever owns them. Reads files."""
        notes = map(peek, self._files(".json"))
        return [note.port for note in notes if note is not None and note.lives()]

    def _abandoned(self) -> list[tuple[Claim, Note]]:
        found = []
        for claim in map(Claim.take, self._files(".json")):
            note = None if claim is None else claim.read()
            if claim is not None and note is not None and note.lives():
                found.append((claim, note))
            elif claim is not None:
                claim.drop()
        return found

    # -- files -------------------------------------------------------------------------------------------------

    def _files(self, suffix: str) -> list[Path]:
        """Those of this hub's servers, in order of their names."""
        found = self._dir.glob(f"{self._prefix}*{suffix}")
        return sorted(path for path in found if _stem(path).removeprefix(self._prefix).isdecimal())

    def _new_log(self, port: int) -> int:
        """Begin a log. The one before is kept, and so are the latest of other ports."""
        path = self._log(port)
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        for old in sorted(self._files(".log*"), key=_age)[_LOGS_KEPT:]:
            # Not those of servers that run.
            if not old.with_name(f"{_stem(old)}.json").exists():
                old.unlink(missing_ok=True)
        # Appending, so that it can be cut from outside while it is written.
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _note(self, port: int) -> Path:
        return self._dir / f"{self._prefix}{port}.json"

    def _log(self, port: int) -> Path:
        return self._dir / f"{self._prefix}{port}.log"


def _state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "gleitzeit" / "ollama"


def _any_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        # As servers do: connections that have just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _stem(path: Path) -> str:
    """A file's name up to its first dot; there is none in the part that stands for the hub."""
    return path.name.partition(".")[0]


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:_LINE_MAX] for line in reversed(lines) if line.strip()), "")


async def _status(process: asyncio.subprocess.Process) -> str:
    return f"ended with status {await process.wait()}"


def _pidfd(note: Note) -> int | None:
    """A descriptor for a process that is not our child; None when it has ended."""
    try:
        descriptor = os.pidfd_open(note.pid)
    except ProcessLookupError:
        return None
    # From here on it is this one. Was it the right one?
    if note.lives():
        return descriptor
    os.close(descriptor)
    return None


async def _end_of(descriptor: int) -> str:
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _settle, gone)
    try:
        await gone
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return "ended"


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _in_thread(work: Callable[[], T], undo: Callable[[T], object]) -> T:
    """`work` in a thread; when whoever waits is cancelled, what it has brought is undone."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        undo(await task)
        raise


def _drop(claim: Claim | None) -> None:
    if claim is not None:
        claim.drop()


def _drop_all(claims: list[tuple[Claim, Note]]) -> None:
    for claim, _ in claims:
        claim.drop()
