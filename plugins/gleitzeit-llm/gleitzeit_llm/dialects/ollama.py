"""The dialect `ollama`. The protocol's own shapes are Ollama's, so there is little to translate."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import bodies
from gleitzeit_llm.dialects.base import Endpoint, Parsed, Peek, Upstream
from gleitzeit_llm.dialects.errors import message_of, shown
from gleitzeit_llm.dialects.lines import LineBuffer
from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE, STOP_SEQUENCE, UNREADABLE, Json, UpstreamError, model_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_llm.dialects.base import StreamDecoder, StreamEncoder

OLD_EMBEDDINGS = "/api/embeddings"
_ENDPOINTS = (
    Endpoint("/api/chat", CHAT, streams_by_default=True, request_type="api.ChatRequest"),
    Endpoint("/api/generate", GENERATE, streams_by_default=True, request_type="api.GenerateRequest"),
    Endpoint("/api/embed", EMBED, streams_by_default=False, request_type="api.EmbedRequest"),
    Endpoint(OLD_EMBEDDINGS, EMBED, streams_by_default=False, request_type="api.EmbeddingRequest"),
)
_PATHS = {CHAT: "/api/chat", GENERATE: "/api/generate", EMBED: "/api/embed"}
# What a plain answer must have: without it the server is something else.
_OUTPUT = {CHAT: "message", GENERATE: "response", EMBED: "embeddings"}
_ANY = msgspec.json.Decoder(Any)


class OllamaClient:
    """Callers that speak Ollama's API."""

    name = "ollama"
    endpoints: Mapping[str, Endpoint] = MappingProxyType({end.path: end for end in _ENDPOINTS})
    plain_type = "application/json; charset=utf-8"
    stream_type = "application/x-ndjson"

    def peek(self, endpoint: Endpoint, body: bytes) -> Peek:
        """See `ClientDialect.peek`."""
        return bodies.peek(endpoint, body)

    def parse(self, endpoint: Endpoint, body: bytes) -> Parsed:
        """See `ClientDialect.parse`. What is wrong inside shows when it is encoded for another api."""
        params = bodies.read_object(endpoint, body)
        if endpoint.path == OLD_EMBEDDINGS and "prompt" in params:
            params["input"] = params.pop("prompt")
        # An embedding has no parts; Ollama ignores `stream` there.
        stream = endpoint.method != EMBED and endpoint.streams(params.get("stream"))
        return Parsed(endpoint, endpoint.method, params, stream)

    def answer(self, parsed: Parsed, answer: Mapping[str, Any]) -> bytes:
        """See `ClientDialect.answer`."""
        if parsed.endpoint.path != OLD_EMBEDDINGS:
            return msgspec.json.encode(_as_ollama(answer))
        # A real Ollama gives vectors of any length here and of length one from /api/embed. An OpenAI server only has
        # the latter, so that is what callers get; the direction, and so every cosine, is the same.
        return msgspec.json.encode({"embedding": next(iter(answer["embeddings"]), [])})

    def stream_encoder(self, parsed: Parsed) -> StreamEncoder:
        """See `ClientDialect.stream_encoder`."""
        del parsed
        return _NdjsonEncoder()

    def error_body(
        self, status: int, message: str, code: str | None = None, param: str | None = None, request_id: str = ""
    ) -> bytes:
        """See `ClientDialect.error_body`. Ollama has room for the sentence only."""
        del status, code, param, request_id
        return msgspec.json.encode({"error": message})


class _NdjsonEncoder:
    """One canonical part per line."""

    def part(self, part: Mapping[str, Any]) -> bytes:
        return msgspec.json.encode(_as_ollama(part)) + b"\n"

    def finish(self) -> bytes:
        return b""

    def error(self, message: str, code: str | None = None) -> bytes:
        del code
        return msgspec.json.encode({"error": message}) + b"\n"


def _as_ollama(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what Ollama does not tell."""
    if STOP_SEQUENCE not in answer:
        return answer
    return {name: value for name, value in answer.items() if name != STOP_SEQUENCE}


class OllamaInstance:
    """Instances that speak Ollama's API."""

    name = "ollama"

    def encode(self, method: str, params: Mapping[str, Any], *, stream: bool = False) -> Upstream:
        """See `InstanceDialect.encode`. Unknown fields go along: the instance knows best what it knows.

        But for one that would change the answer, and that Ollama skips without a word.
        """
        model_of(params)
        if params.get("tool_choice") == "required":
            raise InvalidRequest(
                "'tool_choice' cannot be carried over to an Ollama server: a model there cannot be made to call a tool",
                param="tool_choice",
            )
        payload = dict(params)
        payload.pop("stream", None)
        if method != EMBED:
            payload["stream"] = stream
        return Upstream(_PATHS[method], payload)

    def decode_answer(
        self, method: str, params: Mapping[str, Any], body: bytes, *, elapsed_s: float | None = None
    ) -> Json:
        """See `InstanceDialect.decode_answer`. Ollama measures by itself."""
        del elapsed_s
        answer = _read(body)
        if _OUTPUT[method] not in answer or not (method == EMBED or answer.get("done") is True):
            raise UpstreamError(f"the instance's answer is no answer to {method}: {shown(body)}")
        answer["model"] = params["model"]
        return answer

    def stream_decoder(self, method: str, params: Mapping[str, Any]) -> StreamDecoder:
        """See `InstanceDialect.stream_decoder`."""
        if method == EMBED:
            raise InvalidRequest(f"{method} does not stream", param="stream")
        return OllamaStream(model_of(params))


class OllamaStream:
    """Lines of NDJSON, each of them a canonical part.

    Args:
        model: The model as the caller wrote it.
    """

    __slots__ = ("_lines", "_model", "finished")

    def __init__(self, model: str) -> None:
        self._lines = LineBuffer()
        self._model = model
        self.finished = False

    def feed(self, data: bytes) -> list[Json]:
        """See `StreamDecoder.feed`."""
        parts: list[Json] = []
        try:
            for line in self._lines.feed(data):
                parts += self._take(line)
        except UpstreamError as error:
            error.parts = tuple(parts)
            raise
        return parts

    def close(self) -> list[Json]:
        """See `StreamDecoder.close`. A last line that was cut off leaves the answer incomplete, and is no error."""
        line = self._lines.close()
        try:
            return self._take(line)
        except UpstreamError as error:
            if error.reported:
                raise
            return []

    def _take(self, line: bytes) -> list[Json]:
        if self.finished or not line.strip():
            return []
        part = _read(line)
        if "done" not in part:
            raise UpstreamError(f"the instance's stream has a line that is no part: {shown(line)}")
        part["model"] = self._model
        self.finished = part["done"] is True
        return [part]


def _read(data: bytes) -> Json:
    """An object that is not an error."""
    try:
        found = _ANY.decode(data)
    except UNREADABLE:
        found = None
    if not isinstance(found, dict):
        raise UpstreamError(f"the instance sent no JSON object but {shown(data)}")
    if "error" in found:
        raise UpstreamError(message_of(found) or "the instance reported an error without a text", reported=True)
    return found
