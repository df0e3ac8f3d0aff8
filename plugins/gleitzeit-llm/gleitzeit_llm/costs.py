"""The work a request is expected to be, relative to an average chat: 1,000 tokens read and 250 written.

An estimate, made before anything has run: the length of the prompt, at four characters for a token, and what the caller
lets the model write at most. Reading a token is about a twentieth of the work of writing one, because a prompt is read
in batches. Fairness between tenants begins with it and is put right when the request has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE

_READING: Final = 1 / 20
_CHARS_PER_TOKEN: Final = 4
_AVERAGE_OUTPUT: Final = 250
_AVERAGE: Final = 1000 * _READING + _AVERAGE_OUTPUT
# Limits are often set far above what is ever written; and what no context holds is cut off.
_MOST_OUTPUT: Final = 4096
_MOST_CHARS: Final = 128 * 1024
_IMAGE_CHARS: Final = 1000 * _CHARS_PER_TOKEN
_LEAST: Final = 0.01
# What each method writes that does any work.
_WRITING: Final[Mapping[str, int]] = {CHAT: _AVERAGE_OUTPUT, GENERATE: _AVERAGE_OUTPUT, EMBED: 0}


def of_size(method: str, chars: int, max_output: object = None) -> float:
    """The work of reading so many characters and writing an answer.

    Args:
        method: A method of `llm`; those that only look something up are next to no work.
        chars: Length of what the model reads.
        max_output: Tokens it may write; anything but a number above 0 says nothing.
    """
    written = _WRITING.get(method)
    if written is None:
        return _LEAST
    if written and type(max_output) is int and max_output > 0:
        written = min(max_output, _MOST_OUTPUT)
    read = min(chars, _MOST_CHARS) / _CHARS_PER_TOKEN
    return max(_LEAST, (read * _READING + written) / _AVERAGE)


def of_params(method: str, params: Mapping[str, Any]) -> float:
    """The work of canonical parameters. They have not been checked: what has a wrong type has no length."""
    chars = sum(_length(params.get(name)) for name in ("prompt", "system", "input"))
    chars += _images(params)
    for message in _list(params.get("messages")):
        if isinstance(message, Mapping):
            chars += _length(message.get("content")) + _images(message)
    options = params.get("options")
    return of_size(method, chars, options.get("num_predict") if isinstance(options, Mapping) else None)


def _images(holder: Mapping[str, Any]) -> int:
    return len(_list(holder.get("images"))) * _IMAGE_CHARS


def _length(value: object) -> int:
    """Characters of a text or of a list of texts; what else is in a list counts as a token."""
    if isinstance(value, str):
        return len(value)
    return sum(len(one) if isinstance(one, str | list) else _CHARS_PER_TOKEN for one in _list(value))


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
