"""The stand-in as a process of its own, which a test can kill, stop and continue."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Self, TypedDict, Unpack

import aiohttp

from gleitzeit_ollama.testing.script import fault_to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from gleitzeit_ollama.testing.faults import Fault

_MAX_ERROR_BYTES = 4096
_START_S = 30.0


class ProcessFailed(RuntimeError):
    """The process did not start, or is not there any more; carries what it wrote to stderr."""


class ProcessOptions(TypedDict, total=False):
    """What `OllamaProcess` takes.

    Args:
        host: address to listen on; default 127.0.0.1.
        port: default 0, any that is free.
        models: names, as `Model.parse` reads them; default smollm2.
        reply: a text to say always; default: repeat the question.
        num_parallel: slots of a model; default 4.
        max_queue: requests that may wait for a load; default 512.
        pullable: what can be pulled, sizes in bytes by name; default: the registry is out of reach.
        token_delay_ms: pause before each token; default 0. Not together with `gate`.
        gate: hold each token until `allow` or `open_gate`; default False.
        faults: all requests to models meet them; default none.
    """

    host: str
    port: int
    models: Iterable[str]
    reply: str
    num_parallel: int
    max_queue: int
    pullable: Mapping[str, int]
    token_delay_ms: float
    gate: bool
    faults: Iterable[Fault]


class OllamaProcess:
    """A stand-in in a child process, steered over HTTP; it dies with this process.

        async with OllamaProcess(models=["smollm2"], gate=True) as ollama:
            ...  # talk to ollama.url
            await ollama.wait_for(in_flight=1)
            ollama.kill()

    It must be started in a thread that lives as long as it does: Linux counts the end of the
    thread that started a child as the end of its parent.
    """

    def __init__(self, **options: Unpack[ProcessOptions]) -> None:
        self._arguments = _arguments(options)
        self._process: asyncio.subprocess.Process | None = None
        self._errors: IO[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None
        self.url = ""
        """Where it listens; empty before the start."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._started().pid

    @property
    def port(self) -> int:
        """Where it listens; another can be started there when it has ended."""
        return int(self.url.rpartition(":")[2])

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._started().returncode

    async def start(self) -> None:
        """Start it and wait for its URL.

        Raises:
            ProcessFailed: it ended, or said nothing within 30 seconds.
            RuntimeError: it was started before; for another, make another.
        """
        if self._errors is not None:
            raise RuntimeError(f"{self!r} was started before")
        # The child shall see the modules this process sees; -P: and none from where it stands.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "gleitzeit_ollama.testing", *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._errors,
                env=environment,
            )
            self.url = await self._first_line()
            self._session = aiohttp.ClientSession()
        except BaseException:
            await self.close()
            raise

    async def _first_line(self) -> str:
        process = self._started()
        try:
            async with asyncio.timeout(_START_S):
                line = await _stdout_of(process).readline()
        except TimeoutError:
            raise ProcessFailed(f"the stand-in said nothing within {_START_S:g} s{await self._complaint()}") from None
        if not line:
            status = await process.wait()
            raise ProcessFailed(f"the stand-in ended with status {status}{await self._complaint()}")
        return line.decode().strip()

    async def _complaint(self) -> str:
        text = await asyncio.to_thread(self._read_errors)
        return f": {text}" if text else ""

    def _read_errors(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read()[-_MAX_ERROR_BYTES:].decode(errors="replace").strip()

    async def close(self) -> None:
        """End it, by SIGKILL if need be, and wait until it is gone."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        process = self._process
        try:
            if process is not None and process.returncode is None:
                process.kill()
            if process is not None:
                await process.wait()
                _close_pipes(process)
        finally:
            if self._errors is not None:
                self._errors.close()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    def kill(self) -> None:
        """SIGKILL: it is gone without a word."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: it cuts its connections and exits with status 0."""
        self._send(signal.SIGTERM)

    def suspend(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and nothing answers."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on where it stood."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        # A process that has ended on its own is no error here, and its id may be another's by now.
        if self.returncode is None:
            self._started().send_signal(number)

    async def wait(self) -> int:
        """Wait until it has ended; return its exit status, negative for a signal."""
        return await self._started().wait()

    async def state(self) -> dict[str, int]:
        """Return its counts: `in_flight`, `running`, `queued`, `held`, `requests`, `loads`, ..."""
        return await self._ask("state", {})

    async def wait_for(self, **counts: int) -> dict[str, int]:
        """Return its counts as soon as they are as wanted.

        `in_flight`, `running`, `queued`, `held` and `waiting_tokens` must be exactly so many;
        `requests`, `finished`, `disconnects`, `max_in_flight`, `tokens` and `loads` at least.
        Put a time limit around it; by itself it waits for ever.
        """
        return await self._ask("wait", counts)

    async def next(self, fault: Fault, *, times: int = 1, on: str = "work") -> None:
        """Let the next `times` requests meet `fault`; see `Script.next`."""
        await self._ask("next", {**fault_to_json(fault), "times": times, "on": on})

    async def always(self, fault: Fault, *, on: str = "work") -> None:
        """Let every request meet `fault`; see `Script.always`."""
        await self._ask("always", {**fault_to_json(fault), "on": on})

    async def clear(self) -> None:
        """Forget all faults."""
        await self._ask("clear", {})

    async def release(self) -> None:
        """Let go all requests and loads that a fault holds now."""
        await self._ask("release", {})

    async def allow(self, tokens: int = 1) -> None:
        """Let so many more tokens out, if it was started with a gate."""
        await self._ask("gate", {"allow": tokens})

    async def open_gate(self) -> None:
        """Let all tokens out, if it was started with a gate."""
        await self._ask("gate", {"open": True})

    async def _ask(self, what: str, options: Mapping[str, object]) -> dict[str, int]:
        if self._session is None:
            raise ProcessFailed("the stand-in is not running")
        # No time limit: `wait` takes as long as it takes.
        limit = aiohttp.ClientTimeout(total=None)
        address = f"{self.url}/__test__/{what}"
        async with self._session.post(address, json=dict(options), timeout=limit) as response:
            answer = await response.json()
        if response.status != 200:  # noqa: PLR2004 - HTTP's own number
            raise ValueError(answer["error"])
        return {str(name): int(count) for name, count in answer.items()}

    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise ProcessFailed("the stand-in was not started")
        return self._process

    def __repr__(self) -> str:
        if self._process is None:
            return "<OllamaProcess not started>"
        status = self._process.returncode
        state = "running" if status is None else f"ended with status {status}"
        return f"<OllamaProcess {state}, pid {self.pid}, {self.url or 'no URL'}>"


def _stdout_of(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    if process.stdout is None:
        raise ProcessFailed("the stand-in was started without a pipe for its output")
    return process.stdout


def _close_pipes(process: asyncio.subprocess.Process) -> None:
    # asyncio closes what it reads at its end; what it writes to is ours.
    if process.stdin is not None:
        process.stdin.close()


def _arguments(options: ProcessOptions) -> list[str]:
    arguments = ["--die-with-parent"]
    for name in ("host", "port", "reply", "num_parallel", "max_queue", "token_delay_ms"):
        if name in options:
            arguments += [f"--{name.replace('_', '-')}={options[name]}"]
    if "models" in options:
        arguments.append(f"--models={','.join(options['models'])}")
    if "pullable" in options:
        arguments.append(f"--pullable={json.dumps(dict(options['pullable']))}")
    if options.get("gate"):
        arguments.append("--gate")
    faults = options.get("faults", ())
    return [*arguments, *(f"--fault={json.dumps(fault_to_json(fault))}" for fault in faults)]
