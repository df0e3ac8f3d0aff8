"""The recordings of a real Ollama 0.24.0 that the stand-in is built from and held to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_FOLDER = "recordings"


@dataclass(frozen=True, slots=True)
class Recording:
    """One exchange with the real server.

    Long lists of tensors are cut, and the registry's host is `registry.example`.

    Args:
        name: what it shows, such as `chat_stream`.
        method: of the request.
        path: of the request.
        body: a JSON value, a text sent as it is, or None for no body.
        request_headers: those that matter, such as a foreign `Host`.
        status: of the response.
        headers: all but `Date`.
        json: the body, where it is one JSON value, else None.
        lines: the body, where it is a stream, split at line feeds; else None.
        text: the body, where it is neither, else None.
    """

    name: str
    method: str
    path: str
    body: object
    request_headers: Mapping[str, str]
    status: int
    headers: Mapping[str, str]
    json: object = None
    lines: tuple[str, ...] | None = None
    text: str | None = None

    @property
    def request_bytes(self) -> bytes:
        """The request's body as it goes over the wire."""
        if self.body is None:
            return b""
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return text.encode()


@cache
def recording(name: str) -> Recording:
    """Return the recording of that name.

    Raises:
        LookupError: there is none.
    """
    file = resources.files(__package__) / _FOLDER / f"{name}.json"
    if not file.is_file():
        raise LookupError(f"there is no recording {name!r}; there are: {', '.join(recording_names())}")
    return _parse(name, json.loads(file.read_text(encoding="utf-8")))


@cache
def recording_names() -> tuple[str, ...]:
    """Return the names of all recordings, sorted."""
    files = (resources.files(__package__) / _FOLDER).iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files))


def _parse(name: str, exchange: dict[str, dict[str, object]]) -> Recording:
    request, response = exchange["request"], exchange["response"]
    lines = response.get("lines")
    text = response.get("text")
    return Recording(
        name,
        str(request["method"]),
        str(request["path"]),
        request["body"],
        _headers(request),
        int(str(response["status"])),
        _headers(response),
        response.get("json"),
        tuple(str(line) for line in lines) if isinstance(lines, list) else None,
        text if isinstance(text, str) else None,
    )


def _headers(message: Mapping[str, object]) -> dict[str, str]:
    headers = message.get("headers")
    pairs = headers.items() if isinstance(headers, dict) else ()
    return {str(key): str(value) for key, value in pairs}
