"""What the tests of gleitzeit-llm share: recordings of real servers, servers that misbehave, and a pool of them."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.resources import HttpChannel, ResourceInstance, instance_id
from gleitzeit_llm import models
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_llm.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

RECORDINGS = Path(__file__).parent / "recordings"


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer.

    Args:
        request: The request's body: decoded JSON, or the string that was sent.
        status: The answer's status.
        headers: The answer's headers.
        lines: The lines of a stream; empty for a plain answer.
        answer: The decoded body of a plain answer.
    """

    request: Any
    status: int
    headers: dict[str, str]
    lines: list[str]
    answer: Any

    @property
    def sent(self) -> bytes:
        """The bytes of the request's body."""
        return self.request.encode() if isinstance(self.request, str) else json.dumps(self.request).encode()

    @property
    def body(self) -> bytes:
        """The bytes of the answer's body; of a plain one up to white space."""
        return "\n".join(self.lines).encode() if self.lines else json.dumps(self.answer).encode()

    @property
    def events(self) -> list[Any]:
        """The decoded data of each server-sent event, `[DONE]` as it is."""
        data = [line.removeprefix("data: ") for line in self.lines if line]
        return [item if item == "[DONE]" else json.loads(item) for item in data]

    @property
    def parts(self) -> list[Any]:
        """The decoded lines of an NDJSON stream."""
        return [json.loads(line) for line in self.lines if line]


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Exchange]:
    """Load a recording by its path below `recordings`, without `.json`."""

    def load(name: str) -> Exchange:
        found = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
        response = found["response"]
        return Exchange(
            request=found["request"]["body"],
            status=response["status"],
            headers=response.get("headers", {}),
            lines=response.get("lines", []),
            answer=response.get("json", response.get("text")),
        )

    return load


# -- servers that do what a test says, byte by byte ----------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever was sent
        """The body, decoded."""
        return json.loads(self.body)


class Line:
    """One connection, from the server's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: list[Heard]) -> None:
        self._reader, self._writer, self._heard = reader, writer, heard

    async def request(self) -> Heard:
        """Read one request, body and all.

        Raises:
            EOFError: The client has left.
        """
        first, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = first.split(" ")
        heard = Heard(method, path, headers, body)
        self._heard.append(heard)
        return heard

    def send(self, data: bytes) -> None:
        """Write these bytes."""
        self._writer.write(data)

    async def flush(self) -> None:
        """Wait until what was written is with the system."""
        await self._writer.drain()

    def answer(self, body: bytes, *, status: str = "200 OK", kind: str = "application/json", more: str = "") -> None:
        """Write a whole answer."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        self.send(head.encode() + body)

    def begin(self, kind: str) -> None:
        """Write the head of an answer in chunks."""
        self.send(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())

    def chunk(self, data: bytes) -> None:
        """Write one chunk; an empty one is the last."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def reset(self) -> None:
        """Close by RST."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """Close by FIN."""
        self._writer.close()


@dataclass
class RawServer:
    """A server on loopback.

    Args:
        scheme: ``http`` or ``https``.
        port: Where it listens.
        listener: To be closed when it shall take no more connections.
        heard: The requests, in order of arrival.
        lines: Connections so far.
    """

    scheme: str = "http"
    port: int = 0
    listener: asyncio.Server | None = None
    heard: list[Heard] = field(default_factory=list)
    lines: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def channel(self) -> HttpChannel:
        """The channel to it."""
        return HttpChannel(self.url)


@pytest.fixture
async def serve(certificate: Path) -> AsyncIterator[Callable[..., Awaitable[RawServer]]]:
    """Starts servers: each connection is given to a function with its `Line`. What such a function raises is raised."""
    listeners, works, errors = [], set(), []

    async def start(handle: Callable[[Line], Awaitable[None]], *, tls: bool = False) -> RawServer:
        server = RawServer(scheme="https" if tls else "http")

        async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            works.add(asyncio.current_task())
            server.lines += 1
            try:
                await handle(Line(reader, writer, server.heard))
            except (EOFError, ConnectionError):
                pass
            except Exception as error:  # noqa: BLE001 - raised again when the test has ended
                errors.append(error)
            finally:
                writer.close()

        listener = await asyncio.start_server(work, "127.0.0.1", 0, ssl=_server_tls(certificate) if tls else None)
        listeners.append(listener)
        server.listener = listener
        server.port = listener.sockets[0].getsockname()[1]
        return server

    yield start
    for listener in listeners:
        listener.close()
    for task in works:
        task.cancel()
    await asyncio.gather(*works, return_exceptions=True)
    for listener in listeners:
        await listener.wait_closed()
    if errors:
        raise errors[0]


def _server_tls(certificate: Path) -> ssl.SSLContext:
    """With a certificate that nobody trusts by himself."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """An open client."""
    client = Upstream()
    await client.open()
    yield client
    await client.close()


# -- a pool of servers ---------------------------------------------------------------------------------------------


class FixedHub(ResourceHub[HubOptions]):
    """Instances that a test names, all of them ready, and checked by nobody."""

    kind = "fixed"

    def __init__(self, instances: Iterable[ResourceInstance]) -> None:
        super().__init__(HubOptions())
        self._fixed = tuple(instances)
        self.checks: Counter[str] = Counter()

    async def discover(self) -> Iterable[ResourceInstance]:
        """They."""
        return self._fixed

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """They are always well."""
        self.checks[instance.id] += 1
        return instance


@dataclass
class Pool:
    """A provider on a pool of instances."""

    provider: LLMProvider
    dispatcher: Dispatcher
    hub: FixedHub

    async def raw(self, dialect: str, path: str, body: object) -> Any:  # noqa: ANN401 - a RawAnswer, or parts
        """Send a request in the bytes of a client API; give the whole answer, or the list of its parts."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = self.provider.raw_request(dialect, path, sent)
        if request.stream:
            async with self.dispatcher.stream(self.provider, request) as parts:
                return [part async for part in parts]
        return (await self.dispatcher.one(self.provider, request)).value


def instance(
    url: str,
    *apis: str,
    models_: Iterable[str] = ("smollm2",),
    own: dict[str, str] | None = None,
    **more: Any,  # noqa: ANN401 - fields of an instance
) -> ResourceInstance:
    """An instance at `url` that speaks `apis` and has `models_`, whose own names for them `own` may tell."""
    known = {models.canonical(name): models.entry((own or {}).get(name, name)) for name in models_}
    fields: dict[str, Any] = {
        "id": instance_id("fixed", url),
        "hub": "fixed",
        "kind": "fixed",
        "endpoint": url,
        "offers": tuple((api, HttpChannel(url)) for api in apis or ("ollama", "openai")),
        "capabilities": frozenset(map(models.capability, known)),
        "details": {"models": known},
    }
    return ResourceInstance(**{**fields, **more})


@pytest.fixture
async def pool() -> AsyncIterator[Callable[..., Awaitable[Pool]]]:
    """Starts a provider on instances."""
    opened: list[Pool] = []

    async def start(*instances: ResourceInstance) -> Pool:
        made = Pool(LLMProvider(), Dispatcher(), FixedHub(instances))
        await made.provider.open()
        opened.append(made)
        await made.dispatcher.shell.add_hub(made.hub)
        return made

    yield start
    for made in opened:
        await made.dispatcher.aclose()
        await made.provider.close()


@pytest.fixture
def instance_at() -> Callable[..., ResourceInstance]:
    """Makes an instance; see `instance`."""
    return instance
