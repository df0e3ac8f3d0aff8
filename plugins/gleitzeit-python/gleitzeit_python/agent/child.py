"""A child of the zygote, until it is a payload: it loses what the agent has, and becomes what it is told to be."""

from __future__ import annotations

import marshal
import os
import resource
import signal
import sys

from gleitzeit_python.agent import payload, system

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    from typing import Any

_LIMITS = {
    "cpu_s": resource.RLIMIT_CPU,
    "memory_bytes": resource.RLIMIT_AS,
    "file_bytes": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}
# What a fresh interpreter runs first: the parts of this program that it needs come by the socket, compiled.
_FRESH = """
import marshal, os, sys
def take(size):
    data = b""
    while len(data) < size:
        data += os.read(3, size - len(data)) or os._exit(1)
    return data
for name, code in marshal.loads(take(int.from_bytes(take(4), "big"))):
    part = type(sys)(name)
    sys.modules[name] = part
    if "." in name:
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], part)
    exec(code, part.__dict__)
part.live()
"""


def begin(descriptors: list[int]) -> None:
    """In a new child: take the descriptors, wait for what it is to be, and be that. Does not return.

    Args:
        descriptors: Standard input, output, error, and the socket, all from 3 on.
    """
    try:
        for place, number in enumerate(descriptors):
            os.dup2(number, place)
        system.close_descriptors(kept=payload.SOCKET)
        os.setsid()
        main = payload.become_interpreter()
        setup = marshal.loads(payload.take(payload.take_size()))  # noqa: S302 - from the agent
        _settle(setup)
        if setup["fresh"]:
            # There is no shell in between.
            os.execve(sys.executable, [sys.executable, "-I", "-c", _FRESH], setup["environment"])  # noqa: S606
        os.environ.clear()
        os.environ.update(setup["environment"])
        payload.work(main)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no payload's
        os.write(2, f"the runner cannot start this: {error!r}\n".encode())
    finally:
        os._exit(1)


def _settle(setup: dict[str, Any]) -> None:
    """Become what a payload is allowed to be."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))
    for name, value in setup["limits"].items():
        hard = resource.getrlimit(_LIMITS[name])[1]
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(_LIMITS[name], (lower, lower))
    system.no_new_privileges()
    system.die_first()
    if setup["user"] is not None:
        uid, gid = setup["user"]
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    # A change of the user undoes both.
    system.die_with_parent()
    system.show_memory()
    os.umask(0o022)
    os.chdir(setup["directory"])
