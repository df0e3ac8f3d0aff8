"""What a dialect is: how callers of an API are understood, and how instances of an api are spoken to.

Everything here is synchronous and without I/O: bytes and dicts in, bytes and dicts out. A caller's bytes become
canonical parameters (`ClientDialect.parse`), those an instance's request (`InstanceDialect.encode`), its answer a
canonical answer or canonical parts (`decode_answer`, `stream_decoder`), those the caller's bytes again (`answer`,
`stream_encoder`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gleitzeit_llm.protocol import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_llm.protocol import Json


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of a client API.

    Args:
        path: The path below the server's root, such as ``/api/chat``.
        method: The method of `llm` it calls.
        streams_by_default: What an absent `stream` means.
        request_type: What the API's own server calls the body; it appears in its error texts.
    """

    path: str
    method: str
    streams_by_default: bool
    request_type: str

    def streams(self, stream: bool | None) -> bool:  # noqa: FBT001 - the field's own value
        """Whether a request with this `stream` (None: absent) is answered as a stream."""
        return self.streams_by_default if stream is None else stream


class Peek(msgspec.Struct, frozen=True, gc=False):
    """What a request says on its face. A struct: made for every request.

    Args:
        model: The model, as the caller wrote it; never empty.
        stream: Whether a stream is wanted; None when the request does not say.
        max_output: Tokens the model may write; None when the request does not say.
    """

    model: str
    stream: bool | None
    max_output: int | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A caller's request in canonical form.

    Args:
        endpoint: Where it came in.
        method: The method of `llm`.
        params: Canonical parameters.
        stream: Whether the caller gets a stream.
        include_usage: OpenAI: end the stream with a chunk that has the token counts.
        base64_vectors: OpenAI: embeddings as base64 of little-endian 32-bit floats.
        echo: OpenAI's responses: what the answer repeats of its request.
    """

    endpoint: Endpoint
    method: str
    params: Json
    stream: bool
    include_usage: bool = False
    base64_vectors: bool = False
    echo: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A request to an instance: POST `payload` as JSON to `path` below its URL."""

    path: str
    payload: Json

    def body(self) -> bytes:
        """The payload as compact JSON.

        Raises:
            InvalidRequest: A parameter has no form in JSON.
        """
        return write_json(self.payload, "the request")


class StreamEncoder(Protocol):
    """Turns the canonical parts of one answer into the bytes of the caller's API."""

    def part(self, part: Mapping[str, Any]) -> bytes:
        """Whole lines or events for one part; may be empty when the API has nothing to say about it."""

    def finish(self) -> bytes:
        """What follows the final part; empty when there is nothing, or when no final part was seen."""

    def error(self, message: str, code: str | None = None) -> bytes:
        """An error inside the stream. Nothing may follow it."""


class ClientDialect(Protocol):
    """One client API: what its callers send and expect."""

    @property
    def name(self) -> str:
        """``ollama``, ``openai``."""

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """By path."""

    @property
    def plain_type(self) -> str:
        """Content type of a plain answer."""

    @property
    def stream_type(self) -> str:
        """Content type of a stream."""

    def peek(self, endpoint: Endpoint, body: bytes) -> Peek:
        """Read model, `stream` and the limit on the output, and nothing else. A limit that makes no sense is none.

        Raises:
            InvalidRequest: No JSON object, no model, or one of the first two has a wrong type.
        """

    def parse(self, endpoint: Endpoint, body: bytes) -> Parsed:
        """Read a whole request.

        Raises:
            InvalidRequest: It cannot be read, or asks for what the protocol cannot express.
        """

    def answer(self, parsed: Parsed, answer: Mapping[str, Any]) -> bytes:
        """The body of a plain answer."""

    def stream_encoder(self, parsed: Parsed) -> StreamEncoder:
        """An encoder for one stream."""

    def error_body(
        self, status: int, message: str, code: str | None = None, param: str | None = None, request_id: str = ""
    ) -> bytes:
        """The body of an error answer; its content type is `plain_type`."""


class StreamDecoder(Protocol):
    """Turns the bytes of one instance's stream into canonical parts."""

    @property
    def finished(self) -> bool:
        """Whether the instance said that the answer is complete."""

    def feed(self, data: bytes) -> list[Json]:
        """Take bytes, cut anywhere, and give the parts they complete.

        Raises:
            UpstreamError: The instance reported an error, or these are not its API's bytes.
        """

    def close(self) -> list[Json]:
        """The stream has ended: the parts that were still held back.

        Look at `finished` afterwards: when it is false the answer is incomplete.

        Raises:
            UpstreamError: As for `feed`.
        """


class InstanceDialect(Protocol):
    """One api of instances: what they take and answer."""

    @property
    def name(self) -> str:
        """``ollama``, ``openai``."""

    def encode(self, method: str, params: Mapping[str, Any], *, stream: bool = False) -> Upstream:
        """The request for an instance. `stream` decides, whatever `params` says.

        Raises:
            InvalidRequest: A field is malformed, unknown, or cannot be carried over.
        """

    def decode_answer(
        self, method: str, params: Mapping[str, Any], body: bytes, *, elapsed_s: float | None = None
    ) -> Json:
        """The canonical form of a plain answer with status 200.

        Args:
            method: As given to `encode`.
            params: As given to `encode`; `model` is echoed from here.
            body: The instance's bytes.
            elapsed_s: Seconds the request took; becomes `total_duration` where the instance gives none.

        Raises:
            UpstreamError: It reports an error, or is not an answer of this api.
        """

    def stream_decoder(self, method: str, params: Mapping[str, Any]) -> StreamDecoder:
        """A decoder for one stream; to be made when the request is sent, as it measures from there.

        Raises:
            InvalidRequest: The method does not stream.
        """


@dataclass(frozen=True, slots=True)
class Dialect:
    """Both sides of one API."""

    name: str
    client: ClientDialect
    instance: InstanceDialect
