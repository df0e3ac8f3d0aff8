"""Ends everything of a payload but the agent, removes what it has left, and looks whether anything still is there.

Processes are found in one of two ways. Alone in a process namespace the agent may kill whatever the payload's user
has. Elsewhere other people's processes run: then only its own descendants are killed, which it adopts when their
parents end, and those of a user that it was given for itself.
"""

from __future__ import annotations

import os
import signal
import time

from gleitzeit_python.agent import files, system

_ROUNDS = 200
_PAUSE_S = 0.005
_SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", "/run/shm")  # noqa: S108 - to be emptied


class Cleaner:
    """What ends and removes.

    Args:
        user: The payload's own user and group; None when it is the agent's.
        places: Where it can write besides where anybody can.

    Attributes:
        zygote: The process that forks; it stays.
        spare: A child of that which has not begun; 0 for none. It stays, too.
    """

    def __init__(self, user: tuple[int, int] | None, places: list[str]) -> None:
        self.user, self._places = user, (*_SHARED, *places)
        self.zygote = self.spare = 0
        # As the first process it is in a namespace of its own: that of a machine is no agent.
        self.alone = os.getpid() == 1
        self.adopts = system.keep_orphans() or self.alone

    @property
    def gets_all(self) -> bool:
        """Whether no process of a payload can stay: it must not be able to stop the agent first."""
        return self.adopts and self.user is not None

    def kill(self) -> list[int]:
        """Kill and reap until nothing is left. What is left all the same, after a second."""
        left = self._left()
        for _ in range(_ROUNDS):
            if not left:
                break
            self._kill(left)
            self.reap()
            left = self._left()
            if left:
                time.sleep(_PAUSE_S)
        return left

    def _left(self) -> list[int]:
        # Zombies are not: whoever has to take leave of them will.
        found = [pid for pid in system.descendants_of(os.getpid(), self.spare) if pid != self.zygote]
        if self.user is not None and not self.adopts:
            # Those who have left the family are found by their user.
            found += [pid for pid in system.processes() if system.user_of(pid) == self.user[0]]
        return [pid for pid in found if not system.is_zombie(pid)]

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
        if self.user is not None:
            for path in self._elsewhere():
                files.remove(path)
            left += self._elsewhere()
            for kind, number in system.ipc_of(self.user[0]):
                system.remove_ipc(kind, number)
            left += [f"{kind} {number}" for kind, number in system.ipc_of(self.user[0])]
        return left

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
