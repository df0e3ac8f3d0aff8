"""Ends everything of a payload but the agent, removes what it has left, and looks whether anything still is there.

Processes are found in one of two ways. Alone in a process namespace the agent may kill whatever the payload's user
has. Elsewhere other people's processes run: then only its own descendants are killed, which it adopts when their
parents end, and those of a user that it was given for itself.
"""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH116

from __future__ import annotations

import os
import signal
import time

from gleitzeit_python.agent import files, system

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    from collections.abc import Collection

_ROUNDS = 200
_PAUSE_S = 0.005
_SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", "/run/shm")  # noqa: S108 - to be emptied


class Cleaner:
    """What ends and removes.

    Args:
        user: The payload's own user and group; None when it is the agent's.
        places: Where it can write besides where anybody can.
        zygote: The process that forks.
    """

    def __init__(self, user: tuple[int, int] | None, places: list[str], zygote: int) -> None:
        self.user, self._places, self._ipc = user, _writable([*_SHARED, *places]), system.Ipc()
        # A payload is the zygote's child, and can give it more; whoever has lost his parent is ours.
        self._forked, self._adopted = system.Children(zygote), system.Children(os.getpid())
        # As the first process it is in a namespace of its own: that of a machine is no agent.
        self.alone = os.getpid() == 1
        self.adopts = system.keep_orphans() or self.alone

    @property
    def gets_all(self) -> bool:
        """Whether no process of a payload can stay: it must not be able to stop the agent first."""
        return self.adopts and self.user is not None

    def kill(self, spared: Collection[int] = ()) -> list[int]:
        """Kill and reap until nothing is left. What is left all the same, after a second.

        Args:
            spared: Processes that stay: the zygote, its child before it is a payload, and one that is known to have
                ended and is not buried.
        """
        known = set(spared)
        found: list[int] = []
        for number in range(_ROUNDS):
            found = self._found(known)
            if not found:
                return []
            living = [pid for pid in found if not system.is_zombie(pid)]
            if living and number:
                time.sleep(_PAUSE_S)
            if living:
                self._kill(living)
            # What ended while we looked may have left others, which we then have missed. So there is another look, in
            # which nothing may be found but what had ended before it. What is our own is not even there any more.
            ended = set(found).difference(living)
            known.update(pid for pid in self._forked.now() if pid in ended)
            self.reap()
        return found

    def _found(self, known: Collection[int]) -> list[int]:
        found: list[int] = []
        for family in (self._forked, self._adopted):
            for pid in family.now():
                if pid not in known:
                    found += [pid, *system.descendants_of(pid)]
        if self.user is not None and not self.adopts:
            # Those who have left the family are found by their user.
            mine = [pid for pid in system.processes() if pid not in known and system.user_of(pid) == self.user[0]]
            found += [pid for pid in mine if not system.is_zombie(pid)]
        return found

    def _kill(self, found: list[int]) -> None:
        if self.alone and self.user is not None:
            _kill_user(self.user[0])
        # First all stop, so that none can start another one while the rest is killed.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                try:
                    os.kill(pid, number)
                except (ProcessLookupError, PermissionError):
                    continue

    def reap(self) -> dict[int, int]:
        """Take leave of all children that have ended. Their statuses."""
        ended: dict[int, int] = {}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            ended[pid] = status

    def bury(self) -> None:
        """Take leave of all that was killed, also of those whose parents were, for at most a second."""
        for _ in range(_ROUNDS):
            self.reap()
            if not system.children_of(os.getpid()):
                return
            time.sleep(_PAUSE_S)

    def wipe(self, folder: str) -> list[str]:
        """Remove what a payload has left: its folder, and what its user has elsewhere. What is left all the same."""
        files.remove(folder)
        left = [folder] if os.path.lexists(folder) else []
        return left if self.user is None else [*left, *self._wipe_places(), *self._wipe_ipc(self.user[0])]

    def _wipe_places(self) -> list[str]:
        found = self._elsewhere()
        for path in found:
            files.remove(path)
        return self._elsewhere() if found else []

    def _wipe_ipc(self, uid: int) -> list[str]:
        found = self._ipc.of(uid)
        for kind, number in found:
            system.remove_ipc(kind, number)
        return [f"{kind} {number}" for kind, number in self._ipc.of(uid)] if found else []

    def _elsewhere(self) -> list[str]:
        """What belongs to the payload's user in the places where anybody may write."""
        found = []
        for place in self._places:
            try:
                with os.scandir(place) as entries:
                    found += [entry.path for entry in entries if self._owns(entry)]
            except OSError:
                continue
        return found

    def _owns(self, entry: os.DirEntry[str]) -> bool:
        try:
            return self.user is not None and entry.stat(follow_symlinks=False).st_uid == self.user[0]
        except OSError:
            return False


def _writable(places: list[str]) -> list[str]:
    """Those of them that can be written to, each once, whatever its names are; and those that are not there yet."""
    found: dict[object, str] = {}
    for place in places:
        try:
            state = os.stat(place)
            if not os.statvfs(place).f_flag & os.ST_RDONLY:
                found.setdefault((state.st_dev, state.st_ino), place)
        except OSError:
            found[place] = place
    return list(found.values())


def _kill_user(uid: int) -> None:
    """Kill all that this user has, at once: as that user, so that nobody else's can be hit.

    Without a new process, which there may be no room for.
    """
    if os.getpid() != 1:
        raise RuntimeError("only alone in a namespace")
    os.setresuid(uid, uid, 0)
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.setresuid(0, 0, 0)
