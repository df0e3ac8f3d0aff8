"""Forks children that are as new as an interpreter that has just started, without the time that takes.

The zygote is forked once, before the agent has seen anything of anybody, and gets descriptors and nothing else. What a
child is to do, it reads from its own socket, whose other end the agent has.

A child that has ended stays as a zombie until the agent takes leave of it, so its process id is nobody else's.
"""

from __future__ import annotations

import array
import gc
import importlib
import os
import select
import signal
import socket

from gleitzeit_python.agent import child, system

_DESCRIPTORS = 4
_MESSAGE_BYTES = 256
_FORK, _REAP, _FORGET = b"f", b"r", b"x"


class CannotFork(Exception):
    """There is no zygote any more, or it cannot fork: no memory, too many processes."""


class Zygote:
    """The agent's side of it. Made while the agent is pristine.

    Args:
        preload: Modules to import first, so that no child has to.
    """

    def __init__(self, preload: list[str]) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended: dict[int, int] = {}
        self._forked: list[bytes] = []
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            _live(other, preload)
        other.close()

    def fileno(self) -> int:
        """What can be read when `ended` has something to say."""
        return self._socket.fileno()

    def order(self, descriptors: list[int]) -> None:
        """Have a child made with these: standard input, output, error, and its socket. See `forked`.

        Raises:
            CannotFork: There is no zygote any more.
        """
        rights = array.array("i", descriptors).tobytes()
        self._tell(_FORK, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def forked(self) -> int:
        """The process id of the child that was ordered; waits for it.

        Raises:
            CannotFork: It cannot be had.
        """
        while not self._forked:
            self._note(self._heard())
        said = self._forked.pop(0)
        if said[:1] != b"+":
            raise CannotFork(said[1:].decode())
        return int(said[1:])

    def reap(self, pid: int) -> int:
        """Wait for a child that was killed, and take leave of it. Its status, as `subprocess` has it.

        Raises:
            CannotFork: There is no zygote any more.
        """
        self._tell(_REAP + str(pid).encode(), [])
        while True:
            said = self._heard()
            if said[:1] == b"=":
                return int(said[1:])
            self._note(said)

    def forget(self, pid: int) -> None:
        """Take leave of a child that has ended."""
        self._tell(_FORGET + str(pid).encode(), [])

    def ended(self) -> dict[int, int]:
        """The children that have ended of late, and their statuses.

        Raises:
            CannotFork: There is no zygote any more.
        """
        while select.select([self._socket], [], [], 0)[0]:
            self._note(self._heard())
        found, self._ended = self._ended, {}
        return found

    def _note(self, said: bytes) -> None:
        if said[:1] == b"-":
            pid, status = said[1:].split()
            self._ended[int(pid)] = int(status)
        else:
            self._forked.append(said)

    def _tell(self, message: bytes, rights: list[tuple[int, int, bytes]]) -> None:
        try:
            self._socket.sendmsg([message], rights)
        except OSError as error:
            raise CannotFork(f"the fork server is gone: {error}") from error

    def _heard(self) -> bytes:
        try:
            said = self._socket.recv(_MESSAGE_BYTES)
        except OSError:
            said = b""
        if not said:
            raise CannotFork("the fork server is gone")
        return said


def _live(work: socket.socket, preload: list[str]) -> None:
    """Be the zygote. Does not return: ends with the agent."""
    try:
        system.die_with_parent()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(nothing, standard)
        system.close_descriptors(kept=work.fileno())
        for name in ("json", *preload):
            importlib.import_module(name)
        _Server(work).serve()
    finally:
        os._exit(1)


class _Server:
    """What the zygote does."""

    def __init__(self, work: socket.socket) -> None:
        self._work = work
        self._running: set[int] = set()
        self._woken, waking = os.pipe()
        for end in (self._woken, waking):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        gc.freeze()

    def serve(self) -> None:
        """Answer until the agent is gone."""
        while True:
            ready = select.select([self._work.fileno(), self._woken], [], [])[0]
            if self._woken in ready:
                os.read(self._woken, _MESSAGE_BYTES)
                self._tell_ended()
            if self._work.fileno() in ready:
                room = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
                said, rights, _, _ = self._work.recvmsg(_MESSAGE_BYTES, room)
                if not said:
                    return
                answer = self._answer(said, array.array("i", rights[0][2]).tolist() if rights else [])
                if answer:
                    self._work.send(answer)

    def _tell_ended(self) -> None:
        for pid in tuple(self._running):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found:
                self._running.discard(pid)
                status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
                self._work.send(b"-%d %d" % (pid, status))

    def _answer(self, said: bytes, descriptors: list[int]) -> bytes:
        try:
            if said[:1] == _FORK:
                return b"+%d" % self._fork(descriptors)
            pid = int(said[1:])
            self._running.discard(pid)
            status = os.waitpid(pid, 0)[1]
            status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            return b"=%d" % status if said[:1] == _REAP else b""
        except OSError as error:
            if said[:1] == _FORK:
                return f"!the fork server cannot: {error}".encode()
            return b"=0" if said[:1] == _REAP else b""
        finally:
            for number in descriptors:
                os.close(number)

    def _fork(self, descriptors: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            child.begin(descriptors)
        self._running.add(pid)
        return pid
