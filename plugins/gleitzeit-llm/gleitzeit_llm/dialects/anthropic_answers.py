"""Canonical answers and parts as Anthropic's messages and events, and the errors of that API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_llm.dialects.sse import event
from gleitzeit_llm.protocol import STOP_SEQUENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_llm.protocol import Json

_STREAM_ERROR_STATUS = 500
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}


def error_object(status: int, message: str, request_id: str = "") -> Json:
    """Anthropic's error envelope; without an id where none is known."""
    kind = _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004 - 5xx
    told: Json = {"type": "error", "error": {"type": kind, "message": message}}
    if request_id:
        told["request_id"] = request_id
    return told


def stop_reason(answer: Mapping[str, Any], *, called: bool) -> str:
    """`done_reason` in Anthropic's words: one that stopped to call a tool says so.

    What ends at a stop sequence is told like a natural end by most servers, Ollama's among them, and so it is here.
    """
    reason = _STOP_REASONS.get(str(answer.get("done_reason")), "end_turn")
    if reason != "end_turn":
        return reason
    if called:
        return "tool_use"
    return "stop_sequence" if answer.get(STOP_SEQUENCE) else reason


def stop_sequence(answer: Mapping[str, Any], reason: str | None) -> str | None:
    """The stop sequence that ended an answer, where that is known."""
    return str(answer[STOP_SEQUENCE]) if reason == "stop_sequence" else None


def usage(answer: Mapping[str, Any]) -> Json:
    """The token counts; what the instance did not count is zero. What came from a cache counts as read."""
    return {
        "input_tokens": answer.get("prompt_eval_count") or 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": answer.get("eval_count") or 0,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Writes the objects of one answer.

    Args:
        id_: The random part of the message's id.
        new_id: Gives ids to tool calls that have none.
    """

    id_: str
    new_id: Callable[[], str]

    def whole(self, answer: Mapping[str, Any]) -> Json:
        """A plain answer."""
        said = answer.get("message") or {}
        content: list[Json] = []
        if said.get("thinking"):
            # No signature: it would have to be Anthropic's.
            content.append({"type": "thinking", "thinking": said["thinking"], "signature": ""})
        if said.get("content"):
            content.append({"type": "text", "text": said["content"]})
        calls = [self.call(call) for call in said.get("tool_calls") or ()]
        reason = stop_reason(answer, called=bool(calls))
        return self._message(answer, [*content, *calls], reason)

    def begun(self, part: Mapping[str, Any]) -> Json:
        """The message before anything in it is known. The counts come at its end."""
        return self._message({"model": part.get("model")}, [], None)

    def call(self, call: Mapping[str, Any]) -> Json:
        """A block for one tool call."""
        function = call.get("function") or {}
        return {
            "type": "tool_use",
            "id": call.get("id") or f"toolu_{self.new_id()}",
            "name": function.get("name", ""),
            "input": function.get("arguments") or {},
        }

    def _message(self, answer: Mapping[str, Any], content: list[Json], reason: str | None) -> Json:
        return {
            "id": f"msg_{self.id_}",
            "type": "message",
            "role": "assistant",
            "model": answer.get("model") or "",
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop_sequence(answer, reason),
            "usage": usage(answer),
        }


class EventEncoder:
    """One stream of events.

    Args:
        answers: Writes the objects in them.
    """

    __slots__ = ("_answers", "_begun", "_called", "_complete", "_index", "_open")

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._begun = False
        self._open = ""
        self._index = -1
        self._called = False
        self._complete = False

    def part(self, part: Mapping[str, Any]) -> bytes:
        """See `StreamEncoder.part`."""
        events: list[Json] = []
        if not self._begun:
            self._begun = True
            events.append({"type": "message_start", "message": self._answers.begun(part)})
        said = part.get("message") or {}
        if said.get("thinking"):
            events += self._into({"type": "thinking", "thinking": "", "signature": ""})
            events.append(self._delta({"type": "thinking_delta", "thinking": said["thinking"]}))
        if said.get("content"):
            events += self._into({"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": said["content"]}))
        for call in said.get("tool_calls") or ():
            events += self._call(call)
        if part.get("done") is True:
            events += self._end(part)
        return b"".join(map(_written, events))

    def finish(self) -> bytes:
        """See `StreamEncoder.finish`. Without a final part there is no clean end."""
        return _written({"type": "message_stop"}) if self._complete else b""

    def error(self, message: str, code: str | None = None) -> bytes:
        """See `StreamEncoder.error`."""
        del code
        return _written(error_object(_STREAM_ERROR_STATUS, message))

    def _call(self, call: Mapping[str, Any]) -> list[Json]:
        """The whole call: its input is known when the call is."""
        self._called = True
        block = self._answers.call(call)
        arguments = msgspec.json.encode(block["input"]).decode()
        opened = [*self._close(), *self._into({**block, "input": {}})]
        return [*opened, self._delta({"type": "input_json_delta", "partial_json": arguments})]

    def _into(self, block: Json) -> list[Json]:
        """Open a block, unless one of its type is open."""
        if self._open == block["type"]:
            return []
        closed = self._close()
        self._index += 1
        self._open = block["type"]
        opened = [{"type": "content_block_start", "index": self._index, "content_block": block}]
        # Anthropic's own server sends its first ping here.
        return [*closed, *opened, *([{"type": "ping"}] if self._index == 0 else [])]

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Json]:
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": self._index}]

    def _end(self, part: Mapping[str, Any]) -> list[Json]:
        self._complete = True
        reason = stop_reason(part, called=self._called)
        delta = {"stop_reason": reason, "stop_sequence": stop_sequence(part, reason)}
        return [*self._close(), {"type": "message_delta", "delta": delta, "usage": usage(part)}]


def _written(data: Json) -> bytes:
    """An event is named by its type."""
    return event(msgspec.json.encode(data), data["type"].encode())
