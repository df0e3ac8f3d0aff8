"""The client API `openai`: what callers send, and what they get, as Ollama's own `/v1` has it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import bodies, fields_from_openai, values
from gleitzeit_llm.dialects.base import Endpoint, Parsed, Peek
from gleitzeit_llm.dialects.fields import translate
from gleitzeit_llm.dialects.messages_from_openai import from_openai
from gleitzeit_llm.dialects.openai_answers import Answers, embedding_list
from gleitzeit_llm.dialects.openai_encoder import SseEncoder, error_object
from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE, Json, is_absent, unix_time, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from gleitzeit_llm.dialects.base import StreamEncoder

_ENDPOINTS = (
    Endpoint("/v1/chat/completions", CHAT, streams_by_default=False, request_type="openai.ChatCompletionRequest"),
    # Ollama answers completions through the model's template, as its /api/generate does, so they are not `raw`.
    Endpoint("/v1/completions", GENERATE, streams_by_default=False, request_type="openai.CompletionRequest"),
    Endpoint("/v1/embeddings", EMBED, streams_by_default=False, request_type="openai.EmbedRequest"),
)
# What an absent field means in OpenAI's API, where Ollama would take the model's own settings.
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}


def random_id() -> str:
    """Sixteen random hexadecimal digits."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class OpenAIClient:
    """Callers that speak OpenAI's API.

    Args:
        wall: The time now, with its time zone.
        new_id: The random part of an answer's `id` and of a tool call's.
    """

    wall: Callable[[], datetime] = utc_now
    new_id: Callable[[], str] = random_id

    @property
    def name(self) -> str:
        """``openai``."""
        return "openai"

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """By path."""
        return _BY_PATH

    @property
    def plain_type(self) -> str:
        """As recorded."""
        return "application/json"

    @property
    def stream_type(self) -> str:
        """As recorded."""
        return "text/event-stream"

    def peek(self, endpoint: Endpoint, body: bytes) -> Peek:
        """See `ClientDialect.peek`."""
        return bodies.peek(endpoint, body)

    def parse(self, endpoint: Endpoint, body: bytes) -> Parsed:
        """See `ClientDialect.parse`."""
        request = bodies.read_object(endpoint, body)
        params: Json = {}
        translate(fields_from_openai.TABLES[endpoint.path], request, params)
        if endpoint.method == EMBED:
            return _parsed_embedding(endpoint, request, params)
        if endpoint.method == CHAT:
            _put_conversation(request, params)
        else:
            _put_completion(request, params)
        params["options"] = {**_DEFAULTS, **params.get("options", {})}
        stream = endpoint.streams(request.get("stream"))
        return Parsed(endpoint, endpoint.method, params, stream, include_usage=_wants_usage(request))

    def answer(self, parsed: Parsed, answer: Mapping[str, Any]) -> bytes:
        """See `ClientDialect.answer`. Ends with a newline, as recorded."""
        if parsed.method == EMBED:
            found = embedding_list(answer, base64_vectors=parsed.base64_vectors)
        else:
            found = self._answers(parsed, answer.get("created_at")).whole(answer)
        return msgspec.json.encode(found) + b"\n"

    def stream_encoder(self, parsed: Parsed) -> StreamEncoder:
        """See `ClientDialect.stream_encoder`."""
        return SseEncoder(self._answers(parsed, None), include_usage=parsed.include_usage)

    def error_body(
        self, status: int, message: str, code: str | None = None, param: str | None = None, request_id: str = ""
    ) -> bytes:
        """See `ClientDialect.error_body`."""
        del request_id
        return msgspec.json.encode(error_object(status, message, code, param)) + b"\n"

    def _answers(self, parsed: Parsed, created_at: object) -> Answers:
        return Answers(
            method=parsed.method,
            id_=self.new_id(),
            created=unix_time(created_at, self.wall()),
            new_id=self.new_id,
        )


_BY_PATH: Mapping[str, Endpoint] = MappingProxyType({endpoint.path: endpoint for endpoint in _ENDPOINTS})


def _parsed_embedding(endpoint: Endpoint, request: Mapping[str, Any], params: Json) -> Parsed:
    if "input" not in params:
        raise InvalidRequest("invalid input", param="input")
    encoding = request.get("encoding_format") or "float"
    if str(encoding).lower() not in ("float", "base64"):
        raise InvalidRequest(
            f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64'].",
            param="encoding_format",
        )
    return Parsed(endpoint, EMBED, params, stream=False, base64_vectors=str(encoding).lower() == "base64")


def _put_conversation(request: Mapping[str, Any], params: Json) -> None:
    """The fields of chat that are not carried over one by one."""
    if is_absent(request.get("messages")):
        raise InvalidRequest("[] is too short - 'messages'", param="messages")
    params["messages"] = from_openai(request["messages"])
    _put_limit(request, params)
    _apply_tool_choice(request.get("tool_choice"), params)


def _put_limit(request: Mapping[str, Any], params: Json) -> None:
    """`max_completion_tokens` is the new name of `max_tokens`."""
    limit = request.get("max_completion_tokens")
    if limit is None:
        return
    limit = values.integer(limit, "max_completion_tokens")
    if params.setdefault("options", {}).setdefault("num_predict", limit) != limit:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' say different things; send one of them",
            param="max_completion_tokens",
        )


def _apply_tool_choice(choice: object, params: Json) -> None:
    """``none`` is the same as sending no tools; a forced call is nothing Ollama can do."""
    if choice == "none":
        params.pop("tools", None)
    elif choice not in (None, "auto", {}):
        raise InvalidRequest(
            f"'tool_choice' cannot be carried over to {fields_from_openai.TARGET}: a model there cannot be made to "
            "call a tool",
            param="tool_choice",
        )


def _put_completion(request: Mapping[str, Any], params: Json) -> None:
    """The fields of completions that are not carried over one by one."""
    params.setdefault("prompt", "")
    count = request.get("logprobs")
    if count is None:
        return
    params["logprobs"] = True
    if values.integer(count, "logprobs") > 0:
        params["top_logprobs"] = values.integer(count, "logprobs")


def _wants_usage(request: Mapping[str, Any]) -> bool:
    options = values.mapping(request.get("stream_options") or {}, "stream_options")
    return options.get("include_usage") is True
