"""What the tests of the command line share: the program, inside and outside, a gateway that obeys, a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import importlib_metadata
import pytest

from gleitzeit_core.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ECHO = '''
"""A protocol `echo`, and an `llm` that echoes; notes in ./notes what becomes of the work."""

import asyncio
from pathlib import Path

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.hookspecs import CommandType, ProviderType, hookimpl
from gleitzeit_core.hub_provider import HubProvider, PoolOptions
from gleitzeit_core.requests import Method


def note(text):
    with Path("notes").open("a") as file:
        file.write(text + "\\n")


class Base(HubProvider[PoolOptions]):
    exclusive = False

    async def create_resource(self, config):
        return object()

    async def destroy_resource(self, instance):
        note("destroyed")


class Echo(Base):
    protocol = "echo"
    methods = (
        Method(name="echo/say", summary="what was said", replayable=True, streams=True),
        Method(name="echo/text", summary="the text itself", replayable=True, streams=True),
        Method(name="echo/odd", summary="what JSON lacks", replayable=True),
        Method(name="echo/fail", summary="raises", replayable=False),
        Method(name="echo/wait", summary="never ends", replayable=False, streams=True),
    )

    async def execute_on_resource(self, instance, method, params):
        if method == "echo/fail":
            raise InvalidRequest("no such luck", param="luck") if params.get("mine") else RuntimeError("a bug")
        if method == "echo/wait":
            note("waiting")
            try:
                await asyncio.Event().wait()
            finally:
                note("stopped")
        if method == "echo/odd":
            return {"inf": float("inf"), "bytes": b"ab", "path": Path("x"), "set": {1}}
        return params["text"] if method == "echo/text" else {"params": params}

    async def stream_on_resource(self, instance, method, params):
        if method == "echo/wait":
            yield "begun "
            await self.execute_on_resource(instance, method, params)
        for word in params["text"].split():
            yield f"{word} " if method == "echo/text" else {"word": word}


class Talker(Base):
    protocol = "llm"
    methods = (
        Method(name="llm/chat", summary="says it again", replayable=True, streams=True),
        Method(name="llm/models", summary="one", replayable=True, local=True),
    )

    async def answer(self, request, instances):
        return {"models": [{"name": "parrot", "size": 2048, "details": {"family": "psittacidae"}}]}

    async def execute_on_resource(self, instance, method, params):
        raise InvalidRequest("only in parts")

    async def stream_on_resource(self, instance, method, params):
        for word in params["messages"][-1]["content"].split():
            yield {"message": {"role": "assistant", "content": word + "! "}, "done": False}
        yield {"message": {"role": "assistant", "content": ""}, "done": True}


@hookimpl
def gleitzeit_register_providers():
    options = "gleitzeit_core.hub_provider:PoolOptions"
    return [
        ProviderType(name="echo", target=f"{__name__}:Echo", options=options, summary="Echoes."),
        ProviderType(name="llm", target=f"{__name__}:Talker", options=options, summary="Talks."),
    ]
'''


@dataclass(frozen=True)
class Ended:
    """What became of one run of the program."""

    status: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - any JSON
        """What it printed, as JSON."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and no configuration but what a test makes."""
    for name in [name for name in os.environ if name.startswith("GLEITZEIT_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs the program in this process; standard input is a pipe with `stdin` in it."""

    def run(*arguments: str, stdin: str | bytes = "") -> Ended:
        content = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        capfd.readouterr()
        status = main(arguments)
        return Ended(status, *capfd.readouterr())

    return run


@contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:  # noqa: ANN401 - Popen's own
    """The program in a process of its own, which is gone afterwards."""
    command = [sys.executable, "-m", "gleitzeit_core.cli", *arguments]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program in processes of their own."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(started(*arguments, **options))


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A configuration with nothing but the core and `ECHO`."""
    (tmp_path / "echo.py").write_text(ECHO)
    points = importlib_metadata.entry_points(group="gleitzeit")
    names = [point.name for point in points if point.dist is not None and point.dist.name != "gleitzeit-core"]
    path = tmp_path / "gleitzeit.yaml"
    path.write_text(f"plugins: {{disabled: {json.dumps(names)}, files: [./echo.py]}}\nhubs: {{}}\n")
    return path


@pytest.fixture
def free_port() -> int:
    """A port on loopback where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


# -- a gateway -----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """One request that the gateway got."""

    verb: str
    path: str
    headers: dict[str, str]
    body: Any


class Exchange:
    """One request, for the function that answers it."""

    def __init__(self, handler: BaseHTTPRequestHandler, seen: Seen) -> None:
        self.handler, self.seen = handler, seen

    def json(self, data: object, status: int = 200) -> None:
        """Answer whole."""
        self.raw(json.dumps(data).encode(), status)

    def raw(self, body: bytes, status: int = 200, kind: str = "application/json") -> None:
        """Answer whole, with anything."""
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Content-Length", str(len(body)))
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def begin(self, kind: str = "application/x-ndjson") -> None:
        """Begin a stream in chunks."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Transfer-Encoding", "chunked")
        self.handler.end_headers()

    def line(self, data: object) -> None:
        """One line of a stream."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n"
        self.handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        self.handler.wfile.flush()

    def end(self) -> None:
        """End a stream cleanly; without it, the connection just closes."""
        self.handler.wfile.write(b"0\r\n\r\n")

    def lines(self, *data: object) -> None:
        """A whole stream."""
        self.begin()
        for item in data:
            self.line(item)
        self.end()

    def wait_until_closed(self) -> None:
        """Until the caller closes the connection."""
        self.handler.connection.recv(1)


@dataclass
class Gateway:
    """A gateway that answers as it is told, over real sockets.

    Attributes:
        answers: What answers, by verb and path.
        key: What callers must send; empty for nothing.
        seen: The requests it got.
    """

    url: str
    port: int
    answers: dict[str, Callable[[Exchange], None]] = field(default_factory=dict)
    key: str = ""
    seen: list[Seen] = field(default_factory=list)

    def on(self, what: str, answer: Callable[[Exchange], None]) -> None:
        """Answer `what`, such as ``POST /rpc``, by calling `answer`."""
        self.answers[what] = answer

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        length = int(handler.headers.get("Content-Length", 0))
        body = json.loads(handler.rfile.read(length)) if length else None
        seen = Seen(handler.command, handler.path, dict(handler.headers), body)
        self.seen.append(seen)
        exchange = Exchange(handler, seen)
        handler.close_connection = True
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            exchange.json({"error": "unauthorized"}, 401)
            return
        answer = self.answers.get(f"{seen.verb} {seen.path}")
        if answer is None:
            exchange.raw(b"404 page not found", 404, "text/plain")
        else:
            answer(exchange)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A running gateway that knows no path yet."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.handle(self)

        do_POST = do_DELETE = do_GET  # noqa: N815 - http.server's own spelling

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, *_: object) -> None:
            """A caller who leaves is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        found = Gateway(f"http://127.0.0.1:{port}", port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture
def stranger() -> Iterator[Callable[[bytes], str]]:
    """Something else that listens: reads a little, answers given bytes and hangs up. Returns its URL."""
    with ExitStack() as stack:

        def listen(answer: bytes) -> str:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                for _ in range(2):  # one may be to see whether anybody listens
                    try:
                        connection, _ = server.accept()
                    except OSError:
                        return
                    with connection:
                        if connection.recv(65536):
                            connection.sendall(answer)
                            connection.shutdown(socket.SHUT_WR)
                            connection.recv(65536)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown, socket.SHUT_RDWR)
            return f"http://127.0.0.1:{server.getsockname()[1]}"

        yield listen


# -- a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """The program at a terminal, and a person who reads and types."""

    def __init__(self, *arguments: str, **options: Any) -> None:  # noqa: ANN401 - Popen's own
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "gleitzeit_core.cli", *arguments]
        self.process = subprocess.Popen(command, **{"stdin": slave, "stdout": slave, "stderr": slave, **options})
        os.close(slave)
        self.shown = ""

    def read_until(self, pattern: str) -> str:
        """Read until something shows that matches; return all up to there, and forget it."""
        while (found := re.search(pattern, self.shown)) is None:
            select.select([self._master], [], [])
            try:
                more = os.read(self._master, 65536)
            except OSError:  # how Linux says that the other side is closed
                more = b""
            if not more:
                raise AssertionError(f"the program ended without {pattern!r}; it showed {self.shown!r}")
            self.shown += more.decode()
        text, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return text

    def rest(self) -> str:
        """All that it shows until it ends."""
        try:
            while more := os.read(self._master, 65536):
                self.shown += more.decode()
        except OSError:
            pass
        return self.shown

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, once the program waits: Python itself misses one between its prompt and its waiting."""
        state = ""
        while state not in ("S", "Z"):
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Go away."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Makes terminals with the program running in them."""
    made: list[Terminal] = []

    def make(*arguments: str, **options: Any) -> Terminal:  # noqa: ANN401 - Popen's own
        made.append(Terminal(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
