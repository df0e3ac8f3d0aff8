"""The agent: does what its owner says in frames on standard input, and answers in frames on standard output.

It ends, and all that it has started with it, when its standard input does.
"""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH101, PTH102, PTH118

from __future__ import annotations

import json
import marshal
import os
import platform
import selectors
import signal
import sys
import tempfile
import time

from gleitzeit_python.agent import files, frames
from gleitzeit_python.agent.cleaning import Cleaner
from gleitzeit_python.agent.pipes import Outlet
from gleitzeit_python.agent.run import Run, Spare
from gleitzeit_python.agent.zygote import CannotFork, Zygote

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    from typing import Any


_MESSAGE_BYTES = 128 << 20
_PACKAGE = "gleitzeit_python.agent"
# What a fresh interpreter needs of this program, in the order in which one part needs the other.
_FRESH = ("gleitzeit_python", _PACKAGE, f"{_PACKAGE}.code", f"{_PACKAGE}.payload")
_OUTPUT = {"stdout": frames.STDOUT, "stderr": frames.STDERR}


class Refusal(Exception):
    """Why what was asked has not begun.

    Args:
        reason: For a person.
        code: ``invalid`` when whoever asked is at fault.
    """

    def __init__(self, reason: str, code: str = "invalid") -> None:
        super().__init__(reason)
        self.code = code


class Agent:
    """See the module's text.

    Args:
        options: From the owner; see `gleitzeit_python.runner.AgentOptions`.
        fence: What it came with.
        parts: This program, by the names of its modules.
        zygote: Forks the others.
    """

    def __init__(self, options: dict[str, Any], fence: int, parts: dict[str, str], zygote: Zygote) -> None:
        self._options, self._fence, self._parts, self._zygote = options, fence, parts, zygote
        self._compiled = b""
        user = options["user"]
        self._cleaner = Cleaner(None if user is None else (user[0], user[1]), options["places"])
        self._cleaner.zygote = zygote.pid
        self._selector = selectors.DefaultSelector()
        self._out = Outlet(self._selector, 1, (None, "out"))
        self._decoder = frames.Decoder()
        self._message = bytearray()
        self._home = options["directory"] or tempfile.mkdtemp(prefix="gleitzeit-")
        os.chmod(self._home, 0o711)  # noqa: S103 - payloads pass through it to their own
        self._folder = self._writing = ""
        self._problem: Refusal | None = None
        self._run: Run | None = None
        self._spare: Spare | None = None
        self._ending = False

    # -- its life ------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """Work until standard input ends, or a signal says so."""
        woken, waking = os.pipe()
        os.set_blocking(waking, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._terminate)
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, (None, "in"))
        self._selector.register(woken, selectors.EVENT_READ, (None, "woken"))
        self._selector.register(self._zygote, selectors.EVENT_READ, (None, "zygote"))
        self._prepare()
        self._send(frames.HELLO, json.dumps(self._hello()).encode())
        try:
            while not self._ending:
                self._turn(woken)
        finally:
            self._end()

    def _terminate(self, *_: object) -> None:
        self._ending = True

    def _hello(self) -> dict[str, Any]:
        whole = self._cleaner.gets_all
        return {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
            "pid": os.getpid(),
            "abilities": {
                "separate_user": self._cleaner.user is not None,
                "kill_all": whole,
                "verified_reset": whole,
                "fork": self._know_spare() != 0,
            },
        }

    def _turn(self, woken: int) -> None:
        """Wait for something to happen, and see to it."""
        for key, _ in self._selector.select(self._patience_s()):
            run, pipe = key.data
            if run is not None:
                self._pass_on(run.serve(pipe))
            elif pipe == "in":
                self._read()
            elif pipe == "out":
                self._out.flush()
            elif pipe == "zygote":
                self._hear_of_ends()
            else:
                os.read(woken, 4096)
                self._cleaner.reap()
        run = self._run
        if run is None:
            return
        if run.busy and not run.ended and time.monotonic() >= run.deadline:
            self._stop("timeout")
        if run.busy and run.ended:
            self._finish(run)
        elif run.ended and not run.busy and run.status is not None:
            # A session's interpreter has ended between two calls.
            self._reset()

    def _hear_of_ends(self) -> None:
        try:
            ended = self._zygote.ended()
        except CannotFork as error:
            raise SystemExit(str(error)) from error
        for pid, status in ended.items():
            # One that was killed has been taken leave of.
            if self._run is not None and pid == self._run.pid and self._run.status is None:
                self._zygote.forget(pid)
                self._run.status = status
            elif self._spare is not None and pid == self._know_spare():
                self._zygote.forget(pid)
                self._spare.close()
                self._spare = None

    def _take_leave(self, run: Run) -> None:
        """Learn how a process that was killed has ended."""
        if run.status is None:
            run.status = self._zygote.reap(run.pid)

    def _patience_s(self) -> float | None:
        if self._run is not None and self._run.busy:
            left_s: float = self._run.deadline - time.monotonic()
            return max(0.0, left_s)
        if self._spare is None and self._run is None and self._out.idle:
            # Nobody waits for anything: the time to have the next one ready.
            self._prepare()
        return None

    def _prepare(self) -> None:
        """Have a child made for the next piece of work."""
        try:
            self._spare = self._spare or Spare(self._zygote)
        except CannotFork:
            self._spare = None

    def _know_spare(self) -> int:
        """The process id of that child, which may have been on its way until now; 0 when there is none."""
        try:
            return 0 if self._spare is None else self._spare.pid
        except CannotFork:
            self._spare = None
            return 0

    def _end(self) -> None:
        """Leave nothing."""
        self._cleaner.zygote = self._cleaner.spare = 0
        self._cleaner.kill()
        self._cleaner.bury()
        self._cleaner.wipe(self._home)
        self._out.flush()

    # -- frames --------------------------------------------------------------------------------------------------

    def _send(self, kind: int, content: bytes) -> None:
        self._out.write(frames.frames(kind, self._fence, content))

    def _read(self) -> None:
        try:
            data = os.read(0, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self._ending = True
        for kind, fence, content in self._decoder.feed(data):
            if fence < self._fence:
                reason = {"code": "fence", "reason": f"fence {fence} is lower than {self._fence}"}
                self._out.write(frames.frame(frames.REFUSED, fence, json.dumps(reason).encode()))
                continue
            if fence > self._fence:
                self._take_over(fence)
            self._heed(kind, content)

    def _take_over(self, fence: int) -> None:
        """Somebody else's turn: whatever is still there of the one before ends."""
        if self._run is not None or self._folder:
            left = self._reset()
            self._problem = Refusal(f"not clean: {', '.join(left)}", "unclean") if left else None
        self._fence = fence
        self._message.clear()

    def _heed(self, kind: int, content: bytes) -> None:
        if kind == frames.FILE:
            self._take_file(content)
        elif kind == frames.MORE:
            self._message += content
            if len(self._message) > _MESSAGE_BYTES:
                raise frames.BadFrame("a message that does not end")
        elif kind == frames.RUN:
            message, self._message = bytes(self._message) + content, bytearray()
            self._begin(json.loads(message))
        elif kind == frames.CANCEL and self._run is not None and self._run.busy:
            self._stop("cancel")
            self._finish(self._run)
        elif kind == frames.RESET:
            left = self._reset()
            self._send(frames.DONE, json.dumps({"clean": not left, "left": left}).encode())

    def _take_file(self, content: bytes) -> None:
        name, piece = frames.file_part(content)
        try:
            more = name == self._writing
            self._writing = name
            files.put(self._place(), name, piece, self._cleaner.user, more=more)
        except (files.BadName, OSError) as error:
            self._problem = self._problem or Refusal(str(error))

    def _place(self) -> str:
        """The payload's folder."""
        if not self._folder:
            self._folder = os.path.join(self._home, str(self._fence))
            os.mkdir(self._folder, 0o700)
            if self._cleaner.user is not None:
                os.chown(self._folder, *self._cleaner.user)
        return self._folder

    # -- a piece of work -----------------------------------------------------------------------------------------

    def _begin(self, asked: dict[str, Any]) -> None:
        received_at, self._writing = time.monotonic(), ""
        problem, self._problem = self._problem, None
        try:
            run, setup = self._next_run(asked, problem)
        except (CannotFork, Refusal, OSError) as refusal:
            left = [] if self._run is not None else self._reset()
            code = refusal.code if isinstance(refusal, Refusal) else "cannot_start"
            said = {"code": code, "reason": str(refusal), "clean": not left and code != "unclean"}
            self._send(frames.REFUSED, json.dumps(said).encode())
            return
        run.begin(asked, setup, self._program())
        self._asked, self._prepared_s = asked, time.monotonic() - received_at
        self._send(frames.STARTED, b"")
        # While that runs there is time for it.
        self._prepare()

    def _program(self) -> bytes:
        """What a fresh interpreter needs, compiled once for all."""
        if not self._compiled:
            code = [(name, compile(self._parts[name], f"<{name}>", "exec")) for name in _FRESH]
            self._compiled = marshal.dumps(code)
        return self._compiled

    def _next_run(self, asked: dict[str, Any], problem: Refusal | None) -> tuple[Run, dict[str, Any] | None]:
        """The process for it: that of the session, or a new one, and then what it is to become."""
        if problem is not None:
            raise problem
        if self._run is not None:
            if self._run.busy or not asked["session"]:
                raise Refusal("it is at work")
            return self._run, None
        if self._limits(asked).get("processes") and self._cleaner.user is None:
            raise Refusal("a limit on processes needs a user of its own, which this runner does not have")
        folder = self._place()
        child, self._spare = self._spare or Spare(self._zygote), None
        self._run = Run(child, self._selector, self._fence, folder)
        return self._run, self._setup(asked, folder)

    def _setup(self, asked: dict[str, Any], folder: str) -> dict[str, Any]:
        environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "MPLBACKEND": "Agg",
            **self._options["environment"],
            **asked["environment"],
            "HOME": folder,
            "TMPDIR": folder,
        }
        return {
            "fresh": asked["fresh"],
            "user": self._cleaner.user,
            "directory": folder,
            "environment": environment,
            "limits": self._limits(asked),
        }

    def _limits(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The lower ones of what holds for all and what this one asks for."""
        both = (self._options["limits"], asked["limits"])
        return {name: min(one[name] for one in both if name in one) for name in {**both[0], **both[1]}}

    def _pass_on(self, output: list[tuple[str, bytes]]) -> None:
        for pipe, data in output:
            self._send(_OUTPUT[pipe], data)

    def _stop(self, why: str) -> None:
        """End the payload; what it has said before is kept."""
        if self._run is None:
            return
        self._run.stop(why)
        self._kill()

    def _finish(self, run: Run) -> None:
        """Tell what became of a piece of work, once nothing of it is left, but in a session."""
        run.busy = False
        self._pass_on(run.rest())
        outcome = run.outcome()
        left = [] if outcome["alive"] else self._kill()
        self._bring_back(run, outcome)
        if not outcome["alive"]:
            left += self._wipe()
        if run.answer:
            self._send(frames.RESULT, run.answer)
        outcome.update(clean=not left, left=left, prepared_s=self._prepared_s)
        self._send(frames.DONE, json.dumps(outcome).encode())

    def _bring_back(self, run: Run, outcome: dict[str, Any]) -> None:
        """Send the files that are wanted."""
        wanted = self._wanted(run)
        if not wanted:
            return
        found, left_out = files.collect(run.folder, wanted, self._asked["files_bytes"])
        for name, content in found:
            self._out.write(frames.file_frames(name, self._fence, content))
        if left_out:
            outcome["truncated"].append("files")

    def _wanted(self, run: Run) -> list[str]:
        """What to bring back: what was asked for, and the figures that it drew."""
        try:
            plots = [str(name) for name in json.loads(run.answer)["plots"]] if run.answer else []
        except (ValueError, LookupError, TypeError, RecursionError):
            plots = []
        return [*self._asked["collect"], *plots]

    def _reset(self) -> list[str]:
        """End what runs, and remove what it has left. What is there all the same."""
        return self._kill() + self._wipe()

    def _kill(self) -> list[str]:
        self._cleaner.spare = self._know_spare()
        left = [f"process {pid}" for pid in self._cleaner.kill()]
        if self._run is not None:
            self._take_leave(self._run)
        return left

    def _wipe(self) -> list[str]:
        run, self._run = self._run, None
        if run is not None:
            run.close()
        folder, self._folder = self._folder, ""
        return self._cleaner.wipe(folder) if folder else []
