"""The OpenAI API as Ollama offers it: chat completions, completions, embeddings, models."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.answers import (
    DONE_EVENT,
    EVENTS,
    Answer,
    ApiError,
    Stream,
    bare_json_answer,
    event,
)
from gleitzeit_ollama.testing.fields import array, table, text, whole
from gleitzeit_ollama.testing.jobs import (
    Job,
    Step,
    Turn,
    check_capabilities,
    logprobs_of,
    make_ask,
    take_turn,
    top_logprobs_of,
)
from gleitzeit_ollama.testing.native import call_id, embed_model, inputs_of, known_model
from gleitzeit_ollama.testing.vectors import to_base64, unit_vector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gleitzeit_ollama.testing.answers import Part
    from gleitzeit_ollama.testing.exchange import Exchange
    from gleitzeit_ollama.testing.golang import JsonObject
    from gleitzeit_ollama.testing.models import Model
    from gleitzeit_ollama.testing.replies import ToolCall

_BAD_REQUEST = 400
_FINGERPRINT = "fp_ollama"


async def chat_completions(exchange: Exchange) -> Answer:
    """POST /v1/chat/completions."""
    body = exchange.read("ChatCompletionRequest")
    if not array(body, "messages"):
        raise ApiError(_BAD_REQUEST, "[] is too short - 'messages'", is_outer=True)
    translated = {**body, "messages": _messages(body), "format": _format(body)}
    job = _job(exchange, translated, think=_think(body))
    turn = await _turn(exchange, job)
    head = _head(exchange, "chatcmpl", "chat.completion")
    if job.is_stream:
        head["object"] = "chat.completion.chunk"
        return Stream(EVENTS, _chat_events(job, turn, head))
    message = _message(Step(turn.content, turn.thinking), turn.calls)
    choice: JsonObject = {"index": 0, "message": message, "finish_reason": _finish(turn)}
    if job.top_logprobs is not None:
        choice["logprobs"] = {"content": logprobs_of(job, turn.steps)}
    return _completed(job, turn, head, choice)


async def completions(exchange: Exchange) -> Answer:
    """POST /v1/completions."""
    body = exchange.read("CompletionRequest")
    job = _job(exchange, {**body, "logprobs": False}, think=None)
    turn = await _turn(exchange, job)
    head = _head(exchange, "cmpl", "text_completion")
    if job.is_stream:
        return Stream(EVENTS, _text_events(job, turn, head))
    return _completed(job, turn, head, _text_choice(turn.content, _finish(turn)))


def _job(exchange: Exchange, body: JsonObject, *, think: bool | None) -> Job:
    model = known_model(exchange, text(body, "model"))
    check_capabilities(model, body, thinks=think is True)
    ask = make_ask(exchange.path, body, model, think=think)
    return Job(
        ask,
        model,
        limit=whole(body, "max_tokens"),
        is_stream=body.get("stream") is True,
        top_logprobs=top_logprobs_of(body),
        is_load=not ask.messages and not ask.prompt,
    )


async def _turn(exchange: Exchange, job: Job) -> Turn:
    await exchange.take_slot(job.model, job.keep_alive_s)
    if job.is_load:
        return Turn((), 0, 0, "load")
    return take_turn(job, exchange.server.reply)


def _messages(body: Mapping[str, object]) -> list[JsonObject]:
    return [
        {**message, "content": _content_text(message)}
        for message in array(body, "messages")
        if isinstance(message, dict)
    ]


def _content_text(message: JsonObject) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text_part(part) for part in content)
    if message.get("tool_calls") is None:
        complaint = f"invalid message content type: {_go_type(content)}"
        raise ApiError(_BAD_REQUEST, complaint, is_outer=True)
    return ""


def _go_type(value: object) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "bool"
    return "float64" if isinstance(value, (int, float)) else "map[string]interface {}"


def _text_part(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image_url":
        return ""
    raise ApiError(_BAD_REQUEST, "invalid message format", is_outer=True)


def _format(body: Mapping[str, object]) -> object:
    wanted = table(body, "response_format")
    if wanted.get("type") == "json_schema":
        return table(wanted, "json_schema").get("schema")
    return "json" if wanted.get("type") == "json_object" else None


def _think(body: Mapping[str, object]) -> bool | None:
    effort = text(body, "reasoning_effort") or text(table(body, "reasoning"), "effort")
    return effort != "none" if effort else None


def _head(exchange: Exchange, prefix: str, kind: str) -> JsonObject:
    return {
        "id": f"{prefix}-{exchange.record.index}",
        "object": kind,
        "created": int(time.time()),
        "model": text(exchange.body, "model"),
        "system_fingerprint": _FINGERPRINT,
    }


def _completed(job: Job, turn: Turn, head: JsonObject, choice: JsonObject) -> Answer:
    value = {**head, "choices": [choice], "usage": _usage(turn)}
    return bare_json_answer(value, tokens=0 if job.is_load else len(turn.steps))


def _usage(turn: Turn) -> JsonObject:
    asked, said = turn.prompt_tokens, turn.reply_tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _finish(turn: Turn) -> str:
    return "tool_calls" if turn.calls else turn.reason


def _message(step: Step, calls: tuple[ToolCall, ...]) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": step.content}
    if step.thinking:
        message["reasoning"] = step.thinking
    if calls:
        message["tool_calls"] = [_call(index, call) for index, call in enumerate(calls)]
    return message


def _call(index: int, call: ToolCall) -> JsonObject:
    arguments = json.dumps(dict(call.arguments), separators=(",", ":"), ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call_id(index), "index": index, "type": "function", "function": function}


def _chat_events(job: Job, turn: Turn, head: JsonObject) -> Iterator[Part]:
    def chunk(step: Step, finish: str | None) -> JsonObject:
        delta = _message(step, step.calls)
        choice: JsonObject = {"index": 0, "delta": delta, "finish_reason": finish}
        if job.top_logprobs is not None and finish is None and not step.calls:
            choice["logprobs"] = {"content": logprobs_of(job, [step])}
        return {**head, "choices": [choice]}

    for step in turn.steps:
        yield event(chunk(step, None), is_token=True)
    yield event(chunk(Step(), _finish(turn)))
    if _wants_usage(job):
        yield event({**head, "choices": [], "usage": _usage(turn)})
    yield DONE_EVENT


def _wants_usage(job: Job) -> bool:
    return table(job.ask.body, "stream_options").get("include_usage") is True


def _text_choice(said: str, finish: str | None) -> JsonObject:
    return {"text": said, "index": 0, "finish_reason": finish}


def _text_chunk(head: JsonObject, choices: list[JsonObject]) -> JsonObject:
    # In this one object, and only in its stream, the choices stand before the model.
    first = {key: head[key] for key in ("id", "object", "created")}
    return {**first, "choices": choices, **head}


def _text_events(job: Job, turn: Turn, head: JsonObject) -> Iterator[Part]:
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    usage: JsonObject = {"usage": nothing} if _wants_usage(job) else {}
    for step in turn.steps:
        chunk = _text_chunk(head, [_text_choice(step.content, None)])
        yield event({**chunk, **usage}, is_token=True)
    yield event({**_text_chunk(head, [_text_choice("", turn.reason)]), **usage})
    if usage:
        yield event({**_text_chunk(head, []), "usage": _usage(turn)})
    yield DONE_EVENT


async def embeddings(exchange: Exchange) -> Answer:
    """POST /v1/embeddings."""
    body = exchange.read("EmbedRequest")
    name, encoding = text(body, "model"), text(body, "encoding_format").lower() or "float"
    if encoding not in {"float", "base64"}:
        given = text(body, "encoding_format")
        supported = "Supported values: ['float', 'base64']."
        complaint = f"Invalid value for 'encoding_format' = {given}. {supported}"
        raise ApiError(_BAD_REQUEST, complaint, is_outer=True)
    if body.get("input") in (None, []):
        raise ApiError(_BAD_REQUEST, "invalid input", is_outer=True)
    inputs = inputs_of(body) or [""]
    model = embed_model(exchange, name)
    await exchange.take_slot(model, None)
    data = [_embedding(index, item, model, body) for index, item in enumerate(inputs)]
    count = sum(len(item.split()) for item in inputs)
    usage = {"prompt_tokens": count, "total_tokens": count}
    value = {"object": "list", "data": data, "model": name, "usage": usage}
    return bare_json_answer(value, tokens=1)


def _embedding(index: int, item: str, model: Model, body: JsonObject) -> JsonObject:
    vector: object = unit_vector(item, model.embedding_length, whole(body, "dimensions"))
    if text(body, "encoding_format").lower() == "base64" and isinstance(vector, list):
        vector = to_base64(vector)
    return {"object": "embedding", "embedding": vector, "index": index}


async def models(exchange: Exchange) -> Answer:
    """GET /v1/models."""
    rows = [_model_row(model, model.name) for model in exchange.server.catalogue]
    return bare_json_answer({"object": "list", "data": rows or None})


async def model(exchange: Exchange) -> Answer:
    """GET /v1/models/NAME."""
    name = exchange.rest_of_path
    return bare_json_answer(_model_row(known_model(exchange, name), name))


def _model_row(held: Model, name: str) -> JsonObject:
    owner = name.rpartition("/")[0].rpartition("/")[2] or "library"
    created = int(held.modified_at_s)
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
