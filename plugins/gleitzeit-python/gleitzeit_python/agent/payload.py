"""A payload's interpreter: runs the code that it is told to run.

What became of it is told by its socket, as a length and JSON. The code could write there too, and so lie about its own
result, but not about another's, and not about what became of its process.
"""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH109

from __future__ import annotations

import io
import marshal
import os
import sys
import types

from gleitzeit_python.agent import code

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = 3
"""Where a payload's process has its end of it."""


def live() -> None:
    """In a fresh interpreter: run what comes by the socket, the last one included. Does not return."""
    work(become_interpreter())


def set_environment(environment: Mapping[str, str]) -> None:
    """Have this environment and no other. What is as it should be is not touched."""
    for name in [name for name in os.environ if name not in environment]:
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def rehearse(times: int) -> None:
    """Do some harmless work, so that what comes then is quicker.

    What an interpreter does for the first time takes longer, and so does what it first writes to memory that it shares
    with the one it was forked from.
    """
    for _ in range(times):
        main = types.ModuleType("__main__")
        main.__dict__["__builtins__"] = __builtins__
        ended = code.run({"code": "print(end='')\n1", "file": "", "args": []}, main)
        ended.told()
        code.finish(ended.status, main)


def become_interpreter() -> types.ModuleType:
    """Be as one that has just started. Its main module."""
    _forget_runner()
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), "utf-8")
    # As with -u: what was printed is there even if the process is killed.
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), "utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), "utf-8", "backslashreplace", write_through=True)
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    return main


def work(main: types.ModuleType) -> None:
    """Run what comes by the socket, the last one included. Does not return."""
    os.set_inheritable(SOCKET, False)  # noqa: FBT003 - it takes no keyword
    sys.path.insert(0, os.getcwd())
    while True:
        job = marshal.loads(take(take_size()))  # noqa: S302 - from the agent
        if job["stdin"] is not None:
            sys.stdin = io.TextIOWrapper(io.BytesIO(job["stdin"]), "utf-8")
        ended = code.run(job, main)
        if job["last"]:
            _tell(ended.told())
        if job["last"] or ended.leaves:
            # In a session, its end is the answer.
            os._exit(code.finish(ended.status, main))
        _tell(ended.told(session=True))


def _forget_runner() -> None:
    """Let the code find its own modules by these names, if it has any."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "gleitzeit_python"]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "Parts"]


def _tell(data: bytes) -> None:
    """Send it; in vain if the code has closed the socket."""
    data = len(data).to_bytes(4, "big") + data if data else b""
    try:
        while data:
            data = data[os.write(SOCKET, data) :]
    except OSError:
        return


def take(size: int) -> bytes:
    """Exactly so much; ends the process when the agent is gone."""
    data = b""
    while len(data) < size:
        piece = os.read(SOCKET, size - len(data))
        if not piece:
            os._exit(1)
        data += piece
    return data


def take_size() -> int:
    """The length of the next message."""
    return int.from_bytes(take(4), "big")
