"""Ollama's own API: generate, chat, embed, embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.answers import NDJSON, Answer, ApiError, Stream, json_answer, line
from gleitzeit_ollama.testing.fields import text, whole
from gleitzeit_ollama.testing.golang import JsonObject, now, quote
from gleitzeit_ollama.testing.jobs import (
    Job,
    Step,
    Turn,
    keep_alive_of,
    logprobs_of,
    native_job,
    take_turn,
)
from gleitzeit_ollama.testing.vectors import raw_vector, unit_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gleitzeit_ollama.testing.answers import Part
    from gleitzeit_ollama.testing.exchange import Exchange
    from gleitzeit_ollama.testing.models import Model
    from gleitzeit_ollama.testing.replies import ToolCall

    Said = Callable[[Step, tuple[ToolCall, ...]], JsonObject]

_BAD_REQUEST = 400
_NOT_FOUND = 404


async def chat(exchange: Exchange) -> Answer:
    """POST /api/chat."""
    body = exchange.read("ChatRequest")
    name = text(body, "model")
    if not name:
        raise ApiError(_BAD_REQUEST, "model is required")
    job = native_job(exchange.path, body, known_model(exchange, name))
    return await _answer(exchange, job, _chat_said)


async def generate(exchange: Exchange) -> Answer:
    """POST /api/generate."""
    body = exchange.read("GenerateRequest")
    model = known_model(exchange, text(body, "model"))
    if body.get("raw") is True and any(body.get(key) for key in ("template", "system", "context")):
        complaint = "raw mode does not support template, system, or context"
        raise ApiError(_BAD_REQUEST, complaint)
    return await _answer(exchange, native_job(exchange.path, body, model), _generate_said)


def known_model(exchange: Exchange, name: str) -> Model:
    """Return the model of that name.

    Raises:
        ApiError: there is none; 404.
    """
    model = exchange.server.catalogue.find(name)
    if model is None:
        raise ApiError(_NOT_FOUND, f"model '{name}' not found")
    return model


async def _answer(exchange: Exchange, job: Job, said: Said) -> Answer:
    if job.is_unload:
        exchange.server.runners.unload(job.model.name)
        return json_answer(_empty(job, said, "unload"))
    await exchange.take_slot(job.model, job.keep_alive_s)
    if job.is_load:
        return json_answer(_empty(job, said, "load"))
    turn = take_turn(job, exchange.server.reply)
    if job.is_stream:
        return Stream(NDJSON, _lines(job, turn, said))
    return json_answer(_whole(job, turn, said), tokens=len(turn.steps))


def _head(job: Job, spoken: JsonObject, *, done: bool) -> JsonObject:
    return {"model": job.ask.model, "created_at": now(), **spoken, "done": done}


def _empty(job: Job, said: Said, reason: str) -> JsonObject:
    return {**_head(job, said(Step(), ()), done=True), "done_reason": reason}


def _lines(job: Job, turn: Turn, said: Said) -> Iterator[Part]:
    for step in turn.steps:
        value = _head(job, said(step, step.calls), done=False)
        if job.top_logprobs is not None and not step.calls:
            value["logprobs"] = logprobs_of(job, [step])
        yield line(value, is_token=True)
    yield line(_with_end(job, turn, _head(job, said(Step(), ()), done=True)))


def _whole(job: Job, turn: Turn, said: Said) -> JsonObject:
    step = Step(turn.content, turn.thinking)
    value = _head(job, said(step, turn.calls), done=True)
    value["done_reason"] = turn.reason
    if job.top_logprobs is not None:
        value["logprobs"] = logprobs_of(job, [step for step in turn.steps if not step.calls])
    return _with_end(job, turn, value)


def _with_end(job: Job, turn: Turn, value: JsonObject) -> JsonObject:
    value["done_reason"] = turn.reason
    if not job.ask.messages and not job.is_raw:
        value["context"] = list(range(1, turn.prompt_tokens + turn.reply_tokens + 1))
    return {**value, **turn.metrics()}


def _chat_said(step: Step, calls: tuple[ToolCall, ...]) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": step.content}
    if step.thinking:
        message["thinking"] = step.thinking
    if calls:
        message["tool_calls"] = [_call(index, call) for index, call in enumerate(calls)]
    return {"message": message}


def _generate_said(step: Step, _calls: tuple[ToolCall, ...]) -> JsonObject:
    said: JsonObject = {"response": step.content}
    return {**said, "thinking": step.thinking} if step.thinking else said


def _call(index: int, call: ToolCall) -> JsonObject:
    function = {"index": index, "name": call.name, "arguments": dict(call.arguments)}
    return {"id": call_id(index), "function": function}


def call_id(index: int) -> str:
    """Return the id of a turn's call of a tool; the same each time."""
    return f"call_{index:08d}"


def embed_model(exchange: Exchange, name: str) -> Model:
    """Return the model of that name; the refusal has other words than elsewhere.

    Raises:
        ApiError: there is none; 404.
    """
    model = exchange.server.catalogue.find(name)
    if model is None:
        message = f"model {quote(name)} not found, try pulling it first"
        raise ApiError(_NOT_FOUND, message)
    return model


def inputs_of(body: JsonObject) -> list[str]:
    """Return the texts to embed: one, several or none.

    Raises:
        ApiError: it is neither a text nor an array of texts.
    """
    given = body.get("input")
    if isinstance(given, str):
        return [given] if given else []
    texts = given if isinstance(given, list) else []
    if (given is not None and not isinstance(given, list)) or not all(isinstance(item, str) for item in texts):
        raise ApiError(_BAD_REQUEST, "invalid input type")
    return texts


async def embed(exchange: Exchange) -> Answer:
    """POST /api/embed."""
    body = exchange.read("EmbedRequest")
    name = text(body, "model")
    inputs = inputs_of(body)
    model = embed_model(exchange, name)
    await exchange.take_slot(model, keep_alive_of(body))
    if not inputs:
        return json_answer({"model": name, "embeddings": []})
    dimensions = whole(body, "dimensions")
    vectors = [unit_vector(item, model.embedding_length, dimensions) for item in inputs]
    count = sum(len(item.split()) for item in inputs)
    figures = {"total_duration": 30_000_000, "load_duration": 16_000_000}
    value = {"model": name, "embeddings": vectors, **figures, "prompt_eval_count": count}
    return json_answer(value, tokens=1)


async def embeddings(exchange: Exchange) -> Answer:
    """POST /api/embeddings, the older form."""
    body = exchange.read("EmbeddingRequest")
    name = text(body, "model")
    if not name:
        raise ApiError(_BAD_REQUEST, "model is required")
    model = embed_model(exchange, name)
    await exchange.take_slot(model, keep_alive_of(body))
    prompt = text(body, "prompt")
    vector = raw_vector(prompt, model.embedding_length) if prompt else []
    return json_answer({"embedding": vector}, tokens=1)
