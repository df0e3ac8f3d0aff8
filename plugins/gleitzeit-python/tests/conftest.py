"""What the tests of the protocol `python` share: agents of their own, spoken to frame by frame."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from gleitzeit_python import runner
from gleitzeit_python.agent import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JOB: dict[str, Any] = {
    "code": "",
    "file": "",
    "args": [],
    "stdin": None,
    "session": False,
    "fresh": False,
    "timeout_s": 20,
    "output_bytes": 1 << 20,
    "files_bytes": 1 << 20,
    "collect": [],
    "limits": {},
    "environment": {},
}


class Told(NamedTuple):
    """What an agent said of one piece of work: the frames of each kind, and the last one's content."""

    kind: int
    last: dict[str, Any]
    frames: list[tuple[int, int, bytes]]

    def text(self, kind: int) -> bytes:
        """All that came in frames of `kind`."""
        return b"".join(content for it, _, content in self.frames if it == kind)


class Agent:
    """An agent in a process, and a simple owner of it."""

    def __init__(self, python: str, options: runner.AgentOptions) -> None:
        self.process = subprocess.Popen(
            runner.command(python), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._decoder, self._waiting = frames.Decoder(), []
        source = runner.agent_source()
        self.write(len(source).to_bytes(4, "big") + source)
        self.write(frames.frame(frames.OPTIONS, 0, json.dumps(asdict(options)).encode()))
        self.hello = json.loads(self.read()[2])

    def write(self, data: bytes) -> None:
        """To its standard input."""
        while data:
            data = data[self.process.stdin.write(data) :]

    def read(self) -> tuple[int, int, bytes]:
        """The next frame."""
        while not self._waiting:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, "the agent has ended"
            self._waiting = self._decoder.feed(data)
        return self._waiting.pop(0)

    def ask(self, fence: int, code: str, **job: object) -> None:
        """Have code run."""
        self.write(frames.frames(frames.RUN, fence, json.dumps({**JOB, "code": code, **job}).encode()))

    def told(self) -> Told:
        """What it says until it is done or refuses."""
        found = []
        while True:
            found.append(self.read())
            kind, _, content = found[-1]
            if kind in (frames.DONE, frames.REFUSED):
                return Told(kind, json.loads(content), found)

    def run(self, fence: int, code: str, **job: object) -> Told:
        """Have code run, and wait for its end."""
        self.ask(fence, code, **job)
        return self.told()

    def end(self) -> int:
        """Close its standard input, and wait. Its exit status."""
        if self.process.stdin.closed:
            return self.process.returncode
        self.process.stdin.close()
        status = self.process.wait()
        self.process.stdout.close()
        return status


@pytest.fixture
def folder() -> Iterator[Path]:
    """An agent's folder, which it removes."""
    with tempfile.TemporaryDirectory(prefix="gleitzeit-test-") as made:
        Path(made).chmod(0o711)
        (Path(made) / "own").mkdir()
        yield Path(made) / "own"


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Agent]]:
    """Starts an agent; after the test each has ended well and left nothing."""
    started: list[Agent] = []

    def start(python: str = sys.executable, **options: object) -> Agent:
        started.append(Agent(python, runner.AgentOptions(directory=str(folder), **options)))
        return started[-1]

    yield start
    for agent in started:
        assert agent.end() == 0
    assert not started or not folder.exists()
