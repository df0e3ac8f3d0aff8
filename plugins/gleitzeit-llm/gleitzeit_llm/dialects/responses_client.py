"""The client API `openai-responses`: OpenAI's Responses API, without anything that is kept between two requests.

It is a client API of its own beside `openai`: a server that has the one may lack the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import bodies, fields_from_responses
from gleitzeit_llm.dialects.base import Endpoint, Parsed, Peek
from gleitzeit_llm.dialects.fields import translate
from gleitzeit_llm.dialects.messages_from_responses import from_responses
from gleitzeit_llm.dialects.openai_client import random_id
from gleitzeit_llm.dialects.openai_encoder import error_object
from gleitzeit_llm.dialects.responses_answers import Answers
from gleitzeit_llm.dialects.responses_encoder import ResponsesEncoder
from gleitzeit_llm.dialects.settings_from_responses import echo, put_tools
from gleitzeit_llm.protocol import CHAT, UNREADABLE, Json, is_absent, unix_time, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from gleitzeit_llm.dialects.base import StreamEncoder

RESPONSES_PATH = "/v1/responses"
_ENDPOINTS = (Endpoint(RESPONSES_PATH, CHAT, streams_by_default=False, request_type="openai.ResponsesRequest"),)
# What an absent field means in OpenAI's API, where Ollama would take the model's own settings.
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}


class _Stateful(msgspec.Struct):
    """The fields that need an earlier response, or this one later."""

    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    store: Any = None
    prompt: Any = None


_STATEFUL = msgspec.json.Decoder(_Stateful)


@dataclass(frozen=True, slots=True)
class ResponsesClient:
    """Callers that speak OpenAI's Responses API.

    Args:
        wall: The time now, with its time zone.
        new_id: The random part of the ids of an answer and of what is in it.
    """

    wall: Callable[[], datetime] = utc_now
    new_id: Callable[[], str] = random_id

    @property
    def name(self) -> str:
        """``openai-responses``."""
        return "openai-responses"

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
        """See `ClientDialect.peek`. What needs an answer to be kept is refused here, where no server has it either.

        Any instance may get the next request, and a server of Ollama's would skip such a field without a word.
        """
        found = bodies.peek(endpoint, body)
        try:
            stateful = msgspec.structs.asdict(_STATEFUL.decode(body))
        except UNREADABLE:
            return found  # Whoever reads all of it says what is wrong.
        translate(fields_from_responses.RESPONSES, stateful, {})
        return found

    def parse(self, endpoint: Endpoint, body: bytes) -> Parsed:
        """See `ClientDialect.parse`."""
        request = bodies.read_object(endpoint, body)
        params: Json = {}
        translate(fields_from_responses.TABLES[endpoint.path], request, params)
        if is_absent(request.get("input")):
            raise InvalidRequest("'input' is required", param="input")
        params["messages"] = from_responses(request.get("instructions"), request["input"])
        put_tools(request, params)
        params["options"] = {**_DEFAULTS, **params.get("options", {})}
        if "logprobs" not in params:
            params.pop("top_logprobs", None)
        return Parsed(endpoint, CHAT, params, endpoint.streams(request.get("stream")), echo=echo(request))

    def answer(self, parsed: Parsed, answer: Mapping[str, Any]) -> bytes:
        """See `ClientDialect.answer`. Ends with a newline, as other answers of OpenAI's API."""
        return msgspec.json.encode(self._answers(parsed).whole(answer)) + b"\n"

    def stream_encoder(self, parsed: Parsed) -> StreamEncoder:
        """See `ClientDialect.stream_encoder`."""
        return ResponsesEncoder(self._answers(parsed))

    def error_body(
        self, status: int, message: str, code: str | None = None, param: str | None = None, request_id: str = ""
    ) -> bytes:
        """See `ClientDialect.error_body`."""
        del request_id
        return msgspec.json.encode(error_object(status, message, code, param)) + b"\n"

    def _answers(self, parsed: Parsed) -> Answers:
        return Answers(
            id_=self.new_id(),
            created=unix_time(None, self.wall()),
            echo=parsed.echo,
            new_id=self.new_id,
            wall=self.wall,
        )


_BY_PATH: Mapping[str, Endpoint] = MappingProxyType({endpoint.path: endpoint for endpoint in _ENDPOINTS})
