"""HTTP to instances: one client session, and every way it can fail told apart.

What a server answers is translated in one place: refused connections, dead ones, time-outs, busy answers, wrong keys, the
caller's own mistakes and the server's, each as an `InstanceFailure` of its kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from gleitzeit_core.errors import ClosedError, FailureKind, InstanceFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from gleitzeit_core.resources import HttpChannel

MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
MAX_ERROR_BYTES: Final = 64 * 1024
_BUSY: Final = frozenset((429, 503))
_UNAUTHORIZED: Final = frozenset((401, 403))
_RETRY_AFTER_MAX_S: Final = 3600.0
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer with a status below 400."""

    status: int
    content_type: str
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - whatever the server sent
        """The body as JSON.

        Raises:
            InstanceFailure: ``SERVER_ERROR``: it is none.
        """
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError as error:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"answer is not JSON: {error}") from error


class Upstream:
    """A client for many servers. Open it in the running loop, close it once.

    Args:
        connect_timeout_s: A server that has not accepted a connection after this long counts as down.
    """

    def __init__(self, *, connect_timeout_s: float = 5.0) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        """Whether it is open."""
        return f"<Upstream {'closed' if self._session is None else 'open'}>"

    async def open(self) -> None:
        """Make the session. There is no limit on connections: slots are the limit."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections. More than once is fine."""
        session, self._session = self._session, None
        if session is not None:
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
            InstanceFailure: Anything but an answer with a status below 400.
        """
        async with self.stream(channel, method, path, payload) as response:
            body = await _read(response, MAX_ANSWER_BYTES)
            return Reply(response.status, response.content_type, body)

    @contextlib.asynccontextmanager
    async def stream(
        self, channel: HttpChannel, method: str, path: str, payload: bytes | Mapping[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, and its answer once the headers are there. Leaving the block early closes the connection.

        Raises:
            InstanceFailure: As for `request`; also from within the block, when the connection breaks.
        """
        if self._session is None:
            raise ClosedError("the HTTP client is not open")
        data = payload if isinstance(payload, bytes) or payload is None else msgspec.json.encode(payload)
        headers = {**_JSON, **channel.headers} if data is not None else dict(channel.headers)
        ssl: Any = channel.tls if channel.tls is not None else True
        try:
            async with self._session.request(
                method, channel.url + path, data=data, headers=headers, ssl=ssl, allow_redirects=False
            ) as response:
                if response.status >= 300:  # noqa: PLR2004 - redirects and errors
                    raise await _refusal(response)
                yield response
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise translated(channel, error) from error


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit_bytes:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"answer is larger than {limit_bytes} bytes")
    return bytes(body)


async def _refusal(response: aiohttp.ClientResponse) -> InstanceFailure:
    """An answer that is not 2xx, as a failure with its status and body."""
    body = await response.content.read(MAX_ERROR_BYTES)
    status = response.status
    message = f"{response.url.origin()} answered {status}"
    retry_after_s = None
    started = True
    if status in _BUSY:
        kind, started, retry_after_s = FailureKind.BUSY, False, retry_after(response.headers.get("Retry-After"))
    elif status in _UNAUTHORIZED:
        kind, started = FailureKind.UNAUTHORIZED, False
    elif status >= 500 or status < 400:  # noqa: PLR2004 - a redirect is no answer either
        kind = FailureKind.SERVER_ERROR
    else:
        kind = FailureKind.REJECTED
    return InstanceFailure(kind, message, started=started, retry_after_s=retry_after_s, status=status, body=body)


def translated(channel: HttpChannel, error: BaseException) -> InstanceFailure:
    """What aiohttp or the system raised, as a failure of its kind."""
    text = f"{channel.url}: {error}" if str(error) else f"{channel.url}: {type(error).__name__}"
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return InstanceFailure(FailureKind.REFUSED, text, started=False)
    if isinstance(error, TimeoutError):
        return InstanceFailure(FailureKind.TIMEOUT, text)
    # The connection broke: before, in or after the headers, but the work may have begun.
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return InstanceFailure(FailureKind.LOST, text)
    return InstanceFailure(FailureKind.SERVER_ERROR, text)


def retry_after(header: str | None) -> float | None:
    """The seconds a ``Retry-After`` header asks for, as a number or as a date; None when it says nothing sensible."""
    if header is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        seconds = float(header)
        return min(seconds, _RETRY_AFTER_MAX_S) if seconds >= 0 else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return min(max(0.0, parsedate_to_datetime(header).timestamp() - time.time()), _RETRY_AFTER_MAX_S)
    return None
