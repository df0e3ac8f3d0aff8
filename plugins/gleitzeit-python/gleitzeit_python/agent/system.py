"""What Linux offers and Python's standard library does not, by the C library; and what ``/proc`` tells."""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH110, PTH116, PTH123, PTH208

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # as `signal`, without what that imports: all that is here, is forked
import ctypes
import os
import re

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_IPC_RMID = 0
_IPC_COLUMNS = (("shm", 7), ("sem", 4), ("msg", 7))
_TABLE_BYTES = 1 << 16
_OOM_KILL = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)
_FIRST_OPENED = 3
_TELLS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def _prctl(option: int, value: int) -> bool:
    return bool(libc.prctl(option, value, 0, 0, 0) == 0)


def die_with_parent() -> None:
    """Be killed when the process that started this one ends. Changing the user undoes this."""
    _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL)


def block_signals(*names: str) -> None:
    """Have these wait until they are let through: those that ask a process to end."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [getattr(_signal, name) for name in names])


def reset_signals() -> None:
    """Have those do what they do in a new interpreter; the blocked ones, when they are let through."""
    for number in (_signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def let_signals_through() -> None:
    """Block none."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def die_first() -> None:
    """Where memory runs out, be the one that is killed, and not the agent."""
    try:
        number = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(number, b"1000")
        finally:
            os.close(number)
    except OSError:
        return  # not to be had here


def keep_orphans() -> bool:
    """Become the parent of all descendants whose own parents end. Whether that can be had."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """Let no other process of the same user read this one's memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """Be as any process is: a payload may look at itself."""
    _prctl(_PR_SET_DUMPABLE, 1)


def no_new_privileges() -> None:
    """From now on no program that this one starts has more rights than it."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class Table:
    """A file in which the kernel tells how things are now: read again and again, and opened but once.

    Args:
        path: Where it is; one that cannot be opened stays empty.
    """

    def __init__(self, path: str) -> None:
        try:
            self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._number = -1

    def read(self) -> bytes:
        """All of it, as it is now."""
        data, more = b"", self._number >= 0
        while more:
            piece = self._piece(len(data))
            data, more = data + piece, bool(piece)
        return data

    def _piece(self, start: int) -> bytes:
        try:
            return os.pread(self._number, _TABLE_BYTES, start)
        except OSError:
            return b""  # what it tells of is gone


def children_of(pid: int) -> list[int]:
    """The processes that `pid` is the parent of, zombies included; none when it is gone."""
    if not _TELLS_CHILDREN:
        return [child for child in processes() if parent_of(child) == pid]
    found = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def descendants_of(pid: int) -> list[int]:
    """All below `pid`, zombies included."""
    found = []
    for child in children_of(pid):
        found += [child, *descendants_of(child)]
    return found


def processes() -> list[int]:
    """All there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent_of(pid: int) -> int:
    """The parent of a process; 0 when it is gone."""
    return int(_status_of(pid)[1])


def is_zombie(pid: int) -> bool:
    """Whether it has ended, and only its status is still there; or not even that."""
    return _status_of(pid)[0] == b"Z"


def _status_of(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before it may hold anything.
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return [b"Z", b"0"]


def user_of(pid: int) -> int:
    """The user a process runs as; -1 when it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except (FileNotFoundError, ProcessLookupError):
        return -1


def opened() -> list[int]:
    """The descriptors that are open, but for the standard ones."""
    found = [int(name) for name in os.listdir("/proc/self/fd")]
    # One of them was that which listed them.
    return [number for number in found if number >= _FIRST_OPENED and os.path.exists(f"/proc/self/fd/{number}")]


class Children:
    """Tells of the children of a process that has but one thread.

    Args:
        pid: The process; it must be there.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._table = pid, Table(f"/proc/{pid}/task/{pid}/children")

    def now(self) -> list[int]:
        """Their process ids, zombies included."""
        return [int(word) for word in self._table.read().split()] if _TELLS_CHILDREN else children_of(self._pid)


class Ipc:
    """Tells of shared memory, semaphores and message queues."""

    def __init__(self) -> None:
        self._tables = [(kind, column, Table("/proc/sysvipc/" + kind)) for kind, column in _IPC_COLUMNS]

    def of(self, uid: int) -> list[tuple[str, int]]:
        """Those that belong to a user: kind and id."""
        found = []
        for kind, column, table in self._tables:
            rows = [line.split() for line in table.read().splitlines()[1:]]
            found += [(kind, int(row[1])) for row in rows if int(row[column]) == uid]
        return found


def remove_ipc(kind: str, number: int) -> None:
    """Remove one of them, if that is allowed."""
    if kind == "shm":
        libc.shmctl(number, _IPC_RMID, None)
    elif kind == "sem":
        libc.semctl(number, 0, _IPC_RMID)
    else:
        libc.msgctl(number, _IPC_RMID, None)


class MemoryKills:
    """Counts the processes that the kernel has killed in this control group for want of memory."""

    def __init__(self) -> None:
        # Of those that there are, the first tells.
        tables = [Table(path) for path in _memory_files()]
        self._tables = [table for table in tables if _OOM_KILL.search(table.read())][:1]

    def count(self) -> int:
        """How many it has killed until now; 0 where it does not tell."""
        found = [_OOM_KILL.search(table.read()) for table in self._tables]
        return sum(int(one.group(1)) for one in found if one)


def _memory_files() -> list[str]:
    """Where that may stand: of version 2, then of version 1; in a container, the group is the root of what is seen."""
    found = []
    try:
        with open("/proc/self/cgroup") as file:
            rows = [line.strip().split(":", 2) for line in file]
    except OSError:
        rows = []
    for _, controllers, path in rows:
        if not controllers:
            found.append(f"/sys/fs/cgroup{path}/memory.events")
        elif "memory" in controllers.split(","):
            found.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    return [*found, "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]
