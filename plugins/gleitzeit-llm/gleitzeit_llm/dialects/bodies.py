"""Request bodies: read them, and say what is wrong with one in the words of Ollama's server, as recorded.

Those words are Go's, whose JSON decoder Ollama hands through; both client APIs show them.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects.base import Peek
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from gleitzeit_llm.dialects.base import Endpoint
    from gleitzeit_llm.protocol import Json


class _Face(msgspec.Struct):
    """The fields a pass-through needs; all else is skipped without being built, and so are wrong limits."""

    model: str | None = None
    stream: bool | None = None
    # OpenAI's three names for the limit, and what Ollama has it in.
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_output_tokens: msgspec.Raw = msgspec.Raw()
    options: msgspec.Raw = msgspec.Raw()

    def max_output(self) -> int | None:
        """The limit on the output, in tokens."""
        if not (self.max_completion_tokens or self.max_tokens or self.max_output_tokens or self.options):
            return None
        for decoder, raw in (
            (_INT, self.max_completion_tokens),
            (_INT, self.max_tokens),
            (_INT, self.max_output_tokens),
            (_OPTIONS, self.options),
        ):
            if raw:
                with contextlib.suppress(*UNREADABLE):
                    found = decoder.decode(raw)
                    return found.num_predict if isinstance(found, _Options) else found
        return None


class _Options(msgspec.Struct):
    num_predict: int | None = None


_INT: msgspec.json.Decoder[int | _Options] = msgspec.json.Decoder(int)
_OPTIONS: msgspec.json.Decoder[int | _Options] = msgspec.json.Decoder(_Options)
_FACE = msgspec.json.Decoder(_Face)
_OBJECT = msgspec.json.Decoder(dict[str, Any])

# What msgspec calls a JSON type, and what Go does.
_GO_KINDS = {
    "int": "number",
    "float": "number",
    "str": "string",
    "bool": "bool",
    "array": "array",
    "object": "object",
}
_GO_TYPES = {"model": "string", "stream": "bool"}
_MISMATCH = re.compile(r"got `(?P<kind>\w+)`(?: - at `\$\.(?P<field>\w+)`)?")
# How Python's JSON decoder begins a complaint, and where Go says the character stands.
_GO_PLACES = (
    ("Expecting property name", "looking for beginning of object key string"),
    ("Illegal trailing comma before end of object", "looking for beginning of object key string"),
    ("Illegal trailing comma", "looking for beginning of value"),
    ("Expecting ':'", "after object key"),
    ("Invalid control character", "in string literal"),
    ("Invalid \\", "in string escape code"),
    ("Extra data", "after top-level value"),
    ("Unexpected UTF-8 BOM", "looking for beginning of value"),
    ("Expecting value", "looking for beginning of value"),
)


def peek(endpoint: Endpoint, body: bytes) -> Peek:
    """Read `model`, `stream` and the limit on the output, and skip the rest.

    Raises:
        InvalidRequest: No JSON object, no model, or one of the two has a wrong type.
    """
    try:
        face = _FACE.decode(body)
    except UNREADABLE as error:
        _refuse(endpoint, body, error)
    if not face.model:
        raise InvalidRequest("model is required", param="model")
    return Peek(face.model, face.stream, face.max_output())


def read_object(endpoint: Endpoint, body: bytes) -> Json:
    """Read a whole body, with the same demands on `model` and `stream`.

    Raises:
        InvalidRequest: As for `peek`.
    """
    peek(endpoint, body)
    try:
        return _OBJECT.decode(body)
    except UNREADABLE as error:
        _refuse(endpoint, body, error)


def _refuse(endpoint: Endpoint, body: bytes, error: Exception) -> NoReturn:
    """Raise what Ollama's server would say."""
    if isinstance(error, msgspec.ValidationError):
        raise _wrong_type(endpoint, str(error)) from None
    raise InvalidRequest(_syntax(body, error)) from None


def _wrong_type(endpoint: Endpoint, text: str) -> InvalidRequest:
    found = _MISMATCH.search(text)
    kind, field = (found["kind"], found["field"]) if found else ("", None)
    if kind == "null":
        # Go takes a body of `null` for one without any field.
        return InvalidRequest("model is required", param="model")
    if field is None:
        what = f"Go value of type {endpoint.request_type}"
        return InvalidRequest(f"json: cannot unmarshal {_GO_KINDS.get(kind, kind)} into {what}")
    what = f"Go struct field {endpoint.request_type.rpartition('.')[2]}.{field}"
    return InvalidRequest(
        f"json: cannot unmarshal {_GO_KINDS.get(kind, kind)} into {what} of type {_GO_TYPES[field]}", param=field
    )


def _syntax(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "missing request body"
    if isinstance(error, RecursionError):
        return "exceeded max depth"
    if isinstance(error, UnicodeDecodeError):
        return "the request body is not UTF-8"
    text = body.decode("utf-8", "replace")
    try:
        json.loads(text)
    except json.JSONDecodeError as found:
        return _complaint(text, found, str(error))
    except RecursionError:
        return "exceeded max depth"
    return "the request body has text that is not Unicode"


def _complaint(text: str, found: json.JSONDecodeError, original: str) -> str:
    """Go's sentence. Python's decoder knows where the fault is, msgspec's whether a list or an object was open."""
    if found.pos >= len(text.rstrip()) or found.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    place = next((go for python, go in _GO_PLACES if found.msg.startswith(python)), "")
    if not place:
        place = "after array element" if "']'" in original else "after object key:value pair"
    at = found.pos
    if found.msg.startswith(("Invalid \\", "Illegal trailing")):
        # Python points at the backslash or the comma, Go at what comes next.
        at = len(text) - len(text[at + 1 :].lstrip())
    return f"invalid character {text[at : at + 1]!r} {place}"
