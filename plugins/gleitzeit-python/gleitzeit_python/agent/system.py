"""What Linux offers and Python's standard library does not, by the C library; and what ``/proc`` tells."""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH110, PTH116, PTH123, PTH208

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_IPC_RMID = 0
_FIRST_OPENED = 3
_TELLS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")

libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> bool:
    long = ctypes.c_ulong
    return bool(libc.prctl(option, long(value), long(0), long(0), long(0)) == 0)


def die_with_parent() -> None:
    """Be killed when the process that started this one ends. Changing the user undoes this."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_first() -> None:
    """Where memory runs out, be the one that is killed, and not the agent."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
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


def descendants_of(pid: int, spared: int) -> list[int]:
    """All below `pid`, zombies included, but for `spared` and what is below that."""
    found = []
    for child in children_of(pid):
        if child != spared:
            found.append(child)
            found += descendants_of(child, spared)
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


def close_descriptors(kept: int) -> None:
    """Close all but the standard ones and `kept`."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number >= _FIRST_OPENED and number != kept:
            try:
                os.close(number)
            except OSError:
                continue  # the one that listed them


def ipc_of(uid: int) -> list[tuple[str, int]]:
    """The shared memory, semaphores and message queues that belong to a user: kind and id."""
    found = []
    for kind, column in (("shm", 7), ("sem", 4), ("msg", 7)):
        try:
            with open("/proc/sysvipc/" + kind) as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
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


def oom_kills() -> int:
    """How many processes the kernel has killed in this control group for want of memory; 0 where it does not tell."""
    for path in list(_MEMORY_FILES):
        try:
            with open(path) as file:
                words = dict(line.split()[:2] for line in file if len(line.split()) > 1)
        except (OSError, ValueError):
            _MEMORY_FILES.remove(path)
            continue
        if "oom_kill" in words:
            return int(words["oom_kill"])
    return 0


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


_MEMORY_FILES = _memory_files()
