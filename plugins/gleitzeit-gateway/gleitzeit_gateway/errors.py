"""Our errors in each client API's own envelope and status."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from aiohttp import web

from gleitzeit_core.errors import (
    DeadlineExceeded,
    FailureKind,
    GleitzeitError,
    InstanceFailure,
    InvalidRequest,
    NoCapableInstance,
    QueueFull,
    ShuttingDown,
    Unavailable,
    UnknownMethod,
)
from gleitzeit_llm.dialects import DIALECTS

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS: Final[dict[type[Exception], int]] = {
    InvalidRequest: 400,
    UnknownMethod: 404,
    NoCapableInstance: 404,
    Unavailable: 503,
    QueueFull: 503,
    ShuttingDown: 503,
    DeadlineExceeded: 504,
}
_FAILURE_STATUS: Final[dict[FailureKind, int]] = {
    FailureKind.REFUSED: 503,
    FailureKind.BUSY: 503,
    # Our credentials were refused, not the caller's: to the caller the server behind us is broken.
    FailureKind.UNAUTHORIZED: 502,
    FailureKind.REJECTED: 400,
    FailureKind.SERVER_ERROR: 502,
    FailureKind.TIMEOUT: 504,
    FailureKind.LOST: 502,
}
_QUEUE_FULL: Final = {"ollama": 503, "openai": 429}


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
    if isinstance(error, InstanceFailure):
        passed = error.kind in (FailureKind.REJECTED, FailureKind.SERVER_ERROR, FailureKind.BUSY)
        return error.status if passed and error.status and error.status >= 400 else _FAILURE_STATUS[error.kind]  # noqa: PLR2004 - an error
    return _STATUS.get(type(error), 500)


def headers_of(error: Exception) -> dict[str, str]:
    """``Retry-After`` where the error knows it, and its code."""
    headers = {"X-Gleitzeit-Error": str(getattr(error, "code", "internal"))}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return headers


def message_of(error: Exception, api: str, model: str = "") -> str:
    """The sentence for a caller; an unknown model in the API's own words."""
    if isinstance(error, NoCapableInstance) and model:
        return f"model '{model}' not found" + ("" if api == "ollama" else f": {error.message}")
    return error.message if isinstance(error, GleitzeitError) else "internal error"


def renderer(api: str) -> Callable[[Exception], web.Response]:
    """What puts an error into the envelope of `api`."""
    client = DIALECTS[api].client

    def render(error: Exception, model: str = "") -> web.Response:
        status, headers = status_of(error, api), headers_of(error)
        body = error.body if isinstance(error, InstanceFailure) else None
        if body is None:
            param = error.param if isinstance(error, InvalidRequest) else None
            body = client.error_body(status, message_of(error, api, model), headers["X-Gleitzeit-Error"], param)
        return web.Response(body=body, status=status, headers={**headers, "Content-Type": client.plain_type})

    return render
