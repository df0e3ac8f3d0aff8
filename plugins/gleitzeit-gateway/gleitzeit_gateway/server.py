"""The gateway: an HTTP server around a manager. It adds HTTP, keys and an access line, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gleitzeit_core.errors import GleitzeitError, ShuttingDown
from gleitzeit_core.requests import new_request_id
from gleitzeit_gateway.access import Access, cors, preflight
from gleitzeit_gateway.admin import admin_endpoints
from gleitzeit_gateway.endpoints import Call, Endpoint, Match, Router
from gleitzeit_gateway.errors import Refused
from gleitzeit_gateway.llm_api import ollama_endpoints, openai_endpoints

if TYPE_CHECKING:
    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_gateway.options import GatewayOptions

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("gleitzeit.access")

MARK: Final = "X-Gleitzeit-Gateway"
"""On every answer: by it discovery knows a gateway from an Ollama."""
_CLIENT_ID: Final = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_GONE: Final = 499


class Gateway:
    """One listening gateway.

    Args:
        manager: Started already; not stopped by the gateway.
        options: The section ``gateway``.
    """

    def __init__(self, manager: ResourceManager, options: GatewayOptions) -> None:
        self._manager, self._options = manager, options
        self._access = Access(options)
        self._router = Router(self._endpoints())
        self._runner: web.ServerRunner | None = None
        self._draining = False
        self._open = 0
        self.port = options.port

    def __repr__(self) -> str:
        """Address and open requests."""
        return f"<Gateway {self.url}, {self._open} requests>"

    @property
    def url(self) -> str:
        """Where it listens."""
        host = self._options.host
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{shown}:{self.port}"

    def _endpoints(self) -> list[Endpoint]:
        found = [*ollama_endpoints(), *openai_endpoints(), *admin_endpoints()]
        for more in self._manager.host.call("gleitzeit_gateway_endpoints"):
            found += more
        return found

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: The address is taken, or not ours.
        """
        server = web.Server(
            self._handle,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=75.0,
        )
        runner = web.ServerRunner(server, shutdown_timeout=self._options.grace_s)
        await runner.setup()
        site = web.TCPSite(runner, self._options.host.strip("[]"), self._options.port, backlog=1024)
        try:
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def aclose(self) -> None:
        """Take nothing new, let running answers finish within the grace period, close all connections."""
        self._draining = True
        self._manager.dispatcher.shell.admission.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:  # noqa: ANN401 - aiohttp's own
        loop = asyncio.get_running_loop()
        limit = self._options.max_body_bytes
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limit)

    # -- one request -------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        call = Call(request, self._manager, self._options, _request_id(request))
        call.headers = {MARK: "1", "X-Request-Id": call.id}
        self._open += 1
        status = _GONE
        try:
            response = await self._guarded(call)
            status = response.status
        finally:
            self._open -= 1
            self._log(call, status, time.monotonic() - began)
        return response

    async def _guarded(self, call: Call) -> web.StreamResponse:
        """Everything that happens before an endpoint, and its errors."""
        request = call.request
        origin = request.headers.get("Origin")
        if not self._access.host_allowed(request.headers.get("Host", "")):
            return _finished(call, web.Response(status=403))
        if origin is not None and not self._access.origin_allowed(origin):
            return _finished(call, web.Response(status=403))
        if origin is not None:
            call.headers.update(cors(origin))
            if request.method == "OPTIONS":
                return _finished(call, web.Response(status=204, headers=preflight(origin)))
        match = self._router.find(request.method, request.path)
        if match.endpoint is None:
            return _finished(call, _no_endpoint(match))
        call.rest = match.rest
        return await self._answered(call, match.endpoint)

    async def _answered(self, call: Call, endpoint: Endpoint) -> web.StreamResponse:
        try:
            self._admit(call, endpoint)
            response = await endpoint.handler(call)
        except GleitzeitError as error:
            call.error = error.code
            response = endpoint.error(error)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            logger.exception("request %s failed", call.id)
            call.error = "internal"
            response = endpoint.error(error)
        return response if response.prepared else _finished(call, response)

    def _admit(self, call: Call, endpoint: Endpoint) -> None:
        if endpoint.public:
            return
        if self._access.keys_needed:
            key = self._access.key_of(call.request.headers)
            if key is None:
                raise Refused(401, "a valid API key is needed: send it as 'Authorization: Bearer KEY'", "unauthorized")
            call.tenant, call.priority = key.name, key.priority
        if self._draining:
            raise ShuttingDown("shutting down: nothing new is taken")

    def _log(self, call: Call, status: int, total_s: float) -> None:
        if not self._options.access_log:
            return
        served = call.served
        access_logger.info(
            "%s %s %s %d %.1fms%s%s%s%s",
            call.id,
            call.request.method,
            _printable(call.request.path),
            status,
            total_s * 1000,
            f" model={_printable(call.model)}" if call.model else "",
            f" instance={served.instance_id} queued={served.queued_s * 1000:.0f}ms tries={served.tries}"
            if served
            else "",
            f" key={call.tenant}" if call.tenant else "",
            f" error={call.error}" if call.error else "",
        )


def _request_id(request: web.BaseRequest) -> str:
    """The caller's own, where it is harmless; else a new one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _CLIENT_ID.fullmatch(given) else new_request_id()


def _finished(call: Call, response: web.StreamResponse) -> web.StreamResponse:
    response.headers.update(call.headers)
    if response.status == 401:  # noqa: PLR2004 - the one status that must name a scheme
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _no_endpoint(match: Match) -> web.Response:
    """Unknown paths and methods, in the words of Ollama."""
    if match.allowed:
        allow = {"Allow": ", ".join(match.allowed)}
        return web.Response(status=405, body=b"405 method not allowed", content_type="text/plain", headers=allow)
    return web.Response(status=404, body=b"404 page not found", content_type="text/plain")


def _printable(text: str) -> str:
    """`text` on one line, without control characters, and not endless."""
    return "".join(c if c.isprintable() and c != " " else "?" for c in text[:200])
