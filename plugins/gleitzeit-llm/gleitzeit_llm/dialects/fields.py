"""How a request's fields get from one API to the other: a table row per known field, and the walk over a table.

A row says *mapped* (and to what), *refused* (and why), or *ignored*, which is only right where leaving the field out
cannot change the answer. A field without a row is unknown, and refused by name. The tables themselves are in
`fields_to_openai` and `fields_from_openai`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.protocol import is_absent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_llm.protocol import Json


class Fate(StrEnum):
    """What becomes of a field."""

    MAPPED = "mapped"
    REFUSED = "refused"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Field:
    """One row.

    Args:
        name: The field in the source API.
        fate: What becomes of it.
        to: For a mapped one: where it goes, dotted; more than one place when servers disagree on the name.
        why: For a refused or an ignored one: the reason, shown to the caller when refused.
        convert: For a mapped one: checks and converts the value; None when code beside the table maps this field
            together with others.
        neutral: For a refused one: values that ask for nothing, and are let through.
    """

    name: str
    fate: Fate
    to: tuple[str, ...] = ()
    why: str = ""
    convert: Callable[[Any, str], Any] | None = None
    neutral: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """All known fields of one kind of object, on the way to one API.

    Args:
        target: What it goes to, for error messages: ``an OpenAI server``.
        rows: By field name.
    """

    target: str
    rows: Mapping[str, Field]


def table(target: str, *rows: Field) -> Table:
    """Build a table."""
    return Table(target, {row.name: row for row in rows})


def mapped(name: str, *to: str, convert: Callable[[Any, str], Any]) -> Field:
    """A field that is carried over by itself."""
    return Field(name, Fate.MAPPED, to, convert=convert)


def together(name: str, *to: str) -> Field:
    """A field that is carried over together with others, by code beside the table."""
    return Field(name, Fate.MAPPED, to)


def refused(name: str, why: str, neutral: tuple[object, ...] = ()) -> Field:
    """A field that cannot be carried over, unless it has one of the `neutral` values."""
    return Field(name, Fate.REFUSED, why=why, neutral=neutral)


def ignored(name: str, why: str) -> Field:
    """A field whose absence does not change the answer."""
    return Field(name, Fate.IGNORED, why=why)


def translate(rules: Table, source: Mapping[str, Any], target: Json, at: str = "") -> None:
    """Carry the fields of `source` over into `target`.

    Null and empty lists and objects count as absent. `at` is put before the names in errors: ``options.``,
    ``messages[0].``.

    Raises:
        InvalidRequest: A field is unknown, refused or malformed.
    """
    for name, value in source.items():
        if is_absent(value):
            continue
        row = _row(rules, f"{at}{name}", name, value)
        if row.convert is not None:
            _put(target, row.to, row.convert(value, f"{at}{name}"))


def _row(rules: Table, param: str, name: str, value: object) -> Field:
    """The row for a field that may go on."""
    row = rules.rows.get(name)
    if row is None:
        raise InvalidRequest(f"unknown field {param!r}: it cannot be carried over to {rules.target}", param=param)
    if row.fate is Fate.REFUSED and value not in row.neutral:
        raise InvalidRequest(f"{param!r} cannot be carried over to {rules.target}: {row.why}", param=param)
    return row


def _put(target: Json, places: tuple[str, ...], value: object) -> None:
    if value is None:
        return
    for place in places:
        inner, key = target, place
        while "." in key:
            outer, key = key.split(".", 1)
            inner = inner.setdefault(outer, {})
        inner[key] = value
