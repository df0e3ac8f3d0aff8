"""The answer to what has not become a request; so in no API's envelope but our own. Nothing follows it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.errors import plain_error

if TYPE_CHECKING:
    from gleitzeit_gateway.errors import Refused

_RETRY_AFTER: Final = {HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "1"}}


def last_answer(error: Refused) -> bytes:
    """All of the answer that says `error` and closes the connection."""
    answer = plain_error(error)
    status, body = HTTPStatus(error.status), answer.body if isinstance(answer.body, bytes) else b""
    headers = {"Server": "gleitzeit", **answer.headers, "Content-Length": str(len(body)), "Connection": "close"}
    fields = map(": ".join, {**headers, **_RETRY_AFTER.get(status, {})}.items())
    return "\r\n".join((f"HTTP/1.1 {status} {status.phrase}", *fields, "", "")).encode() + body
