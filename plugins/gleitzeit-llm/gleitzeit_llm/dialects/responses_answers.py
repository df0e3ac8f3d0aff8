"""Canonical answers as OpenAI's responses and the items in them, keys in the order that Ollama was recorded with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from gleitzeit_llm.protocol import Json

# Why an answer is not all it could have been; by `done_reason`.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Writes the objects of one answer.

    Args:
        id_: The random part of the response's id; all events of a stream share it.
        created: Unix time.
        echo: What the answer repeats of its request.
        new_id: Gives ids to items, and to tool calls that have none.
        wall: The time now, with its time zone.
    """

    id_: str
    created: int
    echo: Mapping[str, Any]
    new_id: Callable[[], str]
    wall: Callable[[], datetime]

    def whole(self, answer: Mapping[str, Any]) -> Json:
        """A plain answer."""
        said = answer.get("message") or {}
        output: list[Json] = []
        if said.get("thinking"):
            output.append(self.reasoning(said["thinking"]))
        calls = said.get("tool_calls") or ()
        if said.get("content") or not (output or calls):
            output.append(self.message(said.get("content") or "", answer.get("logprobs") or ()))
        return self.ended(answer, [*output, *map(self.call, calls)])

    def begun(self, part: Mapping[str, Any]) -> Json:
        """The response before anything in it is known."""
        return self._response(part, "in_progress", None, [], None)

    def ended(self, answer: Mapping[str, Any], output: Sequence[Json]) -> Json:
        """The response with all that is in it."""
        reason, status = _INCOMPLETE.get(str(answer.get("done_reason"))), status_of(answer)
        if reason and output and output[-1].get("status"):
            output = [*output[:-1], {**output[-1], "status": status}]
        return self._response(answer, status, reason, output, usage(answer))

    def reasoning(self, thoughts: str) -> Json:
        """An item with the model's thoughts, where Ollama's own server has them; empty for none so far.

        Both places come back in a conversation: other servers read the one, Ollama's the other.
        """
        begun: Json = {"id": f"rs_{self.new_id()}", "type": "reasoning", "summary": []}
        return {**begun, **thoughts_of(thoughts)} if thoughts else begun

    def message(self, text: str | None, logprobs: Sequence[Json] = ()) -> Json:
        """An item with its words; None for none so far."""
        return {
            "id": f"msg_{self.new_id()}",
            "type": "message",
            "status": "in_progress" if text is None else "completed",
            "role": "assistant",
            "content": [] if text is None else [text_part(text, logprobs)],
        }

    def call(self, call: Mapping[str, Any]) -> Json:
        """An item for one tool call."""
        function = call.get("function") or {}
        return {
            "id": f"fc_{self.new_id()}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.get("id") or f"call_{self.new_id()}",
            "name": function.get("name", ""),
            "arguments": msgspec.json.encode(function.get("arguments") or {}).decode(),
        }

    def _response(
        self,
        answer: Mapping[str, Any],
        status: str,
        incomplete: str | None,
        output: Sequence[Json],
        counts: Json | None,
    ) -> Json:
        echo = self.echo
        completed = status == "completed"
        asked = ("truncation", "parallel_tool_calls", "text", "top_p", "presence_penalty", "frequency_penalty")
        return {
            "id": f"resp_{self.id_}",
            "object": "response",
            "created_at": self.created,
            "completed_at": int(self.wall().timestamp()) if completed else None,
            "status": status,
            "incomplete_details": {"reason": incomplete} if incomplete else None,
            "model": answer.get("model") or "",
            "previous_response_id": None,
            "instructions": echo["instructions"],
            "output": list(output),
            "error": None,
            "tools": echo["tools"],
            "tool_choice": echo["tool_choice"],
            **{name: echo[name] for name in (*asked, "top_logprobs", "temperature", "reasoning")},
            "usage": counts,
            "max_output_tokens": echo["max_output_tokens"],
            "max_tool_calls": echo["max_tool_calls"],
            "store": False,
            "background": False,
            "service_tier": "default",
            **{name: echo[name] for name in ("metadata", "safety_identifier", "prompt_cache_key")},
        }


def status_of(answer: Mapping[str, Any]) -> str:
    """Whether an answer is all it could have been."""
    return "incomplete" if str(answer.get("done_reason")) in _INCOMPLETE else "completed"


def text_part(text: str, logprobs: Sequence[Json] = ()) -> Json:
    """The words in a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def thoughts_of(text: str) -> Json:
    """What an item of thoughts has of them."""
    return {"summary": [{"type": "summary_text", "text": text}], "encrypted_content": text}


def usage(answer: Mapping[str, Any]) -> Json:
    """The token counts; what the instance did not count is zero. What came from a cache counts as read."""
    read, written = answer.get("prompt_eval_count") or 0, answer.get("eval_count") or 0
    return {
        "input_tokens": read,
        "output_tokens": written,
        "total_tokens": read + written,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
