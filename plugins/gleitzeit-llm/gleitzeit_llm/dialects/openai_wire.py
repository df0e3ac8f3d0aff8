"""What OpenAI servers answer, as far as it is read; everything else in it is skipped.

Seen: llama.cpp (`timings`, `reasoning_content`), vLLM (`reasoning_content`, later `reasoning`), Ollama's `/v1`
(`reasoning`, a tool call whole in one delta), OpenAI itself.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from gleitzeit_llm.dialects.errors import message_of, shown
from gleitzeit_llm.protocol import UNREADABLE, UpstreamError


class Function(msgspec.Struct):
    """A called function; in a stream, a piece of it."""

    name: str | None = None
    arguments: Any = None


class ToolCall(msgspec.Struct):
    """A tool call; in a stream, a piece of the one at `index`."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Message(msgspec.Struct):
    """What the model said; in a stream, a piece of it."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None

    def text(self) -> str:
        """The words for the caller; those of a refusal are such too."""
        return self.content or self.refusal or ""

    def thinking(self) -> str:
        """The thoughts, under either name."""
        return self.reasoning_content or self.reasoning or ""


class Choice(msgspec.Struct):
    """One of the answers; only the first is ever asked for."""

    index: int = 0
    message: Message | None = None
    delta: Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None
    # What ended it, where a server tells: vLLM's name for it, and SGLang's. For a token it is a number.
    stop_reason: Any = None
    matched_stop: Any = None

    def stop_sequence(self) -> str:
        """The text that ended it; empty where that is not known."""
        return next((found for found in (self.stop_reason, self.matched_stop) if isinstance(found, str)), "")

    def said(self) -> Message:
        """What the model said, in a plain answer, a stream or a completion."""
        return self.message or self.delta or Message(content=self.text)


class Usage(msgspec.Struct):
    """Token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Timings(msgspec.Struct):
    """llama.cpp's measurements, in milliseconds."""

    prompt_ms: float | None = None
    predicted_ms: float | None = None


class Answer(msgspec.Struct):
    """A plain answer or a chunk."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None
    # vLLM used to report errors as {"object": "error", "message": "..."}.
    object: str | None = None
    message: Any = None

    def is_empty(self) -> bool:
        """Whether this is JSON, but nothing of what is known."""
        return self.choices is None and self.usage is None and self.timings is None

    def choice(self) -> Choice | None:
        """The first choice, if there is one."""
        return next((choice for choice in self.choices or () if choice.index == 0), None)


class Vector(msgspec.Struct):
    """One embedding."""

    embedding: list[float] | str
    index: int | None = None


class Vectors(msgspec.Struct):
    """The answer to a request for embeddings."""

    data: list[Vector] | None = None
    usage: Usage | None = None
    error: Any = None
    object: str | None = None
    message: Any = None


_Found = TypeVar("_Found", Answer, Vectors)
_ANSWER = msgspec.json.Decoder(Answer)
_VECTORS = msgspec.json.Decoder(Vectors)


def read_answer(data: bytes) -> Answer:
    """Read an answer or a chunk.

    Raises:
        UpstreamError: It is an error, or something else.
    """
    found = _read(_ANSWER, data)
    if found.is_empty():
        raise _no_answer(data)
    return found


def read_vectors(data: bytes) -> Vectors:
    """Read embeddings.

    Raises:
        UpstreamError: It is an error, or something else.
    """
    return _read(_VECTORS, data)


def _read(decoder: msgspec.json.Decoder[_Found], data: bytes) -> _Found:
    try:
        found = decoder.decode(data)
    except UNREADABLE:
        raise _no_answer(data) from None
    if found.error is not None or found.object == "error":
        text = message_of(found.error) or message_of(found.message)
        raise UpstreamError(text or "the instance reported an error without a text", reported=True)
    return found


def _no_answer(data: bytes) -> UpstreamError:
    return UpstreamError(f"the instance sent no answer of an OpenAI server but {shown(data)}")
