"""A gateway in this process, with a client, for tests of endpoints, hubs and clients.

manager = ResourceManager.from_config(overrides={"gateway": {"port": 0}, ...})
async with RunningGateway(manager) as gateway:
    answer = await gateway.ask("/api/chat", {"model": "smollm2", "messages": [...]})
    assert answer.status == 200
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp

from gleitzeit_gateway.options import GatewayOptions
from gleitzeit_gateway.server import Gateway

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_core.manager import ResourceManager

_LIMIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer.

    Args:
        status: HTTP status.
        headers: Case does not count in their names.
        body: All of it, or what came before it broke off.
        complete: False when it broke off: its length or its last chunk was missing.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever JSON it is
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The body as lines of JSON."""
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def events(self) -> list[Any]:
        """The body as server-sent events: JSON, but for ``[DONE]``, which stays as it is."""
        parts = [part.removeprefix("data: ") for part in self.text.split("\n\n") if part]
        return [part if part == "[DONE]" else json.loads(part) for part in parts]


class RunningGateway:
    """See the module's text.

    Args:
        manager: Not started; started and stopped with the gateway.
        monotonic: What the limits of keys go by.

    Attributes:
        session: A client without a limit on connections.
    """

    def __init__(self, manager: ResourceManager, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        options = manager.config.sections["gateway"]
        if not isinstance(options, GatewayOptions):
            raise TypeError("the manager's configuration has no section 'gateway'")
        self.manager, self.options = manager, options
        self.gateway = Gateway(manager, options, monotonic=monotonic)
        self.session: aiohttp.ClientSession

    def __repr__(self) -> str:
        """The gateway and its manager."""
        return f"<RunningGateway {self.gateway!r}, {self.manager!r}>"

    async def __aenter__(self) -> Self:
        """Start the manager and the gateway."""
        await self.manager.__aenter__()
        try:
            await self.gateway.start()
        except BaseException:
            await self.manager.aclose()
            raise
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop both, at once."""
        await self.session.close()
        await self.gateway.aclose()
        await self.manager.aclose()

    @property
    def url(self) -> str:
        """Its address."""
        return self.gateway.url

    @property
    def in_flight(self) -> int:
        """Slots that are taken, on all instances."""
        return sum(report.in_flight for report in self.manager.instances())

    @property
    def waiting(self) -> int:
        """Requests in queues."""
        return self.manager.dispatcher.shell.admission.waiting

    async def until(self, condition: Callable[[], object]) -> None:
        """Turn the loop until `condition` holds: for what no event tells.

        Raises:
            TimeoutError: It does not hold after 20 seconds.
        """
        async with asyncio.timeout(_LIMIT_S):
            while not condition():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.001)

    async def ask(
        self,
        path: str,
        body: object = None,
        *,
        verb: str = "",
        headers: Mapping[str, str] | None = None,
        begun: Callable[[], None] | None = None,
    ) -> Answered:
        """Send a request and read its whole answer, however it ends.

        Args:
            path: From ``/``.
            body: Bytes or text as they are, anything else as JSON; None for none.
            verb: HTTP method; ``GET`` without a body and ``POST`` with one, when empty.
            headers: Besides those that go without saying.
            begun: Called when the first part of the answer is there.
        """
        data: dict[str, Any] = {} if body is None else {"json": body}
        if isinstance(body, bytes | str):
            data = {"data": body}
        verb = verb or ("GET" if body is None else "POST")
        async with self.session.request(verb, self.url + path, headers=headers, **data) as response:
            content, complete = bytearray(), True
            try:
                async for chunk in response.content.iter_any():
                    if begun is not None and not content:
                        begun()
                    content += chunk
            except aiohttp.ClientPayloadError:
                complete = False
            return Answered(response.status, response.headers, bytes(content), complete)

    async def chat(
        self,
        text: str = "hi",
        *,
        v1: bool = False,
        stream: bool = False,
        model: str = "smollm2",
        begun: Callable[[], None] | None = None,
    ) -> Answered:
        """Ask a model something.

        Args:
            text: The question.
            v1: In OpenAI's API; otherwise in Ollama's.
            stream: Whether the answer is wanted in parts.
            model: Its name.
            begun: As for `ask`.
        """
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}
        return await self.ask("/v1/chat/completions" if v1 else "/api/chat", body, begun=begun)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection, for what no HTTP client would send. Close the writer."""
        return await asyncio.open_connection(self.options.host, self.gateway.port)

    async def raw(self, sent: bytes) -> bytes:
        """Send bytes on a connection of their own; what came back when the gateway had closed it."""
        reader, writer = await self.connect()
        try:
            writer.write(sent)
            await writer.drain()
            async with asyncio.timeout(_LIMIT_S):
                return await reader.read()
        finally:
            writer.close()
