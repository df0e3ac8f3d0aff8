"""Every way an HTTP server can fail, as an `InstanceFailure` of its kind.

    refused       no connection: nobody there, no such name, none in time, no TLS that can be trusted
    busy          429, 503; also when this process itself is out of sockets
    unauthorized  401, 403
    rejected      any other 4xx, and 501: the server has no such call
    declined      508: what answers is a gateway that the request has been through
    timeout       408
    server error  any other 5xx, a redirect, or what is not HTTP
    lost          the connection broke after the request was sent

No message repeats a header that was sent, nor what a server says when it refuses our credentials: some of them repeat
the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import re
import ssl
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp
import msgspec

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.connection import CutOff
from gleitzeit_llm.connections import Unconnected
from gleitzeit_llm.dialects.errors import error_text
from gleitzeit_llm.http1 import NotHTTP
from gleitzeit_llm.protocol import UNREADABLE, UpstreamError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

MAX_ERROR_BYTES: Final = 64 * 1024
"""How much of an error answer is kept."""

_ERROR_BODY_S: Final = 5.0
_RETRY_AFTER_MAX_S: Final = 3600.0
_SHOWN_CHARACTERS: Final = 200
_KINDS: Final[Mapping[int, FailureKind]] = {
    401: FailureKind.UNAUTHORIZED,
    403: FailureKind.UNAUTHORIZED,
    408: FailureKind.TIMEOUT,
    429: FailureKind.BUSY,
    501: FailureKind.REJECTED,
    503: FailureKind.BUSY,
    508: FailureKind.DECLINED,
}
_NOT_STARTED: Final = frozenset((FailureKind.BUSY, FailureKind.DECLINED, FailureKind.UNAUTHORIZED))
# What servers answer 500 to although it is the caller's fault, and would be so everywhere: Ollama to an option of the
# wrong type, llama.cpp to an image for a model that cannot see.
_CALLERS_FAULT: Final[Mapping[str, re.Pattern[str]]] = {
    "ollama": re.compile(r'option ".*" must be of type '),
    "openai": re.compile(r"(image|audio|video) input is not supported"),
}
# Not the server's fault: this process has no more sockets or no memory for one.
_OURS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class _Content(Protocol):
    def iter_any(self) -> AsyncIterator[bytes]:
        """The body in whatever parts come."""


class Refusing(Protocol):
    """An answer that is not 2xx: ours, or one of aiohttp's client."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Case does not count in their names."""

    @property
    def content(self) -> _Content:
        """What its body is read from."""


async def refusal(url: str, response: Refusing) -> InstanceFailure:
    """An answer that is not 2xx, with its status and its body.

    The body ends after `MAX_ERROR_BYTES`, or where the server stops sending; one that refuses our credentials is left
    out.
    """
    status = response.status
    kind = _KINDS.get(status) or (FailureKind.REJECTED if 400 <= status < 500 else FailureKind.SERVER_ERROR)  # noqa: PLR2004 - 4xx
    message = f"{url} answered {status}"
    if kind is FailureKind.UNAUTHORIZED:
        message = f"{url} refuses our credentials (status {status})"
    elif status < 400:  # noqa: PLR2004 - a redirect
        message = f"{message}: it redirects to {_location(response)}, and redirects are not followed"
    return InstanceFailure(
        kind,
        message,
        started=kind not in _NOT_STARTED,
        retry_after_s=retry_after(response.headers.get("Retry-After")) if kind is FailureKind.BUSY else None,
        status=status,
        body=None if kind is FailureKind.UNAUTHORIZED else await _error_body(response),
    )


def _location(response: Refusing) -> str:
    """Where a redirect leads, without a query, which may hold a secret."""
    return response.headers.get("Location", "").partition("?")[0][:_SHOWN_CHARACTERS] or "nowhere"


async def _error_body(response: Refusing) -> bytes:
    """What can be read of it: the status says enough already, so that nothing that happens here matters."""
    body = bytearray()
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(_ERROR_BODY_S):
            async for data in response.content.iter_any():
                body += data
                if len(body) >= MAX_ERROR_BYTES:
                    break
    return bytes(body[:MAX_ERROR_BYTES])


def translated(url: str, error: Exception) -> InstanceFailure:
    """What the connection or the system raised."""
    if isinstance(error, Unconnected | aiohttp.ClientConnectorError):
        # One of aiohttp's has an error of its certificate in place of the system's.
        return _unconnected(url, getattr(error, "certificate_error", None) or error.os_error)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return _refused(f"{url} accepted no connection in time")
    if isinstance(error, ValueError):
        return _refused(f"no request can be sent to {url}: {_shown(error)}")
    if isinstance(error, TimeoutError):
        return InstanceFailure(FailureKind.TIMEOUT, f"{url} did not answer in time")
    if isinstance(error, CutOff | NotHTTP):
        kind = error.kind if isinstance(error, CutOff) else FailureKind.SERVER_ERROR
        what = "" if isinstance(error, CutOff) else "does not speak HTTP: "
        return InstanceFailure(kind, f"{url} {what}{_shown(error.message)}")
    # The connection broke before, in or after the headers: the work may have begun.
    return InstanceFailure(FailureKind.LOST, f"{url} {_how_it_broke(error)}")


def _how_it_broke(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientPayloadError):
        return "broke off in its answer"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "closed the connection before it answered"
    return f"broke the connection: {getattr(error, 'strerror', None) or _shown(error)}"


def _unconnected(url: str, error: Exception) -> InstanceFailure:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or _shown(error)
        return _refused(f"{url} has a certificate that is not trusted: {why}")
    why = getattr(error, "strerror", None) or _shown(error)
    if isinstance(error, ssl.SSLError):
        return _refused(f"{url} does not speak TLS as it should: {why}")
    if isinstance(error, OSError) and error.errno in _OURS:
        return InstanceFailure(FailureKind.BUSY, f"no connection to {url} can be opened here: {why}", started=False)
    return _refused(f"{url} cannot be reached: {why}")


def _refused(message: str) -> InstanceFailure:
    return InstanceFailure(FailureKind.REFUSED, message, started=False)


def _shown(what: object) -> str:
    """A text in one line; the type's name where there is none."""
    return " ".join(str(what).split())[:_SHOWN_CHARACTERS] or type(what).__name__


def retry_after(header: str | None) -> float | None:
    """The seconds that a ``Retry-After`` header asks for, as a number or as a date; at most an hour.

    None when there is none, or when it says nothing sensible.
    """
    if header is None:
        return None
    with contextlib.suppress(ValueError):
        return _within_limits(float(header))
    with contextlib.suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(header)
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
        return _within_limits(max(0.0, seconds))
    return None


@contextlib.contextmanager
def explaining(api: str, *, same_api: bool) -> Iterator[None]:
    """Raises a failure in the server's own words, where it has any.

    Args:
        api: What the server speaks.
        same_api: Whether the caller speaks the same API, and so gets the body as it is, if it is a JSON object.
    """
    try:
        yield
    except InstanceFailure as failure:
        raise explained(api, failure, same_api=same_api) from None
    except UpstreamError as error:
        raise InstanceFailure(FailureKind.SERVER_ERROR, error.message) from None


def explained(api: str, failure: InstanceFailure, *, same_api: bool) -> InstanceFailure:
    """`failure` in the server's own words, where it has any; the rest as for `explaining`."""
    if failure.status is None or not failure.body:
        return failure
    text, kind = error_text(failure.status, failure.body), failure.kind
    known = _CALLERS_FAULT.get(api)
    if kind is FailureKind.SERVER_ERROR and known is not None and known.match(text):
        kind = FailureKind.REJECTED
    return InstanceFailure(
        kind,
        text,
        started=failure.started,
        retry_after_s=failure.retry_after_s,
        status=failure.status,
        body=failure.body if same_api and _is_object(failure.body) else None,
    )


def _is_object(body: bytes) -> bool:
    """Whether it is a whole JSON object, and neither a page of a proxy nor cut off."""
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except UNREADABLE:
        return False


def _within_limits(seconds: float) -> float | None:
    return min(seconds, _RETRY_AFTER_MAX_S) if math.isfinite(seconds) and seconds >= 0 else None
