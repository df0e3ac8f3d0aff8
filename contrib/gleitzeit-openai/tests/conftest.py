"""What the tests of the hub type `openai` share: a server whose answers a test chooses, and a pool without requests."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.shell import Shell

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable


class Listing:
    """A server that only has ``/v1/models``.

    Attributes:
        answer: What it answers: something to send as JSON, or a whole response of that status.
        key: The bearer token it wants; None for none.
        asked: The headers of each request that it got.
    """

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.status = 200
        self.key: str | None = None
        self.asked: list[dict[str, str]] = []
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        """Without ``/v1``."""
        return str(self.server.make_url("")).rstrip("/")

    async def _models(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.headers))
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Incorrect API key provided: sk-echo"}}, status=401)
        return web.json_response(self.answer, status=self.status)


@pytest.fixture
async def listing() -> AsyncIterator[Callable[..., Awaitable[Listing]]]:
    """Starts such servers."""
    started: list[Listing] = []

    async def start(answer: object, *, tls: ssl.SSLContext | None = None) -> Listing:
        made = Listing(answer)
        await made.server.start_server(**({} if tls is None else {"ssl": tls}))
        started.append(made)
        return made

    yield start
    for one in started:
        await one.server.close()


@pytest.fixture
async def shell() -> AsyncIterator[Shell]:
    """The pool, with hubs and checks but without a provider."""
    shell = Shell(clock=SystemClock(), random=Random(1))
    yield shell
    await shell.aclose()
