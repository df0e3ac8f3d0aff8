"""Answers before they are sent: plain bodies, streams of parts, errors of each client API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.golang import dumps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

JSON = "application/json; charset=utf-8"
BARE_JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
TEXT = "text/plain; charset=utf-8"
BARE_TEXT = "text/plain"

_BAD_REQUEST = 400
_NOT_FOUND = 404
_ERROR_TYPES = {_BAD_REQUEST: "invalid_request_error", _NOT_FOUND: "not_found_error"}


@dataclass(frozen=True, slots=True)
class Plain:
    """An answer with its whole body.

    Args:
        status: HTTP status.
        body: empty means no Content-Type either, unless one is given.
        content_type: None for none.
        headers: further headers.
        tokens: how many tokens must pass the gate before it is sent.
    """

    status: int = 200
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tokens: int = 0

    def halves(self) -> list[bytes]:
        """Return the body in its two parts; none where there is no body."""
        middle = (len(self.body) + 1) // 2
        return [self.body[:middle], self.body[middle:]] if self.body else []


@dataclass(frozen=True, slots=True)
class Part:
    """A line or an event of a stream; a token must pass the gate before it is sent."""

    data: bytes
    is_token: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that comes in parts, made as they are sent."""

    content_type: str
    parts: Iterator[Part]
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Plain | Stream


class ApiError(Exception):
    """A refusal by the server, in the words of the recordings.

    Args:
        status: HTTP status.
        message: the sentence.
        is_outer: under `/v1`, refused before the request is translated: another Content-Type.
    """

    def __init__(self, status: int, message: str, *, is_outer: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.is_outer = is_outer


def json_answer(value: object, status: int = 200, tokens: int = 0) -> Plain:
    """Return a JSON answer of the native API."""
    return Plain(status, dumps(value), JSON, tokens=tokens)


def bare_json_answer(value: object, status: int = 200, tokens: int = 0) -> Plain:
    """Return a JSON answer under `/v1`: no charset, and a line feed at the end."""
    return Plain(status, dumps(value) + b"\n", BARE_JSON, tokens=tokens)


def line(value: object, *, is_token: bool = False) -> Part:
    """Return a line of a native stream."""
    return Part(dumps(value) + b"\n", is_token)


def event(value: object, *, is_token: bool = False) -> Part:
    """Return an event of a stream under `/v1`."""
    return Part(b"data: " + dumps(value) + b"\n\n", is_token)


DONE_EVENT = Part(b"data: [DONE]\n\n")


def envelope(status: int, message: str) -> dict[str, object]:
    """Return the error object of the OpenAI API."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def error_answer(error: ApiError, path: str) -> Plain:
    """Return an error in the shape of the client API that `path` belongs to."""
    if not path.startswith("/v1/"):
        return json_answer({"error": error.message}, error.status)
    value = envelope(error.status, error.message)
    make = json_answer if error.is_outer else bare_json_answer
    return make(value, error.status)
