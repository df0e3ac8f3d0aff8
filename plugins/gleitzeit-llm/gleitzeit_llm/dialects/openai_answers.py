"""Canonical answers and parts as OpenAI objects, keys in the order that Ollama's `/v1` was recorded with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_llm.dialects import logprobs, vectors
from gleitzeit_llm.protocol import CHAT, Json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Clients take it for a label to compare; Ollama's stands here because its shapes do.
_FINGERPRINT = "fp_ollama"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Writes the objects of one answer.

    Args:
        method: `llm/chat` or `llm/generate`.
        id_: The random part of the answer's id; all chunks of a stream share it.
        created: Unix time.
        new_id: Gives ids to tool calls that have none.
    """

    method: str
    id_: str
    created: int
    new_id: Callable[[], str]

    def whole(self, answer: Mapping[str, Any]) -> Json:
        """A plain answer."""
        kind = "chat.completion" if self.method == CHAT else "text_completion"
        calls = self.calls(answer, first=0)
        choice = {"index": 0, "message": _message(answer, calls)} if self.method == CHAT else _text_choice(answer)
        choice["finish_reason"] = finish_reason(answer, called=bool(calls))
        _put_logprobs(choice, self.method, answer, 0)
        return {**self._head(answer, kind), "choices": [choice], "usage": usage(answer)}

    def chunk(self, part: Mapping[str, Any], calls: Sequence[Json], finish: str | None, offset: int) -> Json:
        """A chunk of a stream. `offset` counts the characters of text before it."""
        if self.method == CHAT:
            delta = _message(part, calls)
            choice: Json = {"index": 0, "delta": delta, "finish_reason": finish}
        else:
            choice = {**_text_choice(part), "finish_reason": finish}
        _put_logprobs(choice, self.method, part, offset)
        return self._chunk(part, [choice])

    def usage_chunk(self, part: Mapping[str, Any]) -> Json:
        """The chunk behind the last one, with the token counts."""
        return {**self._chunk(part, []), "usage": usage(part)}

    def calls(self, answer: Mapping[str, Any], first: int) -> list[Json]:
        """The tool calls in an answer or a part; `first` counts those of earlier parts."""
        given = (answer.get("message") or {}).get("tool_calls") or []
        return [self._call(call, first + index) for index, call in enumerate(given)]

    def _call(self, call: Mapping[str, Any], position: int) -> Json:
        function = call.get("function") or {}
        arguments = msgspec.json.encode(function.get("arguments") or {}).decode()
        return {
            "id": call.get("id") or f"call_{self.new_id()}",
            "index": function.get("index", position),
            "type": "function",
            "function": {"name": function.get("name", ""), "arguments": arguments},
        }

    def _head(self, answer: Mapping[str, Any], kind: str) -> Json:
        prefix = "chatcmpl" if self.method == CHAT else "cmpl"
        return {
            "id": f"{prefix}-{self.id_}",
            "object": kind,
            "created": self.created,
            "model": answer.get("model", ""),
            "system_fingerprint": _FINGERPRINT,
        }

    def _chunk(self, part: Mapping[str, Any], choices: list[Json]) -> Json:
        if self.method == CHAT:
            return {**self._head(part, "chat.completion.chunk"), "choices": choices}
        head = self._head(part, "text_completion")
        tail = {key: head.pop(key) for key in ("model", "system_fingerprint")}
        return {**head, "choices": choices, **tail}


def text_of(part: Mapping[str, Any]) -> str:
    """What a canonical part or answer says, for either method."""
    found = (part.get("message") or {}).get("content") or part.get("response") or ""
    return str(found)


def finish_reason(answer: Mapping[str, Any], *, called: bool) -> str | None:
    """`done_reason` in OpenAI's words: one that stopped to call a tool says so."""
    reason = answer.get("done_reason") or None
    return "tool_calls" if called and reason in (None, "stop") else reason


def usage(answer: Mapping[str, Any]) -> Json:
    """The token counts; what the instance did not count is zero."""
    prompt, completion = answer.get("prompt_eval_count") or 0, answer.get("eval_count") or 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def embedding_list(answer: Mapping[str, Any], *, base64_vectors: bool) -> Json:
    """A canonical `llm/embed` answer."""
    data = [
        {
            "object": "embedding",
            "embedding": vectors.to_base64(vector) if base64_vectors else vector,
            "index": index,
        }
        for index, vector in enumerate(answer.get("embeddings") or [])
    ]
    tokens = answer.get("prompt_eval_count") or 0
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": answer.get("model", ""), "usage": counts}


def _message(part: Mapping[str, Any], calls: Sequence[Json]) -> Json:
    message = part.get("message") or {}
    out: Json = {"role": "assistant", "content": message.get("content") or ""}
    if message.get("thinking"):
        out["reasoning"] = message["thinking"]
    if calls:
        out["tool_calls"] = list(calls)
    return out


def _text_choice(part: Mapping[str, Any]) -> Json:
    # The thoughts of `llm/generate` have no place in a completion; Ollama leaves them out as well.
    return {"text": part.get("response") or "", "index": 0}


def _put_logprobs(choice: Json, method: str, part: Mapping[str, Any], offset: int) -> None:
    found = part.get("logprobs")
    if found:
        choice["logprobs"] = logprobs.to_chat(found) if method == CHAT else logprobs.to_completion(found, offset)
