"""The gateway: an HTTP server around a manager. It adds HTTP, keys and an access line, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from aiohttp import web

from gleitzeit_core.errors import GleitzeitError, ShuttingDown
from gleitzeit_core.requests import new_request_id
from gleitzeit_gateway.access import Access
from gleitzeit_gateway.access_line import GONE, AccessLines
from gleitzeit_gateway.admin import admin_endpoints, own_numbers
from gleitzeit_gateway.answers import InParts, Reply, Whole, send
from gleitzeit_gateway.call import Call
from gleitzeit_gateway.connections import Connections
from gleitzeit_gateway.endpoints import Endpoint, Router
from gleitzeit_gateway.errors import Refused
from gleitzeit_gateway.http_server import Server
from gleitzeit_gateway.limits import Limits
from gleitzeit_gateway.llm_api import anthropic_endpoints, ollama_endpoints, openai_endpoints, unserved_endpoints
from gleitzeit_gateway.openapi import openapi_endpoint
from gleitzeit_gateway.options import FIXED
from gleitzeit_gateway.passage import Door, Passage, rendered
from gleitzeit_gateway.tls import Certificate
from gleitzeit_gateway.usage import Usage
from gleitzeit_llm.via import CHAIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.running import Running
    from gleitzeit_gateway.http_request import Request
    from gleitzeit_gateway.options import GatewayOptions
    from gleitzeit_gateway.workers import Worker

logger = logging.getLogger(__name__)

_REPLIES: Final = (Whole, InParts, web.StreamResponse)
_UNAUTHORIZED: Final = 401
_FAILED: Final = 500
_BACKLOG: Final = 1024
# How long answers that are on their way already may take at the very end.
_LAST_S: Final = 0.25


class Gateway:
    """One gateway. `start` listens, `drain` takes nothing new, `aclose` ends it.

    Args:
        manager: Started before `start` is called; not stopped by the gateway.
        options: The section ``gateway``.
        worker: When this is one of several processes at the address.
        monotonic: What the limits of keys go by.

    Attributes:
        limits: What keys have used of what they may.
        usage: What was used.
    """

    def __init__(
        self,
        manager: ResourceManager,
        options: GatewayOptions,
        worker: Worker | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager, self._options = manager, options
        self.limits, self.usage = Limits(monotonic), Usage(monotonic)
        self._connections, self._lines = Connections(options), AccessLines()
        llm = [*ollama_endpoints(), *openai_endpoints(), *anthropic_endpoints()]
        self._router = Router([*llm, *admin_endpoints(worker, self.usage)])
        self._add_endpoints_of_plugins()
        self._router.fill([*unserved_endpoints(), openapi_endpoint(manager, lambda: self._router)])
        self._door = Door(self._router, Access(options, self.limits))
        manager.on_reload("gateway", self.reconfigure, fixed=FIXED)
        self._server: Server | None = None
        self._listener: asyncio.Server | None = None
        self._worker = worker
        self._certificate: Certificate | None = None
        self._watching: asyncio.Task[None] | None = None
        self._running: Running | None = None
        self._ending = asyncio.Event()
        self._open = 0
        self._idle = asyncio.Event()
        self.port = options.port

    def __repr__(self) -> str:
        """Address and open requests."""
        return f"<Gateway {self.url}, {self._open} requests{', draining' if self._ending.is_set() else ''}>"

    @property
    def options(self) -> GatewayOptions:
        """Those in force."""
        return self._options

    def reconfigure(self, options: GatewayOptions) -> str:
        """Take other options while running: all but the address. Requests that have begun keep theirs.

        Returns:
            What else is to be said; nothing.

        Raises:
            GleitzeitError: They are not safe at this address, whatever they are at another; nothing has changed.
        """
        changed = options.model_copy(update={name: getattr(self._options, name) for name in FIXED})
        if changed.is_open:
            raise GleitzeitError(f"without keys the gateway cannot go on listening on {changed.host}; start it again")
        self._options, self._door.access = changed, Access(changed, self.limits)
        self._connections.options = changed
        if self._server is not None:
            self._server.forget_heads()
        return ""

    @property
    def url(self) -> str:
        """Where it listens."""
        host, scheme = self._options.host.strip("[]"), "http" if self._options.tls is None else "https"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    def _add_endpoints_of_plugins(self) -> None:
        for found in self._manager.host.call("gleitzeit_gateway_endpoints"):
            for endpoint in found if isinstance(found, Iterable) else [found]:
                if isinstance(endpoint, Endpoint):
                    self._router.add(endpoint)
                else:
                    logger.warning("gleitzeit_gateway_endpoints: %r is no Endpoint, and is not used", endpoint)

    # -- life --------------------------------------------------------------------------------------------------

    async def bind(self) -> asyncio.Server:
        """Take the address, without answering yet.

        Raises:
            OSError: The address is taken, or not ours; or the certificate has become unusable.
        """
        if self._options.tls is not None and self._certificate is None:
            self._certificate = await asyncio.to_thread(Certificate, self._options.tls)
        loop = asyncio.get_running_loop()
        self._server = Server(self._handle, self._connections)
        host, port = self._options.host.strip("[]"), self._options.port
        how: dict[str, Any] = {} if self._certificate is None else self._certificate.how
        if self._worker is not None:
            how["reuse_port"] = True
        listener = await loop.create_server(self._server, host, port, backlog=_BACKLOG, start_serving=False, **how)
        self.port = listener.sockets[0].getsockname()[1]
        self._listener = listener
        return listener

    async def start(self) -> None:
        """Answer; takes the address first, where `bind` has not done so.

        Raises:
            OSError: As `bind`.
        """
        listener = self._listener or await self.bind()
        if self._running is None:
            self._running = self._manager.dispatcher.running
            self._running.watchers += (self.limits.finished, self.usage.finished)
        await listener.start_serving()
        if self._worker is not None:
            await self._worker.listen(partial(own_numbers, self._manager))
        if self._certificate is not None and self._watching is None:
            self._watching = asyncio.create_task(self._certificate.watch())

    async def drain(self) -> None:
        """Take nothing new and let running answers finish, for the grace period at most.

        New requests get 503, so that callers and what balances them know at once; those who wait are sent away. The
        manager takes nothing new from then on, from anybody.
        """
        self._ending.set()
        grace_s = self._options.grace_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._manager.dispatcher.drain(grace_s)
                while self._open:
                    self._idle.clear()
                    await self._idle.wait()

    async def aclose(self) -> None:
        """Close everything now; `drain` first to let answers finish. More than once is fine."""
        self._ending.set()
        listener, self._listener = self._listener, None
        server, self._server = self._server, None
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        running, self._running = self._running, None
        if running is not None:
            ours = (self.limits.finished, self.usage.finished)
            running.watchers = tuple(watch for watch in running.watchers if watch not in ours)
        if self._worker is not None:
            self._worker.close()
        if listener is not None:
            listener.close()
        if server is not None:
            await server.shutdown(_LAST_S)
        self._connections.close()
        self._lines.write()
        if listener is not None:
            await listener.wait_closed()

    # -- one request -------------------------------------------------------------------------------------------

    async def _handle(self, request: Request) -> bool:
        """Answer it, whatever happens; whether its connection can be kept."""
        began = time.monotonic()
        unique_id = new_request_id()
        shown_id = request.head.request_id or unique_id
        call = Call(request, self._manager, self._options, shown_id, unique_id, self._ending)
        self._open += 1
        status, kept = GONE, False
        try:
            passage = self._door.passage(call)
            if isinstance(passage, Passage):
                try:
                    reply = await self._let_in(call, passage)
                    if not isinstance(reply, _REPLIES):
                        _no_reply(passage.endpoint, reply)
                except Exception as error:  # noqa: BLE001 - it is told
                    reply = _told(call, passage.endpoint, error)
            else:
                reply = passage
            if not (isinstance(reply, InParts) or reply.prepared):
                self._finish(call, reply)
            kept = not call.broken_off and await send(request, reply)
            status = reply.status
        except ConnectionError:
            pass  # Nobody is there to get it.
        except Exception:
            call.error, status = "internal", _FAILED  # The server answers so, and says why in the log.
            raise
        finally:
            call.let_go()
            self._open -= 1
            if not self._open:
                self._idle.set()
            self._lines.add(call, status, time.monotonic() - began)
        return kept

    def _let_in(self, call: Call, passage: Passage) -> Awaitable[Reply]:
        """What answers it, if it can be let in now."""
        endpoint = passage.endpoint
        call.passage, call.caller = passage, passage.caller
        if passage.cors:
            call.headers.update(passage.cors)
        if CHAIN.get() != passage.chain:
            CHAIN.set(passage.chain)
        if not endpoint.public:
            if endpoint.admin:
                _admit_change(call)
            if self._ending.is_set():
                raise ShuttingDown("shutting down: nothing new is taken")
            if endpoint.limited:
                call.hold()
        return endpoint.handler(call)

    def _finish(self, call: Call, reply: Whole | web.StreamResponse) -> None:
        """All that an answer that has not begun still needs."""
        if reply.status == _UNAUTHORIZED:
            call.headers["WWW-Authenticate"] = "Bearer"
        call.sign(reply)
        if self._ending.is_set() or not call.request.complete:
            # Nothing more is taken here, or what is left of the body would be read as the next request.
            reply.force_close()


def _admit_change(call: Call) -> None:
    """Refuse who may not change the pool, and what a form of a web page could have sent.

    Raises:
        Refused: One of these.
    """
    if not call.admin:
        who = "this needs a key with 'admin: true'" if call.tenant else "without keys, only this machine may do this"
        raise Refused(403, who, "forbidden")
    if call.request.can_read_body and call.request.content_type != "application/json":
        raise Refused(415, "the body must be JSON: send 'Content-Type: application/json'", "not_json")


def _no_reply(endpoint: Endpoint, answer: object) -> NoReturn:
    """A plugin's endpoint has answered with what cannot be sent."""
    raise TypeError(f"{endpoint.method} {endpoint.path} answered {answer!r}, which is no response")


def _told(call: Call, endpoint: Endpoint, error: Exception) -> Reply:
    """The answer that says what went wrong.

    Raises:
        ConnectionResetError: There is nobody to tell.
    """
    if call.gone:
        raise ConnectionResetError("the caller has left") from error
    call.note_error(error)
    if call.begun or call.request.started:
        # Too late for another answer; the one that has begun must not look complete.
        call.cut()
    return rendered(endpoint, error)
