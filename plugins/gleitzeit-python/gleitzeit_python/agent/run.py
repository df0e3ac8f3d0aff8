"""One payload: its process, its pipes, its time, and what became of it."""

from __future__ import annotations

import _socket
import base64
import marshal
import os
import select
import signal
import time

from gleitzeit_python.agent.pipes import Inlet, Outlet

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    import selectors
    from typing import Any

    from gleitzeit_python.agent.zygote import Zygote


_SAID_BYTES = 8 << 20
_END_READS = 64
_SIZE_BYTES = 4


class Spare:
    """A process that has not begun, with our ends of its pipes. It may still be on its way.

    Args:
        zygote: Where it comes from.

    Raises:
        CannotFork: It cannot be had.
    """

    def __init__(self, zygote: Zygote) -> None:
        theirs, ours = [], []
        for reads in (True, False, False):
            end, other = os.pipe()
            theirs.append(end if reads else other)
            ours.append(other if reads else end)
        mine, its = _socket.socketpair()
        theirs.append(its.detach())
        ours.append(mine.detach())
        self._zygote, self._pid = zygote, 0
        try:
            zygote.order(theirs)
        except BaseException:
            for number in ours:
                os.close(number)
            raise
        finally:
            for number in theirs:
                os.close(number)
        self.stdin, self.stdout, self.stderr, self.socket = ours

    @property
    def pid(self) -> int:
        """Its process id; waits for it.

        Raises:
            CannotFork: It could not be made, and is closed.
        """
        if not self._pid:
            try:
                self._pid = self._zygote.forked()
            except BaseException:
                self.close()
                raise
        return self._pid

    @property
    def waits(self) -> bool:
        """Whether it still is there: before it has begun it says nothing, so only its end can be read."""
        return not select.select([self.socket], [], [], 0)[0]

    def close(self) -> None:
        """Close our ends of its pipes, if it is not to be used: it ends then, if it has not."""
        for number in (self.stdin, self.stdout, self.stderr, self.socket):
            os.close(number)


class Run:
    """A payload at work, or between two pieces of work of a session.

    Args:
        child: Its process.
        selector: Tells of its pipes, with this and the name of the pipe as the key.
        fence: Of what it is for.
        folder: Its files.
    """

    def __init__(self, child: Spare, selector: selectors.BaseSelector, fence: int, folder: str) -> None:
        self.pid, self.fence, self.folder = child.pid, fence, folder
        self.status: int | None = None
        self.why = ""
        self.busy = self.session = False
        self.began_at = self.deadline = 0.0
        self._stdin = Outlet(selector, child.stdin, (self, "stdin"))
        self._talk = Outlet(selector, os.dup(child.socket), (self, "talk"))
        self._said = Inlet(selector, child.socket, (self, "said"), _SAID_BYTES)
        self.stdout = Inlet(selector, child.stdout, (self, "stdout"), 0)
        self.stderr = Inlet(selector, child.stderr, (self, "stderr"), 0)
        self._heard = bytearray()
        self.answer = b""

    def begin(self, asked: dict[str, Any], setup: dict[str, Any] | None, program: bytes) -> None:
        """Give it a piece of code.

        Args:
            asked: What the owner wants; see `gleitzeit_python.wire`.
            setup: What it is to become; None in a session that goes on.
            program: What a fresh interpreter runs.
        """
        self.session, self.busy, self.answer, self.why = bool(asked["session"]), True, b"", ""
        self.began_at = time.monotonic()
        self.deadline = self.began_at + asked["timeout_s"]
        for pipe in (self.stdout, self.stderr):
            pipe.left_bytes, pipe.truncated = asked["output_bytes"], False
        if setup is not None:
            self._say(marshal.dumps(setup))
            if setup["fresh"]:
                self._say(program)
        stdin = base64.b64decode(asked["stdin"] or "")
        self._say(marshal.dumps(_job(asked, stdin)))
        if not self.session:
            self._talk.end()
            self._stdin.write(stdin)
        self._stdin.end()

    def _say(self, message: bytes) -> None:
        self._talk.write(len(message).to_bytes(_SIZE_BYTES, "big") + message)

    def serve(self, pipe: str) -> list[tuple[str, bytes]]:
        """Do what can be done with a pipe. What has come of standard output or error."""
        if pipe == "stdin":
            self._stdin.flush()
        elif pipe == "talk":
            self._talk.flush()
        elif pipe == "said":
            self._hear()
        else:
            data = (self.stdout if pipe == "stdout" else self.stderr).read()
            return [(pipe, data)] if data else []
        return []

    def _hear(self) -> None:
        self._heard += self._said.read() or b""
        end = _SIZE_BYTES + int.from_bytes(self._heard[:_SIZE_BYTES], "big")
        if len(self._heard) >= end > _SIZE_BYTES:
            self.answer = bytes(self._heard[_SIZE_BYTES:end])
            del self._heard[:]
            self._said.left_bytes = _SAID_BYTES

    def rest(self) -> list[tuple[str, bytes]]:
        """What its pipes still hold, within reason: somebody may be writing faster than it is read."""
        found = []
        for name, pipe in (("said", self._said), ("stdout", self.stdout), ("stderr", self.stderr)):
            for _ in range(_END_READS):
                found += self.serve(name)
                if pipe.drained:
                    break
        return found

    @property
    def ended(self) -> bool:
        """Whether this piece of work is over."""
        return self.status is not None or (self.session and bool(self.answer))

    def stop(self, why: str) -> None:
        """End it, for `why`: what has begun in its session is over as well."""
        self.why = self.why or why
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def outcome(self) -> dict[str, Any]:
        """What became of this piece of work."""
        took_s = time.monotonic() - self.began_at
        status = self.status
        number = -status if status is not None and status < 0 else 0
        killed_by = signal.Signals(number).name if number in _SIGNALS else ("" if not number else f"signal {number}")
        cut = [name for name in ("stdout", "stderr") if getattr(self, name).truncated]
        return {
            "exit_status": status,
            "killed_by": killed_by,
            "timed_out": self.why == "timeout",
            "cancelled": self.why == "cancel",
            "truncated": cut,
            "run_s": took_s,
            "alive": self.session and status is None,
        }

    def close(self) -> None:
        """Close our ends of its pipes."""
        for pipe in (self._stdin, self._talk, self._said, self.stdout, self.stderr):
            pipe.close()


_SIGNALS = {int(one) for one in signal.Signals}


def _job(asked: dict[str, Any], stdin: bytes) -> dict[str, Any]:
    """The part of it that is the payload's business."""
    return {
        "code": asked["code"],
        "file": asked["file"],
        "args": asked["args"],
        "stdin": stdin if asked["session"] else None,
        "last": not asked["session"],
    }
