"""The tokens an answer took, as it says itself: Ollama's counts, OpenAI's ``usage`` or the ``timings`` of llama.cpp.

Bytes are not read twice for it. What is translated has been read anyway, and what passes is only looked at where it has
the signs of counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgspec

from gleitzeit_core.requests import Usage
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where somebody claims more, the number is nonsense.
_MOST = 2**40


class Counted(bytes):
    """Bytes of an answer that say what it took.

    Args:
        data: The bytes.
        usage: What they say.
    """

    usage: Usage

    def __new__(cls, data: bytes, usage: Usage) -> Self:
        """The same bytes with `usage`."""
        made = super().__new__(cls, data)
        made.usage = usage
        return made


def counted(data: bytes, usage: Usage | None) -> bytes:
    """`data`, as `Counted` when there is a `usage`."""
    return data if usage is None else Counted(data, usage)


def of_canonical(part: Mapping[str, Any]) -> Usage | None:
    """What a canonical answer, or a part of one, says; None when it says nothing."""
    return _usage(part.get("prompt_eval_count"), part.get("eval_count"))


class Said(msgspec.Struct):
    """What is of interest in an answer that passes.

    Ollama's counts, OpenAI's, those in the event that ends a response, and those that llama.cpp gives unasked.
    """

    prompt_eval_count: Any = None
    eval_count: Any = None
    usage: Any = None
    timings: Any = None
    response: Any = None
    error: Any = None


_SAID = msgspec.json.Decoder(Said)


def said(data: bytes) -> Said | None:
    """What a JSON object says; None when it is none, or when something in it cannot be read."""
    try:
        return _SAID.decode(data)
    except UNREADABLE:
        return None


def of_json(data: bytes) -> Usage | None:
    """What a JSON object of either API says; None when it says nothing, or is none."""
    return of_said(said(data))


def of_said(found: Said | None) -> Usage | None:
    """The tokens among what an answer says."""
    if found is None:
        return None
    usage = found.response.get("usage") if isinstance(found.response, dict) else found.usage
    if isinstance(usage, dict):
        if "input_tokens" in usage:
            return _usage(usage["input_tokens"], usage.get("output_tokens"))
        return _usage(usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if isinstance(found.timings, dict):
        timings = found.timings
        return _usage(_count(timings.get("prompt_n")) + _count(timings.get("cache_n")), timings.get("predicted_n"))
    return _usage(found.prompt_eval_count, found.eval_count)


def _usage(read: object, written: object) -> Usage | None:
    # As `_count`, without a step for each.
    input_tokens = read if type(read) is int and 0 < read < _MOST else 0
    output_tokens = written if type(written) is int and 0 < written < _MOST else 0
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens) if input_tokens or output_tokens else None


def _count(value: object) -> int:
    return value if type(value) is int and 0 < value < _MOST else 0
