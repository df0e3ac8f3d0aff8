"""The agent: does what its owner says in frames on standard input, and answers in frames on standard output.

It ends, and all that it has started with it, when its standard input does.
"""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH101, PTH102, PTH118

from __future__ import annotations

import json
import marshal
import math
import os
import platform
import selectors
import signal
import sys
import tempfile
import time

from gleitzeit_python.agent import child, files, frames, system
from gleitzeit_python.agent.cleaning import Cleaner
from gleitzeit_python.agent.pipes import Outlet
from gleitzeit_python.agent.run import Run, Spare
from gleitzeit_python.agent.zygote import CannotFork, Zygote

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    from typing import Any


_READ_BYTES = 1 << 16
_PACKAGE = "gleitzeit_python.agent"
# What a fresh interpreter needs of this program, in the order in which one part needs the other.
_FRESH = ("gleitzeit_python", _PACKAGE, f"{_PACKAGE}.code", f"{_PACKAGE}.payload")
# What goes out together with what comes soon after it.
_HELD = (frames.STARTED, frames.STDOUT, frames.STDERR, frames.RESULT)
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
        self._cleaner = Cleaner(None if user is None else (user[0], user[1]), options["places"], zygote.pid)
        self._memory_kills = system.MemoryKills()
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
        if self._zygote.failed:
            self._ending = True
        try:
            while not self._ending:
                self._turn(woken)
        finally:
            self._end()

    def _terminate(self, *_: object) -> None:
        self._ending = True

    def _hello(self) -> dict[str, Any]:
        whole, fork = self._cleaner.gets_all, self._know_spare() != 0
        return {
            "problem": self._zygote.failed,
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
            "pid": os.getpid(),
            "abilities": {
                "separate_user": self._cleaner.user is not None,
                "kill_all": whole,
                "verified_reset": whole,
                "fork": fork,
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
                # What it had to say may have been heard since.
                self._hear_of_end(wait=False)
            else:
                os.read(woken, 4096)
                self._cleaner.reap()
        now = time.monotonic()
        if now >= self._out.held_until:
            self._out.flush()
        if self._run is not None:
            self._look_after(self._run, now)

    def _look_after(self, run: Run, now: float) -> None:
        if run.busy and not run.ended and now >= run.deadline:
            self._stop("timeout")
        if run.busy and run.ended:
            self._finish(run)
        elif run.ended and not run.busy and run.status is not None:
            # A session's interpreter has ended between two calls.
            self._reset()

    def _hear_of_end(self, *, wait: bool) -> None:
        """Let the zygote tell how a payload has ended, or the child that was to be the next one."""
        try:
            status = self._zygote.hear(wait=wait)
        except CannotFork as error:
            raise SystemExit(str(error)) from error
        if status is not None and self._run is not None:
            self._run.status = status
        elif status is not None and self._spare is not None:
            self._spare.close()
            self._spare = None

    def _patience_s(self) -> float | None:
        if self._spare is None and self._run is None and self._out.idle:
            # Nobody waits for anything, and no payload is there: the time to have the next one ready.
            self._prepare()
        until: float = self._out.held_until
        if self._run is not None and self._run.busy:
            until = min(until, self._run.deadline)
        return None if until == math.inf else max(0.0, until - time.monotonic())

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
        self._cleaner.kill()
        self._cleaner.bury()
        self._cleaner.wipe(self._home)
        self._out.flush()

    # -- frames --------------------------------------------------------------------------------------------------

    def _send(self, kind: int, content: bytes) -> None:
        write = self._out.hold if kind in _HELD else self._out.write
        write(frames.frames(kind, self._fence, content))

    def _read(self) -> None:
        try:
            data = os.read(0, _READ_BYTES)
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
            if len(self._message) > frames.MAX_MESSAGE_BYTES:
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
        self._memory_kills_before = self._memory_kills.count()
        run.begin(asked, setup, self._program())
        self._asked, self._prepared_s = asked, time.monotonic() - received_at
        self._send(frames.STARTED, b"")

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
        self._run = Run(self._child(), self._selector, self._fence, folder)
        return self._run, self._setup(asked, folder)

    def _child(self) -> Spare:
        """The one that was made for this; another one if that is no more."""
        self._know_spare()
        spare, self._spare = self._spare, None
        if spare is not None and not spare.waits:
            spare.close()
            spare = None
        return spare or Spare(self._zygote)

    def _setup(self, asked: dict[str, Any], folder: str) -> dict[str, Any]:
        common = child.environment(self._options)
        return {
            "fresh": asked["fresh"],
            "directory": folder,
            "environment": {**common, **asked["environment"], "HOME": folder, "TMPDIR": folder},
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
        outcome.update(oom_killed=self._lacked_memory(outcome), clean=not left, left=left, prepared_s=self._prepared_s)
        self._send(frames.DONE, json.dumps(outcome).encode())

    def _lacked_memory(self, outcome: dict[str, Any]) -> bool:
        """Whether the kernel has killed any of its processes for want of memory.

        Where others may share the control group, its own must have been killed, and not by us.
        """
        ours = self._cleaner.alone or (
            outcome["killed_by"] == "SIGKILL" and not (outcome["timed_out"] or outcome["cancelled"])
        )
        return ours and self._memory_kills.count() > self._memory_kills_before

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
        spared = {self._zygote.pid, self._know_spare()}
        if self._run is not None and self._run.status is not None:
            spared.add(self._run.pid)
        left = [f"process {pid}" for pid in self._cleaner.kill(spared)]
        if self._run is not None:
            while self._run.status is None:
                self._hear_of_end(wait=True)
        return left

    def _wipe(self) -> list[str]:
        run, self._run = self._run, None
        if run is not None:
            run.close()
        folder, self._folder = self._folder, ""
        return self._cleaner.wipe(folder) if folder else []
