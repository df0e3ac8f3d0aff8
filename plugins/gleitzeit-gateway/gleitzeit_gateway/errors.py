"""Our errors in each client API's own envelope and status."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from gleitzeit_core.errors import (
    CircuitOpen,
    ClosedError,
    ConfigurationError,
    DeadlineExceeded,
    FailureKind,
    GleitzeitError,
    InstanceFailure,
    InvalidRequest,
    LeaseExpired,
    NoCapableInstance,
    PluginError,
    QueueFull,
    ShuttingDown,
    Unavailable,
    UnknownMethod,
    UnknownName,
)
from gleitzeit_llm.dialects import CLIENTS
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable

_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404
# What a server may make up besides is no status to anybody.
_ERRORS: Final = range(_BAD_REQUEST, 600)
_STATUS: Final[dict[type[Exception], int]] = {
    InvalidRequest: _BAD_REQUEST,
    ConfigurationError: 422,
    PluginError: 422,  # One that a configuration names.
    UnknownMethod: 404,
    NoCapableInstance: 404,
    Unavailable: 503,
    QueueFull: 503,
    CircuitOpen: 503,
    ShuttingDown: 503,
    ClosedError: 503,  # What it was for has been stopped under it, at shutdown.
    DeadlineExceeded: 504,
    LeaseExpired: 409,
}
_FAILURE_STATUS: Final[dict[FailureKind, int]] = {
    FailureKind.REFUSED: 503,
    FailureKind.BUSY: 503,
    # Our credentials were refused, not the caller's: to the caller the server behind us is broken.
    FailureKind.UNAUTHORIZED: 502,
    FailureKind.REJECTED: _BAD_REQUEST,
    FailureKind.DECLINED: 508,
    FailureKind.SERVER_ERROR: 502,
    FailureKind.TIMEOUT: 504,
    FailureKind.LOST: 502,
}
_PASSED: Final = frozenset((FailureKind.REJECTED, FailureKind.DECLINED, FailureKind.SERVER_ERROR, FailureKind.BUSY))
REQUEST_ID: Final = "request-id"
"""Where Anthropic's clients look for a request's id."""
_QUEUE_FULL: Final = {"ollama": 503, "openai": 429, "openai-responses": 429, "anthropic": 529}
# What Anthropic says of a server that has too much to do.
_OVERLOADED: Final = 529
# Ollama has no codes; clients that branch on them must find what a real one sends.
_WITHOUT_CODE: Final = (InvalidRequest, NoCapableInstance)
# What OpenAI says of a model that is there, but not for this caller.
_CODES_OF_OPENAI: Final = {"model_not_allowed": "model_not_found"}
_WITH_CHARSET: Final = "application/json; charset=utf-8"
# What "error" is in each API.
_KIND_OF_ERROR: Final[dict[str, type]] = {"ollama": str, "openai": dict, "openai-responses": dict, "anthropic": dict}
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


class Refused(GleitzeitError):
    """The gateway itself refuses a request.

    Args:
        status: HTTP status.
        message: A sentence for a person.
        code: Stable, for programs.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code  # type: ignore[misc]  # one class for all of the gateway's own refusals


def status_of(error: Exception, api: str) -> int:
    """The HTTP status for `error` in a client API."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, QueueFull):
        return _QUEUE_FULL[api]
    if isinstance(error, UnknownName):
        # What a path names is missing; what a body names is wrong.
        return _NOT_FOUND if error.kind == "instance" else _BAD_REQUEST
    if isinstance(error, InstanceFailure):
        if api == "anthropic" and error.kind is FailureKind.BUSY:
            return _OVERLOADED
        own = error.status if error.kind in _PASSED else None
        return own if own is not None and own in _ERRORS else _FAILURE_STATUS[error.kind]
    return _STATUS.get(type(error), 500)


def code_of(error: Exception) -> str:
    """The stable code of `error`; for what is no error of ours, ``internal``."""
    return error.code if isinstance(error, GleitzeitError) else "internal"


def headers_of(error: Exception) -> dict[str, str]:
    """The error's code, and ``Retry-After`` where it is known."""
    headers = {"X-Gleitzeit-Error": code_of(error)}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return headers


def message_of(error: Exception) -> str:
    """The sentence for a caller. Of a mistake of our own it says nothing: that is in the log."""
    if isinstance(error, InstanceFailure) and error.kind is FailureKind.UNAUTHORIZED:
        return "the server behind the gateway refused the gateway's own credentials"
    return error.message if isinstance(error, GleitzeitError) else "internal error"


def envelope(error: Exception, api: str) -> bytes:
    """`error` in the shape of a client API; in the instance's own words where it speaks the same API."""
    own = error.body if isinstance(error, InstanceFailure) else None
    if own is not None and _is_envelope(own, api):
        return own
    code = None if isinstance(error, _WITHOUT_CODE) else code_of(error)
    if code is not None and api.startswith("openai"):
        code = _CODES_OF_OPENAI.get(code, code)
    return CLIENTS[api].error_body(status_of(error, api), message_of(error), code, request_id=_request_of(error))


def _request_of(error: Exception) -> str:
    return error.of_request if isinstance(error, GleitzeitError) else ""


def renderer(api: str) -> Callable[[Exception], web.Response]:
    """What puts an error into the envelope of `api`."""
    plain_type = CLIENTS[api].plain_type

    def render(error: Exception) -> web.Response:
        status = status_of(error, api)
        # As recorded: also under OpenAI's paths, what is wrong with a request is said with a charset.
        content_type = _WITH_CHARSET if status == _BAD_REQUEST and api != "anthropic" else plain_type
        headers = {**headers_of(error), "Content-Type": content_type}
        if api == "anthropic" and _request_of(error):
            headers[REQUEST_ID] = _request_of(error)
        return web.Response(body=envelope(error, api), status=status, headers=headers)

    return render


def plain_error(error: Exception) -> web.Response:
    """The gateway's own envelope: ``{"error": {"code": ..., "message": ..., "retryable": ...}}``.

    What is wrong with a configuration is also told one by one, as ``problems``.
    """
    described = error.as_dict() if isinstance(error, GleitzeitError) else {"code": "internal", "retryable": False}
    described["message"] = message_of(error)
    if isinstance(error, ConfigurationError):
        described["problems"] = [asdict(problem) for problem in error.problems]
    body = msgspec.json.encode({"error": described})
    headers = {**headers_of(error), "Content-Type": "application/json"}
    return web.Response(body=body, status=status_of(error, "ollama"), headers=headers)


def _is_envelope(body: bytes, api: str) -> bool:
    """Whether it is an error of that API, and not the page of a proxy or the beginning of something long."""
    try:
        return isinstance(_OBJECT.decode(body).get("error"), _KIND_OF_ERROR[api])
    except UNREADABLE:
        return False
