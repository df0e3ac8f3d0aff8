"""A child of the zygote, until it is a payload: it loses what the agent has, and becomes what it is told to be."""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH109

from __future__ import annotations

import marshal
import os
import resource
import select
import sys

from gleitzeit_python.agent import payload, system

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    import types
    from collections.abc import Mapping
    from typing import Any

_HURRY_S = 0.005
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


def environment(options: dict[str, Any]) -> dict[str, str]:
    """What all payloads have in theirs.

    Args:
        options: The agent's.
    """
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "MPLBACKEND": "Agg", **options["environment"]}


def prepare(options: dict[str, Any]) -> types.ModuleType:
    """In the zygote: do once what each child would have to. The main module that payloads get.

    Args:
        options: The agent's.
    """
    system.no_new_privileges()
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(kind, (0, 0))
    os.umask(0o022)
    # The standard streams are made here, so these must be pipes, as they will be in a child.
    for standard, end in enumerate(os.pipe()):
        os.dup2(end, standard)
        os.close(end)
    os.dup2(1, 2)
    # Each child has its own of these two: to change them is quicker than to add them.
    payload.set_environment({**environment(options), "HOME": "/", "TMPDIR": "/"})
    main = payload.become_interpreter()
    _rehearse(options["user"])
    return main


def _rehearse(user: list[int] | None) -> None:
    """Do what a child will, to no effect: what is called for the first time, each child would have to look up."""
    if user is not None:
        _become(-1, -1, os.getgroups())
    system.block_signals()
    select.select([], [], [], 0)
    os.chdir("/")
    os.getcwd()
    # After so many times Python changes nothing in its code any more.
    payload.rehearse(20)


def begin(descriptors: list[int], zygotes: list[int], user: list[int] | None, main: types.ModuleType) -> None:
    """In a new child: lose what the zygote has, wait for what it is to be, and be that. Does not return.

    Args:
        descriptors: Standard input, output, error, and the socket.
        zygotes: What the zygote has open.
        user: The payload's user and group. They have no other process while this one waits.
        main: The payload's main module.
    """
    try:
        for place, number in enumerate(descriptors):
            os.dup2(number, place)
        for number in (*zygotes, *descriptors):
            if number > payload.SOCKET:
                os.close(number)
        _settle(user)
        if not select.select([payload.SOCKET], [], [], _HURRY_S)[0]:
            # Nobody is in a hurry: this makes the next one quicker, but takes longer than what it saves.
            payload.rehearse(1)
        setup = marshal.loads(payload.take(payload.take_size()))  # noqa: S302 - from the agent
        _limit(setup["limits"])
        os.chdir(setup["directory"])
        if setup["fresh"]:
            # There is no shell in between.
            os.execve(sys.executable, [sys.executable, "-I", "-c", _FRESH], setup["environment"])  # noqa: S606
        payload.set_environment(setup["environment"])
        payload.work(main)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no payload's
        os.write(2, f"the runner cannot start this: {error!r}\n".encode())
    finally:
        os._exit(1)


def _settle(user: list[int] | None) -> None:
    """Become what a payload is allowed to be."""
    os.setsid()
    system.let_signals_through()
    system.die_first()
    if user is not None:
        uid, gid = user
        _become(uid, gid, [])
    # A change of the user undoes both.
    system.die_with_parent()
    system.show_memory()


def _become(uid: int, gid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _limit(limits: Mapping[str, int]) -> None:
    for name, value in limits.items():
        hard = resource.getrlimit(_LIMITS[name])[1]
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # Of processor time a signal of its own tells first, which can be ignored for a second.
        resource.setrlimit(_LIMITS[name], (lower, lower + 1 if name == "cpu_s" and lower != hard else lower))
