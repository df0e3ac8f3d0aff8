"""The stand-in itself: an HTTP server that behaves like an Ollama 0.24.0, and shows what it saw."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Self

from aiohttp import web

from gleitzeit_ollama.testing import admin
from gleitzeit_ollama.testing.exchange import Exchange
from gleitzeit_ollama.testing.models import Catalogue, Model
from gleitzeit_ollama.testing.records import RequestRecord, Watch
from gleitzeit_ollama.testing.replies import ReplyFunction, echo
from gleitzeit_ollama.testing.routes import WORK_PATHS
from gleitzeit_ollama.testing.runners import Runners
from gleitzeit_ollama.testing.script import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from gleitzeit_ollama.testing.gates import TokenGate

DEFAULT_MODELS = ("smollm2",)
_MAX_BODY_BYTES = 2**30
_TURNS_TO_ACCEPT = 4


class OllamaServer:
    """A server that answers as a real Ollama does, in this process and on a real socket.

        async with OllamaServer(models=["smollm2", "toolsy"]) as server:
            ...  # talk to server.url
            assert server.requests[-1].path == "/api/chat"

    Args:
        host: address to listen on.
        port: 0 for any that is free; it stays the same over `stop` and `start`.
        models: names (`name+tools+thinking` for one that can more) or `Model` objects.
        reply: makes the answers; by default they repeat the question.
        gate: lets tokens out one by one; None for as fast as possible. May be replaced any time.
        num_parallel: requests that work at once on one model; the others queue.
        max_queue: requests that may wait for a model that is being loaded; the next gets 503.
        registry: what can be pulled, sizes in bytes by name; None for a registry out of reach.

    Attributes:
        requests: a record per request, in order of arrival.
        script: the faults to come.
        catalogue: the models on disk.
        runners: the models in memory, and who works on them.
        blobs: digests of blobs that were uploaded.
        in_flight: requests to a model that are being answered, those that queue included.
        max_in_flight: the highest that was.
        held: requests that a fault holds now.
        disconnects: clients that left before their answer was complete.
        version: told by `/api/version`.
        admin: whether `/__test__/` answers; it does in a process of its own.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: Iterable[Model | str] = DEFAULT_MODELS,
        reply: ReplyFunction = echo,
        gate: TokenGate | None = None,
        num_parallel: int = 4,
        max_queue: int = 512,
        registry: Mapping[str, int] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.reply = reply
        self.gate = gate
        self.registry = registry
        self.catalogue = Catalogue(models)
        self.script = Script()
        self.blobs: set[str] = set()
        self.requests: list[RequestRecord] = []
        self.in_flight = self.max_in_flight = self.held = self.disconnects = 0
        self.version = "0.24.0"
        self.admin = False
        self._watch: Watch[OllamaServer] = Watch()
        self.runners = Runners(num_parallel, max_queue, time.time, self.changed)
        self._holding: set[asyncio.Event] = set()
        self._handlers: dict[asyncio.Task[object], asyncio.Transport | None] = {}
        self._listener: socket.socket | None = None
        self._reserved: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self._is_stopping = False

    @property
    def url(self) -> str:
        """Where the server listens, or listened."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def is_listening(self) -> bool:
        """New connections are accepted; otherwise they are refused."""
        return self._runner is not None

    @property
    def on_loopback(self) -> bool:
        """Only this machine can reach the server; foreign `Host` headers are refused then."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    async def start(self) -> None:
        """Listen, on the same port as before if there was one.

        Raises:
            OSError: the address cannot be had.
            RuntimeError: the server listens already.
        """
        if self._runner is not None:
            raise RuntimeError(f"the server listens already, on {self.url}")
        self._reserve()
        runner = web.AppRunner(self._application(), handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await runner.setup()
        self._listener = self._bind(self.port)
        await web.SockSite(runner, self._listener, backlog=1024).start()
        self._runner = runner

    async def stop(self) -> None:
        """Refuse new connections and cut those there are, as when the process is killed.

        The port stays reserved until `close`. What was recorded stays; models leave memory.
        """
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self._is_stopping = True
        try:
            await self._stop(runner)
        finally:
            self._is_stopping = False

    async def _stop(self, runner: web.AppRunner) -> None:
        # What is accepted becomes a connection in a later turn of the loop, if the server is open then. If not,
        # asyncio forgets its socket, open. So accept no more, let the last come in, and only then close.
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
        for _ in range(_TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        for site in list(runner.sites):
            await site.stop()
        handlers = dict(self._handlers)
        for transport in handlers.values():
            if transport is not None:
                transport.abort()  # which cancels its handler
        await asyncio.gather(*handlers, return_exceptions=True)
        await runner.cleanup()
        for loaded in self.runners.loaded():
            self.runners.unload(loaded.model.name)

    async def close(self) -> None:
        """Stop, and give the port back."""
        await self.stop()
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            reserved.close()

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

    async def wait_for(self, predicate: Callable[[OllamaServer], object]) -> None:
        """Return at the first change that makes `predicate(server)` true, at once if it is.

        Put a time limit around it; by itself it waits for ever.
        """
        await self._watch.wait_for(self, predicate)

    def changed(self) -> None:
        """Tell those who wait that something changed."""
        self._watch.changed(self)

    def hold_load(self, name: str, event: asyncio.Event) -> None:
        """Drop a model from memory and let its next load last until `event` is set."""
        if model := self.catalogue.find(name):
            self._holding.add(event)
            self.runners.hold_load(model.name, event)

    async def hold(self, released: asyncio.Event) -> None:
        """Hold the calling request until `released` is set."""
        self._holding.add(released)
        self.held += 1
        self.changed()
        try:
            await released.wait()
        finally:
            self.held -= 1
            self._holding.discard(released)
            self.changed()

    def release(self) -> None:
        """Let go all requests and loads that a fault holds now."""
        for released in self._holding:
            released.set()
        self._holding.clear()

    def __repr__(self) -> str:
        state = "listening on" if self.is_listening else "not listening on"
        counts = (
            f"{len(self.requests)} requests, {self.in_flight} in flight"
            f" (at most {self.max_in_flight}), {self.runners.running} running,"
            f" {self.runners.queued} queued, {self.held} held, {self.disconnects} disconnects"
        )
        return f"<OllamaServer {state} {self.url}: {counts}>"

    def _reserve(self) -> None:
        # A socket that is bound and does not listen refuses connections and keeps the port.
        if self._reserved is None:
            self._reserved = self._bind(self.port)
            self.port = self._reserved.getsockname()[1]

    def _bind(self, port: int) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(
            self.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
        return bound

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=_MAX_BODY_BYTES)
        application.on_response_prepare.append(_without_server_header)
        if self.admin:
            admin.add_routes(application, self)
        application.router.add_route("*", "/{path:.*}", self._handle)
        return application

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        record = RequestRecord(
            len(self.requests) + 1,
            request.method,
            request.path,
            request.query_string,
            request.headers.copy(),
        )
        self._enter(record, request)
        try:
            record.body = await request.read()
            record.started = True
            self.changed()
            return await Exchange(self, request, record).run()
        except (asyncio.CancelledError, ConnectionError):
            record.disconnected = not record.cut and not self._is_stopping
            self.disconnects += record.disconnected
            raise
        finally:
            self._leave(record)

    def _enter(self, record: RequestRecord, request: web.Request) -> None:
        if task := asyncio.current_task():
            self._handlers[task] = request.transport
            task.add_done_callback(self._handlers.pop)
        self.requests.append(record)
        self.in_flight += record.path in WORK_PATHS
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.changed()

    def _leave(self, record: RequestRecord) -> None:
        record.finished = True
        self.in_flight -= record.path in WORK_PATHS
        self.changed()


async def _without_server_header(_request: web.Request, response: web.StreamResponse) -> None:
    # Ollama does not say what it is made of.
    response.headers.pop("Server", None)
