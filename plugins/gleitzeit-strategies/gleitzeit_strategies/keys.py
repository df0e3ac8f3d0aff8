"""What a request has that others of the same conversation have too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gleitzeit_core.requests import Request

_SESSION: Final = ("session_id", "session", "conversation_id", "conversation", "prompt_cache_key")
_USER: Final = ("user", "safety_identifier")
# Longer ones are not worth the time: a quarter of a megabyte takes about a millisecond to read.
_BODY_MAX_BYTES: Final = 256 * 1024
_MARKS: Final = (b'"messages"', b'"prompt"', b'"input"')


def key_of(request: Request, sources: Iterable[str], prompt_chars: int) -> str:
    """The first of `sources` that the request has, with its name before it; empty when it has none.

    Args:
        request: A body is read as JSON up to 256 KiB; of a longer one only the beginning of the prompt is known.
        sources: As in `ConsistentHashOptions`.
        prompt_chars: How much of a prompt counts.
    """
    fields: Mapping[str, Any] | None = None
    for source in sources:
        if source == "affinity":
            found = request.affinity
        elif source == "tenant":
            found = request.tenant
        else:
            fields = _fields(request) if fields is None else fields
            found = _in_fields(fields, source, prompt_chars)
        if found:
            return f"{source}:{found}"
    return ""


def _fields(request: Request) -> Mapping[str, Any]:
    if request.body is None:
        return request.params
    if len(request.body) > _BODY_MAX_BYTES:
        return {"prompt": _beginning(request.body)}
    try:
        fields = json.loads(request.body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _beginning(body: bytes) -> str:
    begins = [place for place in (body.find(mark, 0, _BODY_MAX_BYTES) for mark in _MARKS) if place >= 0]
    begin = min(begins, default=0)
    return body[begin : begin + _BODY_MAX_BYTES].decode(errors="replace")


def _in_fields(fields: Mapping[str, Any], source: str, prompt_chars: int) -> str:
    if source == "prompt":
        return _prompt(fields, prompt_chars)
    if source == "session":
        return _first_text(fields, _SESSION)
    metadata = fields.get("metadata")
    return _first_text(fields, _USER) or (_first_text(metadata, ("user_id",)) if isinstance(metadata, Mapping) else "")


def _first_text(fields: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((value for name in names if isinstance(value := fields.get(name), str) and value), "")


def _prompt(fields: Mapping[str, Any], prompt_chars: int) -> str:
    """The beginning of what is asked.

    Of a chat it is all up to the first message of the user: that much stays the same while the conversation goes on.
    """
    messages = fields.get("messages")
    if isinstance(messages, list | tuple):
        return _chat(messages, prompt_chars)
    asked = fields.get("prompt", fields.get("input", ""))
    system = fields.get("system", "")
    asked = asked if isinstance(asked, str) else json.dumps(asked, default=str)
    return (system + "\n" + asked if isinstance(system, str) and system else asked)[:prompt_chars]


def _chat(messages: Iterable[object], prompt_chars: int) -> str:
    text = ""
    for message in messages:
        match message:
            case {"role": role, "content": content}:
                said = content if isinstance(content, str) else json.dumps(content, default=str)
                text += f"{role}: {said}\n"
                if role == "user" or len(text) >= prompt_chars:
                    break
    return text[:prompt_chars]
