"""OpenAI's Responses API as Ollama offers it: nothing is stored, and what would need that is skipped without a word.

Words are as recorded; how thoughts and calls are told is read off Ollama's own source.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.answers import EVENTS, Answer, Part, Stream, bare_json_answer
from gleitzeit_ollama.testing.fields import array, table, text, whole
from gleitzeit_ollama.testing.jobs import Job, check_capabilities, make_ask, take_turn
from gleitzeit_ollama.testing.native import call_id, known_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gleitzeit_ollama.testing.exchange import Exchange
    from gleitzeit_ollama.testing.golang import JsonObject
    from gleitzeit_ollama.testing.jobs import Turn
    from gleitzeit_ollama.testing.replies import ToolCall

_HEADERS = {"Cache-Control": "no-cache", "Connection": "keep-alive"}
_TEXT = "response.output_text"
_SUMMARY = "response.reasoning_summary_text"


async def responses(exchange: Exchange) -> Answer:
    """POST /v1/responses."""
    body = exchange.read("ResponsesRequest")
    model = known_model(exchange, text(body, "model"))
    effort = text(table(body, "reasoning"), "effort")
    think = effort != "none" if effort else None
    asked = {**body, "messages": _messages(body), "tools": [_tool(tool) for tool in array(body, "tools")]}
    asked["format"] = table(table(body, "text"), "format").get("schema")
    check_capabilities(model, asked, thinks=think is True)
    ask = make_ask(exchange.path, asked, model, think=think)
    job = Job(ask, model, limit=whole(body, "max_output_tokens"), is_stream=body.get("stream") is True)
    await exchange.take_slot(model, None)
    turn = take_turn(job, exchange.server.reply)
    number = exchange.record.index
    if job.is_stream:
        return Stream(EVENTS, _Events(body, number).of(turn), _HEADERS)
    items = [*_thoughts(turn, number), *_words(turn, number), *_calls(turn)]
    return bare_json_answer(_response(body, number, items, turn), tokens=len(turn.steps))


def _messages(body: JsonObject) -> list[JsonObject]:
    said: list[JsonObject] = []
    if text(body, "instructions"):
        said.append({"role": "system", "content": text(body, "instructions")})
    if isinstance(body.get("input"), str):
        return [*said, {"role": "user", "content": body["input"]}]
    return [*said, *(_message(item) for item in array(body, "input") if isinstance(item, dict))]


def _message(item: JsonObject) -> JsonObject:
    if item.get("type") == "function_call":
        function = {"name": text(item, "name"), "arguments": json.loads(text(item, "arguments") or "{}")}
        return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    if item.get("type") == "function_call_output":
        return {"role": "tool", "content": text(item, "output")}
    content = item.get("content")
    if isinstance(content, str):
        return {"role": text(item, "role"), "content": content}
    parts = [text(part, "text") for part in array(item, "content") if isinstance(part, dict)]
    return {"role": text(item, "role") or "assistant", "content": "".join(parts)}


def _tool(tool: object) -> JsonObject:
    """As `/api/chat` has it; Ollama has no others."""
    return {"type": "function", "function": tool}


def _response(body: JsonObject, number: int, items: list[JsonObject], turn: Turn | None) -> JsonObject:
    now = int(time.time())
    asked_for = whole(body, "max_output_tokens")
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": now,
        "completed_at": now if turn else None,
        "status": "completed" if turn else "in_progress",
        "incomplete_details": None,
        "model": text(body, "model"),
        "previous_response_id": None,
        "instructions": body.get("instructions"),
        "output": items,
        "error": None,
        "tools": array(body, "tools"),
        "tool_choice": body.get("tool_choice") or "auto",
        "truncation": "disabled",
        "parallel_tool_calls": True,
        "text": {"format": table(table(body, "text"), "format") or {"type": "text"}},
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_logprobs": 0,
        "temperature": 1,
        "reasoning": body.get("reasoning"),
        "usage": _usage(turn) if turn else None,
        "max_output_tokens": asked_for or None,
        "max_tool_calls": None,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


def _usage(turn: Turn) -> JsonObject:
    asked, said = turn.prompt_tokens, turn.reply_tokens
    return {
        "input_tokens": asked,
        "output_tokens": said,
        "total_tokens": asked + said,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _part(said: str) -> JsonObject:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def _item(number: int, said: str) -> JsonObject:
    return {
        "id": f"msg_{number}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [_part(said)],
    }


def _reasoning(number: int, thoughts: str) -> JsonObject:
    summary = [{"type": "summary_text", "text": thoughts}]
    return {"id": f"rs_{number}", "type": "reasoning", "summary": summary, "encrypted_content": thoughts}


def _thoughts(turn: Turn, number: int) -> list[JsonObject]:
    return [_reasoning(number, turn.thinking)] if turn.thinking else []


def _words(turn: Turn, number: int) -> list[JsonObject]:
    return [_item(number, turn.content)] if turn.content or not turn.calls else []


def _calls(turn: Turn) -> list[JsonObject]:
    return [_call(index, call) for index, call in enumerate(turn.calls)]


def _call(index: int, call: ToolCall) -> JsonObject:
    arguments = json.dumps(dict(call.arguments), separators=(",", ":"), ensure_ascii=False)
    known = {"call_id": call_id(index), "name": call.name, "arguments": arguments}
    return {"id": f"fc_{index}", "type": "function_call", "status": "completed", **known}


class _Events:
    """The numbered events of one stream; Go sorts the keys of what it builds as a map."""

    def __init__(self, body: JsonObject, number: int) -> None:
        self._body, self._number = body, number
        self._sent = 0
        self._items: list[JsonObject] = []

    def of(self, turn: Turn) -> Iterator[Part]:
        """All of them."""
        begun = _response(self._body, self._number, [], None)
        yield self._event("response.created", {"response": begun})
        yield self._event("response.in_progress", {"response": begun})
        if turn.thinking:
            yield from self._think(turn)
        if turn.content or not turn.calls:
            yield from self._say(turn)
        for item in _calls(turn):
            yield from self._call(item)
        done = _response(self._body, self._number, self._items, turn)
        yield self._event("response.completed", {"response": done})

    def _event(self, kind: str, data: Mapping[str, object], *, is_token: bool = False) -> Part:
        value = {**data, "type": kind, "sequence_number": self._sent}
        self._sent += 1
        written = json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
        return Part(f"event: {kind}\ndata: {written}\n\n".encode(), is_token)

    def _added(self, item: JsonObject) -> Part:
        return self._event("response.output_item.added", {"output_index": len(self._items), "item": item})

    def _done(self, item: JsonObject) -> Part:
        self._items.append(item)
        return self._event("response.output_item.done", {"output_index": len(self._items) - 1, "item": item})

    def _think(self, turn: Turn) -> Iterator[Part]:
        item = _reasoning(self._number, turn.thinking)
        at = {"item_id": item["id"], "output_index": len(self._items), "summary_index": 0}
        yield self._added({"id": item["id"], "type": "reasoning", "summary": []})
        for step in turn.steps:
            if step.thinking:
                yield self._event(f"{_SUMMARY}.delta", {**at, "delta": step.thinking}, is_token=True)
        yield self._event(f"{_SUMMARY}.done", {**at, "text": turn.thinking})
        yield self._done(item)

    def _say(self, turn: Turn) -> Iterator[Part]:
        item = _item(self._number, turn.content)
        at = {"item_id": item["id"], "output_index": len(self._items), "content_index": 0}
        yield self._added({**item, "status": "in_progress", "content": []})
        yield self._event("response.content_part.added", {**at, "part": _part("")})
        for step in turn.steps:
            if step.content:
                yield self._event(f"{_TEXT}.delta", {**at, "delta": step.content, "logprobs": []}, is_token=True)
        yield self._event(f"{_TEXT}.done", {**at, "text": turn.content, "logprobs": []})
        yield self._event("response.content_part.done", {**at, "part": _part(turn.content)})
        yield self._done(item)

    def _call(self, item: JsonObject) -> Iterator[Part]:
        at = {"item_id": item["id"], "output_index": len(self._items)}
        yield self._added({**item, "status": "in_progress", "arguments": ""})
        name = "response.function_call_arguments"
        yield self._event(f"{name}.delta", {**at, "delta": item["arguments"]}, is_token=True)
        yield self._event(f"{name}.done", {**at, "arguments": item["arguments"]})
        yield self._done(item)
