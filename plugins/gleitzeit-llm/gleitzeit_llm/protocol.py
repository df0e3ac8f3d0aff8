"""The protocol `llm`: its methods, the shapes they speak, and what both dialects need to know.

The canonical shapes are Ollama's, as plain dicts: `llm/chat` takes ``{"model": ..., "messages": [...], ...}`` and
answers ``{"model": ..., "created_at": ..., "message": {...}, "done": true, ...}``; a stream is made of such parts, the
last of which says ``"done": true``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from gleitzeit_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GENERATE = "llm/generate"
CHAT = "llm/chat"
EMBED = "llm/embed"
COUNT_TOKENS = "llm/count_tokens"

STOP_SEQUENCE = "stop_sequence"
"""In an answer or a final part, where it is known: which of ``options.stop`` ended it."""

Json: TypeAlias = dict[str, Any]
"""A JSON object. What is inside is checked where it is read."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON it was told to expect."""

_INPUT_OF = {CHAT: "messages", GENERATE: "prompt", EMBED: "input"}

# A Go duration that is zero, as Ollama reads `keep_alive`: "0", "0s", "0h0m".
_ZERO_DURATION = re.compile(r"[-+]?(?:0|(?:(?:0+\.?0*|\.0+)(?:ns|us|µs|μs|ms|s|m|h))+)")


class UpstreamError(Exception):
    """An instance broke off, reported an error inside an answer, or answered what its API does not allow.

    Args:
        message: A sentence for a person; the instance's own words when it reported the error.
        reported: True when the instance said so itself, False when its answer makes no sense.

    Attributes:
        parts: What a stream decoder had completed in the same call; the caller gets these before the error.
    """

    parts: tuple[Json, ...] = ()

    def __init__(self, message: str, *, reported: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.reported = reported


def write_json(value: object, what: str) -> bytes:
    """Compact JSON.

    Args:
        value: What a caller of the library may have put together.
        what: What to call it in an error.

    Raises:
        InvalidRequest: It has something in it that JSON has no form for.
    """
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidRequest(f"{what} cannot be written as JSON: {error}") from None


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


def timestamp(now: datetime) -> str:
    """`created_at`: RFC 3339 in UTC with a `Z`. `now` must know its time zone."""
    return now.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def unix_time(created_at: object, default: datetime) -> int:
    """Seconds since 1970 of a `created_at`; those of `default` where it cannot be read."""
    try:
        return int(datetime.fromisoformat(str(created_at)).timestamp())
    except ValueError:
        return int(default.timestamp())


def is_absent(value: object) -> bool:
    """Whether a field with this value says nothing: null, or an empty list or object.

    The official clients send such fields without being asked to.
    """
    return value is None or value in ([], {})


def model_of(params: Mapping[str, Any]) -> str:
    """The model a request names.

    Raises:
        InvalidRequest: There is none, or it is not a string.
    """
    model = params.get("model")
    if model is None or model == "":
        raise InvalidRequest("model is required", param="model")
    if not isinstance(model, str):
        raise InvalidRequest("'model' must be a string", param="model")
    return model


def load_answer(method: str, params: Mapping[str, Any], now: datetime) -> Json | None:
    """The answer to a request that only loads or unloads a model, or None when there is work to do.

    Ollama takes an empty `messages`, `prompt` or `input` as "load the model", with a `keep_alive` of zero as "unload
    it". An OpenAI server has no such notion, so what speaks for one answers by itself. Ollama sends this answer
    whole, even when a stream was asked for.

    Raises:
        InvalidRequest: No model is named.
    """
    given = _INPUT_OF.get(method)
    if given is None or params.get(given) not in (None, "", []):
        return None
    if method == EMBED:
        return {"model": model_of(params), "embeddings": []}
    reason = "unload" if _is_zero(params.get("keep_alive")) else "load"
    return final(method, model_of(params), timestamp(now), reason=reason)


def part(
    method: str,
    model: str,
    created_at: str,
    *,
    text: str = "",
    thinking: str = "",
    tool_calls: Sequence[Json] = (),
    logprobs: Sequence[Json] = (),
) -> Json:
    """One part of a stream of `llm/chat` or `llm/generate`, its keys in Ollama's order."""
    head: Json = {"model": model, "created_at": created_at}
    head.update(_output(method, text, thinking, tool_calls))
    head["done"] = False
    if logprobs:
        head["logprobs"] = list(logprobs)
    return head


def final(  # noqa: PLR0913 - one argument per field of the shape
    method: str,
    model: str,
    created_at: str,
    *,
    reason: str,
    text: str = "",
    thinking: str = "",
    tool_calls: Sequence[Json] = (),
    logprobs: Sequence[Json] = (),
    counts: Mapping[str, int] | None = None,
) -> Json:
    """A whole answer, or the last part of a stream: `done`, why, and the counts that are known."""
    answer = part(method, model, created_at, text=text, thinking=thinking, tool_calls=tool_calls, logprobs=())
    answer["done"] = True
    answer["done_reason"] = reason
    if logprobs:
        answer["logprobs"] = list(logprobs)
    answer.update(counts or {})
    return answer


def stopped_at(answer: Json, sequence: str) -> Json:
    """`answer` with the stop sequence that ended it, which no server of Ollama's tells; empty for none."""
    return {**answer, STOP_SEQUENCE: sequence} if sequence else answer


def _output(method: str, text: str, thinking: str, tool_calls: Sequence[Json]) -> Json:
    """What the model said, in the place the method has for it."""
    if method == GENERATE:
        return {"response": text, "thinking": thinking} if thinking else {"response": text}
    message: Json = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    return {"message": message}


def _is_zero(keep_alive: object) -> bool:
    """Whether a `keep_alive` is zero: a number of seconds or a Go duration."""
    if isinstance(keep_alive, str):
        return _ZERO_DURATION.fullmatch(keep_alive) is not None
    return isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool) and keep_alive == 0
