"""HTTP to instances: one client for many servers. How it can fail stands in `failures`."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import msgspec

from gleitzeit_core.errors import ClosedError, FailureKind, InstanceFailure
from gleitzeit_llm.failures import refusal, translated
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import SimpleNamespace

    from gleitzeit_core.resources import HttpChannel

MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""The largest answer that is read as a whole."""

_KEEP_ALIVE_S: Final = 30.0
# aiohttp writes a body of bytes in one go, and above this size warns that it does.
_IN_ONE_GO_BYTES: Final = 1024 * 1024
# Compressing a stream makes proxies hold parts of it back.
_ALWAYS: Final = {"Accept-Encoding": "identity"}
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer with a status from 200 to 299.

    Args:
        status: HTTP status.
        content_type: In lower case, without parameters.
        body: Decompressed.
    """

    status: int
    content_type: str
    body: bytes

    @classmethod
    async def of(cls, response: aiohttp.ClientResponse) -> Self:
        """Read the body.

        Raises:
            InstanceFailure: ``SERVER_ERROR``: it is larger than `MAX_ANSWER_BYTES`.
        """
        return cls(response.status, response.content_type, await read_whole(response))

    def json(self) -> Any:  # noqa: ANN401 - whatever the server sent
        """The body as JSON.

        Raises:
            InstanceFailure: ``SERVER_ERROR``: it is none.
        """
        try:
            return msgspec.json.decode(self.body)
        except UNREADABLE as error:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"the answer is not JSON: {error}") from None


class Upstream:
    """A client for many servers. Open it in the running loop, close it once it is no longer needed.

    Connections are kept for the next request. A server may close such a connection in the very moment when a request
    sets out on it; then the request is sent once more, on a new one. That repeats nothing the server has answered, and
    whatever is sent through here may be repeated.

    Args:
        connect_timeout_s: A server that has not accepted a connection after this long counts as down; the look-up of
            its name and the TLS handshake are part of it. Above 0.
    """

    def __init__(self, *, connect_timeout_s: float = 5.0) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s)
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None

    def __repr__(self) -> str:
        """Whether it is open."""
        return f"<Upstream {'closed' if self._sessions is None else 'open'}>"

    async def open(self) -> None:
        """Make it ready.

        Raises:
            ClosedError: It is open already.
        """
        if self._sessions is not None:
            raise ClosedError("the HTTP client is open already")
        self._sessions = self._session(keep=True), self._session(keep=False)

    async def close(self) -> None:
        """Close all connections. More than once is fine."""
        sessions, self._sessions = self._sessions, None
        for session in sessions or ():
            await session.close()

    async def request(
        self, channel: HttpChannel, method: str, path: str, payload: bytes | Mapping[str, Any] | None = None
    ) -> Reply:
        """One request and its whole answer.

        Args:
            channel: The server.
            method: HTTP method.
            path: Below the server's URL, from ``/``.
            payload: The body, or what to encode as JSON; None for none.

        Raises:
            InstanceFailure: Anything but a whole answer with a status from 200 to 299.
            ClosedError: This is not open.
        """
        async with self.stream(channel, method, path, payload) as response:
            return await Reply.of(response)

    @contextlib.asynccontextmanager
    async def stream(
        self, channel: HttpChannel, method: str, path: str, payload: bytes | Mapping[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, and its answer once the headers are there. Leaving the block early closes the connection.

        Raises:
            InstanceFailure: As for `request`; also from within the block, when the connection breaks.
            ClosedError: This is not open.
        """
        data = payload if isinstance(payload, bytes) or payload is None else msgspec.json.encode(payload)
        try:
            async with await self._send(channel, method, path, data) as response:
                if response.status >= 300:  # noqa: PLR2004 - redirects and errors
                    raise await refusal(channel.url, response)
                yield response
        except (aiohttp.ClientError, OSError) as error:
            # Not `from error`: aiohttp's errors hold the request with its headers, and so with our key.
            raise translated(channel.url, error) from None

    async def _send(self, channel: HttpChannel, method: str, path: str, data: bytes | None) -> aiohttp.ClientResponse:
        """Send a request and wait for the headers of its answer; twice if its connection turns out to be closed."""
        reused: list[bool] = []
        send = partial(_request, channel, method, path, data)
        try:
            return await send(self._opened[0], reused)
        except aiohttp.ClientConnectionError:
            if not reused:
                raise
        return await send(self._opened[1], reused)

    @property
    def _opened(self) -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
        """One that keeps connections, and one that makes a new one for each request."""
        if self._sessions is None:
            raise ClosedError("the HTTP client is not open")
        return self._sessions

    def _session(self, *, keep: bool) -> aiohttp.ClientSession:
        """A session; there is no limit on its connections, because slots are the limit."""
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        connector = (
            aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
            if keep
            else aiohttp.TCPConnector(limit=0, force_close=True)
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            headers=_ALWAYS,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
        )


async def _request(
    channel: HttpChannel,
    method: str,
    path: str,
    data: bytes | None,
    session: aiohttp.ClientSession,
    reused: list[bool],
) -> aiohttp.ClientResponse:
    """Send a request once. What it is sent on is told to `reused` when that is a connection used before."""
    try:
        return await session.request(
            method,
            channel.url + path,
            data=io.BytesIO(data) if data is not None and len(data) > _IN_ONE_GO_BYTES else data,
            headers=channel.headers if data is None else {**_JSON, **channel.headers},
            ssl=True if channel.tls is None else channel.tls,
            allow_redirects=False,
            trace_request_ctx=reused,
        )
    except ValueError as error:  # an address or a header that HTTP has no form for
        raise translated(channel.url, error) from None


async def _note_reuse(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.append(True)


async def read_whole(response: aiohttp.ClientResponse, limit_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """The whole body.

    Raises:
        InstanceFailure: ``SERVER_ERROR``: it is larger than `limit_bytes`.
    """
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > limit_bytes:
            text = f"{response.url.origin()} answered more than {limit_bytes} bytes"
            raise InstanceFailure(FailureKind.SERVER_ERROR, text)
    return bytes(body)
