"""Options of the strategies. Without heavy imports: a configuration is checked before anything starts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Tag = Annotated[str, Field(min_length=1)]


def _as_list(given: object) -> object:
    return [given] if isinstance(given, str) else given


Tags = Annotated[list[Tag], BeforeValidator(_as_list)]
"""A list of tags; one alone may stand without brackets."""


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PowerOfTwoOptions(_Options):
    """Options of `power_of_two`."""

    choices: int = Field(
        default=2, ge=2, le=64, description="Free instances drawn for each request; the least loaded of them gets it."
    )


class EwmaOptions(_Options):
    """Options of `ewma`."""

    time_constant_s: float = Field(
        default=60.0,
        ge=1,
        le=86_400,
        description="Seconds after which an observation counts for a third (1/e); well above what a request takes.",
    )
    choices: int = Field(
        default=2, ge=2, le=64, description="Free instances drawn for each request; the best of them gets it."
    )


class AdaptiveOptions(_Options):
    """Options of `adaptive`."""

    time_constant_s: float = Field(
        default=300.0,
        ge=1,
        le=86_400,
        description="Seconds after which an observation counts for a third (1/e); well above what a request takes.",
    )
    choices: int = Field(
        default=16,
        ge=2,
        le=256,
        description="With more free instances than this, so many are drawn and the best of them gets the request.",
    )


Source = Literal["affinity", "user", "session", "tenant", "prompt"]


class ConsistentHashOptions(_Options):
    """Options of `consistent_hash`."""

    key: Annotated[list[Source], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        default=["affinity", "session", "user", "prompt"],
        description="Where the key comes from; the first that a request has counts. 'affinity' is what a caller names, "
        "'session' and 'user' are fields of it, 'tenant' is on whose behalf it comes, 'prompt' its beginning.",
    )
    bound: float = Field(
        default=1.25,
        gt=1,
        le=100,
        description="How much more than its share an instance may work on, as a factor, before its keys go to others.",
    )
    prompt_chars: int = Field(
        default=1024,
        ge=16,
        le=65_536,
        description="Characters of a prompt that count; of a chat, what comes up to the first message of the user.",
    )


class ModelAffinityOptions(_Options):
    """Options of `model_affinity`."""

    load_bytes_per_s: float = Field(
        default=1e9, gt=0, allow_inf_nan=False, description="How fast a model is loaded, until that has been measured."
    )
    load_s: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="How long a model of unknown size takes to load, until that has been measured.",
    )
    time_constant_s: float = Field(
        default=600.0,
        ge=1,
        le=86_400,
        description="Seconds after which an observation counts for a third (1/e); well above what a request takes.",
    )
    horizon_s: float = Field(
        default=60.0,
        ge=0,
        allow_inf_nan=False,
        description="A model wanted again within so many seconds is not put out of memory without counting its reload; "
        "0: the reload counts only for a model that is in use.",
    )


class PriorityOptions(_Options):
    """Options of `priority`."""

    tiers: list[Tags] = Field(
        min_length=1,
        description="The tiers in their order, each a tag or a list of tags that its instances have all of.",
        examples=[["local", ["cloud", "cheap"]]],
    )
    rest: bool = Field(
        default=True, description="Whether instances of no tier come last; if not, they are never used by this route."
    )
    spill: Literal["full", "down"] = Field(
        default="full",
        description="When the next tier is used: 'full' when this one has no room, 'down' only when none of it is up.",
    )


class LocalityOptions(_Options):
    """Options of `locality`."""

    tags: Annotated[list[Tag], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        description="What is near, nearest first, such as [rack-7, zone-a].", examples=[["zone-a"]]
    )
    enough: int = Field(
        default=1,
        ge=1,
        description="With fewer near instances up than this, those a step further away are used together with them.",
    )
    spill: Literal["full", "down"] = Field(
        default="full",
        description="When work goes further away: 'full' when nothing near has room, 'down' only when too few are up.",
    )
    strict: bool = Field(default=False, description="Whether instances with none of `tags` are never used.")


class TaggedOptions(_Options):
    """Options of `tagged`."""

    all: Tags = Field(default=[], description="Tags an instance must have all of.")
    any: Tags = Field(default=[], description="Tags an instance must have one of; empty for no such demand.")
    none: Tags = Field(default=[], description="Tags an instance must not have.")
    strict: bool = Field(
        default=True, description="Whether a request fails when no such instance is up; if not, any will do then."
    )

    @model_validator(mode="after")
    def _something(self) -> TaggedOptions:
        if not (self.all or self.any or self.none):
            raise ValueError("at least one of 'all', 'any' and 'none' is needed")
        return self
