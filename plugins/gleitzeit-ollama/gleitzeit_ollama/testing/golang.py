"""What a server written in Go makes of JSON, numbers and times: same bytes, same words in errors."""

from __future__ import annotations

import json
import math
import re
import time
from datetime import UTC, datetime

JsonObject = dict[str, object]

FOREVER_S = math.inf
_LONGEST_S = 2**63 / 1e9
"""A keep-alive that never ends (`-1` in a request)."""

_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_EXPECTED = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name enclosed in double quotes": ("looking for beginning of object key string"),
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after array element or object key:value pair",
}
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")


class BadBody(ValueError):
    """The body is not what the endpoint reads; the text is what Go's JSON decoder says."""


class EmptyBody(BadBody):
    """There is no body at all; each client API has its own sentence for that."""


def dumps(value: object) -> bytes:
    """Return `value` as Go writes it: no blanks, `<`, `>` and `&` escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.translate(_HTML).encode("utf-8", errors="replace")


def quote(text: str) -> str:
    """Return `text` as Go's `%q` prints it."""
    return json.dumps(text, ensure_ascii=False)


def loads(body: bytes) -> object:
    """Read the first JSON value of `body`; what follows it is ignored, as Go's decoder does.

    Raises:
        EmptyBody: there is nothing but blanks.
        BadBody: it is not JSON.
    """
    text = body.decode("utf-8", errors="replace").lstrip(" \t\r\n")
    if not text:
        raise EmptyBody("EOF")
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    try:
        value: object = decoder.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise BadBody(_syntax_error(error)) from None
    except RecursionError:
        raise BadBody("exceeded max depth") from None
    except ValueError as error:
        raise BadBody(str(error)) from None
    return value


def _refuse_constant(name: str) -> object:
    raise BadBody(f"invalid character {name[0]!r} looking for beginning of value")


def _syntax_error(error: json.JSONDecodeError) -> str:
    unterminated = error.msg.startswith("Unterminated")
    if unterminated or error.pos >= len(error.doc.rstrip(" \t\r\n")):
        return "unexpected EOF"
    where = _EXPECTED.get(error.msg, "in string literal")
    return f"invalid character {error.doc[error.pos]!r} {where}"


def kind(value: object) -> str:
    """Return Go's name for the kind of a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    return "array" if isinstance(value, list) else "object"


def timestamp(epoch_s: float) -> str:
    """Return a time as Go's RFC3339Nano in UTC: trailing zeros of the fraction are cut."""
    whole = math.floor(epoch_s)
    date = datetime.fromtimestamp(whole, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{int((epoch_s - whole) * 1e9):09d}".rstrip("0")
    return f"{date}.{fraction}Z" if fraction else f"{date}Z"


def now() -> str:
    """Return the present as `timestamp` writes it."""
    return timestamp(time.time())


def duration_s(value: object) -> float:
    """Read a duration: a number of seconds or text such as `5m` or `1h30m`; negative is forever.

    Raises:
        BadBody: it is neither.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return FOREVER_S if value < 0 or value > _LONGEST_S else float(value)
    if not isinstance(value, str):
        raise BadBody(f"Unsupported type: '{kind(value)}'")
    return _duration_text_s(value)


def _duration_text_s(text: str) -> float:
    unsigned = text.lstrip("+-")
    if unsigned == "0":
        return 0.0
    parts = _DURATION.findall(unsigned)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != unsigned:
        raise BadBody(f"time: invalid duration {quote(text)}")
    if text.startswith("-"):
        return FOREVER_S
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
