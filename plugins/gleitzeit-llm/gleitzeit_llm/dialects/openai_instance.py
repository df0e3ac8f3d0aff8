"""The api `openai`: any OpenAI-compatible server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import fields_to_openai, logprobs, values, vectors
from gleitzeit_llm.dialects.base import Upstream
from gleitzeit_llm.dialects.counts import counts
from gleitzeit_llm.dialects.fields import Table, translate
from gleitzeit_llm.dialects.messages_to_openai import to_openai, user_message
from gleitzeit_llm.dialects.openai_stream import OpenAIStream, done_reason
from gleitzeit_llm.dialects.openai_wire import Vector, read_answer, read_vectors
from gleitzeit_llm.dialects.tool_calls import ToolCalls
from gleitzeit_llm.protocol import (
    CHAT,
    EMBED,
    GENERATE,
    Json,
    UpstreamError,
    final,
    is_absent,
    model_of,
    stopped_at,
    timestamp,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from gleitzeit_llm.dialects.base import StreamDecoder

_CHAT_PATH = "/v1/chat/completions"
_COMPLETIONS_PATH = "/v1/completions"
_EMBEDDINGS_PATH = "/v1/embeddings"


@dataclass(frozen=True, slots=True)
class OpenAIInstance:
    """Instances that speak OpenAI's API.

    Args:
        wall: The time now, with its time zone; for `created_at`.
        monotonic: Seconds on a clock that never goes back; for the durations of streams.
    """

    wall: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = time.monotonic

    @property
    def name(self) -> str:
        """``openai``."""
        return "openai"

    def encode(self, method: str, params: Mapping[str, Any], *, stream: bool = False) -> Upstream:
        """See `InstanceDialect.encode`.

        `llm/generate` goes to chat as one message, because Ollama puts a prompt into the model's template; with
        `raw` it goes to completions.
        """
        model_of(params)
        if method == EMBED:
            return Upstream(_EMBEDDINGS_PATH, _embedding_request(params))
        if method == GENERATE and _is_raw(params):
            upstream = Upstream(_COMPLETIONS_PATH, _completion_request(params))
        else:
            upstream = Upstream(_CHAT_PATH, _chat_request(method, params))
        if stream:
            upstream.payload.update(stream=True, stream_options={"include_usage": True})
        return upstream

    def decode_answer(
        self, method: str, params: Mapping[str, Any], body: bytes, *, elapsed_s: float | None = None
    ) -> Json:
        """See `InstanceDialect.decode_answer`."""
        if method == EMBED:
            return _embeddings(params, body, elapsed_s)
        answer = read_answer(body)
        choice = answer.choice()
        if choice is None:
            raise UpstreamError("the instance's answer has no choice")
        said = choice.said()
        calls = ToolCalls()
        calls.add(said.tool_calls or ())
        answered = final(
            method,
            model_of(params),
            timestamp(self.wall()),
            reason=done_reason(choice.finish_reason),
            text=said.text(),
            thinking=said.thinking(),
            tool_calls=calls.release(choice.finish_reason),
            logprobs=logprobs.from_openai(choice.logprobs),
            counts=counts(answer.usage, answer.timings, elapsed_s=elapsed_s),
        )
        return stopped_at(answered, choice.stop_sequence())

    def stream_decoder(self, method: str, params: Mapping[str, Any]) -> StreamDecoder:
        """See `InstanceDialect.stream_decoder`."""
        if method == EMBED:
            raise InvalidRequest(f"{method} does not stream", param="stream")
        return OpenAIStream(method, model_of(params), self.wall, self.monotonic)


def _is_raw(params: Mapping[str, Any]) -> bool:
    return values.boolean(params.get("raw") or False, "raw")


def _request(rules: Table, params: Mapping[str, Any]) -> Json:
    """The fields that are carried over one by one, those of `options` among them."""
    payload: Json = {}
    translate(rules, params, payload)
    payload.update(fields_to_openai.options(params.get("options") or {}, "options"))
    return payload


def _chat_request(method: str, params: Mapping[str, Any]) -> Json:
    rules = fields_to_openai.CHAT if method == CHAT else fields_to_openai.GENERATE
    payload = _request(rules, params)
    if _wants_logprobs(params):
        payload["logprobs"] = True
        if _top_logprobs(params):
            payload["top_logprobs"] = _top_logprobs(params)
    messages = _conversation(params) if method == CHAT else _prompt_messages(params)
    return {"model": payload.pop("model"), "messages": messages, **payload}


def _conversation(params: Mapping[str, Any]) -> list[Json]:
    if is_absent(params.get("messages")):
        raise InvalidRequest("'messages' must not be empty", param="messages")
    return to_openai(params["messages"])


def _prompt_messages(params: Mapping[str, Any]) -> list[Json]:
    """A prompt is what a user says; `system` goes before it."""
    messages = [user_message(params.get("prompt"), params.get("images"))]
    system = params.get("system")
    if system not in (None, ""):
        messages.insert(0, {"role": "system", "content": values.text(system, "system")})
    return messages


def _completion_request(params: Mapping[str, Any]) -> Json:
    payload = _request(fields_to_openai.GENERATE_RAW, params)
    if _wants_logprobs(params):
        # Here the count is the switch, and llama.cpp takes zero for off.
        payload["logprobs"] = max(1, _top_logprobs(params))
    return payload


def _embedding_request(params: Mapping[str, Any]) -> Json:
    payload: Json = {}
    translate(fields_to_openai.EMBED, params, payload)
    if payload.get("input") in (None, ""):
        raise InvalidRequest("'input' must not be empty", param="input")
    payload["encoding_format"] = "float"
    return payload


def _wants_logprobs(params: Mapping[str, Any]) -> bool:
    return values.boolean(params.get("logprobs") or False, "logprobs")


def _top_logprobs(params: Mapping[str, Any]) -> int:
    return values.integer(params.get("top_logprobs") or 0, "top_logprobs")


def _embeddings(params: Mapping[str, Any], body: bytes, elapsed_s: float | None) -> Json:
    answer = read_vectors(body)
    wanted = _number_of_inputs(params)
    if answer.data is None or len(answer.data) != wanted:
        raise UpstreamError(f"the instance answered {len(answer.data or ())} embeddings for {wanted} inputs")
    ordered = sorted(enumerate(answer.data), key=lambda item: item[0] if item[1].index is None else item[1].index)
    dimensions = values.integer(params.get("dimensions") or 0, "dimensions")
    found = [vectors.shorten(_vector(row), dimensions) for _, row in ordered]
    answered: Json = {"model": model_of(params), "embeddings": found}
    answered.update(counts(answer.usage, None, elapsed_s=elapsed_s))
    return answered


def _number_of_inputs(params: Mapping[str, Any]) -> int:
    given = params.get("input")
    return len(given) if isinstance(given, list | tuple) else 1


def _vector(row: Vector) -> list[float]:
    return vectors.from_base64(row.embedding) if isinstance(row.embedding, str) else row.embedding
