"""Notes of the processes that we run, so that those which a killed owner leaves behind are found again.

A file for each, which its owner keeps locked as long as it lives: the kernel drops the lock with the owner, however
that ends. Whoever gets the lock of a file that is there already is the process's new owner. All calls here block.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

_MAX_BYTES: Final = 4096
# In /proc/PID/stat, counted from the state, which comes behind the name in parentheses.
_STATE, _START = 0, 19
_ENDED: Final = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a process.

    Args:
        pid: Its id, which is its group's as well.
        started: When it was started, as `start_of` says: another process may have its id by now.
        port: Where it listens on loopback.
        made: How it was started; who would start it differently does not want it.
    """

    pid: int
    started: str
    port: int
    made: str

    def lives(self) -> bool:
        """Whether just this process still runs, and leads a group of its own."""
        if not self.started or start_of(self.pid) != self.started:
            return False
        try:
            return os.getpgid(self.pid) == self.pid
        except ProcessLookupError:
            return False


class Claim:
    """The lock on one file. Made by `take`; must be dropped.

    Args:
        path: The file.
        descriptor: It, open and locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def __repr__(self) -> str:
        """The file, and whether it is held."""
        return f"<Claim {self.path.name}{', dropped' if self._descriptor is None else ''}>"

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Lock a file, which need not be there. None: somebody else has it, or it is not ours.

        Raises:
            OSError: The file cannot be made or locked.
        """
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                status = os.fstat(descriptor)
                if status.st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_at(path, status):
                        return cls(path, descriptor)
            except BaseException as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return None
                raise
            # Its last owner has removed the file between our opening and locking it: once more, with a new one.
            os.close(descriptor)
            if status.st_uid != os.geteuid():
                return None

    def read(self) -> Note | None:
        """What an earlier owner has noted; None when that is nothing, or makes no sense."""
        return None if self._descriptor is None else _parsed(os.pread(self._descriptor, _MAX_BYTES, 0))

    def write(self, note: Note) -> None:
        """Note what runs now.

        Raises:
            OSError: It cannot be written, or, the disk being full, only a part of it.
        """
        if self._descriptor is None:
            return
        text = json.dumps(asdict(note)).encode()
        try:
            os.ftruncate(self._descriptor, 0)
            written = os.pwrite(self._descriptor, text, 0)
        except OSError as error:
            # A descriptor has no name, and somebody has to find the disk that is full.
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if written < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def drop(self) -> None:
        """The process has ended: remove the file and unlock it. More than once is fine."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            os.close(descriptor)


def peek(path: Path) -> Note | None:
    """What stands in a file, whoever has it; None when that is nothing, or makes no sense."""
    try:
        return _parsed(path.read_bytes()[:_MAX_BYTES])
    except OSError:
        return None


def _parsed(text: bytes) -> Note | None:
    try:
        told = json.loads(text)
        return Note(int(told["pid"]), str(told["started"]), int(told["port"]), str(told["made"]))
    except (ValueError, KeyError, TypeError):
        return None


def _is_at(path: Path, status: os.stat_result) -> bool:
    """Whether a file that was opened still stands there."""
    try:
        now = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)


def start_of(pid: int) -> str:
    """When a process was started, the same in every look at it, and no other's; empty when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "" if fields[_STATE] in _ENDED else f"{boot} {fields[_START]}"
