"""The runner's agent as its owners start it: what to run, what to send first, and what it says then.

A hub runs `command` where the agent is to live, wraps its standard input and output as a stream channel, and calls
`start`. From then on the channel speaks the api ``python-runner``.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_python.agent import frames

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.resources import StreamChannel

API: Final = "python-runner"
"""What an instance with an agent on its stream channel offers."""

BOOTSTRAP: Final = """\
import os
def take(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            raise SystemExit(1)
        data += piece
    return data
names = {"__name__": "runner"}
exec(compile(take(int.from_bytes(take(4), "big")), "<runner>", "exec"), names)
from gleitzeit_python.agent import start
start.main(names["PARTS"])
"""
"""What `command` runs: it takes the agent's program from standard input, and becomes that."""

_LOADER: Final = """
import sys
from importlib.machinery import ModuleSpec
class Parts:
    def find_spec(self, name, path=None, target=None):
        if name in PARTS:
            return ModuleSpec(name, self, is_package=not PARTS[name])
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(PARTS[module.__name__], "<" + module.__name__ + ">", "exec"), module.__dict__)
sys.meta_path.insert(0, Parts())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What an agent is told once, before anything else.

    Args:
        user: The user and group that payloads run as, when the agent is root. They must be nobody else's: all that
            the user has in ``/tmp``, ``/dev/shm`` and the like is removed after each use. None: the agent's own.
        environment: What payloads have in their environment, besides a plain ``PATH``, ``LANG``, ``HOME``, ``TMPDIR``.
        directory: An empty folder for those of the payloads, which the agent removes when it ends; empty: it makes one.
        places: Folders that payloads can write to besides ``/tmp`` and the like; they are emptied too.
        preload: Modules that forked interpreters have imported already.
        limits: Of every payload, as in `gleitzeit_python.schemas.Limits`; a run can only ask for less.
        place: Where they stand in a configuration, such as ``hubs.mine.``: what is wrong with one is told with that.
    """

    user: tuple[int, int] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = ""
    places: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerHello:
    """What an agent says of itself.

    Args:
        python: Its version, ``3.11.2``.
        implementation: ``CPython``, ...
        executable: The interpreter it runs on.
        pid: Its process id, where it lives.
        separate_user: Payloads run as a user of their own.
        kill_all: No process of a payload can escape it.
        verified_reset: After each use it makes sure that no process and no file is left.
        fork: It can fork pristine interpreters.
    """

    python: str
    implementation: str
    executable: str
    pid: int
    separate_user: bool
    kill_all: bool
    verified_reset: bool
    fork: bool

    @property
    def reusable(self) -> bool:
        """Whether it can be used for code that nobody trusts more than once."""
        return self.separate_user and self.kill_all and self.verified_reset

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for an instance's details."""
        return asdict(self)


@lru_cache(1)
def agent_source() -> bytes:
    """The agent's program, in one piece."""
    package = "gleitzeit_python.agent"
    files = [file for file in resources.files(package).iterdir() if file.name.endswith(".py")]
    parts = {f"{package}.{file.name[:-3]}": file.read_text("utf-8") for file in files if file.name != "__init__.py"}
    return f"PARTS = {{'gleitzeit_python': '', {package!r}: '', **{parts!r}}}\n{_LOADER}".encode()


def command(python: str = "python3", *arguments: str) -> list[str]:
    """What to run where an agent is to live.

    Args:
        python: An interpreter, 3.8 or newer.
        arguments: For the program; the agent reads none.
    """
    return [python, "-I", "-u", "-c", BOOTSTRAP, *arguments]


async def start(channel: StreamChannel, *, options: AgentOptions | None = None, timeout_s: float = 10.0) -> RunnerHello:
    """Send an agent its program and its options, and wait until it is ready.

    Args:
        channel: To what runs `command`.
        options: None for the defaults.
        timeout_s: How long that may take.

    Raises:
        InstanceFailure: It is not ready in time, or ends, or is none; or a module of `preload` cannot be imported.
    """
    source = agent_source()
    first = frames.frame(frames.OPTIONS, 0, json.dumps(asdict(options or AgentOptions())).encode())
    try:
        async with asyncio.timeout(timeout_s):
            await channel.send(len(source).to_bytes(4, "big") + source + first)
            return await _hello(channel)
    except TimeoutError:
        text = f"the runner is not ready after {timeout_s:g} s"
        raise InstanceFailure(FailureKind.TIMEOUT, text, started=False) from None
    except InstanceFailure as failure:
        failure.started = False
        raise


async def _hello(channel: StreamChannel) -> RunnerHello:
    decoder = frames.Decoder()
    while data := await channel.receive():
        try:
            found = decoder.feed(data)
            if found:
                said = json.loads(found[0][2])
                if problem := said.pop("problem"):
                    raise InstanceFailure(FailureKind.SERVER_ERROR, problem)
                return RunnerHello(**said.pop("abilities"), **said)
        except (frames.BadFrame, ValueError, TypeError, LookupError) as error:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"what answers is no runner: {error}") from error
    raise InstanceFailure(FailureKind.LOST, "the runner ended before it was ready")
