"""The client API `anthropic`: what callers of the Messages API send, and what they get."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import bodies, fields_from_anthropic
from gleitzeit_llm.dialects.anthropic_answers import Answers, EventEncoder, error_object
from gleitzeit_llm.dialects.base import Endpoint, Parsed, Peek
from gleitzeit_llm.dialects.fields import translate
from gleitzeit_llm.dialects.messages_from_anthropic import from_anthropic
from gleitzeit_llm.dialects.openai_client import random_id
from gleitzeit_llm.dialects.settings_from_anthropic import put_thinking, put_tools
from gleitzeit_llm.protocol import CHAT, COUNT_TOKENS, Json, is_absent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_llm.dialects.base import StreamEncoder

_ENDPOINTS = (
    Endpoint("/v1/messages", CHAT, streams_by_default=False, request_type="anthropic.MessagesRequest"),
    Endpoint(
        "/v1/messages/count_tokens", COUNT_TOKENS, streams_by_default=False, request_type="anthropic.CountTokensRequest"
    ),
)
# What an absent field means in Anthropic's API, where Ollama would take the model's own settings.
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}


@dataclass(frozen=True, slots=True)
class AnthropicClient:
    """Callers that speak Anthropic's API.

    Args:
        new_id: The random part of a message's `id` and of a tool call's.
    """

    new_id: Callable[[], str] = random_id

    @property
    def name(self) -> str:
        """``anthropic``."""
        return "anthropic"

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """By path."""
        return _BY_PATH

    @property
    def plain_type(self) -> str:
        """As Anthropic's own server has it."""
        return "application/json"

    @property
    def stream_type(self) -> str:
        """As Anthropic's own server has it."""
        return "text/event-stream; charset=utf-8"

    def peek(self, endpoint: Endpoint, body: bytes) -> Peek:
        """See `ClientDialect.peek`."""
        return bodies.peek(endpoint, body)

    def parse(self, endpoint: Endpoint, body: bytes) -> Parsed:
        """See `ClientDialect.parse`."""
        request = bodies.read_object(endpoint, body)
        params: Json = {}
        translate(fields_from_anthropic.TABLES[endpoint.path], request, params)
        for name in ("messages",) if endpoint.method == COUNT_TOKENS else ("messages", "max_tokens"):
            if is_absent(request.get(name)):
                raise InvalidRequest(f"'{name}' is required", param=name)
        params["messages"] = from_anthropic(request.get("system"), request["messages"])
        put_tools(request, params)
        put_thinking(request, params)
        if endpoint.method == CHAT:
            params["options"] = {**_DEFAULTS, **params["options"]}
        return Parsed(endpoint, endpoint.method, params, endpoint.streams(request.get("stream")))

    def answer(self, parsed: Parsed, answer: Mapping[str, Any]) -> bytes:
        """See `ClientDialect.answer`."""
        if parsed.method == COUNT_TOKENS:
            return msgspec.json.encode({"input_tokens": answer["input_tokens"]})
        return msgspec.json.encode(self._answers().whole(answer))

    def stream_encoder(self, parsed: Parsed) -> StreamEncoder:
        """See `ClientDialect.stream_encoder`."""
        del parsed
        return EventEncoder(self._answers())

    def error_body(
        self, status: int, message: str, code: str | None = None, param: str | None = None, request_id: str = ""
    ) -> bytes:
        """See `ClientDialect.error_body`. Anthropic has room for a type, the sentence and the request's id."""
        del code, param
        return msgspec.json.encode(error_object(status, message, request_id))

    def _answers(self) -> Answers:
        return Answers(id_=self.new_id(), new_id=self.new_id)


_BY_PATH: Mapping[str, Endpoint] = MappingProxyType({endpoint.path: endpoint for endpoint in _ENDPOINTS})
