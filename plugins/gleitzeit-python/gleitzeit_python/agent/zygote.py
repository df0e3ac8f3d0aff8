"""Forks children that are as new as an interpreter that has just started, without the time that takes.

The zygote is forked once, before the agent has seen anything of anybody, and gets descriptors and nothing else. What a
child is to do, it reads from its own socket, whose other end the agent has.

There is one child at a time. One that has ended stays as a zombie until the next one is ordered, so its process id is
nobody else's.
"""

from __future__ import annotations

import _socket  # as `socket`, without what that imports: all that is here, is forked
import array
import gc
import importlib
import os

from gleitzeit_python.agent import child, system

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    import types
    from typing import Any

_DESCRIPTORS = 4
_MESSAGE_BYTES = 256


class CannotFork(Exception):
    """There is no zygote any more, or it cannot fork: no memory, too many processes."""


class Zygote:
    """The agent's side of it. Made while the agent is pristine.

    Args:
        options: The agent's.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._socket, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self._forked: list[bytes] = []
        # Why there is none, once that is known.
        self.failed = ""
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            _live(other, options)
        other.close()

    def fileno(self) -> int:
        """What can be read when `hear` has something to say."""
        return self._socket.fileno()

    def order(self, descriptors: list[int]) -> None:
        """Have a child made with these: standard input, output, error, and its socket. See `forked`.

        The one before must have ended, or do so when it finds its socket closed.

        Raises:
            CannotFork: There is no zygote any more.
        """
        rights = array.array("i", descriptors).tobytes()
        try:
            self._socket.sendmsg([b"f"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except OSError as error:
            self.failed = f"the fork server is gone: {error}"
            raise CannotFork(self.failed) from error

    def forked(self) -> int:
        """The process id of the child that was ordered; waits for it.

        Raises:
            CannotFork: It cannot be had.
        """
        while not self._forked:
            self.hear()
        said = self._forked.pop()
        if said[:1] != b"+":
            raise CannotFork(said[1:].decode())
        return int(said[1:])

    def hear(self, *, wait: bool = True) -> int | None:
        """Take what the zygote says. When that is that the child has ended: its status, as `subprocess` has it.

        Args:
            wait: For it to say something.

        Raises:
            CannotFork: There is no zygote any more.
        """
        try:
            said = self._socket.recv(_MESSAGE_BYTES, 0 if wait else _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            said = b""
        if not said or said[:1] == b"-":
            self.failed = said[1:].decode("utf-8", "replace") or "the fork server is gone"
            raise CannotFork(self.failed)
        if said[:1] == b"=":
            return int(said[1:])
        self._forked.append(said)
        return None


def _live(work: _socket.socket, options: dict[str, Any]) -> None:
    """Be the zygote. Does not return: ends with the agent."""
    try:
        system.die_with_parent()
        # For its children, which let them through.
        system.block_signals("SIGTERM", "SIGINT", "SIGHUP")
        system.reset_signals()
        for opened in system.opened():
            if opened != work.fileno():
                os.close(opened)
        for name in ("json", *options["preload"]):
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001 - a module may raise anything
                work.recv(1)  # Who asks for the first child can be told.
                what = f"-{options['place']}preload: module {name!r} cannot be imported"
                work.send(f"{what}: {type(error).__name__}: {error}".encode("utf-8", "replace")[:_MESSAGE_BYTES])
                return
        _Server(work, options["user"], child.prepare(options)).serve()
    finally:
        os._exit(1)


class _Server:
    """What the zygote does.

    Args:
        work: To the agent.
        user: The payloads'.
        main: Their main module.
    """

    def __init__(self, work: _socket.socket, user: list[int] | None, main: types.ModuleType) -> None:
        self._work, self._user, self._main = work, user, main
        self._child = 0
        self._open = system.opened()
        # What has been collected once, and is never looked at again, need not be copied for any child.
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Fork a child, tell of it, wait for its end, tell of that; until the agent is gone."""
        room = _socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
        while True:
            said, rights, _, _ = self._work.recvmsg(_MESSAGE_BYTES, room)
            if not said:
                return
            self._work.send(self._fork(array.array("i", rights[0][2]).tolist()))
            if self._child:
                self._work.send(self._end())

    def _fork(self, descriptors: list[int]) -> bytes:
        try:
            self._bury()
            self._child = os.fork()
            if self._child == 0:
                child.begin(descriptors, self._open, self._user, self._main)
        except OSError as error:
            return f"!the fork server cannot: {error}".encode()
        finally:
            for number in descriptors:
                os.close(number)
        return b"+%d" % self._child

    def _bury(self) -> None:
        """Take leave of the child before, and of what it has made a child of ours."""
        if self._child:
            os.waitpid(self._child, 0)
            self._child = 0
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return

    def _end(self) -> bytes:
        """Wait until the child has ended, and leave its process id to it."""
        found: Any = os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT)
        return b"=%d" % (found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)
