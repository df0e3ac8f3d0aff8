"""Canonical parts as the server-sent events of OpenAI's API, and the errors of that API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_llm.dialects.openai_answers import Answers, finish_reason, text_of
from gleitzeit_llm.dialects.sse import event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_llm.protocol import Json

DONE = b"[DONE]"
_STREAM_ERROR_STATUS = 500
# The first, the fourth and the rest are Ollama's; the others OpenAI's own.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_object(status: int, message: str, code: str | None, param: str | None) -> Json:
    """OpenAI's error envelope."""
    kind = _TYPES.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class SseEncoder:
    """One stream of chat or completion chunks.

    Args:
        answers: Writes the chunks.
        include_usage: Whether a chunk with the token counts follows the last one.
    """

    __slots__ = ("_answers", "_called", "_complete", "_include_usage", "_offset")

    def __init__(self, answers: Answers, *, include_usage: bool) -> None:
        self._answers = answers
        self._include_usage = include_usage
        self._called = 0
        self._offset = 0
        self._complete = False

    def part(self, part: Mapping[str, Any]) -> bytes:
        """See `StreamEncoder.part`."""
        calls = self._answers.calls(part, self._called)
        self._called += len(calls)
        done = part.get("done") is True
        finish = finish_reason(part, called=self._called > 0) if done else None
        chunk = self._answers.chunk(part, calls, finish, self._offset)
        self._offset += len(text_of(part))
        written = event(msgspec.json.encode(chunk))
        if not done:
            return written
        self._complete = True
        return written + self._usage(part)

    def finish(self) -> bytes:
        """See `StreamEncoder.finish`. Without a final part there is no clean end."""
        return event(DONE) if self._complete else b""

    def error(self, message: str, code: str | None = None) -> bytes:
        """See `StreamEncoder.error`."""
        return event(msgspec.json.encode(error_object(_STREAM_ERROR_STATUS, message, code, None)))

    def _usage(self, part: Mapping[str, Any]) -> bytes:
        if not self._include_usage:
            return b""
        return event(msgspec.json.encode(self._answers.usage_chunk(part)))
