"""Who owns a container, and whether that owner still lives.

Each process that makes containers holds the lock of a file as long as it lives: the kernel drops the lock with the
process, however that ends. Every container is labelled with its owner's name and with the place where its file is. Only
processes of the same place - the same directory, since the same start of the same machine - judge an owner; an engine
that several machines use is safe for all of them. So is a directory that they share, even where locks do not reach from
one to the other: names of owners, and so of files, begin with the start of the machine. All calls here block.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import uuid
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable

OWNER: Final = "gleitzeit.owner"
PLACE: Final = "gleitzeit.place"
HUB: Final = "gleitzeit.hub"

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_BOOT_LETTERS: Final = 12
_SUFFIX: Final = ".lock"


class Owner:
    """This process, as an owner. Made by `begin`; must be closed.

    Args:
        folder: Where the files of owners are.
        name: Its own, which nobody else ever has.
        place: Where it may be judged.
        descriptor: Its file, open and locked.
    """

    def __init__(self, folder: Path, name: str, place: str, descriptor: int) -> None:
        self._folder, self.name, self.place = folder, name, place
        self._descriptor: int | None = descriptor

    def __repr__(self) -> str:
        """Its name."""
        return f"<Owner {self.name}{', closed' if self._descriptor is None else ''}>"

    @classmethod
    def begin(cls, folder: Path | None = None) -> Self:
        """Become an owner.

        Args:
            folder: For the files; by default in the user's directory for state.

        Raises:
            OSError: No file can be made or locked there.
        """
        folder = folder or state_dir()
        folder.mkdir(0o700, parents=True, exist_ok=True)
        while True:
            name = f"{_start_of_machine()}{uuid.uuid4().hex}"
            path = folder / f"{name}{_SUFFIX}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # Whoever tidies up may have it for a moment.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_at(path, descriptor):
                    return cls(folder, name, f"{_start_of_machine()}/{_identity(folder)}", descriptor)
            except BaseException:
                path.unlink(missing_ok=True)
                os.close(descriptor)
                raise
            # Removed between our making and locking it: once more, with another.
            os.close(descriptor)

    @property
    def labels(self) -> dict[str, str]:
        """What its containers are labelled with."""
        return {OWNER: self.name, PLACE: self.place}

    def is_dead(self, name: str, place: str) -> bool:
        """Whether the owner called `name` has ended, as far as can be known from here; never of oneself.

        One that has no file has ended, unless somebody has removed ours as well: then the directory says nothing.
        """
        if name == self.name or place != self.place or not name.isalnum():
            return False
        return _is_unlocked(self._path(name)) and self._is_there()

    def tidy(self) -> None:
        """Remove the files of those who have ended, of this start of the machine."""
        for path in self._folder.glob(f"{_start_of_machine()}*{_SUFFIX}"):
            if path.stem != self.name:
                _is_unlocked(path, then=partial(path.unlink, missing_ok=True))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _is_there(self) -> bool:
        return self._descriptor is not None and _is_at(self._path(self.name), self._descriptor)

    def close(self) -> None:
        """No container is ours any more. More than once is fine."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._path(self.name).unlink(missing_ok=True)
            os.close(descriptor)


def state_dir() -> Path:
    """Where the files of owners are by default."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "gleitzeit" / "docker"


@cache
def _start_of_machine() -> str:
    """The same for all processes whose locks one kernel keeps, in whatever containers they are, and for no others."""
    if _BOOT.exists():
        return _BOOT.read_text(encoding="ascii").replace("-", "")[:_BOOT_LETTERS]
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:_BOOT_LETTERS]


def _identity(folder: Path) -> str:
    """A name for the directory itself, which is elsewhere under the same path in another container."""
    path = folder / "place"
    if not path.exists():
        # Whole from the start, for whoever reads it meanwhile.
        draft = folder / f"place.{uuid.uuid4().hex}"
        try:
            draft.write_text(uuid.uuid4().hex, encoding="ascii")
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    return path.read_text(encoding="ascii").strip()


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file stands at `path` still."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_unlocked(path: Path, then: Callable[[], None] | None = None) -> bool:
    """Whether nobody holds the lock of a file, or there is no such file. If so, do `then` while nobody can take it.

    One that is another user's cannot be judged: it may be locked.
    """
    try:
        # For writing, as some network file systems give no lock otherwise.
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if then is not None:
            then()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
