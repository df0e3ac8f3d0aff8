"""The sentence inside an instance's error answer, whatever envelope it comes in."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from gleitzeit_llm.protocol import UNREADABLE

MAX_CHARACTERS = 500
"""How much of an error text is kept; a whole HTML page helps nobody."""

_SHOWN_BYTES = 80
_ANY = msgspec.json.Decoder(Any)


def error_text(status: int, body: bytes) -> str:
    """The message of an error answer. Never raises.

    Understands ``{"error": "text"}`` (Ollama), ``{"error": {"message": "text"}}`` (OpenAI, llama.cpp),
    ``{"message": "text"}`` and ``{"detail": ...}`` (FastAPI, vLLM), and plain text.

    Args:
        status: The HTTP status, which stands in when the body says nothing a person can read.
        body: The body, possibly cut off.
    """
    try:
        found = message_of(_ANY.decode(body))
    except UNREADABLE:
        found = _plain(body)
    return found[:MAX_CHARACTERS] or _status_text(status)


def message_of(value: object) -> str:
    """The message inside a decoded error, or an empty string."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return next((text for text in map(message_of, value) if text), "")
    if not isinstance(value, dict):
        return ""
    candidates = (value.get(key) for key in ("error", "message", "detail", "msg"))
    return next((text for text in map(message_of, candidates) if text), "")


def shown(data: bytes) -> str:
    """The beginning of bytes that make no sense, for a message about them."""
    return repr(data[:_SHOWN_BYTES].decode("utf-8", "replace"))


def _plain(body: bytes) -> str:
    """Plain text as it is; of a page only that it is one."""
    text = body.decode("utf-8", "replace").strip()
    return "" if text.startswith(("<", "{", "[")) else text


def _status_text(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"
