"""What pydantic says about wrong values, in plain sentences that give no secret away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gleitzeit_core.config_reading import path_text
from gleitzeit_core.errors import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from gleitzeit_core.config_reading import ConfigPath

    _Place = Callable[[ConfigPath], str]

_M = TypeVar("_M", bound=BaseModel)
MASK: Final = "***"
_SECRET_WORDS: Final = frozenset({"authorization", "cookie", "key", "keys", "passwd", "password", "secret", "token"})
_MAX_SHOWN: Final = 60
_EITHER: Final = (Union, UnionType, Annotated, Literal)

_SENTENCES: Final = {
    "bool": "must be true or false",
    "extra_forbidden": "unknown key",
    "finite_number": "must be a finite number",
    "float": "must be a number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int": "must be a whole number",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "missing": "is missing",
    "path": "must be a path",
    "string_too_short": "needs {min_length} or more characters",
    "string_type": "must be text",
    "too_long": "may have {max_length} entries at most",
    "too_short": "needs {min_length} or more entries",
    "union_tag_invalid": "{discriminator} can be {expected_tags}",
    "union_tag_not_found": "needs {discriminator}",
    **dict.fromkeys(("assertion", "value"), "{error}"),
    **dict.fromkeys(("dict", "mapping", "model"), "must be a mapping"),
    **dict.fromkeys(("enum", "literal"), "must be {expected}"),
    **dict.fromkeys(("list", "set", "tuple"), "must be a list"),
}
"""By the type of pydantic's error, or by its first word."""
_SHOWN: Final = frozenset({"bool", "enum", "finite", "float", "greater", "int", "less", "literal"})
"""First words of the errors that may show the value; text in a field of any name might be secret."""


def is_secret(path: ConfigPath) -> bool:
    """Whether what stands there is secret, going by the keys: ``api_key``, ``X-Api-Key``, ``keys``, ...

    What is told about one of a list of ``keys``, such as its name, is not.
    """
    parts = [part for n, part in enumerate(path) if isinstance(part, str) and not _lists(path, n)]
    return not _SECRET_WORDS.isdisjoint(re.split(r"[-_]", part.lower())[-1] for part in parts)


def _lists(path: ConfigPath, place: int) -> bool:
    """Whether a list of mappings is there."""
    return len(path) > place + 2 and isinstance(path[place + 1], int) and isinstance(path[place + 2], str)


def secrets_in(value: object, path: ConfigPath = (), at_least: int = 4) -> Iterator[str]:
    """All secret texts; those of fewer than `at_least` characters are left out, as they occur by chance."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from secrets_in(item, (*path, str(key)), at_least)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from secrets_in(item, (*path, number), at_least)
    elif len(str(value)) >= at_least and not isinstance(value, bool) and is_secret(path):
        yield str(value)


def validated(
    model: type[_M], data: object, path: ConfigPath = (), place: _Place = lambda _: "", context: object = None
) -> tuple[_M | None, list[Problem]]:
    """`data` as a `model`, and one problem for each mistake; where there is any, there is no model.

    Args:
        model: What it should be.
        data: What stands at `path`.
        path: Where that is in the configuration.
        place: Where the data at a path comes from.
        context: For the model's own validators.
    """
    found, mistakes = None, []
    try:
        found = model.model_validate(data, context=context)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    # By place: each sentence with its suggestion.
    told = {here: {"must be a number, not true or false": ""} for here in _booleans(model, data)}
    items = [(item, here) for item in mistakes if (here := _real_path(item, data)) not in told]
    misspelt = [here for item, here in items if item["type"] == "extra_forbidden"]
    meant = {
        (*here[:-1], key) for here in misspelt for key in get_close_matches(str(here[-1]), keys_of(model, here[:-1]), 1)
    }
    for item, here in items:
        if item["type"] == "missing" and here in meant:
            continue  # a misspelt key is one mistake
        # Of a union, pydantic reports every branch: one of another shape altogether says nothing.
        if item["type"].endswith("_type") and any(h[: len(here)] == here != h for _, h in items):
            continue
        told.setdefault(here, {})[_sentence(item, (*path, *here))] = _suggestion(item, model, here)
    problems = [
        Problem(path_text(full), " or ".join(told[here]), next(iter(told[here].values())), place(full))
        for here, full in ((here, (*path, *here)) for here in told)
    ]
    return None if problems else found, problems


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to do about a key that nothing knows."""
    names = sorted(known)
    return nearest(key, names) or f"known: {', '.join(names) or 'none'}"


def keys_of(annotation: Any, path: ConfigPath = ()) -> set[str]:  # noqa: ANN401 - annotations have no common type
    """The keys that may stand at `path` below a value of this annotation."""
    return {str(key) for kind in _kinds(annotation, path) for key in _fields(kind)}


def _booleans(model: type[BaseModel], data: object, path: ConfigPath = ()) -> Iterator[ConfigPath]:
    """Where `data` has true or false and `model` a number, as which pydantic would take them."""
    kinds = list(_kinds(model, path))
    if kinds and isinstance(data, Mapping | list):
        for key, item in data.items() if isinstance(data, Mapping) else enumerate(data):
            yield from _booleans(model, item, (*path, key))
    elif isinstance(data, bool) and (int in kinds or float in kinds):
        yield from () if any(kind in kinds for kind in (bool, Any, object, data)) else (path,)


def _kinds(annotation: Any, path: ConfigPath) -> Iterator[Any]:  # noqa: ANN401 - annotations have no common type
    """Of what may stand at `path` below a value of this annotation: types, and what a literal allows."""
    origin, fields = get_origin(annotation), _fields(annotation)
    if path and path[0] in fields:
        yield from _kinds(fields[path[0]].annotation, path[1:])
    elif path or origin in _EITHER:
        for arg in get_args(annotation):
            yield from _kinds(arg, path if origin in _EITHER else path[1:])
    else:
        yield annotation


def _fields(kind: object) -> dict[str | int, FieldInfo]:
    """Of a model, by the keys under which they are given; none of anything else."""
    fields: dict[str, FieldInfo] = getattr(kind, "model_fields", {})
    return {str(field.validation_alias or name): field for name, field in fields.items()}


def _real_path(item: ErrorDetails, data: Any) -> ConfigPath:  # noqa: ANN401 - any data
    """Without what is pydantic's own, such as the name of a union's branch."""
    path: list[str | int] = []
    inside = True
    for part in item["loc"]:
        if isinstance(data, Mapping):
            inside = part in data
        else:
            inside = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside:
            data = data[part]
            path.append(part)
    # A key that is not there is named all the same; so is one that a model's own validator put there.
    named = not inside and item["type"] in ("missing", "extra_forbidden")
    return (*path, item["loc"][-1]) if named else tuple(path)


def _sentence(item: ErrorDetails, path: ConfigPath) -> str:
    kind, first = item["type"], item["type"].partition("_")[0]
    secret, form = is_secret(path), _SENTENCES.get(kind) or _SENTENCES.get(first)
    if secret and (form is None or (form == "{error}" and _quotes(item, path))):
        return "is not valid"  # these texts are the model's own
    if form is None or ("{" in form and "ctx" not in item):
        return item["msg"].replace("Input should", "should")
    text = form.format_map(item.get("ctx", {}))
    return f"{text}, not {_shown(item['input'], hide=secret or first not in _SHOWN)}" if "must" in form else text


def _quotes(item: ErrorDetails, path: ConfigPath) -> bool:
    """Whether a model's own text may have a secret in it, or a piece of one: four characters are taken for that."""
    text, secrets = str(item.get("ctx", {}).get("error")), secrets_in(item["input"], path, at_least=1)
    return any(secret[n : n + 4] in text for secret in secrets for n in range(max(1, len(secret) - 3)))


def _shown(value: object, *, hide: bool) -> str:
    """A value for a message: what kind it is, and itself if it is short and nothing forbids it."""
    if value is None:
        return "empty"
    for kinds, word in ((bool, "true or false"), (int | float, "a number"), (str, "text"), (list, "a list")):
        if isinstance(value, kinds):
            plain = not hide and kinds is not list and len(str(value)) <= _MAX_SHOWN and "@" not in str(value)
            return repr(value) if plain else word
    return "a mapping" if isinstance(value, Mapping) else type(value).__name__


def _suggestion(item: ErrorDetails, model: type[BaseModel], here: ConfigPath) -> str:
    if item["type"] == "extra_forbidden":
        return unknown_key(str(here[-1]), keys_of(model, here[:-1]))
    if item["type"] in ("literal_error", "enum") and isinstance(item["input"], str):
        return nearest(item["input"], re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected"))))
    if item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
        return "put it in quotes"
    return ""
