"""Option models as people read them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo

_WORDS = {
    str: "text",
    SecretStr: "secret text",
    SecretBytes: "secret text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    NoneType: "null",
    Any: "anything",
}

_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


@dataclass(frozen=True, slots=True)
class OptionField:
    """One option.

    Args:
        name: Its key.
        takes: What it takes, in words: ``list of text``.
        limits: Of a number, in the words of JSON schema: ``minimum``, ``exclusiveMaximum``, ...
        required: Whether it must be given.
        default: As plain data; None when it is required.
        description: What it is for; empty if its author does not say.
        example: A value to show; None if its author gives none.
        models: The options models its value is made of.
    """

    name: str
    takes: str
    limits: Mapping[str, float]
    required: bool
    default: Any
    description: str
    example: Any
    models: tuple[type[BaseModel], ...]


def fields_of(model: type[BaseModel]) -> list[OptionField]:
    """The options in a model, in its order."""
    return [_field(name, field) for name, field in model.model_fields.items()]


def suggested(option: OptionField) -> Any:  # noqa: ANN401 - plain data
    """A value to begin with: the example, the default, or something to replace."""
    if option.example is not None or not option.required:
        return option.default if option.example is None else option.example
    inner = {
        field.name: suggested(field) for model in option.models[:1] for field in fields_of(model) if field.required
    }
    value = inner or "CHANGE-ME"
    return [value] if option.takes.startswith("list") else value


def _field(name: str, field: FieldInfo) -> OptionField:
    alias = field.validation_alias or field.alias
    default = None if field.is_required() else field.get_default(call_default_factory=False)
    if field.default_factory is not None:
        default = _made(field.default_factory)
    return OptionField(
        name=alias if isinstance(alias, str) else name,
        takes=_words(field.annotation),
        limits={
            word: getattr(it, name) for it in field.metadata for name, word in _LIMITS.items() if hasattr(it, name)
        },
        required=field.is_required(),
        default=to_jsonable_python(default, fallback=str, by_alias=True),
        description=" ".join((field.description or "").split()),
        example=to_jsonable_python(field.examples[0], fallback=str) if field.examples else None,
        models=tuple(dict.fromkeys(_models(field.annotation))),
    )


def _made(factory: Any) -> Any:  # noqa: ANN401 - any default
    """What a default's factory makes; None if it needs the other values."""
    try:
        return factory()
    except TypeError:
        return None


def _words(annotation: Any) -> str:  # noqa: ANN401 - annotations have no common type
    """What a value of this annotation looks like."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(args[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(arg) for arg in args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (list, tuple, set, frozenset):
        return f"list of {_words(args[0])}" if args else "list"
    if origin is not None:
        return "mapping"
    return _simple(annotation)


def _simple(annotation: Any) -> str:  # noqa: ANN401 - as above
    if not isinstance(annotation, type):
        return _WORDS.get(annotation, "value")
    if issubclass(annotation, Enum):
        return " or ".join(repr(member.value) for member in annotation)
    if issubclass(annotation, BaseModel | dict):
        return "mapping"
    if issubclass(annotation, list | tuple | set | frozenset):
        return "list"
    return next((word for kind, word in _WORDS.items() if annotation is kind), "text")


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - annotations have no common type
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models(arg)]
