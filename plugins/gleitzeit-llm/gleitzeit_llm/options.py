"""Options of the protocol `llm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterable

Name = Annotated[str, Field(min_length=1)]


class LLMOptions(BaseModel):
    """The section ``providers: {llm: ...}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connect_timeout_s: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="A server that has not accepted a connection after this many seconds is down.",
    )
    stall_timeout_s: float | None = Field(
        default=120.0,
        gt=0,
        allow_inf_nan=False,
        description="An answer that has begun, and of which nothing more has come for this many seconds, has failed; "
        "null: only its deadline ends it. Until it begins a model may be loaded for as long as it takes.",
    )
    aliases: dict[Name, Name] = Field(
        default_factory=dict,
        description="Other names for models, such as {gpt-4o: 'llama3.1:70b'}. An answer names the model itself.",
    )
    fallbacks: dict[Name, list[Name]] = Field(
        default_factory=dict,
        description="Models that chat and generate in place of one that no instance has which is up, best first. An "
        "answer names the model that gave it. Embeddings have none.",
    )

    @model_validator(mode="after")
    def _names_make_sense(self) -> Self:
        for names, what in ((self.aliases, "aliases"), (self.fallbacks, "fallbacks")):
            _no_name_twice(names, what)
        aliases = {canonical(name): target for name, target in self.aliases.items()}
        for alias, target in self.aliases.items():
            if canonical(target) in aliases:
                text = _loops(alias, aliases) or f"name the model itself, {aliases[canonical(target)]!r}"
                raise ValueError(f"aliases.{alias}: {target!r} is an alias too: {text}")
        for model, instead in self.fallbacks.items():
            _check_fallbacks(model, instead, aliases)
        return self


def canonical(name: str) -> str:
    """As `models.canonical`, which would load more than a check of options may."""
    return name.removesuffix(":latest")


def _no_name_twice(names: Iterable[str], what: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if canonical(name) in seen:
            raise ValueError(f"{what}: {seen[canonical(name)]!r} and {name!r} are one name")
        seen[canonical(name)] = name


def _loops(alias: str, aliases: dict[str, str]) -> str:
    """What to say of an alias that leads back to itself; empty for one that does not."""
    seen, name = [alias], aliases[canonical(alias)]
    while canonical(name) in aliases:
        if canonical(name) in map(canonical, seen):
            return f"{' -> '.join([*seen, name])} never ends"
        seen.append(name)
        name = aliases[canonical(name)]
    return ""


def _check_fallbacks(model: str, instead: list[str], aliases: dict[str, str]) -> None:
    if not instead:
        raise ValueError(f"fallbacks.{model}: name at least one model")
    seen = {canonical(model)}
    for name in (model, *instead):
        if canonical(name) in aliases:
            target = aliases[canonical(name)]
            raise ValueError(f"fallbacks.{model}: {name!r} is an alias: name the model itself, {target!r}")
    for name in instead:
        if canonical(name) in seen:
            raise ValueError(f"fallbacks.{model}: {name!r} stands there twice, or for itself")
        seen.add(canonical(name))
